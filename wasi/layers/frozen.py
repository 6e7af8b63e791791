"""Frozen layers whose weights are bfloat16 bits, in memory or mapped from a file: half the bytes of float32, and no gradient."""

import math

import numpy as np

from wasi import ops
from wasi.layers.flops import Flops
from wasi.layers.module import Module


def _bits(weight):
    if not isinstance(weight, np.ndarray) or weight.dtype != np.uint16 or weight.ndim != 2:
        raise TypeError("weight: expected bfloat16 bits, a uint16 array of two dimensions (ops.bf16_round), got "
                        f"{getattr(weight, 'dtype', type(weight).__name__)}")
    return weight


class Bf16Linear(Module):
    """y = x W' with a frozen W; arithmetic is float32, weights are expanded exactly.

    bits: W (O, I) as bfloat16 bits, uint16; not copied.
    """

    needs_input = False

    def __init__(self, bits):
        self.bits = _bits(bits)

    @property
    def out_features(self):
        return self.bits.shape[0]

    @property
    def in_features(self):
        return self.bits.shape[1]

    @property
    def fixed_bytes(self):
        return self.bits.nbytes

    def forward(self, x, train=False, keep_input=True):
        """x (..., I) -> y (..., O); keeps nothing."""
        return ops.bf16_linear(x, self.bits)

    def merged_weight(self):
        """The dense weight in float32 (O, I)."""
        return ops.bf16_expand(self.bits)

    def prepare(self):
        """Nothing to ready."""

    def backward(self, dy, x=None, need_dx=True):
        """dy (..., O) -> dx (..., I)."""
        return ops.bf16_linear_backward(dy, self.bits) if need_dx else None

    def flops(self, shape, rule="sgd", dx=True, prepared=False):
        """As `Linear.flops`."""
        product = 2 * math.prod(shape) * self.out_features
        return Flops(product, product if dx else 0)


class Bf16Embedding(Module):
    """Rows of a frozen table by token id; a tied head multiplies by it.

    bits: (V, C) as bfloat16 bits, uint16; not copied.
    """

    trainable = False

    def __init__(self, bits):
        self.bits = _bits(bits)

    @property
    def fixed_bytes(self):
        return self.bits.nbytes

    def forward(self, tokens, train=False):
        """tokens (B, N) int64, each in range -> (B, N, C); keeps nothing."""
        return ops.bf16_expand(self.bits[tokens])

    def logits(self, y):
        """y (..., C) -> (..., V)."""
        return ops.bf16_linear(y, self.bits)

    def logits_backward(self, dlogits, y=None):
        """The gradient of `logits`' argument."""
        return ops.bf16_linear_backward(dlogits, self.bits)
