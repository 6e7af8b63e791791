"""Layer and root-mean-square normalisation: the NumPy twins of csrc/kernels/layernorm.c and rmsnorm.c."""

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


def rms_norm(x, weight, eps):
    """(y, rstd): y = x rstd weight, rstd = 1 / sqrt(mean(x^2) + eps), over the last axis."""
    rstd = 1 / np.sqrt((x * x).mean(-1) + eps)
    return x * rstd[..., None] * weight, rstd


def rms_norm_backward(dy, x, rstd, weight):
    """(dx, dweight) of rms_norm."""
    xhat = x * rstd[..., None]
    g = dy * weight
    dx = rstd[..., None] * (g - xhat * (g * xhat).mean(-1, keepdims=True))
    return dx, (dy * xhat).sum(tuple(range(x.ndim - 1)))
