"""One training step's gradient, and evaluation, in micro-batches that keep memory flat."""

from dataclasses import dataclass, field

import numpy as np


@dataclass
class BatchResult:
    """Loss and hits over a batch or a set."""

    loss: float  # mean over samples
    n_correct: float  # samples; of language modelling the sum of their shares of right tokens
    n: int
    saved: dict = field(default_factory=dict)  # {module: bytes kept between forward and backward}, by the largest micro-batch

    @property
    def saved_bytes(self):
        return sum(self.saved.values())

    @property
    def accuracy(self):
        return self.n_correct / self.n


def accumulate_gradient(model, images, labels, micro_batch=None, label_smoothing=0.0, after=None):
    """Adds the gradient of the mean loss over a batch to the model's parameters.

    images, labels: what the model takes and what its loss compares with: (B, 3, S, S) uint8 or normalised float32 and (B,) int64
    of a ViT; (B, N) int64 tokens and (B,) or (B, N) int64 of a decoder. micro_batch: samples that are in flight at once
    (None: all). Samples do not interact in these models, so the gradient is the same to rounding. after(part): called for each
    part of the model as soon as a micro-batch's gradients of it are complete (`Optimizer.after_backward`).
    Returns BatchResult. Raises FloatingPointError where the loss is not finite; gradients are then unfinished.
    """
    n, total, n_correct, saved = len(images), 0.0, 0, None
    size = micro_batch or n
    for start in range(0, n, size):
        part = slice(start, min(start + size, n))
        share = (part.stop - part.start) / n
        logits = model.forward(images[part], train=True)
        saved = model.saved_bytes_by_module() if saved is None else saved
        loss, dlogits, hits = model.loss(logits, labels[part], label_smoothing)
        total += loss * share
        n_correct += hits
        if not np.isfinite(loss):
            raise FloatingPointError("the loss is not finite: lower lr, or clip the gradient (clip_norm)")
        dlogits *= np.float32(share)
        model.backward(dlogits, after)
    return BatchResult(total, n_correct, n, saved)


def evaluate(model, batches, micro_batch=None):
    """Mean loss and accuracy over an iterable of (images, labels), `micro_batch` samples at once."""
    total, n_correct, n = 0.0, 0, 0
    for images, labels in batches:
        size = micro_batch or len(images)
        for start in range(0, len(images), size):
            part = slice(start, start + size)
            loss, _, hits = model.loss(model.forward(images[part]), labels[part], need_gradient=False)
            total += loss * len(images[part])
            n_correct += hits
            n += len(images[part])
    return BatchResult(total / n, n_correct, n)
