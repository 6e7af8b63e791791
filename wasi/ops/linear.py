"""Linear layers as functions of arrays: dense y = x W' + b and factored y = (x R') L' + b.

Shapes: x (..., I), W (O, I), L (O, K), R (K, I), b (O,), y (..., O); float32, C-contiguous. Parameter gradients
are added to the arrays given for them; activation gradients are returned.
"""

from wasi import _core


def linear(x, W, b=None, out=None):
    """Dense linear layer, y = x W' + b.

    Parameters: x (..., I), W (O, I), b (O,) or None, out (..., O) or None, all float32.
    Returns y (..., O), which is `out` where that is given.
    Raises TypeError or ValueError naming the argument that does not fit.

    >>> import numpy as np
    >>> linear(np.ones((2, 3), np.float32), np.ones((4, 3), np.float32)).tolist()
    [[3.0, 3.0, 3.0, 3.0], [3.0, 3.0, 3.0, 3.0]]
    """
    return _core.linear_forward(x, W, b, out)


def linear_backward(dy, x, W, dW=None, db=None, need_dx=True, out=None):
    """Gradients of `linear`: returns dx = dy W (None unless need_dx), adds dy' x to dW and the row sums of dy to db.

    x may be None where dW is None.
    """
    return _core.linear_backward(dy, x, W, dW, db, need_dx, out)


def factored_linear(x, L, R, b=None, out=None):
    """Factored linear layer: returns (y, z) with z = x R' (..., K) and y = z L' + b. No O x I array is formed.

    Source: WASI (arXiv 2510.09160), section 3.2.
    """
    return _core.factored_forward(x, L, R, b, out)


def factored_linear_backward(dy, x, z, L, R, dL=None, dR=None, db=None, need_dx=True, out=None):
    """Gradients of `factored_linear`: returns (dx, gl) with gl = dy L (..., K) and dx = gl R (None unless need_dx).

    Adds dy' z to dL, gl' x to dR and the row sums of dy to db, each where given. x may be None where dR is,
    z may be None where dL is.
    """
    return _core.factored_backward(dy, x, z, L, R, dL, dR, db, need_dx, out)
