"""Layer normalisation: the NumPy twin of csrc/kernels/layernorm.c."""

import numpy as np


def layer_norm(x, weight, bias, eps):
    """(y, mean, rstd): y = (x - mean) rstd weight + bias, rstd = 1 / sqrt(var + eps), over the last axis."""
    mean = x.mean(-1)
    rstd = 1 / np.sqrt(x.var(-1) + eps)
    return layer_norm_apply(x, mean, rstd, weight, bias), mean, rstd


def layer_norm_apply(x, mean, rstd, weight, bias):
    """y of layer_norm from its input and statistics."""
    return (x - mean[..., None]) * rstd[..., None] * weight + bias


def layer_norm_backward(dy, x, mean, rstd, weight):
    """(dx, dweight, dbias) of layer_norm."""
    xhat = (x - mean[..., None]) * rstd[..., None]
    g = dy * weight
    dx = rstd[..., None] * (g - g.mean(-1, keepdims=True) - xhat * (g * xhat).mean(-1, keepdims=True))
    rows = tuple(range(x.ndim - 1))
    return dx, (dy * xhat).sum(rows), dy.sum(rows)
