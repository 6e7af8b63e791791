"""Bytes of one layer's choices, in closed form. B samples in flight, O x I the weight, K its rank."""

import math
from dataclasses import dataclass

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
    tokens: tuple  # of one sample's output, without the channels; of a convolution: lines and columns
    follows_gelu: bool  # its input is a GELU's output, whose own input is kept unless this one is compressed
    keeps_input: bool  # nobody else keeps its input, or GELU's: compressing it saves memory
    in_shape: tuple  # of one sample's input

    @property
    def n_tokens(self):
        return math.prod(self.tokens)


@dataclass(frozen=True)
class Way:
    """How all layers alike are walked and updated."""

    micro_batch: int
    recompute: bool = False
    saved_bits: int | None = None
    gradient_bits: int = 32
    state_bits: int = 32
    layerwise: bool = False

    def seconds(self, tokens):
        """Relative time of a step: a forward more of three, products that are short of rows, passes that pack and unpack."""
        packing = 0.02 * (self.saved_bits is not None) + 0.01 * (self.gradient_bits == 16) + 0.01 * (self.state_bits == 16)
        return (4 / 3 if self.recompute else 1) * (1 + 64 / (self.micro_batch * tokens)) + packing + 0.001 * self.layerwise

    def gradient_width(self, is_matrix=True):
        """Bytes of a trained number's gradient that lasts from step to step."""
        return 0 if self.layerwise else 2 if self.gradient_bits == 16 and is_matrix else FLOAT

    def state_width(self, rule, is_matrix=True):
        """Bytes of what the optimiser keeps of a trained number."""
        return sum(2 if m == "m" and self.state_bits == 16 and is_matrix else FLOAT for m in MOMENTS[rule])


def activation_ranks_of(site, shares, B):
    """The rank of each mode of a compressed input of B samples."""
    batch, tokens, channels = shares
    return [max(1, round(batch * B)), *(max(1, round(tokens * n)) for n in site.in_shape[:-1]), channels]


def residual_bytes(O, I, bits):
    """Bytes of an `ops.QuantizedMatrix`: 4 bits a weight and a byte a group of 32, or 8 bits; scales of rows and columns."""
    blocks = -(-I // 32)
    return {0: 0, 4: O * blocks * 17 + FLOAT * (O + I), 8: O * blocks * 32 + FLOAT * (O + I)}[bits]


def weight_bytes(site, choice):
    """(weights, numbers that are trained) of a layer, without its bias."""
    O, I = site.out_features, site.in_features
    trained = O * I if choice.rank is None else choice.rank * (O + I)
    return FLOAT * trained + residual_bytes(O, I, choice.bits), trained


def packed_bytes(rows, width, bits):
    """Of rows that a block keeps, in so many bits: 8 with a scale and an offset a row."""
    return {None: FLOAT * rows * width, 16: 2 * rows * width, 8: rows * (width + 2 * FLOAT)}[bits] if width else 0


def saved_bytes(site, choice, way):
    """What is kept from forward to backward because of the choice: z = x R', the input, GELU's or its codes, Tucker factors."""
    if way.recompute:
        return 0
    shape = (way.micro_batch, *site.in_shape)
    rows = math.prod(shape[:-1])
    own = packed_bytes(rows, shape[-1] if site.keeps_input else 0, way.saved_bits)
    if choice.activation_ranks is None:
        return own + packed_bytes(way.micro_batch * site.n_tokens, choice.rank or 0, way.saved_bits)
    ranks = activation_ranks_of(site, choice.activation_ranks, way.micro_batch)
    total = FLOAT * (math.prod(ranks) + sum(d * K for d, K in zip(shape, ranks) if K < d))
    if not site.follows_gelu:
        return total
    return total + (own if choice.gelu_bits is None else rows * shape[-1] * choice.gelu_bits // 8)
