"""Softmax cross-entropy: the NumPy twin of csrc/kernels/cross_entropy.c."""

import numpy as np


def cross_entropy(logits, targets, label_smoothing=0.0, class_weights=None):
    """(mean loss, dlogits, n_correct); targets are labels (B,) or soft (B, V)."""
    B, V = logits.shape
    weights = np.ones(V, logits.dtype) if class_weights is None else class_weights
    soft, n = targets, B
    if targets.ndim == 1:
        soft, n = np.zeros_like(logits), weights[targets].sum()
        soft[np.arange(B), targets] = 1
    wanted = weights * ((1 - label_smoothing) * soft + label_smoothing / V)
    z = logits - logits.max(1, keepdims=True)
    log_p = z - np.log(np.exp(z).sum(1, keepdims=True))
    dlogits = (wanted.sum(1, keepdims=True) * np.exp(log_p) - wanted) / n
    return -(wanted * log_p).sum() / n, dlogits, int((logits.argmax(1) == soft.argmax(1)).sum())
