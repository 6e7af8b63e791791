"""One training step's gradient, and evaluation, in micro-batches that keep memory flat."""

from dataclasses import dataclass, field

import numpy as np

from wasi.training.runlog import per_class


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


@dataclass
class Evaluation(BatchResult):
    """Loss and hits over a set, and of a classifier what it took for what."""

    confusion: np.ndarray | None = None  # (classes, classes) int64: samples of each true class (row) by predicted class (column)
    n_top5: int | None = None  # samples whose class is among the five of the largest logits; None below six classes

    @property
    def top5(self):
        return None if self.n_top5 is None else self.n_top5 / self.n

    def per_class(self):
        """`per_class` of its confusion."""
        return per_class(self.confusion)


def accumulate_gradient(model, images, labels, micro_batch=None, label_smoothing=0.0, after=None, class_weights=None):
    """Adds the gradient of the mean loss over a batch to the model's parameters.

    images, labels: what the model takes and what its loss compares with: (B, 3, S, S) uint8 or normalised float32 and (B,) int64
    of a ViT, or (B, classes) float32 for soft targets; (B, N) int64 tokens and (B,) or (B, N) int64 of a decoder. micro_batch:
    samples that are in flight at once (None: all). Samples do not interact in these models, so the gradient is the same to
    rounding, but for a batch norm, whose statistics are those of a micro-batch. class_weights: (classes,) float32, or None; with
    labels, the mean is weighted by theirs. after(part): called for each part of the model as soon as a micro-batch's gradients
    of it are complete (`Optimizer.after_backward`).
    Returns BatchResult. Raises FloatingPointError where the loss is not finite; gradients are then unfinished.
    """
    n, total, n_correct, saved = len(images), 0.0, 0, None
    size = micro_batch or n
    weights = np.ones(n) if class_weights is None or labels.dtype == np.float32 else class_weights[labels].astype(np.float64)
    if weights.ndim > 1:  # a label a token
        weights = weights.sum(1)
    for start in range(0, n, size):
        part = slice(start, min(start + size, n))
        share = float(weights[part].sum() / weights.sum())
        logits = model.forward(images[part], train=True)
        saved = model.saved_bytes_by_module() if saved is None else saved
        loss, dlogits, hits = model.loss(logits, labels[part], label_smoothing, class_weights=class_weights)
        total += loss * share
        n_correct += hits
        if not np.isfinite(loss):
            raise FloatingPointError("the loss is not finite: lower lr, or clip the gradient (clip_norm)")
        dlogits *= np.float32(share)
        model.backward(dlogits, after)
    return BatchResult(total, n_correct, n, saved)


def evaluate(model, batches, micro_batch=None):
    """The Evaluation over an iterable of (images, labels), `micro_batch` samples at once."""
    total, n_correct, n, top5, confusion = 0.0, 0, 0, 0, None
    for images, labels in batches:
        size = micro_batch or len(images)
        for start in range(0, len(images), size):
            part = slice(start, start + size)
            logits = model.forward(images[part])
            loss, _, hits = model.loss(logits, labels[part], need_gradient=False)
            if logits.ndim == 2:
                confusion = np.zeros((logits.shape[1],) * 2, np.int64) if confusion is None else confusion
                np.add.at(confusion, (labels[part], logits.argmax(1)), 1)
                own = np.take_along_axis(logits, labels[part][:, None], 1)
                top5 += int(((logits > own).sum(1) < 5).sum())
            total += loss * len(images[part])
            n_correct += hits
            n += len(images[part])
    known = confusion is not None and len(confusion) > 5
    return Evaluation(total / n, n_correct, n, confusion=confusion, n_top5=top5 if known else None)


def balanced_class_weights(labels, n_classes):
    """Weights (n_classes,) by which each class that occurs adds the same to a loss, n / (classes that occur * its samples).

    >>> balanced_class_weights(np.array([0, 0, 0, 1]), 2).round(3).tolist()
    [0.667, 2.0]
    """
    counts = np.bincount(labels, minlength=n_classes)
    return np.where(counts, len(labels) / (np.maximum(counts, 1) * (counts > 0).sum()), 1.0)
