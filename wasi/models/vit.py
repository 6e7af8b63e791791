"""Vision transformer (ViT), after Dosovitskiy et al., arXiv 2010.11929, with timm's names and shapes.

B batch, P patches, N = P + 1 tokens, C channels.
"""

from dataclasses import dataclass

import numpy as np

from wasi import ops
from wasi.layers import Attention, Block, LayerNorm, Linear, Mlp, Parameter
from wasi.layers.flops import Flops
from wasi.layers.module import n_frozen
from wasi.models.config import settle_types
from wasi.models.images import (
    ImageClassifier,
    PatchEmbed,
    blank_linear,
    block_shapes,
    linear_shapes,
    norm_shapes,
    truncated_normal,
    zero_linear,
)


@dataclass(frozen=True)
class ViTConfig:
    """The shape of a ViT."""

    img_size: int = 224  # pixels a side
    patch_size: int = 16  # pixels a side; divides img_size
    embed_dim: int = 768  # C
    depth: int = 12  # blocks
    num_heads: int = 12  # divides embed_dim
    mlp_ratio: float = 4.0  # hidden width of the MLP over C
    num_classes: int = 1000
    norm_eps: float = 1e-6
    mean: tuple = (0.5, 0.5, 0.5)  # of pixels in [0, 1]
    std: tuple = (0.5, 0.5, 0.5)

    def __post_init__(self):
        settle_types(self)
        for name in ("patch_size", "embed_dim", "num_classes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if self.hidden_dim < 1:
            raise ValueError(f"mlp_ratio: expected one that gives the MLP a width, got {self.mlp_ratio}")
        if self.img_size % self.patch_size or self.img_size < self.patch_size:
            raise ValueError(f"img_size: expected a multiple of the patch size {self.patch_size}, got {self.img_size}")
        if self.num_heads < 1 or self.embed_dim % self.num_heads:
            raise ValueError(f"num_heads: expected a divisor of embed_dim {self.embed_dim}, got {self.num_heads}")

    @property
    def grid(self):
        """Patches a side."""
        return self.img_size // self.patch_size

    @property
    def hidden_dim(self):
        """Of the MLP."""
        return int(self.embed_dim * self.mlp_ratio)

    def shapes(self):
        """{parameter name: shape}."""
        C = self.embed_dim
        shapes = {"cls_token": (1, 1, C), "pos_embed": (1, self.grid**2 + 1, C)}
        shapes |= linear_shapes("patch_embed.proj", C, 3 * self.patch_size**2)
        for i in range(self.depth):
            shapes |= block_shapes(f"blocks.{i}", C, self.hidden_dim)
        return shapes | norm_shapes("norm", C) | linear_shapes("head", self.num_classes, C)


def _vit(embed_dim, depth, num_heads, patch_size, img_size=224):
    return ViTConfig(img_size, patch_size, embed_dim, depth, num_heads)


CONFIGS = {
    "vit_base_patch16_224": _vit(768, 12, 12, 16),
    "vit_base_patch32_224": _vit(768, 12, 12, 32),
    "vit_micro_patch4_32": _vit(64, 4, 2, 4, img_size=32),
    "vit_micro_patch8_64": _vit(128, 4, 4, 8, img_size=64),
    "vit_small_patch16_224": _vit(384, 12, 6, 16),
    "vit_small_patch32_224": _vit(384, 12, 6, 32),
    "vit_tiny_patch16_224": _vit(192, 12, 3, 16),
    "vit_tiny_patch32_224": _vit(192, 12, 3, 32),
}


class VisionTransformer(ImageClassifier):
    """ViT for classification: patch embedding, class token, positions, blocks, norm, head on the class token.

    seed: of the random weights; None leaves them blank, to be filled in.
    """

    architecture = "vit"
    stem = ("patch_embed", "pos_embed", "cls_token")

    def __init__(self, config, seed=0):
        C, hidden = config.embed_dim, config.hidden_dim
        linear = blank_linear if seed is None else zero_linear

        def zeros(*shape):
            return np.zeros(shape, np.float32)

        def block():
            attention = Attention(linear(3 * C, C), linear(C, C), config.num_heads)
            mlp = Mlp(linear(hidden, C), linear(C, hidden))
            return Block(LayerNorm(C, config.norm_eps), attention, LayerNorm(C, config.norm_eps), mlp)

        self.config = config
        self.cls_token = Parameter(zeros(1, 1, C), decay=False)
        self.pos_embed = Parameter(zeros(1, config.grid**2 + 1, C), decay=False)
        self.patch_embed = PatchEmbed(linear(C, 3 * config.patch_size**2), config)
        self.blocks = [block() for _ in range(config.depth)]
        self.norm = LayerNorm(C, config.norm_eps)
        self.head = linear(config.num_classes, C)
        if seed is not None:
            self._draw_weights(np.random.default_rng(seed))

    def _draw_weights(self, rng):
        self.cls_token.data[:] = rng.standard_normal(self.cls_token.data.shape) * 1e-6
        self.pos_embed.data[:] = truncated_normal(rng, self.pos_embed.data.shape)
        self.patch_embed.draw_weights(rng)
        for part in (*self.blocks, self.head):
            for _, module in part.named_modules():
                if isinstance(module, Linear):
                    module.weight.data[:] = truncated_normal(rng, module.weight.data.shape)

    @property
    def _embeds_trained(self):
        own = (self.cls_token, self.pos_embed, *(p for _, p in self.patch_embed.named_parameters()))
        return any(p.trainable for p in own)

    @property
    def n_frozen_blocks(self):
        """Blocks from the first on that need no gradient: they keep nothing for backward, which ends before them."""
        if self._embeds_trained:
            return 0
        return n_frozen(self.blocks)

    def forward(self, images, train=False):
        """images (B, 3, S, S), uint8 or normalised float32 -> logits (B, num_classes)."""
        self._check_images(images)
        n_frozen = self.n_frozen_blocks if train else 0
        x = self.patch_embed.forward(images, train and self._embeds_trained)
        x = ops.assemble_tokens(x, self.cls_token.data, self.pos_embed.data)
        for i, block in enumerate(self.blocks):
            x = block.forward(x, train and i >= n_frozen)
        if train:
            self._saved = (np.array(x.shape),)
        # Only the class token reaches the head, so only its row is normalised.
        y = self.norm.forward(np.ascontiguousarray(x[:, 0]), train)
        return self.head.forward(y, train)

    def backward(self, dlogits, after=None):
        """dlogits (B, num_classes); adds to every trainable parameter's gradient.

        after(part): called for head, norm, each trained block and the patch embedding as soon as its gradients are complete.
        """
        after = after or (lambda part: None)
        (shape,) = self._take_saved()
        dx = np.zeros(shape, np.float32)
        dx[:, 0] = self.norm.backward(self.head.backward(dlogits))
        after(self.head)
        after(self.norm)
        for block in reversed(self.blocks[self.n_frozen_blocks :]):
            dx = block.backward(dx)
            after(block)
        if self._embeds_trained:
            self.patch_embed.backward(
                ops.assemble_tokens_backward(dx, self.cls_token.grad_buffer(), self.pos_embed.grad_buffer()))
            after(self.patch_embed)

    def head_parameters(self):
        """What is trained even where all else is frozen."""
        return [self.head.weight, self.head.bias]

    def _pass_flops(self, B, rule):
        C, P = self.config.embed_dim, self.config.grid**2
        total = self.patch_embed.proj.flops((B, P, self.patch_embed.proj.in_features), rule, dx=False)
        total += self.head.flops((B, C), rule)
        parts = [block.flops((B, P + 1, C), rule) for block in self.blocks]
        n_frozen = self.n_frozen_blocks
        return sum((p if i >= n_frozen else Flops(p.forward) for i, p in enumerate(parts)), total)
