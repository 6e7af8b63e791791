"""Optimiser updates and reductions over float32 arrays of any shape, taken as flat blocks."""

from wasi import _core


def sgd_update(param, grad, buffer, lr, momentum=0.0, weight_decay=0.0, nesterov=False, grad_scale=1.0):
    """One SGD step on `param`, in place, as PyTorch's SGD does it: g = grad_scale grad + weight_decay param.

    buffer: the momentum buffer (zeros at first), changed in place, or None for plain SGD.
    """
    _core.sgd_update(param, grad, buffer, lr, momentum, weight_decay, nesterov, grad_scale)


def adamw_update(param, grad, m, v, lr, beta1, beta2, eps, weight_decay, step, grad_scale=1.0):
    """One AdamW step on `param`, in place, as PyTorch's AdamW does it, on g = grad_scale grad.

    m, v: the moments (zeros at first), changed in place; step counts from 1.
    """
    _core.adamw_update(param, grad, m, v, lr, beta1, beta2, eps, weight_decay, step, grad_scale)


def sum_of_squares(x):
    """Sum of the squares of a float32 array, in float64; the same for every thread count.

    >>> import numpy as np
    >>> sum_of_squares(np.float32([3, 4]))
    25.0
    """
    return _core.sum_of_squares(x)


def all_finite(x):
    """Whether a float32 array holds neither NaN nor Inf."""
    return _core.all_finite(x)


def add(x, y, out=None):
    """x + y for float32 arrays of one shape; `out` may be x or y."""
    return _core.add(x, y, out)


def scale_(x, a):
    """x *= a, in place, for a float32 array x and a number a."""
    _core.scale_(x, a)


def axpy_(y, a, x):
    """y += a x, in place, for float32 arrays of one shape and a number a; x may be y."""
    _core.axpy_(y, a, x)
