"""A small model of each architecture, all of whose weights matter, batches for it, and its NumPy twin."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest

import wasi
from wasi.models.llama import Llama, LlamaConfig, random_arrays
from wasi.reference.resnet import resnet_logits, resnet_loss
from wasi.reference.swin import swin_logits, swin_loss
from wasi.reference.vit import vit_logits, vit_loss
from wasi.training.optimizer import Optimizer
from wasi.training.step import accumulate_gradient


@dataclass(frozen=True)
class Images:
    """A small model of images."""

    name: str  # of the architecture
    sizes: dict  # fields of its configuration
    noise: float  # on fresh weights, away from their zeros and ones, so that every path matters
    factors: dict  # what `wasi.factorize` is told
    logits_twin: Callable
    loss_twin: Callable
    shape_of: Callable  # config -> what the twins are told of it

    def model(self, factored=False, **changes):
        model = wasi.create_model(self.name, **{**self.sizes, **changes})
        rng = np.random.default_rng(1)
        for name, p in model.named_parameters():
            noise = (self.noise * rng.standard_normal(p.data.shape)).astype(np.float32)
            p.data += np.abs(noise) if name.endswith("running_var") else noise
        return wasi.factorize(model, **self.factors, verbose=False) if factored else model

    def batch(self, rng, n=3):
        S = self.sizes["img_size"]
        return rng.standard_normal((n, 3, S, S)).astype(np.float32), rng.integers(0, 5, n)

    def twin_logits(self, model, images):
        return self.logits_twin(wide(model), images.astype(np.float64), **self.shape_of(model.config))

    def twin_loss(self, model, arrays, images, labels, label_smoothing):
        return self.loss_twin(arrays, images.astype(np.float64), labels, label_smoothing, **self.shape_of(model.config))


VIT = Images("vit_micro_patch8_64", {"img_size": 16, "embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": 5}, 0.3,
             {"variance": 0.8, "target_modules": ("all",)}, vit_logits, vit_loss,
             lambda c: {"patch": c.patch_size, "depth": c.depth, "n_heads": c.num_heads})
# Grids of 8, 4, 2 and windows of 4: shifted ones, one window for all, a window that shrinks to the grid.
SWIN = Images("swin_micro_patch2_window4_32",
              {"img_size": 16, "embed_dim": 12, "depths": (2, 1, 2), "num_heads": (2, 3, 4), "num_classes": 5}, 0.3,
              {"variance": 0.8, "target_modules": ("all", "reduction")}, swin_logits, swin_loss,
              lambda c: {"patch": c.patch_size, "depths": c.depths, "n_heads": c.num_heads, "window": c.window_size})
RESNET = Images("resnet_micro_32", {"img_size": 32, "depths": (1, 2, 1), "widths": (6, 10, 12), "num_classes": 5}, 0.2,
                {"variance": 0.7}, resnet_logits, resnet_loss, lambda c: {"depths": c.depths})


class Decoder:
    """A small decoder, a language model unless it is given classes."""

    sizes = {"vocab_size": 23, "embed_dim": 16, "hidden_dim": 24, "depth": 3, "num_heads": 4, "num_kv_heads": 2, "max_length": 12}

    def model(self, factored=False, tied=True, num_classes=None, scale=10.0, **changes):
        model = Llama(LlamaConfig(**{**self.sizes, **changes}, tied=tied, num_classes=num_classes), random_arrays(0))
        rng = np.random.default_rng(1)
        for _, p in model.named_parameters():
            p.data *= scale if p.data.ndim == 2 else rng.uniform(0.5, 1.5, p.data.shape).astype(np.float32)
        return wasi.factorize(model, rank=6, target_modules=("all",), verbose=False) if factored else model

    def batch(self, rng, n=3):
        return tuple(rng.integers(0, self.sizes["vocab_size"], (2, n, 9)))


DECODER = Decoder()


def wide(model):
    return {n: p.data.astype(np.float64) for n, p in model.named_parameters()}


def gradients_of(model):
    return {n: p.grad for n, p in model.named_parameters() if p.trainable}


def assert_same_loss_curve(torch, rng, model, twin, n_steps, batch_size, lr, rel):
    """Steps of SGD on noisy prototypes of 5 classes: the losses are those of the PyTorch twin within `rel`, and fall."""
    S = model.config.img_size
    theirs, ours, prototypes = torch.optim.SGD(twin.parameters(), lr), Optimizer(model), rng.standard_normal((5, 3, S, S))
    losses = []
    for _ in range(n_steps):
        labels = rng.integers(0, 5, batch_size)
        images = (prototypes[labels] + rng.standard_normal((batch_size, 3, S, S))).astype(np.float32)
        loss = torch.nn.functional.cross_entropy(twin(torch.from_numpy(images)), torch.from_numpy(labels))
        loss.backward()
        theirs.step()
        theirs.zero_grad()
        losses.append(loss.item())
        assert accumulate_gradient(model, images, labels).loss == pytest.approx(losses[-1], rel=rel)
        ours.step(lr)
    assert losses[-1] < 0.7 * losses[0]
