"""Convolution, pooling and batch normalisation, channels last: the NumPy twins of csrc/kernels/conv.c, pool.c and batchnorm.c."""

import numpy as np


def _taps(x, k, s, pad, fill=0.0):
    """(B, Ho, Wo, k, k, C): the pixels of every window."""
    x = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)), constant_values=fill)
    windows = np.lib.stride_tricks.sliding_window_view(x, (k, k), axis=(1, 2))[:, ::s, ::s]
    return windows.transpose(0, 1, 2, 4, 5, 3)


def unfold(x, k, s, pad):
    """(B, H, W, C) -> (B, Ho, Wo, k k C)."""
    taps = _taps(x, k, s, pad)
    return taps.reshape(*taps.shape[:3], -1)


def fold(dp, height, width, k, s, pad):
    """The transpose of `unfold`."""
    B, Ho, Wo, I = dp.shape
    taps = dp.reshape(B, Ho, Wo, k, k, I // k**2)
    dx = np.zeros((B, height + 2 * pad, width + 2 * pad, I // k**2), dp.dtype)
    for u in range(k):
        for v in range(k):
            dx[:, u : u + s * Ho : s, v : v + s * Wo : s][:, :Ho, :Wo] += taps[:, :, :, u, v]
    return dx[:, pad : pad + height, pad : pad + width]


def conv_forward(x, W, k, s, pad, b=None):
    """y = p W' + b for the patches p of x."""
    y = unfold(x, k, s, pad) @ W.T
    return y if b is None else y + b


def conv_backward(dy, x, W, k, s, pad):
    """(dx, dW, db) of conv_forward."""
    p = unfold(x, k, s, pad)
    dW = np.tensordot(dy, p, ((0, 1, 2), (0, 1, 2)))
    return fold(dy @ W, *x.shape[1:3], k, s, pad), dW, dy.sum((0, 1, 2))


def max_pool_forward(x, k, s, pad):
    """(y, tap): the largest number of each window, and which it is, the first of equal ones."""
    taps = _taps(x, k, s, pad, -np.inf)
    taps = taps.reshape(*taps.shape[:3], k * k, -1)
    tap = taps.argmax(3)
    return np.take_along_axis(taps, tap[:, :, :, None], 3)[:, :, :, 0], tap


def max_pool_backward(dy, tap, height, width, k, s, pad):
    """dx of max_pool_forward."""
    taps = np.where(tap[:, :, :, None] == np.arange(k * k)[:, None], dy[:, :, :, None], 0.0)
    return fold(taps.reshape(*dy.shape[:3], -1), height, width, k, s, pad)


def batch_norm_statistics(x):
    """(mean, var) of each channel."""
    rows = x.reshape(-1, x.shape[-1])
    return rows.mean(0), rows.var(0)


def batch_norm_forward(x, mean, rstd, w, b, r=0.0, relu=False):
    """relu((x - mean) rstd w + b + r)."""
    y = (x - mean) * rstd * w + b + r
    return np.maximum(y, 0) if relu else y


def batch_norm_backward(dy, x, mean, rstd, w, b, relu=False, of_batch=True):
    """(dx, dw, db) of batch_norm_forward without r."""
    axes = tuple(range(x.ndim - 1))
    xhat = (x - mean) * rstd
    g = np.where(xhat * w + b > 0, dy, 0) if relu else dy
    db, dw = g.sum(axes), (g * xhat).sum(axes)
    n = x.size / x.shape[-1]
    return w * rstd * (g - db / n - xhat * dw / n if of_batch else g), dw, db
