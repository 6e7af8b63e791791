"""Convolutions of images that lie channels last, (B, H, W, C), as linear maps of their patches; pooling; batch normalisation.

A `Window` says which pixels a patch has. Its p = k k C numbers are in the order (row, column, channel), so a weight is a matrix
(O, k k C); the matrix of all patches is never formed. `linear`, `factored_linear` and `quant_linear` take a Window as well.
float32, C-contiguous; parameter gradients are added to the arrays given for them, activation gradients are returned.
"""

from typing import NamedTuple

from wasi import _core

TILE_BYTES = 4 * 2**20  # of patches that are formed at once where a kernel takes them as a matrix


class Window(NamedTuple):
    """k x k pixels, `stride` apart from the next window's, over an image with a border of `padding` zeros."""

    kernel: int
    stride: int = 1
    padding: int = 0

    def grid(self, height, width):
        """(Ho, Wo): windows down and across an image.

        >>> Window(7, 2, 3).grid(224, 224)
        (112, 112)
        """
        return tuple((size + 2 * self.padding - self.kernel) // self.stride + 1 for size in (height, width))

    @property
    def taps(self):
        """Pixels of a window."""
        return self.kernel**2


def conv(x, W, window, b=None, out=None):
    """y = p W' + b for the patches p of x.

    Parameters: x (B, H, W, C), W (O, k k C), b (O,) or None, out (B, Ho, Wo, O) or None.
    Raises TypeError or ValueError naming the argument that does not fit.

    >>> import numpy as np
    >>> y = conv(np.ones((1, 4, 4, 2), np.float32), np.ones((3, 18), np.float32), Window(3, 1, 1))
    >>> y.shape, y[0, 0, :, 0].tolist()
    ((1, 4, 4, 3), [8.0, 12.0, 12.0, 8.0])
    """
    return _core.conv_forward(x, W, *window, b, out)


def conv_backward(dy, x, W, window, dW=None, db=None, need_dx=True, out=None, size=None):
    """Gradients of `conv`: returns dx (None unless need_dx), adds dy' p to dW and the row sums of dy to db.

    x may be None where dW is; size (H, W) is then needed.
    """
    return _core.conv_backward(dy, x, W, *(size if x is None else x.shape[1:3]), *window, dW, db, need_dx, out)


def unfold(x, window):
    """All patches: x (B, H, W, C) -> (B, Ho, Wo, k k C).

    >>> import numpy as np
    >>> unfold(np.arange(4, dtype=np.float32).reshape(1, 2, 2, 1), Window(2)).ravel().tolist()
    [0.0, 1.0, 2.0, 3.0]
    """
    return _core.conv_unfold(x, *window)


def fold(dp, size, window, out=None):
    """The transpose of `unfold`: dp (B, Ho, Wo, k k C) -> (B, H, W, C), for size (H, W)."""
    return _core.conv_fold(dp, *size, *window, out)


def image_tiles(shape, window):
    """Slices of images of that shape (B, H, W, C) whose patches take about TILE_BYTES, at least one image each."""
    B, *size, C = shape
    Ho, Wo = window.grid(*size)
    n = max(1, TILE_BYTES // (4 * max(1, Ho * Wo * window.taps * C)))
    return [slice(i, min(i + n, B)) for i in range(0, B, n)]


def max_pool(x, window):
    """(y, tap): the largest number of each window and channel, and which pixel it is (uint8), the first of equal ones.

    >>> import numpy as np
    >>> y, tap = max_pool(np.float32([[[[1], [5]], [[7], [7]]]]), Window(2))
    >>> y.item(), tap.item()
    (7.0, 2)
    """
    return _core.max_pool_forward(x, *window)


def max_pool_backward(dy, tap, size, window):
    """Gradient of `max_pool` for images of that size (H, W)."""
    return _core.max_pool_backward(dy, tap, *size, *window)


def batch_norm_statistics(x):
    """Mean and variance (mean square deviation) of each channel of x (..., C).

    >>> import numpy as np
    >>> mean, var = batch_norm_statistics(np.float32([[1], [3]]))
    >>> mean.item(), var.item()
    (2.0, 1.0)
    """
    return _core.batch_norm_statistics(x)


def batch_norm(x, mean, rstd, weight, bias, r=None, relu=False, need_mask=False, out=None):
    """y = relu((x - mean) rstd weight + bias + r), r (..., C) and the relu where wanted.

    Returns (y, mask); mask, for `mask_gradient`, has a bit for each number of y above 0, or is None unless need_mask.
    `out` may be x or r.

    >>> import numpy as np
    >>> one, zero = np.ones(1, np.float32), np.zeros(1, np.float32)
    >>> y, mask = batch_norm(np.float32([[-1], [3]]), one, one, one, zero, relu=True, need_mask=True)
    >>> y.ravel().tolist(), mask.tolist()
    ([0.0, 2.0], [2])
    """
    return _core.batch_norm_forward(x, mean, rstd, weight, bias, r, relu, need_mask, out)


def batch_norm_backward(dy, x, mean, rstd, weight, bias, dweight=None, dbias=None, relu=False, of_batch=True, out=None):
    """Gradient of `batch_norm` without r: returns dx, adds to dweight and dbias where given.

    relu: as in the forward pass. of_batch: mean and rstd are those of x, and change with it. `out` may be dy.
    """
    return _core.batch_norm_backward(dy, x, mean, rstd, weight, bias, dweight, dbias, relu, of_batch, out)


def mask_gradient(dy, mask, out=None):
    """dy where the mask of `batch_norm` has a bit, else 0. `out` may be dy.

    >>> import numpy as np
    >>> mask_gradient(np.float32([5, 6]), np.uint8([2])).tolist()
    [0.0, 6.0]
    """
    return _core.mask_gradient(dy, mask, out)
