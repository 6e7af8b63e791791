"""Losses."""

from wasi import _core


def cross_entropy(logits, targets, label_smoothing=0.0, need_gradient=True, class_weights=None,
                  dlogits_out=None):
    """Softmax cross-entropy: returns (loss, dlogits, n_correct).

    Row b wants q = (1 - label_smoothing) p + label_smoothing / V, p the target's distribution; the loss is
    the mean over the rows of -sum_j class_weights_j q_j log softmax(logits)_j. For labels and class weights
    the mean is weighted by the weights of the labels, as in PyTorch.

    Parameters: logits (B, V) float32; targets: labels (B,) int64 in 0..V-1, or soft targets (B, V) float32
    (mixup); label_smoothing in [0, 1); need_gradient: False gives None for dlogits; class_weights (V,)
    float32 or None; dlogits_out (B, V) or None, may be logits itself.
    Returns the loss (a float, summed in float64; the same for every thread count), its gradient (B, V), and
    how many rows have their largest logit where the target is largest. A NaN logit gives a NaN loss.
    Raises TypeError or ValueError naming the argument that does not fit.

    >>> import numpy as np
    >>> loss, dlogits, n_correct = cross_entropy(np.zeros((1, 2), np.float32), np.array([0]))
    >>> round(loss, 4), dlogits.tolist(), n_correct
    (0.6931, [[-0.5, 0.5]], 1)
    """
    return _core.cross_entropy(logits, targets, label_smoothing, need_gradient, class_weights, dlogits_out)
