"""Bytes of one layer's choices, in closed form. B samples in flight, O x I the weight, K its rank."""

import math
from dataclasses import dataclass

from wasi import linalg
from wasi.linalg.wsi import MOMENTS

FLOAT = 4


@dataclass(frozen=True)
class Choice:
    """One way to treat one layer."""

    rank: int | None  # None: dense
    bits: int  # of the frozen residual; 0: none
    activation_ranks: tuple | None  # (batch share, token share, channels); None: the input is not compressed
    gelu_bits: int | None


@dataclass(frozen=True)
class Site:
    """Where a layer stands: what its costs depend on besides the choice."""

    out_features: int
    in_features: int
    tokens: tuple  # of one sample, without the channels
    follows_gelu: bool  # its input is a GELU's output, whose own input is kept unless this one is compressed

    @property
    def n_tokens(self):
        return math.prod(self.tokens)


def activation_ranks_of(site, shares, B):
    """The rank of each mode of a compressed input of B samples."""
    batch, tokens, channels = shares
    return [max(1, round(batch * B)), *(max(1, round(tokens * n)) for n in site.tokens), channels]


def residual_bytes(O, I, bits):
    """Bytes of an `ops.QuantizedMatrix`: 4 bits a weight and a byte a group of 32, or 8 bits; scales of rows and columns."""
    blocks = -(-I // 32)
    return {0: 0, 4: O * blocks * 17 + FLOAT * (O + I), 8: O * blocks * 32 + FLOAT * (O + I)}[bits]


def weight_bytes(site, choice):
    """(weights, numbers that are trained) of a layer, without its bias."""
    O, I = site.out_features, site.in_features
    trained = O * I if choice.rank is None else choice.rank * (O + I)
    return FLOAT * trained + residual_bytes(O, I, choice.bits), trained


def optimizer_bytes(site, choice, rule):
    """Bytes of momentum and moments."""
    if choice.rank is not None:
        shapes = linalg.wsi_state_shapes(site.out_features, site.in_features, choice.rank, rule)
        return FLOAT * sum(math.prod(s) for s in shapes.values())
    return FLOAT * len(MOMENTS[rule]) * site.out_features * site.in_features


def saved_bytes(site, choice, B):
    """What is kept from forward to backward because of the choice: z = x R', GELU's input or its codes, the Tucker factors."""
    rows = B * site.n_tokens
    if choice.activation_ranks is None:
        return FLOAT * rows * ((choice.rank or 0) + (site.in_features if site.follows_gelu else 0))
    ranks = activation_ranks_of(site, choice.activation_ranks, B)
    sizes = [B, *site.tokens, site.in_features]
    total = FLOAT * (math.prod(ranks) + sum(d * K for d, K in zip(sizes, ranks) if K < d))
    if site.follows_gelu:
        total += FLOAT * rows * site.in_features if choice.gelu_bits is None else rows * site.in_features * choice.gelu_bits // 8
    return total
