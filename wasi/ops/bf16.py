"""bfloat16 as storage: uint16 arrays of the upper halves of float32 numbers, rounded to nearest even."""

from wasi import _core


def bf16_round(x, out=None):
    """float32 x as bfloat16 bits, uint16 of x's shape; the relative error is at most 2^-8. NaN and Inf stay what they are.

    >>> import numpy as np
    >>> [hex(bits) for bits in bf16_round(np.float32([1, -2, 1 + 2**-8]))]
    ['0x3f80', '0xc000', '0x3f80']
    """
    return _core.bf16_round(x, out)


def bf16_expand(x, out=None):
    """bfloat16 bits x (uint16) as float32, exactly."""
    return _core.bf16_expand(x, out)


def bf16_add_(sum, x):
    """sum += x, in place: sum holds bfloat16 bits, x is float32 of the same shape; one rounding."""
    _core.bf16_add_(sum, x)


def bf16_linear(x, W, out=None):
    """y = x W' with W (O, I) as bfloat16 bits, which may lie in a mapped file: no float32 copy of it is made.

    x (..., I) float32 -> y (..., O) float32, which is `out` where that is given. The sums are those of float32 products.
    Raises TypeError or ValueError naming the argument that does not fit.
    """
    return _core.bf16_linear_forward(x, W, out)


def bf16_linear_backward(dy, W, out=None):
    """Gradient of `bf16_linear`: dx = dy W (..., I). W is frozen: no dW."""
    return _core.bf16_linear_backward(dy, W, out)
