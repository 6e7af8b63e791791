"""Softmax cross-entropy: the NumPy twin of csrc/kernels/cross_entropy.c."""

import numpy as np


def cross_entropy(logits, targets, label_smoothing=0.0):
    """(mean loss, dlogits, n_correct)."""
    B, V = logits.shape
    z = logits - logits.max(1, keepdims=True)
    log_p = z - np.log(np.exp(z).sum(1, keepdims=True))
    wanted = np.full((B, V), label_smoothing / V, logits.dtype)
    wanted[np.arange(B), targets] += 1 - label_smoothing
    return -(wanted * log_p).sum() / B, (np.exp(log_p) - wanted) / B, int((logits.argmax(1) == targets).sum())
