"""Residual networks of basic blocks, after He et al., arXiv 1512.03385, with the names and shapes of torchvision and timm.

Images lie channels last, (B, H, W, C), from the pixels to the mean over the last grid. A weight file holds kernels (O, C, k, k),
a model rows of patches (O, k k C).
"""

from dataclasses import dataclass

import numpy as np

from wasi import ops
from wasi.layers import BasicBlock, BatchNorm, Linear, MaxPool, MeanPool
from wasi.layers.flops import Flops
from wasi.layers.residual import pack_images
from wasi.layers.transformer import unpack_saved
from wasi.models.config import settle_types
from wasi.models.images import ImageClassifier, blank_linear, linear_shapes, norm_shapes, zero_linear
from wasi.ops import Window

_STEM, _POOL = Window(7, 2, 3), Window(3, 2, 1)


@dataclass(frozen=True)
class ResNetConfig:
    """The shape of a residual network."""

    img_size: int = 224  # pixels a side
    depths: tuple = (2, 2, 2, 2)  # blocks of each stage; every stage but the first halves the grid
    widths: tuple = (64, 128, 256, 512)  # channels of each stage; the stem has those of the first
    num_classes: int = 1000
    norm_eps: float = 1e-5
    norm_momentum: float = 0.1  # share of a batch in the running statistics
    mean: tuple = (0.485, 0.456, 0.406)  # of pixels in [0, 1]
    std: tuple = (0.229, 0.224, 0.225)

    def __post_init__(self):
        settle_types(self)
        if not self.depths or len(self.depths) != len(self.widths) or min(self.depths) < 1 or min(self.widths) < 1:
            raise ValueError("depths, widths: expected at least one block and its channels for each stage, "
                             f"got {self.depths} and {self.widths}")
        if self.num_classes < 1:
            raise ValueError(f"num_classes: expected at least 1, got {self.num_classes}")
        least = 2 ** (len(self.depths) + 1)
        if self.img_size < least:
            raise ValueError(f"img_size: expected at least {least} pixels, which {len(self.depths)} stages reduce to one, "
                             f"got {self.img_size}")

    def shapes(self):
        """{parameter name: shape}."""
        def norm(name, C):
            return norm_shapes(name, C) | {f"{name}.running_mean": (C,), f"{name}.running_var": (C,)}

        C = self.widths[0]
        shapes = linear_shapes("conv1", C, _STEM.taps * 3, bias=False) | norm("bn1", C)
        for stage, (depth, O) in enumerate(zip(self.depths, self.widths)):
            for i in range(depth):
                block = f"layer{stage + 1}.{i}"
                shapes |= linear_shapes(f"{block}.conv1", O, 9 * C, bias=False) | norm(f"{block}.bn1", O)
                shapes |= linear_shapes(f"{block}.conv2", O, 9 * O, bias=False) | norm(f"{block}.bn2", O)
                if i == 0 and (stage or C != O):
                    shapes |= linear_shapes(f"{block}.downsample.0", O, C, bias=False) | norm(f"{block}.downsample.1", O)
                C = O
        return shapes | linear_shapes("fc", self.num_classes, C)


RESNET_CONFIGS = {
    "resnet18": ResNetConfig(),
    "resnet34": ResNetConfig(depths=(3, 4, 6, 3)),
    "resnet_micro_32": ResNetConfig(32, (1, 1, 1), (16, 32, 64)),
}


class ResNet(ImageClassifier):
    """Residual network for classification: stem, pooling, stages of basic blocks, head on the mean over the last grid.

    seed: of the random weights; None leaves them blank, to be filled in.
    """

    architecture = "resnet"
    default_targets = ("conv",)
    stem = ("conv1", "bn1")

    def __init__(self, config, seed=0):
        linear = blank_linear if seed is None else zero_linear

        def conv(O, C, window):
            made = linear(O, window.taps * C, bias=False)
            made.window = window
            return made

        def norm(width):
            return BatchNorm(width, config.norm_eps, config.norm_momentum)

        def block(C, O, stride):
            shortcut = [conv(O, C, Window(1, stride)), norm(O)] if stride > 1 or C != O else None
            return BasicBlock(conv(O, C, Window(3, stride, 1)), norm(O), conv(O, O, Window(3, 1, 1)), norm(O), shortcut)

        self.config = config
        self.conv1 = conv(config.widths[0], 3, _STEM)
        self.bn1 = norm(config.widths[0])
        self.maxpool = MaxPool(_POOL)
        C = config.widths[0]
        for stage, (depth, O) in enumerate(zip(config.depths, config.widths)):
            blocks = [block(C if i == 0 else O, O, 2 if stage and i == 0 else 1) for i in range(depth)]
            setattr(self, f"layer{stage + 1}", blocks)
            C = O
        self.avgpool = MeanPool()
        self.fc = linear(config.num_classes, C)
        if seed is not None:
            self._draw_weights(np.random.default_rng(seed))

    def _draw_weights(self, rng):
        """Normal numbers for convolutions, by the gradient's fan (He et al., arXiv 1502.01852); uniform ones for the head."""
        for _, module in self.named_modules():
            if isinstance(module, Linear) and module.window is not None:
                W = module.weight.data
                W[:] = rng.standard_normal(W.shape) * (2 / (module.window.taps * len(W))) ** 0.5
        for p in (self.fc.weight, self.fc.bias):
            p.data[:] = rng.uniform(-(self.fc.in_features**-0.5), self.fc.in_features**-0.5, p.data.shape)

    @property
    def blocks(self):
        """The blocks of all stages, in order."""
        return [block for stage in range(len(self.config.depths)) for block in getattr(self, f"layer{stage + 1}")]

    def _pixels(self, images):
        """(B, 3, S, S) -> (B, S, S, 3) in float32."""
        c = self.config
        return ops.extract_patches(images, 1, c.mean, c.std).reshape(len(images), c.img_size, c.img_size, 3)

    def forward(self, images, train=False):
        """images (B, 3, S, S), uint8 or normalised float32 -> logits (B, num_classes). Keeps the images, not the pixels.

        What the stem's norm keeps is as the first block's policy says.
        """
        self._check_images(images)
        policy = self.blocks[0].policy
        if train:
            self._saved = (images,)
        x = self.conv1.forward(self._pixels(images), train, keep_input=False)
        keep = train and not policy.recompute
        if keep and policy.saved_bits:  # before the output takes its place
            self.bn1.prepare(x, relu=True)
            pack_images(self.bn1, policy.saved_bits)
            keep = False
        x = self.bn1.forward(x, train, relu=True, keep=keep, out=None if keep else x)
        x = self.maxpool.forward(x, train)
        for block in self.blocks:
            x = block.forward(x, train)
        return self.fc.forward(self.avgpool.forward(x, train), train)

    def backward(self, dlogits, after=None):
        """dlogits (B, num_classes); adds to every trainable parameter's gradient.

        after(part): called for head, blocks, and the stem's norm and convolution as soon as its gradients are complete.
        """
        after = after or (lambda part: None)
        (images,) = self._take_saved()
        d = self.avgpool.backward(self.fc.backward(dlogits))
        after(self.fc)
        for block in reversed(self.blocks):
            d = block.backward(d)
            after(block)
        d = self.maxpool.backward(d)
        if self.blocks[0].policy.recompute:
            self.bn1.prepare(self.conv1.forward(self._pixels(images)), relu=True)
        self.bn1._saved = unpack_saved(self.bn1._saved)
        d = self.bn1.backward(d, out=d)
        after(self.bn1)
        self.conv1.backward(d, self._pixels(images) if self.conv1.needs_input else None, need_dx=False)
        after(self.conv1)

    def head_parameters(self):
        """What is trained even where all else is frozen."""
        return [self.fc.weight, self.fc.bias]

    def _pass_flops(self, B, rule):
        shape = (B, self.config.img_size, self.config.img_size, 3)
        total = self.conv1.flops(shape, rule, dx=False)
        if self.blocks[0].policy.recompute:
            total += Flops(0, total.forward)
        B, H, W, C = self.conv1.output_shape(shape)
        shape = (B, *_POOL.grid(H, W), C)
        for block in self.blocks:
            total += block.flops(shape, rule)
            shape = block.conv1.output_shape(shape)
        return total + self.fc.flops((B, self.fc.in_features), rule)
