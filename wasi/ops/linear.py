"""Linear layers as functions of arrays: dense y = x W' + b and factored y = (x R') L' + b.

Shapes: x (..., I), W (O, I), L (O, K), R (K, I), b (O,), y (..., O); float32, C-contiguous. Parameter gradients
are added to the arrays given for them; activation gradients are returned. With a `Window` they are convolutions: x is
(B, H, W, C), and its patches, I = k k C, stand in the place of its rows.
"""

import numpy as np

from wasi import _core
from wasi.names import PRECISIONS
from wasi.ops.convolution import conv, conv_backward


def set_matmul_precision(precision):
    """Chooses how linear layers multiply, in every thread of the process: "float32" (default) or "bfloat16".

    With "bfloat16" the factors of a product are rounded to bfloat16 (8 significant bits) and its sums stay float32: twice as many
    products a second on processors with AVX512-BF16. Arrays, parameters and optimiser stay float32; attention, normalisation,
    the WSI step and products with fewer than 24 rows are not touched.

    Raises ValueError for another word, or where the processor has no such products; RuntimeError where they come out wrong.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision: expected one of {', '.join(PRECISIONS)}, got {precision!r}")
    before = _core.get_bfloat16_products()
    try:
        _core.set_bfloat16_products(precision == "bfloat16")
    except ValueError as error:
        raise ValueError(f"precision: {error}; use 'float32'") from None
    if precision == "bfloat16" and not _products_agree():
        _core.set_bfloat16_products(before)
        raise RuntimeError("precision: bfloat16 products of this processor differ from float32 by more than rounding")


def get_matmul_precision():
    """How linear layers multiply: "float32" or "bfloat16"."""
    return PRECISIONS[_core.get_bfloat16_products()]


def _products_agree():
    """Whether products now equal NumPy's in float64 on numbers that bfloat16 holds exactly, all layouts and ragged ends."""
    rng = np.random.default_rng(0)
    x, W, dy = (rng.integers(-8, 9, shape).astype(np.float32) for shape in ((75, 71), (59, 71), (75, 59)))
    dW = np.zeros_like(W)
    got = (_core.linear_forward(x, W), _core.linear_backward(dy, x, W, dW), dW)
    return all(np.array_equal(g, want) for g, want in zip(got, (x @ W.T, dy @ W, dy.T @ x)))


def linear(x, W, b=None, out=None, window=None):
    """Dense linear layer, y = x W' + b.

    Parameters: x (..., I), W (O, I), b (O,) or None, out (..., O) or None, all float32; window: of a convolution, or None.
    Returns y (..., O), which is `out` where that is given.
    Raises TypeError or ValueError naming the argument that does not fit.

    >>> import numpy as np
    >>> linear(np.ones((2, 3), np.float32), np.ones((4, 3), np.float32)).tolist()
    [[3.0, 3.0, 3.0, 3.0], [3.0, 3.0, 3.0, 3.0]]
    """
    return _core.linear_forward(x, W, b, out) if window is None else conv(x, W, window, b, out)


def linear_backward(dy, x, W, dW=None, db=None, need_dx=True, out=None, window=None, size=None):
    """Gradients of `linear`: returns dx = dy W (None unless need_dx), adds dy' x to dW and the row sums of dy to db.

    x may be None where dW is None; with a window, size (H, W) of x is then needed.
    """
    if window is not None:
        return conv_backward(dy, x, W, window, dW, db, need_dx, out, size)
    return _core.linear_backward(dy, x, W, dW, db, need_dx, out)


def factored_linear(x, L, R, b=None, out=None, window=None):
    """Factored linear layer: returns (y, z) with z = x R' (..., K) and y = z L' + b. No O x I array is formed.

    Source: WASI (arXiv 2510.09160), section 3.2.
    """
    if window is not None:
        z = conv(x, R, window)
        return _core.linear_forward(z, L, b, out), z
    return _core.factored_forward(x, L, R, b, out)


def factored_linear_backward(dy, x, z, L, R, dL=None, dR=None, db=None, need_dx=True, out=None, window=None, size=None):
    """Gradients of `factored_linear`: returns (dx, gl) with gl = dy L (..., K) and dx = gl R (None unless need_dx).

    Adds dy' z to dL, gl' x to dR and the row sums of dy to db, each where given. x may be None where dR is,
    z may be None where dL is; with a window, size (H, W) of x is needed where x is None.
    """
    if window is not None:
        gl = _core.linear_backward(dy, z, L, dL, db, True, None)
        return conv_backward(gl, x, R, window, dR, None, need_dx, out, size), gl
    return _core.factored_backward(dy, x, z, L, R, dL, dR, db, need_dx, out)
