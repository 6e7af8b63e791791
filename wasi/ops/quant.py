"""A frozen weight matrix in 4 or 8 bits, and its products with float32 activations in integers.

Q (O x I) is r[o] c[i] q[o, i] with q an int8 matrix that 4 bits a weight and one byte a group of them stand for,
so that integer products from both sides, x Q' and dy Q, use the very same weights. Activations are rounded to 8
bits, each token between its own least and largest value; sums are exact int32. csrc/kernels/quantize.h has the format.
"""

from dataclasses import dataclass

import numpy as np

from wasi import _core
from wasi.ops.convolution import fold, image_tiles, unfold


@dataclass(frozen=True, eq=False)
class QuantizedMatrix:
    """What `quantize_residual` returns: plain arrays, to be saved and restored as they are."""

    codes: np.ndarray  # (O, bytes of a row) uint8: 4 bits a weight (blocks of 32: 16 bytes), or 8
    s: np.ndarray | None  # (O, groups) uint8 below 128: a row of the fixed table of levels; None with 8 bits
    r: np.ndarray  # (O,) float32
    c: np.ndarray  # (I,) float32
    group: int  # consecutive weights of a row that share an s

    @property
    def bits(self):
        return 8 if self.s is None else 4

    @property
    def shape(self):
        """(O, I)."""
        return self.r.size, self.c.size

    @property
    def nbytes(self):
        """Bytes of all the arrays together."""
        return sum(a.nbytes for a in (self.codes, self.s, self.r, self.c) if a is not None)


def quantize_residual(W, bits=4, group=32):
    """Packs W (O, I) float32 into a `QuantizedMatrix`: 4 bits in groups of 32 are 0.53 bytes a weight.

    bits: 4 or 8. group: a positive multiple of 32, used with 4 bits. Each group takes the scale of least squared
    error among those that could be best, clipping its largest weights where that pays. r and c come on top: 4 bytes
    for each row and column.
    Raises ArithmeticError where W holds NaN or Inf, TypeError or ValueError naming what does not fit.

    >>> import numpy as np
    >>> W = np.random.default_rng(0).standard_normal((64, 96), np.float32)
    >>> Q = quantize_residual(W)
    >>> Q.shape, Q.bits, Q.nbytes
    ((64, 96), 4, 3904)
    >>> bool(np.linalg.norm(dequantize_residual(Q) - W) < 0.08 * np.linalg.norm(W))
    True
    """
    return QuantizedMatrix(*_core.quantize(W, bits, group), group)


def dequantize_residual(Q):
    """Q as a float32 array (O, I): the weights that `quant_linear` multiplies by, without further error."""
    return _core.dequantize(Q.codes, Q.s, Q.r, Q.c, Q.group)


def quant_linear(x, Q, b=None, out=None, add=False, exact=False, window=None):
    """Linear layer with a quantised weight, y = x Q' + b.

    Parameters: x (..., I), b (O,) or None, out (..., O) or None, float32; add: add to what `out` holds;
    exact: leave the activations in float32, slower (for gradient checks); window: of a convolution of x (B, H, W, C), or None.
    Returns y (..., O), which is `out` where that is given. A token with NaN or Inf gives a row of NaN.
    Raises TypeError or ValueError naming the argument that does not fit.

    >>> import numpy as np
    >>> Q = quantize_residual(np.eye(32, dtype=np.float32), bits=8)
    >>> bool(np.allclose(quant_linear(np.arange(32, dtype=np.float32), Q), np.arange(32), atol=31 / 255))
    True
    """
    if window is None:
        return _core.quant_forward(x, Q.codes, Q.s, Q.r, Q.c, Q.group, b, out, add, exact)
    if out is None:
        out = np.empty((len(x), *window.grid(*x.shape[1:3]), Q.r.size), np.float32)
    for part in image_tiles(x.shape, window):
        _core.quant_forward(unfold(x[part], window), Q.codes, Q.s, Q.r, Q.c, Q.group, b, out[part], add, exact)
    return out


def quant_linear_backward(dy, Q, out=None, add=False, exact=False, window=None, size=None):
    """Gradient of `quant_linear`: returns dx = dy Q (..., I), added to `out` with `add`. Q is frozen: no dQ.

    size: (H, W) of x, needed with a window.
    """
    if window is None:
        return _core.quant_backward(dy, Q.codes, Q.s, Q.r, Q.c, Q.group, out, add, exact)
    shape = (len(dy), *size, Q.c.size // window.taps)
    if out is None:
        out = np.empty(shape, np.float32)
    for part in image_tiles(shape, window):
        dp = _core.quant_backward(dy[part], Q.codes, Q.s, Q.r, Q.c, Q.group, None, False, exact)
        if add:
            out[part] += fold(dp, size, window)
        else:
            fold(dp, size, window, out[part])
    return out
