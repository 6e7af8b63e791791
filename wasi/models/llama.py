"""Decoder of the Llama architecture (arXiv 2302.13971): RMSNorm, rotary positions, grouped-query attention, SwiGLU.

B batch, N tokens, C channels, V vocabulary.
"""

import math
from dataclasses import dataclass, replace

import numpy as np

from wasi import ops
from wasi.layers import Linear, Module, RMSNorm
from wasi.layers.decoder import (
    DecoderBlock,
    Embedding,
    GatedMlp,
    GroupedQueryAttention,
    KeyValueCache,
    RotaryTable,
)
from wasi.layers.flops import Flops, batch_flops
from wasi.layers.frozen import Bf16Embedding, Bf16Linear
from wasi.layers.module import blank, n_frozen
from wasi.models.config import settle_types

PADDING = -1  # the id that fills up shorter rows of a batch, on the right


@dataclass(frozen=True)
class LlamaConfig:
    """The shape of a decoder."""

    vocab_size: int = 32000  # V
    embed_dim: int = 2048  # C
    hidden_dim: int = 5632  # of the MLP
    depth: int = 22  # blocks
    num_heads: int = 32
    num_kv_heads: int = 4  # divides num_heads
    max_length: int = 2048  # tokens of context
    head_dim: int | None = None  # even; None: embed_dim / num_heads
    norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    tied: bool = False  # the head multiplies by the token table; of language models only
    num_classes: int | None = None  # a classifier of the last token; None: a language model

    def __post_init__(self):
        settle_types(self)
        for name in ("vocab_size", "embed_dim", "hidden_dim", "depth", "num_heads", "num_kv_heads", "max_length"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_kv_heads: expected a divisor of num_heads {self.num_heads}, got {self.num_kv_heads}")
        if self.head_dim is None:
            if self.embed_dim % self.num_heads:
                raise ValueError(f"num_heads: expected a divisor of embed_dim {self.embed_dim}, got {self.num_heads}")
            object.__setattr__(self, "head_dim", self.embed_dim // self.num_heads)
        if self.head_dim < 2 or self.head_dim % 2:
            raise ValueError(f"head_dim: expected an even number, got {self.head_dim}")
        if not self.norm_eps >= 0 or not self.rope_theta > 0:
            raise ValueError(f"norm_eps, rope_theta: expected positive numbers, got {self.norm_eps} and {self.rope_theta}")
        if self.num_classes is not None and (self.num_classes < 1 or self.tied):
            raise ValueError(f"num_classes: expected None, or at least 1 and a head that is not tied, got {self.num_classes}")

    def shapes(self):
        """{parameter name: shape}, in the model's order."""
        C, wide, thin = self.embed_dim, self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        block = {"norm1.weight": (C,), "attn.q_proj.weight": (wide, C), "attn.k_proj.weight": (thin, C),
                 "attn.v_proj.weight": (thin, C), "attn.o_proj.weight": (C, wide), "norm2.weight": (C,),
                 "mlp.gate_proj.weight": (self.hidden_dim, C), "mlp.up_proj.weight": (self.hidden_dim, C),
                 "mlp.down_proj.weight": (C, self.hidden_dim)}
        shapes = {"embed.weight": (self.vocab_size, C)}
        shapes |= {f"blocks.{i}.{name}": shape for i in range(self.depth) for name, shape in block.items()}
        shapes["norm.weight"] = (C,)
        if not self.tied:
            shapes["head.weight"] = (self.num_classes or self.vocab_size, C)
        return shapes

    def frozen_names(self, n_blocks):
        """The parameters that training the last n blocks leaves alone: `Llama.train_last`."""
        if not 0 <= n_blocks <= self.depth:
            raise ValueError(f"last_layers: expected 0 to {self.depth}, got {n_blocks}")
        frozen = ["embed.", *(f"blocks.{i}." for i in range(self.depth - n_blocks))] + ["head."] * (self.num_classes is None)
        return [name for name in self.shapes() if name.startswith(tuple(frozen))]


LLAMA_CONFIGS = {
    "llama_micro": LlamaConfig(512, 64, 172, 5, 8, 4, 512, tied=True),  # the shape of llama2.c's stories260K
    "tinyllama_1.1b": LlamaConfig(),
}


class Llama(Module):
    """A decoder that predicts the next token or, with num_classes, the class of a text from its last token.

    arrays(name, shape): the function that gives each parameter's array: float32, or uint16 bits of bfloat16 for a matrix that is
    frozen for good (Bf16Linear, Bf16Embedding), which may lie in a mapped file.
    """

    architecture = "llama"
    stem = ("embed",)  # and with it the head where they are tied

    def __init__(self, config, arrays):
        shapes = config.shapes()

        def take(name):
            return arrays(name, shapes[name])

        def linear(name):
            weight = take(f"{name}.weight")
            return Bf16Linear(weight) if weight.dtype == np.uint16 else Linear(weight)

        def block(b):
            attention = GroupedQueryAttention(*(linear(f"{b}.attn.{part}_proj") for part in "qkvo"), config.num_heads,
                                              config.num_kv_heads, rotary)
            mlp = GatedMlp(*(linear(f"{b}.mlp.{part}_proj") for part in ("gate", "up", "down")))
            return DecoderBlock(norm(f"{b}.norm1"), attention, norm(f"{b}.norm2"), mlp)

        def norm(name):
            return RMSNorm(take(f"{name}.weight"), config.norm_eps)

        rotary = RotaryTable(config.head_dim, config.rope_theta)
        self.config = config
        self.sample_length = config.max_length  # of the last training batch: what training_flops counts with
        table = take("embed.weight")
        self.embed = Bf16Embedding(table) if table.dtype == np.uint16 else Embedding(table)
        self.blocks = [block(f"blocks.{i}") for i in range(config.depth)]
        self.norm = norm("norm")
        self.head = None if config.tied else linear("head")

    def set_policy(self, policy):
        """Chooses what every block keeps between forward and backward (`ActivationPolicy`). Raises ValueError for gelu_bits."""
        if policy.gelu_bits is not None:
            raise ValueError(f"gelu_bits: expected None, as this model has no GELU, got {policy.gelu_bits}")
        for block in self.blocks:
            block.policy = policy

    def train_last(self, n_blocks):
        """Freezes all but the last n blocks, the last norm, and a classifier's head.

        Raises ValueError for n outside 0 to depth.
        """
        frozen = set(self.config.frozen_names(n_blocks))
        for name, p in self.named_parameters():
            if name in frozen:
                p.trainable = False

    def head_parameters(self):
        """What is trained even where all else is frozen: the head of a classifier, which starts at random."""
        return [] if self.config.num_classes is None else [self.head.weight]

    @property
    def n_frozen_blocks(self):
        """Blocks from the first on that need no gradient."""
        if self.embed.trainable:
            return 0
        return n_frozen(self.blocks)

    def forward(self, tokens, train=False):
        """tokens (B, N) int64, rows filled up with PADDING -> logits (B, N, V), or (B, num_classes) of each row's last token.

        Raises TypeError or ValueError for tokens of another type or shape, ids out of range, more than max_length of them.
        """
        lengths = self._check_tokens(tokens)
        n_frozen = self.n_frozen_blocks if train else 0
        if train:
            self.sample_length = tokens.shape[1]
        x = self.embed.forward(np.maximum(tokens, 0), train and self.embed.trainable)
        for i, block in enumerate(self.blocks):
            x = block.forward(x, train and i >= n_frozen)
        if self.config.num_classes is not None:
            if train:
                self._saved = (np.array(x.shape), lengths)
            x = x[np.arange(len(x)), lengths - 1]
        elif train:
            self._saved = ()
        y = self.norm.forward(x, train)
        return self.embed.logits(y) if self.head is None else self.head.forward(y, train, keep_input=False)

    def backward(self, dlogits, after=None):
        """dlogits, of the logits' shape; adds to every trainable parameter's gradient.

        after(part): called for head, norm, each trained block and the token table as soon as its gradients are complete.
        """
        after = after or (lambda part: None)
        saved = self._take_saved()
        if self.head is None:
            d = self.embed.logits_backward(dlogits, self.norm.output_again() if self.embed.trainable else None)
        else:
            d = self.head.backward(dlogits, self.norm.output_again() if self.head.needs_input else None)
            after(self.head)
        d = self.norm.backward(d)
        after(self.norm)
        if saved:
            shape, lengths = saved
            pooled, d = d, np.zeros(shape, np.float32)
            d[np.arange(len(d)), lengths - 1] = pooled
        for block in reversed(self.blocks[self.n_frozen_blocks :]):
            d = block.backward(d)
            after(block)
        if self.embed.trainable:
            self.embed.backward(d)
            after(self.embed)

    def loss(self, logits, targets, label_smoothing=0.0, need_gradient=True, class_weights=None):
        """(mean loss, its gradient in the place of the logits, samples predicted right).

        targets: (B, N) int64, the next tokens, or (B,) classes. Of a language model a sample counts by its share of right tokens.
        """
        rows = logits.reshape(-1, logits.shape[-1])
        loss, _, hits = ops.cross_entropy(rows, np.ascontiguousarray(targets).reshape(-1), label_smoothing, need_gradient,
                                          class_weights, rows if need_gradient else None)
        return loss, logits, hits * len(targets) / targets.size

    def new_caches(self, batch, capacity):
        """One KeyValueCache a block, for `extend`."""
        c = self.config
        return [KeyValueCache(batch, capacity, c.num_kv_heads, c.head_dim) for _ in self.blocks]

    def extend(self, tokens, caches):
        """Logits (B, V) of the token after tokens (B, n), which follow those in the caches and join them."""
        self._check_tokens(tokens, caches[0].length)
        x = self.embed.forward(tokens)
        for block, cache in zip(self.blocks, caches):
            x = block.extend(x, cache)
        y = self.norm.forward(np.ascontiguousarray(x[:, -1]))
        return self.embed.logits(y) if self.head is None else self.head.forward(y)

    def training_flops(self, batch_size, rule="sgd", micro_batch=None):
        """The Flops of one training step on samples of `sample_length` tokens, as of `VisionTransformer.training_flops`."""
        return batch_flops(lambda n: self._pass_flops(n, rule), batch_size, micro_batch)

    def _pass_flops(self, B, rule):
        c, tokens = self.config, (B, self.sample_length, self.config.embed_dim)
        if self.head is None:
            product = 2 * math.prod(tokens) * c.vocab_size
            total = Flops(product, product * (2 if self.embed.trainable else 1))
        else:
            total = self.head.flops(tokens if c.num_classes is None else (B, c.embed_dim), rule)
        for i, block in enumerate(self.blocks):
            flops = block.flops(tokens, rule)
            total += flops if i >= self.n_frozen_blocks else Flops(flops.forward)
        return total

    def _check_tokens(self, tokens, start=0):
        """The number of tokens of each row, which PADDING may follow."""
        if not isinstance(tokens, np.ndarray) or tokens.dtype != np.int64 or tokens.ndim != 2 or tokens.size == 0:
            got = f"{tokens.dtype} {tokens.shape}" if isinstance(tokens, np.ndarray) else type(tokens).__name__
            raise TypeError(f"tokens: expected an int64 array of shape (B, N), got {got}")
        if start + tokens.shape[1] > self.config.max_length:
            raise ValueError(f"tokens: expected at most the {self.config.max_length} of the model's context, got "
                             f"{start + tokens.shape[1]}")
        real = tokens != PADDING
        lengths = real.sum(1)
        if self.config.num_classes is None or start:
            real[:] = True  # padding is for classifiers alone
        elif not lengths.all() or (real != (np.arange(tokens.shape[1]) < lengths[:, None])).any():
            raise ValueError("tokens: expected one or more ids in each row and padding only after them")
        outside = real & ((tokens < 0) | (tokens >= self.config.vocab_size))
        if outside.any():
            b, n = np.argwhere(outside)[0]
            why = ": padding is for classifiers alone" if tokens[b, n] == PADDING else ""
            raise ValueError(f"tokens: expected ids 0 to {self.config.vocab_size - 1}, got {tokens[b, n]} in row {b} at place "
                             f"{n}{why}")
        return lengths


def random_arrays(seed):
    """The arrays of a new Llama: norms at one, all else normal with deviation 0.02; seed None: `blank` ones, to be filled in."""
    if seed is None:
        return lambda name, shape: blank(shape)
    rng = np.random.default_rng(seed)

    def draw(name, shape):
        return np.ones(shape, np.float32) if len(shape) == 1 else 0.02 * rng.standard_normal(shape, np.float32)

    return draw


def create_llama(name, num_classes=None, seed=0, **overrides):
    """A decoder of a registered name with random weights; keywords replace fields of its LlamaConfig."""
    config = LLAMA_CONFIGS[name]
    if num_classes is not None:
        overrides = {"tied": False, "num_classes": num_classes, **overrides}
    if "embed_dim" in overrides or "num_heads" in overrides:
        overrides = {"head_dim": None, **overrides}
    return Llama(replace(config, **overrides), random_arrays(seed))
