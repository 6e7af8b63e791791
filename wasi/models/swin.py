"""Swin transformer, after Liu et al., arXiv 2103.14030, with timm's names and shapes.

B batch, C channels of the first stage. Stage s holds tokens (B, g / 2^s, g / 2^s, 2^s C) for a grid of g patches a side.
"""

from dataclasses import dataclass

import numpy as np

from wasi.layers import Block, LayerNorm, Linear, MeanPool, Mlp, Module, PatchMerging, WindowAttention
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
class SwinConfig:
    """The shape of a Swin transformer."""

    img_size: int = 224  # pixels a side
    patch_size: int = 4  # pixels a side; divides img_size
    embed_dim: int = 96  # C; each stage has twice the channels of the one before
    depths: tuple = (2, 2, 6, 2)  # blocks of each stage
    num_heads: tuple = (3, 6, 12, 24)  # of each stage; divides its channels
    window_size: int = 7  # M, tokens a side; a stage with no more tokens than that a side is one window
    mlp_ratio: float = 4.0  # hidden width of the MLP over the channels
    num_classes: int = 1000
    norm_eps: float = 1e-5
    mean: tuple = (0.485, 0.456, 0.406)  # of pixels in [0, 1]
    std: tuple = (0.229, 0.224, 0.225)

    def __post_init__(self):
        settle_types(self)
        if not self.depths or len(self.depths) != len(self.num_heads) or min(self.depths) < 1:
            raise ValueError("depths, num_heads: expected at least one block and its heads for each stage, "
                             f"got {self.depths} and {self.num_heads}")
        for name in ("patch_size", "embed_dim", "window_size", "num_classes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if int(self.embed_dim * self.mlp_ratio) < 1:
            raise ValueError(f"mlp_ratio: expected one that gives the MLP a width, got {self.mlp_ratio}")
        if self.img_size % self.patch_size or self.img_size < self.patch_size:
            raise ValueError(f"img_size: expected a multiple of the patch size {self.patch_size}, got {self.img_size}")
        always = self.patch_size * self.window_size * 2 ** (len(self.depths) - 1)
        for stage, heads in enumerate(self.num_heads):
            grid = self.grid >> stage
            if grid << stage != self.grid or grid < 1:
                raise ValueError(f"img_size: the {self.grid >> (stage - 1)} x {self.grid >> (stage - 1)} tokens of stage {stage} "
                                 f"cannot be merged 2 by 2 at {self.img_size} pixels; multiples of {always} always fit")
            if grid % self.window_of(stage):
                raise ValueError(f"img_size: windows of {self.window_size} do not divide the {grid} x {grid} tokens of stage "
                                 f"{stage + 1} at {self.img_size} pixels; multiples of {always} fit, or another window_size")
            if heads < 1 or (self.embed_dim << stage) % heads:
                raise ValueError(f"num_heads: expected divisors of the stages' channels, got {heads} for "
                                 f"{self.embed_dim << stage}")

    @property
    def grid(self):
        """Patches a side."""
        return self.img_size // self.patch_size

    def window_of(self, stage):
        """Tokens a side of a window of that stage."""
        return min(self.window_size, self.grid >> stage)

    def shapes(self):
        """{parameter name: shape}."""
        C = self.embed_dim
        shapes = linear_shapes("patch_embed.proj", C, 3 * self.patch_size**2) | norm_shapes("patch_embed.norm", C)
        for s, depth in enumerate(self.depths):
            C = self.embed_dim << s
            if s:
                shapes |= norm_shapes(f"layers.{s}.downsample.norm", 2 * C)
                shapes |= linear_shapes(f"layers.{s}.downsample.reduction", C, 2 * C, bias=False)
            for i in range(depth):
                block = f"layers.{s}.blocks.{i}"
                shapes |= block_shapes(block, C, int(C * self.mlp_ratio))
                shapes[f"{block}.attn.relative_position_bias_table"] = ((2 * self.window_of(s) - 1) ** 2, self.num_heads[s])
        return shapes | norm_shapes("norm", C) | linear_shapes("head.fc", self.num_classes, C)


SWIN_CONFIGS = {
    "swin_base_patch4_window7_224": SwinConfig(embed_dim=128, depths=(2, 2, 18, 2), num_heads=(4, 8, 16, 32)),
    "swin_micro_patch2_window4_32": SwinConfig(32, 2, 32, (2, 2), (2, 4), 4),
    "swin_mini_patch2_window4_32": SwinConfig(32, 2, 64, (2, 2, 4), (2, 4, 8), 4),
    "swin_small_patch4_window7_224": SwinConfig(depths=(2, 2, 18, 2)),
    "swin_tiny_patch4_window7_224": SwinConfig(),
}


class GridEmbed(PatchEmbed):
    """Patches to normalised tokens that lie as an image: (B, 3, S, S) -> (B, g, g, C)."""

    def __init__(self, proj, norm, config):
        super().__init__(proj, config)
        self.norm = norm

    def forward(self, images, train=False):
        """images (B, 3, S, S), uint8 or float32 already normalised -> (B, g, g, C)."""
        x = super().forward(images, train)
        return self.norm.forward(x.reshape(len(x), self.config.grid, self.config.grid, x.shape[-1]), train)

    def backward(self, dy):
        """dy (B, g, g, C); images have no gradient."""
        d = self.norm.backward(dy)
        super().backward(d.reshape(len(d), -1, d.shape[-1]))


class Stage(Module):
    """Blocks on one grid of tokens, after a PatchMerging in all stages but the first."""

    def __init__(self, downsample, blocks):
        self.downsample = downsample
        self.blocks = blocks

    def forward(self, x, train=False):
        """x (B, H, W, C) -> (B, H/2, W/2, 2 C), or as it was in the first stage."""
        if self.downsample is not None:
            x = self.downsample.forward(x, train)
        for block in self.blocks:
            x = block.forward(x, train)
        return x

    def backward(self, d, after):
        """Gradient of the output -> of the input; after(part) as in `SwinTransformer.backward`."""
        for block in reversed(self.blocks):
            d = block.backward(d)
            after(block)
        if self.downsample is not None:
            d = self.downsample.backward(d)
            after(self.downsample)
        return d


class PooledHead(Module):
    """Logits of the mean token. fc: linear C -> classes."""

    def __init__(self, fc):
        self.pool = MeanPool()
        self.fc = fc

    def forward(self, x, train=False):
        """x (B, H, W, C) -> (B, num_classes)."""
        return self.fc.forward(self.pool.forward(x, train), train)

    def backward(self, dlogits):
        """dlogits (B, num_classes) -> dx (B, H, W, C)."""
        return self.pool.backward(self.fc.backward(dlogits))


class SwinTransformer(ImageClassifier):
    """Swin transformer for classification: patch embedding, stages of blocks, norm, head on the mean token.

    Odd blocks attend within windows moved by half a window, unless one window is the whole grid.
    seed: of the random weights; None leaves them blank, to be filled in.
    """

    architecture = "swin"

    def __init__(self, config, seed=0):
        linear = blank_linear if seed is None else zero_linear

        def norm(width):
            return LayerNorm(width, config.norm_eps)

        def block(stage, index):
            C, M = config.embed_dim << stage, config.window_of(stage)
            shift = M // 2 if index % 2 and M < config.grid >> stage else 0
            hidden = int(C * config.mlp_ratio)
            attention = WindowAttention(linear(3 * C, C), linear(C, C), config.num_heads[stage], M, shift)
            return Block(norm(C), attention, norm(C), Mlp(linear(hidden, C), linear(C, hidden)))

        def stage(s, depth):
            C = config.embed_dim << s
            merging = PatchMerging(norm(2 * C), linear(C, 2 * C, bias=False)) if s else None
            return Stage(merging, [block(s, i) for i in range(depth)])

        C = config.embed_dim
        self.config = config
        self.patch_embed = GridEmbed(linear(C, 3 * config.patch_size**2), norm(C), config)
        self.layers = [stage(s, depth) for s, depth in enumerate(config.depths)]
        last = C << (len(config.depths) - 1)
        self.norm = norm(last)
        self.head = PooledHead(linear(config.num_classes, last))
        if seed is not None:
            self._draw_weights(np.random.default_rng(seed))

    def _draw_weights(self, rng):
        self.patch_embed.draw_weights(rng)
        for part in (*self.layers, self.head):
            for _, module in part.named_modules():
                if isinstance(module, Linear):
                    module.weight.data[:] = truncated_normal(rng, module.weight.data.shape)
                elif isinstance(module, WindowAttention):
                    table = module.relative_position_bias_table.data
                    table[:] = truncated_normal(rng, table.shape)

    @property
    def blocks(self):
        """The blocks of all stages, in order."""
        return [block for stage in self.layers for block in stage.blocks]

    def forward(self, images, train=False):
        """images (B, 3, S, S), uint8 or normalised float32 -> logits (B, num_classes)."""
        self._check_images(images)
        x = self.patch_embed.forward(images, train)
        for stage in self.layers:
            x = stage.forward(x, train)
        return self.head.forward(self.norm.forward(x, train), train)

    def backward(self, dlogits, after=None):
        """dlogits (B, num_classes); adds to every trainable parameter's gradient.

        after(part): called for head, norm, blocks, mergings and the patch embedding as soon as its gradients are complete.
        """
        after = after or (lambda part: None)
        d = self.norm.backward(self.head.backward(dlogits))
        after(self.head)
        after(self.norm)
        for stage in reversed(self.layers):
            d = stage.backward(d, after)
        self.patch_embed.backward(d)
        after(self.patch_embed)

    def head_parameters(self):
        """What is trained even where all else is frozen."""
        return [self.head.fc.weight, self.head.fc.bias]

    def _pass_flops(self, B, rule):
        c = self.config
        proj, fc = self.patch_embed.proj, self.head.fc
        total = proj.flops((B, c.grid, c.grid, proj.in_features), rule, dx=False) + fc.flops((B, fc.in_features), rule)
        for s, stage in enumerate(self.layers):
            grid, C = c.grid >> s, c.embed_dim << s
            if stage.downsample is not None:
                total += stage.downsample.reduction.flops((B, grid, grid, 2 * C), rule)
            total = sum((block.flops((B, grid, grid, C), rule) for block in stage.blocks), total)
        return total
