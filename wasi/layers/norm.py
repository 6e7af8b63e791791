"""LayerNorm and RMSNorm with their parameters."""

import numpy as np

from wasi import ops
from wasi.layers.module import Module, Parameter


class LayerNorm(Module):
    """y = (x - mean) * rstd * weight + bias over the last axis.

    Keeps x by reference with the mean and reciprocal standard deviation of each row; the output can be recomputed from
    these (`output_again`), so the linear that follows need not keep it.
    """

    def __init__(self, n_features, eps=1e-6):
        self.weight = Parameter(np.ones(n_features, np.float32), decay=False)
        self.bias = Parameter(np.zeros(n_features, np.float32), decay=False)
        self.eps = eps

    def forward(self, x, train=False):
        """x (..., C) -> y (..., C)."""
        y, mean, rstd = ops.layer_norm(x, self.weight.data, self.bias.data, self.eps)
        if train:
            self._saved = (x, mean, rstd)
        return y

    def output_again(self):
        """The output of the last forward(train=True), computed anew from what was kept."""
        x, mean, rstd = self._saved
        return ops.layer_norm_apply(x, mean, rstd, self.weight.data, self.bias.data)

    def backward(self, dy, add_to=None):
        """dy -> dx, plus `add_to` (the gradient that flows past the norm) where given."""
        x, mean, rstd = self._take_saved()
        return ops.layer_norm_backward(dy, x, mean, rstd, self.weight.data, self.weight.grad_buffer(),
                                       self.bias.grad_buffer(), add_to=add_to)


class RMSNorm(Module):
    """y = x * rstd * weight over the last axis, rstd = 1 / sqrt(mean(x^2) + eps). Keeps and recomputes as `LayerNorm`.

    weight: (C,) float32.
    """

    def __init__(self, weight, eps=1e-5):
        self.weight = Parameter(weight, decay=False)
        self.eps = eps

    def forward(self, x, train=False):
        """x (..., C) -> y (..., C)."""
        y, rstd = ops.rms_norm(x, self.weight.data, self.eps)
        if train:
            self._saved = (x, rstd)
        return y

    def output_again(self):
        """The output of the last forward(train=True), computed anew from what was kept."""
        x, rstd = self._saved
        return ops.rms_norm_apply(x, rstd, self.weight.data)

    def backward(self, dy, add_to=None):
        """dy -> dx, plus `add_to` (the gradient that flows past the norm) where given."""
        x, rstd = self._take_saved()
        return ops.rms_norm_backward(dy, x, rstd, self.weight.data, self.weight.grad_buffer(), add_to=add_to)
