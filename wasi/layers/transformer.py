"""The parts of a pre-norm transformer block, smallest first: attention, MLP, block.

B batch, N tokens, C channels, H heads. In units of one B x N x C array a block keeps, by default: its input 1, qkv 3, attention's
output 1, the second norm's input 1, the MLP's pre-activation 4 (for an MLP of four times the width). The inputs of qkv, fc1 and
fc2 are recomputed from these. `ActivationPolicy` names what else can be traded.
"""

from dataclasses import dataclass

import numpy as np

from wasi import ops
from wasi.layers.flops import Flops, attention_flops
from wasi.layers.module import Module

TILE_ROWS = 512  # fewer, and products with wide factors lose more by packing them again than caches give


@dataclass(frozen=True)
class ActivationPolicy:
    """What a block keeps for backward. The default keeps gradients exact."""

    recompute: bool = False  # keep a block's input alone and run its forward again in backward: exact, one forward more
    gelu_bits: int | None = None  # 2 or 4: keep so many bits of GELU's derivative instead of its input (None: exact). Saves
    #                               memory where fc2's input is compressed; otherwise that is kept, and nothing is saved
    saved_bits: int | None = None  # 16 or 8: keep what blocks keep as bfloat16, or in 8 bits between each token's least and
    #                                largest value, and expand it in backward (None: float32, exact)

    def __post_init__(self):
        if self.gelu_bits not in (None, 2, 4):
            raise ValueError(f"gelu_bits: expected None, 2 or 4, got {self.gelu_bits}")
        if self.saved_bits not in (None, 8, 16):
            raise ValueError(f"saved_bits: expected None, 8 or 16, got {self.saved_bits}")


class _Packed(tuple):
    """An array kept in fewer bits: (bfloat16 bits,) or (codes, scale, offset)."""


def pack_saved(saved, tokens, bits):
    """What a module kept, its float32 arrays with a row for each of `tokens` (B, N) in so many bits; None: as they are."""
    def pack(item):
        if not isinstance(item, np.ndarray) or item.dtype != np.float32 or item.shape[:-1] != tokens:
            return item
        return _Packed((ops.bf16_round(item),)) if bits == 16 else _Packed(ops.store_rows(item))

    return tuple(map(pack, saved)) if saved and bits else saved


def unpack_saved(saved):
    def unpack(item):
        if not isinstance(item, _Packed):
            return item
        return ops.bf16_expand(*item) if len(item) == 1 else ops.restore_rows(*item)

    return saved and tuple(map(unpack, saved))


class Attention(Module):
    """Multi-head self-attention over packed projections.

    qkv: linear C -> 3 C, proj: linear C -> C.
    """

    def __init__(self, qkv, proj, n_heads):
        self.qkv = qkv
        self.proj = proj
        self.n_heads = n_heads

    def forward(self, x, train=False):
        """x (B, N, C) -> (B, N, C). x itself is not kept: backward is given it again."""
        qkv = self.qkv.forward(x, train, keep_input=False)
        del x
        o, lse = self._attend(qkv)
        if train:
            self._saved = (qkv, o, lse)
        del qkv, lse
        return self.proj.forward(o, train, keep_input=False)

    def backward(self, dy, input_again):
        """dy (B, N, C) -> dx; input_again() gives forward's x."""
        qkv, o, lse = self._take_saved()
        do = self.proj.backward(dy, o if self.proj.needs_input else None)
        dqkv = self._attend_backward(do, qkv, o, lse)
        del do, qkv, o, lse
        return self.qkv.backward(dqkv, input_again() if self.qkv.needs_input else None)

    def _attend(self, qkv):
        return ops.attention(qkv, self.n_heads)

    def _attend_backward(self, do, qkv, o, lse):
        return ops.attention_backward(do, qkv, o, lse, self.n_heads)

    def score_flops(self, shape):
        """The Flops of scores and weighted sums on an input of that shape (B, N, C)."""
        return attention_flops(*shape)


class Mlp(Module):
    """Two linears with a GELU between them: fc1 C -> hidden, fc2 hidden -> C."""

    def __init__(self, fc1, fc2):
        self.fc1 = fc1
        self.fc2 = fc2

    def forward(self, x, train=False, need_output=True, gelu_bits=None):
        """x (B, N, C) -> (B, N, C), or None unless need_output. x itself is not kept: backward is given it again."""
        if not train:
            return self._forward_in_tiles(x)
        h = self.fc1.forward(x, train, keep_input=False)
        del x
        if not need_output:
            self._saved = (h, None)
            return self.fc2.prepare()
        if gelu_bits:
            g, codes = ops.gelu_encode(h, gelu_bits, out=h)
            self._saved = (codes, gelu_bits)
            return self.fc2.forward(g, train)
        self._saved = (h, None)
        return self.fc2.forward(ops.gelu(h), train, keep_input=False)

    def _forward_in_tiles(self, x):
        """Without backward to come, the hidden activations exist for TILE_ROWS tokens at a time, and stay in cache."""
        rows = x.reshape(-1, x.shape[-1])
        y = np.empty_like(rows)
        for start in range(0, len(rows), TILE_ROWS):
            tile = slice(start, start + TILE_ROWS)
            h = self.fc1.forward(rows[tile])
            y[tile] = self.fc2.forward(ops.gelu(h, out=h))
        return y.reshape(x.shape)

    def backward(self, dy, input_again):
        """dy (B, N, C) -> dx; input_again() gives forward's x."""
        h, gelu_bits = self._take_saved()
        if gelu_bits:
            dg = self.fc2.backward(dy)
            dh = ops.gelu_decode_backward(dg, h, gelu_bits, out=dg)
        else:
            dg = self.fc2.backward(dy, ops.gelu(h) if self.fc2.needs_input else None)
            dh = ops.gelu_backward(dg, h, out=dg)
        del h, dg
        return self.fc1.backward(dh, input_again() if self.fc1.needs_input else None)


class Block(Module):
    """x + attn(norm1(x)), then x + mlp(norm2(x))."""

    def __init__(self, norm1, attn, norm2, mlp, policy=ActivationPolicy()):
        self.norm1 = norm1
        self.attn = attn
        self.norm2 = norm2
        self.mlp = mlp
        self.policy = policy

    def forward(self, x, train=False):
        """x (B, N, C) -> (B, N, C)."""
        bits = self.policy.saved_bits if train else None
        if train and self.policy.recompute:
            self._saved = pack_saved((x,), x.shape[:-1], bits)
            return self._run(x, train=False)
        y = self._run(x, train)
        if bits:
            for _, module in self.named_modules():
                module._saved = pack_saved(module._saved, x.shape[:-1], bits)
        return y

    def _run(self, x, train, need_output=True):
        a = self.attn.forward(self.norm1.forward(x, train), train)
        x = ops.add(x, a, out=a)
        del a
        f = self.mlp.forward(self.norm2.forward(x, train), train, need_output, self.policy.gelu_bits)
        return ops.add(x, f, out=f) if need_output else None

    def backward(self, dy):
        """dy (B, N, C) -> dx (B, N, C)."""
        if self.policy.recompute:
            self._run(*unpack_saved(self._take_saved()), train=True, need_output=False)
        self._unpack_parts(self.mlp, self.norm2)
        d = self.mlp.backward(dy, self.norm2.output_again)
        d = self.norm2.backward(d, add_to=dy)
        del dy
        self._unpack_parts(self.attn, self.norm1)
        return self.norm1.backward(self.attn.backward(d, self.norm1.output_again), add_to=d)

    def _unpack_parts(self, *parts):
        if self.policy.saved_bits:
            for part in parts:
                for _, module in part.named_modules():
                    module._saved = unpack_saved(module._saved)

    def flops(self, shape, rule="sgd"):
        """The Flops of one training step on an input of that shape (B, N, C); rule: of the optimiser."""
        parts = [self.attn.score_flops(shape)]
        parts += [layer.flops(shape, rule) for layer in (self.attn.qkv, self.attn.proj, self.mlp.fc1)]
        again = self.policy.recompute
        if again:
            parts.append(Flops(0, sum(p.forward for p in parts)))
        fc2 = self.mlp.fc2
        return sum(parts, fc2.flops((*shape[:-1], fc2.in_features), rule, prepared=again))
