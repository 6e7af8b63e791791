"""Multi-head softmax attention without a stored N x N matrix.

s = scale q k' + bias + mask, lse = log sum exp(s) along the keys, o = exp(s - lse) v. The backward pass
computes s again from q, k and lse, block by block. Shapes: B batch, N tokens, C = H D channels, H heads of
width D; float32.

Optional terms of the scores: `bias` (H, Nq, Nk) is shared by the batch, as is a relative position bias;
`mask` (n_masks, Nq, Nk) is shared by the heads: batch element b adds mask[b % n_masks], so n_masks divides B
(the windows of a Swin transformer); -Inf hides a key. `causal` hides from query i the keys j > i + q_offset.
A query that sees no key gets o = 0, lse = -Inf. The results' bits do not depend on the number of threads.

Windows of images (`window_attention`) are read and written where they lie: nothing is rolled, cut out or put together.

Source: FlashAttention-2 (arXiv 2307.08691), blocks and backward pass; windows: Swin transformer (arXiv 2103.14030).
"""

from wasi import _core


def attention(qkv, n_heads, scale=None, causal=False, bias=None, mask=None, out=None):
    """Self-attention of packed queries, keys and values.

    Parameters: qkv (B, N, 3C), the reshape of (B, N, 3, H, D), as timm's ViT has it; scale, by default
    1 / sqrt(D); bias (H, N, N); mask (n_masks, N, N); out (B, N, C). C-contiguous.
    Returns (o, lse): o (B, N, C), which is `out` where that is given, and lse (B, H, N), natural logarithm.
    Raises TypeError or ValueError naming the argument that does not fit.

    >>> import numpy as np
    >>> qkv = np.zeros((1, 2, 3), np.float32)
    >>> qkv[0, :, 2] = 1, 3
    >>> o, lse = attention(qkv, n_heads=1)
    >>> o.tolist(), np.exp(lse).round().tolist()
    ([[[2.0], [2.0]]], [[[2.0, 2.0]]])
    """
    return _core.attention_forward(qkv, n_heads, scale, causal, bias, mask, out)


def attention_backward(
    do, qkv, o, lse, n_heads, scale=None, causal=False, bias=None, mask=None, dbias=None, out=None
):
    """Gradient of `attention`: returns dqkv (B, N, 3C), which is `out` where that is given.

    do is the gradient of o; o and lse are what `attention` returned. The gradient of the bias, summed over
    the batch, is added to dbias (H, N, N) where that is given.
    """
    return _core.attention_backward(do, qkv, o, lse, n_heads, scale, causal, bias, mask, dbias, out)


def attention_gqa(q, k, v, scale=None, causal=False, q_offset=None, bias=None, mask=None, out=None):
    """Attention of separate queries to keys and values: grouped heads, cross-attention, key-value caches.

    Parameters: q (B, Nq, H, D); k, v (B, Nk, Hkv, D), H a multiple of Hkv: query head h reads key head
    h // (H // Hkv); q_offset, the position of the first query among the keys, by default Nk - Nq: the queries
    are the last tokens; bias (H, Nq, Nk); mask (n_masks, Nq, Nk); out (B, Nq, H, D). The last axis of q, k, v,
    out is contiguous, the other strides may be anything: parts of a fused projection
    (x.reshape(B, N, -1, D)[:, :, :H]) and the filled part of a cache (cache[:, :Nk]) are read in place.
    Returns (o, lse): o (B, Nq, H, D), which is `out` where that is given, and lse (B, H, Nq).
    Raises TypeError or ValueError naming the argument that does not fit.
    """
    return _core.attention_gqa_forward(q, k, v, scale, causal, q_offset, bias, mask, out)


def attention_gqa_backward(
    do, q, k, v, o, lse, scale=None, causal=False, q_offset=None, bias=None, mask=None, dbias=None, dq=None,
    dk=None, dv=None
):
    """Gradients of `attention_gqa`: returns (dq, dk, dv), written into the arrays given for them.

    Strides as in `attention_gqa`. The gradient of the bias, summed over the batch, is added to dbias
    (H, Nq, Nk) where that is given.
    """
    return _core.attention_gqa_backward(
        do, q, k, v, o, lse, scale, causal, q_offset, bias, mask, dbias, dq, dk, dv
    )


def window_attention(qkv, n_heads, window, shift=0, scale=None, bias=None, out=None):
    """Self-attention within windows of window x window tokens of images, moved by `shift` around the border.

    Parameters: qkv (B, H, W, 3C), window a divisor of H and W, shift 0 to window - 1; bias (n_heads, N, N) with
    N = window * window, token i * window + j at row i and column j of its window; scale and out (B, H, W, C) as in
    `attention`. A moved window that takes in tokens of opposite borders attends within each part alone.
    Returns (o, lse): o (B, H, W, C), which is `out` where that is given, and lse (B * H * W / N, n_heads, N), window by
    window. Raises TypeError or ValueError naming the argument that does not fit.
    """
    return _core.window_attention_forward(qkv, n_heads, window, shift, scale, bias, out)


def window_attention_backward(
    do, qkv, o, lse, n_heads, window, shift=0, scale=None, bias=None, dbias=None, out=None
):
    """Gradient of `window_attention`: returns dqkv (B, H, W, 3C), which is `out` where that is given.

    The gradient of the bias, summed over all windows, is added to dbias (n_heads, N, N) where that is given.
    """
    return _core.window_attention_backward(do, qkv, o, lse, n_heads, window, shift, scale, bias, dbias, out)
