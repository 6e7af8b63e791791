"""Token tables and rotary positions: the NumPy twins of csrc/kernels/embedding.c and rope.c."""

import numpy as np


def embedding_backward(dy, tokens, n_rows):
    """dtable (n_rows, C) of table[tokens]."""
    dtable = np.zeros((n_rows, dy.shape[-1]), dy.dtype)
    np.add.at(dtable, tokens.reshape(-1), dy.reshape(-1, dy.shape[-1]))
    return dtable


def rope(x, cosines, sines, start=0, back=False):
    """x (B, N, H, D) with numbers d and D/2 + d turned by the angle of row start + n."""
    N, half = x.shape[1], x.shape[3] // 2
    c, s = (t[start : start + N, None] for t in (cosines, -sines if back else sines))  # N, 1, D/2
    a, b = x[..., :half], x[..., half:]
    return np.concatenate([a * c - b * s, b * c + a * s], -1)
