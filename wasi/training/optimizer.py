"""SGD and AdamW: flat updates for dense parameters, the WSI step for the factors of a factored layer."""

import contextlib
import math

import numpy as np

from wasi import linalg, ops
from wasi.layers import FactoredLinear
from wasi.linalg.wsi import MOMENTS
from wasi.models.weights import WeightsError, check_arrays, check_numbers

OPTIMIZERS = ("sgd", "adamw")


def check_optimizer(kind, clip_norm, gradient_bits, layerwise, state_bits):
    """Raises ValueError, by name, for what an Optimizer cannot be told."""
    if kind not in OPTIMIZERS:
        raise ValueError(f"optimizer: expected one of {', '.join(OPTIMIZERS)}, got {kind!r}")
    if clip_norm is not None and not clip_norm > 0:
        raise ValueError(f"clip_norm: expected a positive norm or None, got {clip_norm}")
    if gradient_bits not in (16, 32):
        raise ValueError(f"gradient_bits: expected 16 or 32, got {gradient_bits}")
    if state_bits not in (16, 32):
        raise ValueError(f"state_bits: expected 16 or 32, got {state_bits}")
    if layerwise and clip_norm is not None:
        raise ValueError(f"clip_norm: expected None with layerwise updates, which never see the whole gradient, got {clip_norm}")


class Optimizer:
    """Updates a model's trainable parameters from their gradients, and clears those.

    kind: "sgd" (with momentum if that is not 0; weight decay is added to the gradient) or "adamw" (decoupled weight decay).
    clip_norm: the largest norm of the whole gradient, or None. A factored layer counts with the norm of its gradient's
    projection on the tangent space of rank-K matrices, the part that its step uses.
    gradient_bits: 32, or 16 to sum the matrices' gradients over micro-batches in bfloat16: half their memory, and a relative
    error of about sqrt(micro-batches) 2^-9. layerwise: update a part of the model and free its gradient as soon as backward
    has left it; there is then no norm to clip by. Both need `accumulate_gradient(..., after=optimizer.after_backward(lr))`.
    groups: {parameter name: (factor on lr, weight decay or None for the one above)} (`optimizer_groups`); the factors of a layer
    go by that of its L.
    State (momentum, moments) has the size of the parameters; a factored layer's lives in factor space and moves with its basis.
    state_bits: 32, or 16 to keep the matrices' momentum (AdamW's first moments) as bfloat16 between steps: half its memory, and a
    relative error of 2^-9 a step. Second moments stay float32: they change by less than that in a step, and would stand still.
    """

    def __init__(self, model, kind="sgd", momentum=0.0, weight_decay=0.0, betas=(0.9, 0.999), eps=1e-8, clip_norm=None,
                 gradient_bits=32, layerwise=False, state_bits=32, groups=None):
        check_optimizer(kind, clip_norm, gradient_bits, layerwise, state_bits)
        self.kind = kind
        self.momentum = momentum
        self.weight_decay = weight_decay
        self.betas = betas
        self.eps = eps
        self.clip_norm = clip_norm
        self.gradient_bits = gradient_bits
        self.layerwise = layerwise
        self.state_bits = state_bits
        self.groups = groups or {}
        self.n_steps = 0
        self._norm2 = 0.0  # squared norm of what layerwise updates of this step took in already
        self._modules = list(model.named_modules())
        self.rule = "adamw" if kind == "adamw" else "momentum" if momentum else "sgd"
        self.factored = {name: (m, linalg.WsiState(m.out_features, m.in_features, m.rank, self.rule)) for name, m in self._modules
                         if isinstance(m, FactoredLinear) and m.L.trainable and not m.plain}
        factors = [p for layer, _ in self.factored.values() for p in (layer.L, layer.R)]
        stepped = {id(p) for p in factors}
        self._plain = {name: (p, _PlainState({m: np.zeros_like(p.data) for m in MOMENTS[self.rule]}))
                       for name, p in model.named_parameters() if p.trainable and id(p) not in stepped}
        for _, state in (*self._plain.values(), *self.factored.values()):
            self._pack_state(state)
        for p in [p for p, _ in self._plain.values()] + factors:
            self._make_buffer(p)

    def _make_buffer(self, p):
        """Allocates a gradient that lives from step to step before the steps do, so that they find room in one piece."""
        if not self.layerwise:
            p.make_gradient(self.gradient_bits)

    def _pack_state(self, state):
        if self.state_bits == 16:
            state.arrays = {name: ops.bf16_round(a) if name[0] == "m" and a.ndim == 2 and a.dtype == np.float32 else a
                            for name, a in state.arrays.items()}

    @contextlib.contextmanager
    def _unpacked(self, state):
        """A context in which a state is float32 throughout; an error leaves it as it was."""
        before = state.arrays
        state.arrays = {name: ops.bf16_expand(a) if a.dtype == np.uint16 else a for name, a in before.items()}
        try:
            yield state
        except BaseException:
            state.arrays = before
            raise
        for name, a in before.items():
            if a.dtype == np.uint16 and a.shape == state.arrays[name].shape:
                state.arrays[name] = ops.bf16_round(state.arrays[name], out=a)
        self._pack_state(state)  # what is of another size now

    def after_backward(self, lr):
        """What `accumulate_gradient` calls with each part of the model after its backward; None where there is nothing to do."""
        if self.layerwise:
            return lambda part: self._update_part(part, lr)
        return _pack_part if self.gradient_bits == 16 else None

    def step(self, lr):
        """One update with learning rate lr; returns the gradient's norm before clipping.

        Raises FloatingPointError where the gradient is not finite and ArithmeticError, with the layer's name, where a factor's
        rank has collapsed; the layers before that one may have been updated.
        """
        norm = math.sqrt(self._norm2 + self._update(self._plain, self.factored, lr))
        self._norm2 = 0.0
        if self.layerwise:  # the gradients of what belongs to no part
            for p, _ in self._plain.values():
                p.grad = None
        self.n_steps += 1
        for name, module in self._modules:
            with_layer_name(name, module.after_step)
        return norm

    def _update_part(self, part, lr):
        """Updates a part of the model and frees its gradient."""
        held, modules = {id(p) for _, p in part.named_parameters()}, {id(m) for _, m in part.named_modules()}
        self._norm2 += self._update({name: u for name, u in self._plain.items() if id(u[0]) in held},
                                    {name: u for name, u in self.factored.items() if id(u[0]) in modules}, lr)
        for _, p in part.named_parameters():
            p.grad = None

    def _update(self, plain, factored, lr):
        """Updates what has a gradient among {name: (parameter or layer, state)} and clears it; returns its squared norm."""
        plain = {name: unit for name, unit in plain.items() if unit[0].gradient_bytes}
        factored = {name: unit for name, unit in factored.items() if unit[0].R.gradient_bytes}
        norms = {name: with_layer_name(name, _norm2, layer, state) for name, (layer, state) in factored.items()}
        norm2 = sum(n for n, _ in norms.values()) + sum(ops.sum_of_squares(p.full_gradient()) for p, _ in plain.values())
        if not math.isfinite(norm2):
            raise FloatingPointError("the gradient is not finite: lower lr")
        scale = 1.0 if self.clip_norm is None else min(1.0, self.clip_norm / (math.sqrt(norm2) + 1e-6))
        for name, (p, state) in plain.items():
            self._update_plain(name, p, state, lr, scale)
            p.clear_gradient()
        for name, (layer, state) in factored.items():
            rate, decay = self._group(f"{name}.L", lr)
            step = linalg.wsi_step_extended if state.n_new else linalg.wsi_step
            with self._unpacked(state):
                with_layer_name(name, step, *_factors(layer), rate, scale, decay, state, self.momentum, self.betas, self.eps,
                                norms[name][1])
            layer.L.clear_gradient()
            layer.R.clear_gradient()
        return norm2

    def shrink(self, name, rank):
        """Truncates a factored layer, between steps, to the best approximation of that rank; its state moves along."""
        layer, state = self.factored[name]
        with self._unpacked(state):
            self._set_factors(layer, *linalg.wsi_truncate(layer.L.data, layer.R.data, rank, state))

    def grow(self, name, directions):
        """Extends a factored layer, between steps, by directions (O, p) for L and zeros in R: its function stays as it is."""
        layer, state = self.factored[name]
        with self._unpacked(state):
            self._set_factors(layer, *linalg.wsi_extend(layer.L.data, layer.R.data, directions, state))

    def _set_factors(self, layer, L, R):
        for p, data in ((layer.L, L), (layer.R, R)):
            p.data, p.grad, p.packed = data, None, None
            self._make_buffer(p)

    def bytes_per_rank(self, name):
        """Bytes of factors, gradients and state that one rank of a factored layer takes."""
        layer, _ = self.factored[name]
        n_bytes = [self.gradient_bits // 8, *(self.state_bits // 8 if m == "m" else 4 for m in MOMENTS[self.rule])]
        return (layer.out_features + layer.in_features) * (4 + sum(n_bytes))

    def _group(self, name, lr):
        """Learning rate and weight decay of a parameter."""
        factor, decay = self.groups.get(name, (1.0, None))
        return lr * factor, self.weight_decay if decay is None else decay

    def _update_plain(self, name, p, state, lr, scale):
        (lr, decay), gradient = self._group(name, lr), p.full_gradient()
        decay = decay if p.decay else 0.0
        with self._unpacked(state):
            if self.kind == "sgd":
                ops.sgd_update(p.data, gradient, state.arrays.get("m"), lr, self.momentum, decay, False, scale)
            else:
                moments = state.arrays["m"], state.arrays["v"]
                ops.adamw_update(p.data, gradient, *moments, lr, *self.betas, self.eps, decay, self.n_steps + 1, scale)

    def state_dict(self):
        """({name: float32 array}, numbers) for `load_state_dict` of another one of the same settings and model.

        Arrays are not copied, but for those that are kept in 16 bits.
        """
        arrays = {name: ops.bf16_expand(a) if a.dtype == np.uint16 else a for name, a in self._state_arrays().items()}
        return arrays, {"n_steps": self.n_steps,
                        "factored": {name: [state.n_steps, state.n_new] for name, (_, state) in self.factored.items()}}

    def _state_arrays(self):
        """{name: array} of all states, the arrays that they hold."""
        units = ((name, state) for units in (self._plain, self.factored) for name, (_, state) in units.items())
        return {f"{name}.{part}": a for name, state in units for part, a in state.arrays.items()}

    def load_state_dict(self, arrays, numbers):
        """Goes on from there. Raises WeightsError naming every array that does not fit."""
        mine = self._state_arrays()
        check_arrays("optimizer", arrays, {name: a.shape for name, a in mine.items()})
        if numbers["factored"].keys() != self.factored.keys():
            got = sorted(numbers["factored"])
            raise WeightsError(f"optimizer: expected steps of {sorted(self.factored)}, got those of {got}")
        check_numbers("optimizer", numbers, ("n_steps",))
        for name, (layer, _) in self.factored.items():
            steps, new = numbers["factored"][name]
            check_numbers(f"optimizer: {name}", {"steps": steps, "new directions": new}, ("steps", "new directions"))
            if new >= layer.rank:
                raise WeightsError(f"optimizer: {name}: expected fewer new directions than its rank {layer.rank}, got {new}")
        for name, array in mine.items():
            array[:] = ops.bf16_round(arrays[name]) if array.dtype == np.uint16 else arrays[name]
        self.n_steps = numbers["n_steps"]
        for name, (_, state) in self.factored.items():
            state.n_steps, state.n_new = numbers["factored"][name]

    @property
    def state_bytes(self):
        """Bytes of momentum and moments."""
        return sum(self.state_bytes_by_module().values())

    def state_bytes_by_module(self):
        """{dotted name: bytes} of momentum and moments, by the module whose parameters they are for."""
        sizes = {name: state.nbytes for name, (_, state) in self.factored.items()}
        for name, (_, state) in self._plain.items():
            module = name.rpartition(".")[0]
            sizes[module] = sizes.get(module, 0) + sum(a.nbytes for a in state.arrays.values())
        return sizes


class _PlainState:
    """What an optimiser remembers about one parameter: {"m"} for momentum, {"m", "v"} for AdamW; of its shape."""

    def __init__(self, arrays):
        self.arrays = arrays


def _norm2(layer, state):
    """The squared norm of a layer's projected gradient, and the triangle that saves its step work."""
    factors = _factors(layer)
    return linalg.wsi_extended_norm2(*factors, state.n_new) if state.n_new else linalg.wsi_gradient_norm2(*factors)


def _factors(layer):
    """(L, R, dL, dR)"""
    return layer.L.data, layer.R.data, layer.L.full_gradient(), layer.R.full_gradient()


def _pack_part(part):
    """Packs the gradients of a part's matrices, which are what is large."""
    for _, p in part.named_parameters():
        if p.grad is not None and p.grad.ndim == 2:
            p.pack_gradient()


def with_layer_name(name, function, *arguments):
    """The function's result; an ArithmeticError gets the layer's name put before its text."""
    try:
        return function(*arguments)
    except ArithmeticError as error:
        raise ArithmeticError(f"{name}: {error}") from error
