"""What a Swin transformer (arXiv 2103.14030) has besides: attention within shifted windows, and merging of patches.

Tokens lie as images, (B, H, W, C), from the patch embedding to the head, so every linear's input has four modes.
"""

import functools
import math

import numpy as np

from wasi import ops
from wasi.layers.flops import attention_flops
from wasi.layers.module import Module, Parameter
from wasi.layers.transformer import Attention


@functools.cache
def relative_positions(window):
    """(N * N,) int64, N = window * window: the row of the bias table for tokens i and j of a window, at i * N + j."""
    y, x = np.divmod(np.arange(window * window), window)
    table = (y[:, None] - y + window - 1) * (2 * window - 1) + x[:, None] - x + window - 1
    return np.ascontiguousarray(table.reshape(-1))


class WindowAttention(Attention):
    """Multi-head self-attention within windows of M x M tokens, with a trained bias for each head and relative position.

    qkv: linear C -> 3 C, proj: linear C -> C. shift: how far the windows are moved, around the border; tokens from opposite
    borders do not see each other. relative_position_bias_table: ((2 M - 1)^2, n_heads), row (dy + M - 1) (2 M - 1) + dx + M - 1
    for a query dy rows below and dx columns right of the key. x is (B, H, W, C) with H and W multiples of M.
    """

    def __init__(self, qkv, proj, n_heads, window, shift):
        super().__init__(qkv, proj, n_heads)
        self.relative_position_bias_table = Parameter(np.zeros(((2 * window - 1) ** 2, n_heads), np.float32), decay=False)
        self.window = window
        self.shift = shift

    def _bias(self):
        """(n_heads, N, N)."""
        rows = ops.embedding(relative_positions(self.window), self.relative_position_bias_table.data)
        return np.ascontiguousarray(rows.T).reshape(self.n_heads, self.window**2, self.window**2)

    def _attend(self, qkv):
        return ops.window_attention(qkv, self.n_heads, self.window, self.shift, bias=self._bias())

    def _attend_backward(self, do, qkv, o, lse):
        bias, dtable = self._bias(), self.relative_position_bias_table.grad_buffer()
        dbias = None if dtable is None else np.zeros_like(bias)
        dqkv = ops.window_attention_backward(do, qkv, o, lse, self.n_heads, self.window, self.shift, bias=bias, dbias=dbias)
        if dbias is not None:
            rows = np.ascontiguousarray(dbias.reshape(self.n_heads, -1).T)
            ops.embedding_backward(rows, relative_positions(self.window), dtable)
        return dqkv

    def score_flops(self, shape):
        """As of `Attention`, on an input of shape (B, H, W, C)."""
        N = self.window**2
        return attention_flops(math.prod(shape[:-1]) // N, N, shape[-1])


class PatchMerging(Module):
    """Neighbours 2 x 2 side by side, normalised and projected: (B, H, W, C) -> (B, H/2, W/2, O).

    norm: LayerNorm of 4 C channels; reduction: linear 4 C -> O.
    """

    def __init__(self, norm, reduction):
        self.norm = norm
        self.reduction = reduction

    def forward(self, x, train=False):
        """x (B, H, W, C) -> (B, H/2, W/2, O)."""
        x = ops.merge_patches(x)
        return self.reduction.forward(self.norm.forward(x, train), train, keep_input=False)

    def backward(self, dy):
        """dy (B, H/2, W/2, O) -> dx (B, H, W, C)."""
        d = self.reduction.backward(dy, self.norm.output_again() if self.reduction.needs_input else None)
        return ops.merge_patches_backward(self.norm.backward(d))
