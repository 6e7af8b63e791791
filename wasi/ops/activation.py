"""Activation functions, elementwise: exact GELU, with a backward pass from h or from few bits, SiLU and SwiGLU.

Arrays are float32 and C-contiguous. `out` may be an input of the result's shape: a layer can work in place.
"""

from wasi import _core


def gelu(h, out=None):
    """GELU, g = h Phi(h), Phi the standard normal distribution function; to within 1e-6 max(1, |h|).

    Parameters: h of any shape, out of h's shape (h itself for in place) or None. Returns g.
    Raises TypeError or ValueError naming the argument that does not fit.

    >>> import numpy as np
    >>> gelu(np.float32([-1, 0, 1])).round(4).tolist()
    [-0.15870000422000885, 0.0, 0.8413000106811523]
    """
    return _core.gelu_forward(h, out)


def bias_gelu(h, b, out=None):
    """A bias and GELU in one pass: returns gelu(h + b); h (..., C) becomes h + b, for the backward pass.

    Where `out` is h, only the result remains.
    """
    return _core.bias_gelu_forward(h, b, out)


def gelu_backward(dy, h, out=None):
    """Gradient of `gelu`: dh = dy (Phi(h) + h phi(h)). `out` may be dy or h."""
    return _core.gelu_backward(dy, h, out)


def gelu_encode(h, bits=4, b=None, out=None):
    """GELU that keeps only `bits` bits a number for the backward pass, in place of h.

    Parameters: h (..., C); bits 2 or 4; b (C,), added to h first, or None; out of h's shape (h itself for in
    place) or None.
    Returns (g, codes): g = gelu(h + b) and which of 2^bits levels is nearest to each derivative, packed in
    uint8 (bits / 8 bytes a number, rounded up to 64 bytes). The levels minimise the mean squared error for
    standard normal h; its root is 0.089 for 2 bits and 0.021 for 4.
    Source: Few-Bit Backward (arXiv 2202.00441), section 3, with pieces that are intervals of the derivative.
    """
    return _core.gelu_encode(h, bits, b, out)


def gelu_decode_backward(dy, codes, bits, out=None):
    """Gradient of `gelu_encode`: dh = dy times the level that each code names. `out` may be dy."""
    return _core.gelu_decode_backward(dy, codes, bits, out)


def silu(h, out=None):
    """SiLU, g = h / (1 + exp(-h)). Parameters and result as of `gelu`."""
    return _core.silu_forward(h, out)


def silu_backward(dy, h, out=None):
    """Gradient of `silu`: dh = dy s (1 + h (1 - s)) with s = 1 / (1 + exp(-h)). `out` may be dy or h."""
    return _core.silu_backward(dy, h, out)


def swiglu(a, b, out=None):
    """The gate of SwiGLU in one pass: g = silu(a) b. `out` may be a or b.

    >>> import numpy as np
    >>> swiglu(np.float32([0, 30]), np.float32([5, 2])).tolist()
    [0.0, 60.0]
    """
    return _core.swiglu_forward(a, b, out)


def swiglu_backward(dy, a, b, out_a=None, out_b=None):
    """Gradients of `swiglu`: returns (da, db). `out_a` and `out_b` may each be dy, a or b, but not the same array."""
    return _core.swiglu_backward(dy, a, b, out_a, out_b)
