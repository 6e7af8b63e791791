"""What models of images share: patches to tokens, random weights, loss, probabilities, FLOPs of a step."""

import numpy as np

from wasi import ops
from wasi.layers import Linear, Module
from wasi.layers.flops import batch_flops
from wasi.layers.module import blank


def truncated_normal(rng, shape, std=0.02):
    """Normal numbers redrawn until they lie within two standard deviations."""
    x = rng.standard_normal(shape)
    while (outside := np.abs(x) > 2).any():
        x[outside] = rng.standard_normal(int(outside.sum()))
    return (x * std).astype(np.float32)


def probabilities(logits):
    """Softmax of each row: logits (B, classes) -> float64 (B, classes), rows sum to 1.

    >>> probabilities(np.float32([[0, 1000]])).tolist()
    [[0.0, 1.0]]
    """
    z = logits.astype(np.float64)
    p = np.exp(z - z.max(1, keepdims=True))
    return p / p.sum(1, keepdims=True)


def zero_linear(O, I, bias=True):
    """A Linear whose weights are zero."""
    return Linear(np.zeros((O, I), np.float32), np.zeros(O, np.float32) if bias else None)


def blank_linear(O, I, bias=True):
    """A Linear yet without values, to be filled in or replaced."""
    return Linear(blank((O, I)), np.zeros(O, np.float32) if bias else None)


def linear_shapes(name, O, I, bias=True):
    """{parameter name: shape} of a Linear."""
    return {f"{name}.weight": (O, I), **({f"{name}.bias": (O,)} if bias else {})}


def norm_shapes(name, C):
    """{parameter name: shape} of a LayerNorm."""
    return {f"{name}.weight": (C,), f"{name}.bias": (C,)}


def block_shapes(name, C, hidden):
    """{parameter name: shape} of a Block of LayerNorms, Attention and Mlp."""
    return {**norm_shapes(f"{name}.norm1", C), **linear_shapes(f"{name}.attn.qkv", 3 * C, C),
            **linear_shapes(f"{name}.attn.proj", C, C), **norm_shapes(f"{name}.norm2", C),
            **linear_shapes(f"{name}.mlp.fc1", hidden, C), **linear_shapes(f"{name}.mlp.fc2", C, hidden)}


class PatchEmbed(Module):
    """Cuts images into patches and projects each to C channels.

    proj: linear 3 p p -> C; its weight is the flattened convolution kernel.
    """

    def __init__(self, proj, config):
        self.proj = proj
        self.config = config

    def _patches(self, images):
        c = self.config
        return ops.extract_patches(images, c.patch_size, c.mean, c.std)

    def draw_weights(self, rng):
        """Uniform numbers up to 1 / sqrt(3 p p)."""
        W = self.proj.weight.data
        W[:] = rng.uniform(-(W.shape[1] ** -0.5), W.shape[1] ** -0.5, W.shape)

    def forward(self, images, train=False):
        """images (B, 3, S, S), uint8 or float32 already normalised -> (B, P, C). Keeps the images, not the patches."""
        if train:
            self._saved = (images,)
        return self.proj.forward(self._patches(images), train, keep_input=False)

    def backward(self, dy):
        """dy (B, P, C); images have no gradient."""
        (images,) = self._take_saved()
        self.proj.backward(dy, self._patches(images), need_dx=False)


class ImageClassifier(Module):
    """A model from images to logits with a `config` of img_size, `blocks`, and `_pass_flops(B, rule)`."""

    default_targets = ("mlp",)  # what methods treat unless told otherwise
    stem = ("patch_embed",)  # names of what comes before the blocks

    def set_policy(self, policy):
        """Chooses what every block keeps between forward and backward (`ActivationPolicy`)."""
        for block in self.blocks:
            block.policy = policy

    def loss(self, logits, labels, label_smoothing=0.0, need_gradient=True, class_weights=None):
        """(mean loss, its gradient, images classified right); labels (B,) int64, or soft targets (B, classes) float32."""
        return ops.cross_entropy(logits, labels, label_smoothing, need_gradient, class_weights)

    def training_flops(self, batch_size, rule="sgd", micro_batch=None):
        """The Flops of one training step on a batch, from the sizes of the layers (`wasi.layers.flops`).

        rule: of the optimiser: "sgd", "momentum" or "adamw". micro_batch: samples in flight at once.
        """
        return batch_flops(lambda n: self._pass_flops(n, rule), batch_size, micro_batch)

    def _check_images(self, images):
        want = (3, self.config.img_size, self.config.img_size)
        if not isinstance(images, np.ndarray) or images.ndim != 4 or images.shape[1:] != want:
            got = f"shape {images.shape}" if isinstance(images, np.ndarray) else type(images).__name__
            raise ValueError(f"images: expected an array of shape (B, {want[0]}, {want[1]}, {want[2]}), got {got}")
