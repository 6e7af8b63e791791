"""Dense and factored linear layers: the NumPy twin of csrc/kernels/linear.c."""


def linear_forward(x, W, b=None):
    """y = x W' + b."""
    y = x @ W.T
    return y if b is None else y + b


def linear_backward(dy, x, W):
    """(dx, dW, db) of linear_forward."""
    dy_rows, x_rows = dy.reshape(-1, dy.shape[-1]), x.reshape(-1, x.shape[-1])
    return dy @ W, dy_rows.T @ x_rows, dy_rows.sum(0)


def factored_forward(x, L, R, b=None):
    """(y, z): z = x R', y = z L' + b."""
    z = x @ R.T
    return linear_forward(z, L, b), z


def factored_backward(dy, x, z, L, R):
    """(dx, dL, dR, db) of factored_forward."""
    gl, dL, db = linear_backward(dy, z, L)
    dx, dR, _ = linear_backward(gl, x, R)
    return dx, dL, dR, db
