"""SGD and AdamW: flat updates for dense parameters, the WSI step for the factors of a factored layer."""

import math

import numpy as np

from wasi import linalg, ops
from wasi.layers import FactoredLinear

OPTIMIZERS = ("sgd", "adamw")


class Optimizer:
    """Updates a model's trainable parameters from their gradients, and clears those.

    kind: "sgd" (with momentum if that is not 0; weight decay is added to the gradient) or "adamw" (decoupled weight decay).
    clip_norm: the largest norm of the whole gradient, or None. A factored layer counts with the norm of its gradient's
    projection on the tangent space of rank-K matrices, the part that its step uses.
    State (momentum, moments) has the size of the parameters; a factored layer's lives in factor space and moves with its basis.
    """

    def __init__(self, model, kind="sgd", momentum=0.0, weight_decay=0.0, betas=(0.9, 0.999), eps=1e-8, clip_norm=None):
        if kind not in OPTIMIZERS:
            raise ValueError(f"optimizer: expected one of {', '.join(OPTIMIZERS)}, got {kind!r}")
        if clip_norm is not None and not clip_norm > 0:
            raise ValueError(f"clip_norm: expected a positive norm or None, got {clip_norm}")
        self.kind = kind
        self.momentum = momentum
        self.weight_decay = weight_decay
        self.betas = betas
        self.eps = eps
        self.clip_norm = clip_norm
        self.n_steps = 0
        self._modules = list(model.named_modules())
        self.rule = "adamw" if kind == "adamw" else "momentum" if momentum else "sgd"
        self.factored = {name: (m, linalg.WsiState(m.out_features, m.in_features, m.rank, self.rule)) for name, m in self._modules
                         if isinstance(m, FactoredLinear) and m.L.trainable and not m.plain}
        factors = [p for layer, _ in self.factored.values() for p in (layer.L, layer.R)]
        stepped = {id(p) for p in factors}
        self._plain = [p for _, p in model.named_parameters() if p.trainable and id(p) not in stepped]
        n_buffers = {"sgd": 1 if momentum else 0, "adamw": 2}[kind]
        self._plain_state = [[np.zeros_like(p.data) for _ in range(n_buffers)] for p in self._plain]
        for p in self._plain + factors:
            p.grad_buffer()

    def step(self, lr):
        """One update with learning rate lr; returns the gradient's norm before clipping.

        Raises FloatingPointError where the gradient is not finite and ArithmeticError, with the layer's name, where a factor's
        rank has collapsed; the layers before that one may have been updated.
        """
        norms = {name: _with_name(name, _norm2, layer, state) for name, (layer, state) in self.factored.items()}
        norm = math.sqrt(sum(n for n, _ in norms.values()) + sum(ops.sum_of_squares(p.grad) for p in self._plain))
        if not math.isfinite(norm):
            raise FloatingPointError("the gradient is not finite: lower lr")
        scale = 1.0 if self.clip_norm is None else min(1.0, self.clip_norm / (norm + 1e-6))
        self.n_steps += 1
        for p, state in zip(self._plain, self._plain_state):
            self._update_plain(p, state, lr, scale)
            p.grad.fill(0)
        for name, (layer, state) in self.factored.items():
            step = linalg.wsi_step_extended if state.n_new else linalg.wsi_step
            _with_name(name, step, layer.L.data, layer.R.data, layer.L.grad, layer.R.grad, lr, scale, self.weight_decay, state,
                       self.momentum, self.betas, self.eps, norms[name][1])
            layer.L.grad.fill(0)
            layer.R.grad.fill(0)
        for name, module in self._modules:
            _with_name(name, module.after_step)
        return norm

    def shrink(self, name, rank):
        """Truncates a factored layer, between steps, to the best approximation of that rank; its state moves along."""
        layer, state = self.factored[name]
        self._set_factors(layer, *linalg.wsi_truncate(layer.L.data, layer.R.data, rank, state))

    def grow(self, name, directions):
        """Extends a factored layer, between steps, by directions (O, p) for L and zeros in R: its function stays as it is."""
        layer, state = self.factored[name]
        self._set_factors(layer, *linalg.wsi_extend(layer.L.data, layer.R.data, directions, state))

    def _set_factors(self, layer, L, R):
        for p, data in ((layer.L, L), (layer.R, R)):
            p.data, p.grad = data, None
            p.grad_buffer()

    def bytes_per_rank(self, name):
        """Bytes of factors, gradients and state that one rank of a factored layer takes."""
        layer, _ = self.factored[name]
        return 4 * (layer.out_features + layer.in_features) * (2 + {"sgd": 0, "momentum": 1, "adamw": 2}[self.rule])

    def _update_plain(self, p, state, lr, scale):
        decay = self.weight_decay if p.decay else 0.0
        if self.kind == "sgd":
            ops.sgd_update(p.data, p.grad, state[0] if state else None, lr, self.momentum, decay, False, scale)
        else:
            ops.adamw_update(p.data, p.grad, *state, lr, *self.betas, self.eps, decay, self.n_steps, scale)

    @property
    def state_bytes(self):
        """Bytes of momentum and moments."""
        plain = sum(a.nbytes for state in self._plain_state for a in state)
        return plain + sum(state.nbytes for _, state in self.factored.values())


def _norm2(layer, state):
    """The squared norm of a layer's projected gradient, and the triangle that saves its step work."""
    factors = layer.L.data, layer.R.data, layer.L.grad, layer.R.grad
    return linalg.wsi_extended_norm2(*factors, state.n_new) if state.n_new else linalg.wsi_gradient_norm2(*factors)


def _with_name(name, function, *arguments):
    """The function's result; an ArithmeticError gets the layer's name put before its text."""
    try:
        return function(*arguments)
    except ArithmeticError as error:
        raise ArithmeticError(f"{name}: {error}") from error
