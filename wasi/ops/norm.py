"""Layer normalisation over the last axis, alone or after a residual sum, and root-mean-square normalisation.

Shapes: x (..., C), weight (C,), bias (C,), mean and rstd x.shape[:-1]; float32, C-contiguous. Parameter
gradients are added to the arrays given for them; activation gradients are returned. `out` may be an input of
the result's shape.
"""

from wasi import _core


def layer_norm(x, weight, bias, eps, out=None):
    """Layer normalisation over the last axis: y = (x - mean) rstd weight + bias, rstd = 1 / sqrt(var + eps).

    Parameters: x (..., C), weight (C,), bias (C,), eps >= 0, out (..., C) or None.
    Returns (y, mean, rstd); mean and rstd are what the backward pass needs beside x.
    Raises TypeError or ValueError naming the argument that does not fit.

    >>> import numpy as np
    >>> y, mean, rstd = layer_norm(np.float32([[1, 3]]), np.ones(2, np.float32), np.zeros(2, np.float32), 0.0)
    >>> y.tolist(), mean.tolist(), rstd.tolist()
    ([[-1.0, 1.0]], [2.0], [1.0])
    """
    return _core.layer_norm_forward(x, weight, bias, eps, out)


def add_layer_norm(x, r, weight, bias, eps, out_sum=None, out=None):
    """s = x + r and y = LN(s) in one pass over memory: returns (s, y, mean, rstd), the last two those of s.

    `out_sum` may be x or r; `out` may be either too, but not `out_sum`.
    """
    return _core.add_layer_norm_forward(x, r, weight, bias, eps, out_sum, out)


def layer_norm_apply(x, mean, rstd, weight, bias, out=None):
    """y of `layer_norm` again, bit for bit, from its input and the mean and rstd that it returned."""
    return _core.layer_norm_apply(x, mean, rstd, weight, bias, out)


def layer_norm_backward(dy, x, mean, rstd, weight, dweight=None, dbias=None, out=None, add_to=None):
    """Gradients of `layer_norm`: returns dx, plus `add_to` where that is given.

    `add_to` (..., C) is the gradient that reaches x along the residual path; `out` may be it, dy or x. Adds
    the sums over the rows of dy xhat to dweight and of dy to dbias, each where given; their bits depend on
    the thread count.
    """
    return _core.layer_norm_backward(dy, x, mean, rstd, weight, dweight, dbias, out, add_to)


def rms_norm(x, weight, eps, out=None):
    """Root-mean-square normalisation over the last axis: y = x rstd weight, rstd = 1 / sqrt(mean(x^2) + eps).

    Returns (y, rstd); parameters and errors as of `layer_norm`.

    >>> import numpy as np
    >>> y, rstd = rms_norm(np.float32([[1, 7]]), np.ones(2, np.float32), 0.0)
    >>> y.round(2).tolist(), rstd.round(2).tolist()
    ([[0.20000000298023224, 1.399999976158142]], [0.20000000298023224])
    """
    return _core.rms_norm_forward(x, weight, eps, out)


def rms_norm_apply(x, rstd, weight, out=None):
    """y of `rms_norm` again, bit for bit, from its input and the rstd that it returned."""
    return _core.rms_norm_apply(x, rstd, weight, out)


def rms_norm_backward(dy, x, rstd, weight, dweight=None, out=None, add_to=None):
    """Gradients of `rms_norm`, as of `layer_norm_backward`."""
    return _core.rms_norm_backward(dy, x, rstd, weight, dweight, out, add_to)
