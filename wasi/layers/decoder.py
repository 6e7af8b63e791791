"""The parts of a decoder of the Llama architecture, smallest first: token table, rotary positions, attention, gated MLP, block.

B batch, N tokens, C channels, H query heads, G key and value heads, D head width.
"""

import numpy as np

from wasi import ops
from wasi.layers.flops import Flops, attention_flops
from wasi.layers.module import Module, Parameter
from wasi.layers.transformer import Block


class Embedding(Module):
    """Rows of a table by token id.

    weight: (V, C) float32.
    """

    def __init__(self, weight):
        self.weight = Parameter(weight)

    @property
    def trainable(self):
        return self.weight.trainable

    def forward(self, tokens, train=False):
        """tokens (B, N) int64 -> (B, N, C)."""
        if train:
            self._saved = (tokens,)
        return ops.embedding(tokens, self.weight.data)

    def backward(self, dy):
        """dy (B, N, C); tokens have no gradient."""
        (tokens,) = self._take_saved()
        ops.embedding_backward(dy, tokens, self.weight.grad_buffer())

    def logits(self, y):
        """The tied head: y (..., C) -> (..., V)."""
        return ops.linear(y, self.weight.data)

    def logits_backward(self, dlogits, y=None):
        """The gradient of `logits`' argument; adds to the table's. y: the argument, where the table is trained."""
        return ops.linear_backward(dlogits, y, self.weight.data, self.weight.grad_buffer())


class RotaryTable:
    """Cosines and sines (positions, D/2) of the angles n theta^(-2 d / D) of position n, for as many n as were asked for yet."""

    def __init__(self, head_dim, theta):
        self._rates = float(theta) ** (-np.arange(0, head_dim, 2) / head_dim)
        self._tables = (np.empty((0, len(self._rates)), np.float32),) * 2

    def turn(self, x, start=0, back=False):
        """Turns x (B, N, H, D) in place; the first token has position `start`."""
        cosines, sines = self._tables
        end = start + x.shape[1]
        if end > len(cosines):
            angles = np.arange(max(end, 2 * len(cosines)))[:, None] * self._rates
            self._tables = cosines, sines = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
        return ops.rope(x, cosines, sines, start, back)


class KeyValueCache:
    """Keys (turned by their positions) and values (B, capacity, G, D) of the tokens that a block has seen."""

    def __init__(self, batch, capacity, n_kv_heads, head_dim):
        self.keys = np.empty((batch, capacity, n_kv_heads, head_dim), np.float32)
        self.values = np.empty_like(self.keys)
        self.length = 0


class GroupedQueryAttention(Module):
    """Causal self-attention with rotary positions, whose H query heads share G key and value heads.

    q_proj: linear C -> H D, k_proj and v_proj: C -> G D, o_proj: H D -> C; rotary: a RotaryTable.
    """

    shared_inputs = (("q_proj", "k_proj", "v_proj"),)

    def __init__(self, q_proj, k_proj, v_proj, o_proj, n_heads, n_kv_heads, rotary):
        self.q_proj = q_proj
        self.k_proj = k_proj
        self.v_proj = v_proj
        self.o_proj = o_proj
        self.n_heads = n_heads
        self.n_kv_heads = n_kv_heads
        self.rotary = rotary

    def _project(self, x, start, train):
        """q, k, v (B, N, heads, D), q and k turned."""
        B, N, _ = x.shape
        parts = ((self.q_proj, self.n_heads), (self.k_proj, self.n_kv_heads), (self.v_proj, self.n_kv_heads))
        q, k, v = (linear.forward(x, train, keep_input=False).reshape(B, N, heads, -1) for linear, heads in parts)
        return self.rotary.turn(q, start), self.rotary.turn(k, start), v

    def forward(self, x, train=False):
        """x (B, N, C) -> (B, N, C). x itself is not kept: backward is given it again."""
        q, k, v = self._project(x, 0, train)
        del x
        o, lse = ops.attention_gqa(q, k, v, causal=True)
        o, q, k, v = (a.reshape(*a.shape[:2], -1) for a in (o, q, k, v))
        if train:
            self._saved = (q, k, v, o, lse)
        del q, k, v, lse
        return self.o_proj.forward(o, train, keep_input=False)

    def extend(self, x, cache):
        """x (B, n, C), the tokens that follow those in the KeyValueCache -> (B, n, C); their keys and values join it."""
        start, end = cache.length, cache.length + x.shape[1]
        q, cache.keys[:, start:end], cache.values[:, start:end] = self._project(x, start, train=False)
        cache.length = end
        o, _ = ops.attention_gqa(q, cache.keys[:, :end], cache.values[:, :end], causal=True)
        return self.o_proj.forward(o.reshape(*o.shape[:2], -1))

    def score_flops(self, shape):
        """The Flops of the scores and the weighted sum on x (B, N, C): half of them, as no token sees those after it."""
        full = attention_flops(*shape[:2], self.o_proj.in_features)
        return Flops(full.forward // 2, full.backward // 2)

    def backward(self, dy, input_again):
        """dy (B, N, C) -> dx; input_again() gives forward's x."""
        q, k, v, o, lse = self._take_saved()
        B, N = o.shape[:2]
        do = self.o_proj.backward(dy, o if self.o_proj.needs_input else None)
        q, o, do = (a.reshape(B, N, self.n_heads, -1) for a in (q, o, do))
        k, v = (a.reshape(B, N, self.n_kv_heads, -1) for a in (k, v))
        dq, dk, dv = ops.attention_gqa_backward(do, q, k, v, o, lse, causal=True)
        del do, q, k, v, o, lse
        self.rotary.turn(dq, back=True)
        self.rotary.turn(dk, back=True)
        parts = ((self.q_proj, dq), (self.k_proj, dk), (self.v_proj, dv))
        x = input_again() if any(linear.needs_input for linear, _ in parts) else None
        return sum_of_gradients([(linear, d.reshape(B, N, -1)) for linear, d in parts], x)


class GatedMlp(Module):
    """SwiGLU: down(silu(gate(x)) up(x)).

    gate_proj, up_proj: linears C -> hidden, down_proj: hidden -> C.
    """

    shared_inputs = (("gate_proj", "up_proj"),)

    def __init__(self, gate_proj, up_proj, down_proj):
        self.gate_proj = gate_proj
        self.up_proj = up_proj
        self.down_proj = down_proj

    def forward(self, x, train=False, need_output=True, gelu_bits=None):
        """x (B, N, C) -> (B, N, C), or None unless need_output. x itself is not kept: backward is given it again."""
        a = self.gate_proj.forward(x, train, keep_input=False)
        b = self.up_proj.forward(x, train, keep_input=False)
        del x
        if train:
            self._saved = (a, b)
        if not need_output:
            return self.down_proj.prepare()
        g = ops.swiglu(a, b, out=None if train else a)
        del a, b
        return self.down_proj.forward(g, train, keep_input=False)

    def backward(self, dy, input_again):
        """dy (B, N, C) -> dx; input_again() gives forward's x."""
        a, b = self._take_saved()
        dg = self.down_proj.backward(dy, ops.swiglu(a, b) if self.down_proj.needs_input else None)
        da, db = ops.swiglu_backward(dg, a, b, out_a=dg, out_b=b)
        del a, b, dg
        x = input_again() if self.gate_proj.needs_input or self.up_proj.needs_input else None
        return sum_of_gradients([(self.gate_proj, da), (self.up_proj, db)], x)


def sum_of_gradients(parts, x):
    """The gradient of the input x that several linears share: parts, (linear, dy) each."""
    total = None
    for linear, dy in parts:
        dx = linear.backward(dy, x if linear.needs_input else None)
        total = dx if total is None else ops.add(total, dx, out=total)
    return total


class DecoderBlock(Block):
    """x + attn(norm1(x)), then x + mlp(norm2(x)), with RMSNorm, GroupedQueryAttention and GatedMlp."""

    def flops(self, shape, rule="sgd"):
        """The Flops of one training step on an input of that shape (B, N, C); rule: of the optimiser."""
        attn, mlp = self.attn, self.mlp
        sharing = (attn.q_proj, attn.k_proj, attn.v_proj), (mlp.gate_proj, mlp.up_proj)
        parts = [attn.score_flops(shape), attn.o_proj.flops((*shape[:-1], attn.o_proj.in_features), rule)]
        for linears in sharing:
            parts += [linear.flops(shape, rule) for linear in linears]
            compressions = [c for c in (getattr(linear, "compression", None) for linear in linears) if c is not None]
            extra = len(compressions) - len({id(c) for c in compressions})
            if extra:  # compressed once, and counted by each
                parts.append(Flops(0, -extra * compressions[0].flops(shape)))
        if self.policy.recompute:
            parts.append(Flops(0, sum(part.forward for part in parts)))
        down = mlp.down_proj.flops((*shape[:-1], mlp.down_proj.in_features), rule, prepared=self.policy.recompute)
        return sum(parts, down)

    def extend(self, x, cache):
        """x (B, n, C), the tokens that follow those in the block's KeyValueCache -> (B, n, C)."""
        x = ops.add(x, self.attn.extend(self.norm1.forward(x), cache))
        return ops.add(x, self.mlp.forward(self.norm2.forward(x)))
