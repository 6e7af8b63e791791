"""Losses."""

from wasi import _core


def cross_entropy(logits, targets, label_smoothing=0.0, need_gradient=True):
    """Softmax cross-entropy: returns (loss, dlogits, n_correct).

    Parameters: logits (B, V) float32; targets (B,) int64 in 0..V-1; label_smoothing in [0, 1): the share of the target that is
    spread evenly over the classes; need_gradient: False gives None for dlogits.
    Returns the mean loss over the rows (a float, summed in float64), its gradient (B, V), and how many rows have their largest
    logit at the target. NaN logits give a NaN loss.
    Raises TypeError or ValueError naming the argument that does not fit.

    >>> import numpy as np
    >>> loss, dlogits, n_correct = cross_entropy(np.zeros((1, 2), np.float32), np.array([0]))
    >>> round(loss, 4), dlogits.tolist(), n_correct
    (0.6931, [[-0.5, 0.5]], 1)
    """
    return _core.cross_entropy(logits, targets, label_smoothing, need_gradient)
