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
