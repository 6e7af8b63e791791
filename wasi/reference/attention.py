"""Attention with grouped heads and additive score terms: the NumPy twin of csrc/kernels/attention.c."""

import numpy as np


def unpack(qkv, n_heads):
    """q, k, v (B, N, H, D) of qkv (B, N, 3C), as views."""
    B, N, width = qkv.shape
    packed = qkv.reshape(B, N, 3, n_heads, width // 3 // n_heads)
    return packed[:, :, 0], packed[:, :, 1], packed[:, :, 2]


def attention_scores(q, k, scale=None, causal=False, q_offset=None, bias=None, mask=None):
    """(B, H, Nq, Nk): scale q k' + bias + mask, -Inf where causal and j > i + q_offset."""
    B, Nq, H, D = q.shape
    Nk, Hkv = k.shape[1:3]
    k = np.repeat(k, H // Hkv, axis=2)
    s = np.einsum("bihd,bjhd->bhij", q, k) * (1 / np.sqrt(D) if scale is None else scale)
    if bias is not None:
        s = s + bias
    if mask is not None:
        s = s + np.tile(mask, (B // mask.shape[0], 1, 1))[:, None]
    if causal:
        last = np.arange(Nq) + (Nk - Nq if q_offset is None else q_offset)
        s = np.where(np.arange(Nk) <= last[:, None], s, -np.inf)
    return s


def attention_forward(q, k, v, **terms):
    """(o, lse) of q (B, Nq, H, D), k and v (B, Nk, Hkv, D); a query that sees no key gives 0 and -Inf."""
    s = attention_scores(q, k, **terms)
    top = s.max(-1, keepdims=True)
    e = np.exp(s - np.where(np.isfinite(top), top, 0))
    total = e.sum(-1, keepdims=True)
    p = e / np.where(total == 0, 1, total)
    with np.errstate(divide="ignore"):
        lse = (top + np.log(total))[..., 0]
    return np.einsum("bhij,bjhd->bihd", p, np.repeat(v, q.shape[2] // v.shape[2], axis=2)), lse


def attention_backward(do, q, k, v, o, lse, scale=None, **terms):
    """(dq, dk, dv, dbias) of attention_forward."""
    B, Nk, Hkv, D = k.shape
    group = q.shape[2] // Hkv
    scale = 1 / np.sqrt(D) if scale is None else scale
    s = attention_scores(q, k, scale, **terms)
    p = np.exp(s - np.where(np.isfinite(lse), lse, np.inf)[..., None])
    delta = (do * o).sum(-1).transpose(0, 2, 1)[..., None]
    ds = p * (np.einsum("bihd,bjhd->bhij", do, np.repeat(v, group, axis=2)) - delta)

    def gather(weights, x):
        """Sums over the queries of all heads that share a key head."""
        return np.einsum("bhij,bihd->bjhd", weights, x).reshape(B, Nk, Hkv, group, D).sum(3)

    dq = scale * np.einsum("bhij,bjhd->bihd", ds, np.repeat(k, group, axis=2))
    return dq, scale * gather(ds, q), gather(p, do), ds.sum(0)


def windows_of(x, window, shift=0):
    """The windows (B n, window * window, C) of images x (B, H, W, C), rolled back by `shift`."""
    B, H, W, C = x.shape
    x = np.roll(x, (-shift, -shift), (1, 2)).reshape(B, H // window, window, W // window, window, C)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(-1, window * window, C)


def images_of(x, height, width, shift=0):
    """Images (B, height, width, C) of their windows: the way back from `windows_of`."""
    M = int(round(x.shape[1] ** 0.5))
    x = x.reshape(-1, height // M, width // M, M, M, x.shape[2]).transpose(0, 1, 3, 2, 4, 5)
    return np.roll(x.reshape(-1, height, width, x.shape[-1]), (shift, shift), (1, 2))


def seam_mask(height, width, window, shift):
    """(n, N, N): -Inf between tokens of a window that come from opposite borders of the image."""
    moved = [(np.arange(size) + shift >= size).astype(np.float64) for size in (height, width)]
    side = windows_of(2 * moved[0][None, :, None, None] + moved[1][None, None, :, None], window)[..., 0]
    return np.where(side[:, :, None] == side[:, None, :], 0.0, -np.inf)
