"""The parts of a pre-norm transformer block, smallest first: attention, MLP, block.

B batch, N tokens, C channels, H heads. A block keeps, in units of one B x N x C array: its input 1, qkv 3, attention's output 1,
the second norm's input 1, the MLP's pre-activation 4. The inputs of qkv, fc1 and fc2 are recomputed from these.
"""

from wasi import ops
from wasi.layers.module import Module


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
        o, lse = ops.attention(qkv, self.n_heads)
        if train:
            self._saved = (qkv, o, lse)
        return self.proj.forward(o, train, keep_input=False)

    def backward(self, dy, input_again):
        """dy (B, N, C) -> dx; input_again() gives forward's x."""
        qkv, o, lse = self._take_saved()
        do = self.proj.backward(dy, o)
        dqkv = ops.attention_backward(do, qkv, o, lse, self.n_heads)
        del do, qkv, o
        return self.qkv.backward(dqkv, input_again())


class Mlp(Module):
    """Two linears with an exact GELU between them: fc1 C -> hidden, fc2 hidden -> C."""

    def __init__(self, fc1, fc2):
        self.fc1 = fc1
        self.fc2 = fc2

    def forward(self, x, train=False):
        """x (B, N, C) -> (B, N, C). x itself is not kept: backward is given it again."""
        h = self.fc1.forward(x, train, keep_input=False)
        if train:
            self._saved = (h,)
        g = ops.gelu(h, out=None if train else h)
        return self.fc2.forward(g, train, keep_input=False)

    def backward(self, dy, input_again):
        """dy (B, N, C) -> dx; input_again() gives forward's x."""
        (h,) = self._take_saved()
        dg = self.fc2.backward(dy, ops.gelu(h))
        dh = ops.gelu_backward(dg, h, out=dg)
        del h
        return self.fc1.backward(dh, input_again())


class Block(Module):
    """x + attn(norm1(x)), then x + mlp(norm2(x))."""

    def __init__(self, norm1, attn, norm2, mlp):
        self.norm1 = norm1
        self.attn = attn
        self.norm2 = norm2
        self.mlp = mlp

    def forward(self, x, train=False):
        """x (B, N, C) -> (B, N, C)."""
        a = self.attn.forward(self.norm1.forward(x, train), train)
        x = ops.add(x, a, out=a)
        f = self.mlp.forward(self.norm2.forward(x, train), train)
        return ops.add(x, f, out=f)

    def backward(self, dy):
        """dy (B, N, C) -> dx (B, N, C)."""
        d = self.mlp.backward(dy, self.norm2.output_again)
        d = self.norm2.backward(d, add_to=dy)
        return self.norm1.backward(self.attn.backward(d, self.norm1.output_again), add_to=d)
