"""The WSI step as a PyTorch optimiser: factored layers move on the manifold of rank-K matrices, all else by SGD or AdamW."""

import math
from types import SimpleNamespace

import torch

from wasi import linalg, ops
from wasi.linalg.wsi import MOMENTS, wsi_state_shapes
from wasi.torch.layers import FactoredLinear, as_array
from wasi.training.optimizer import OPTIMIZERS, with_layer_name


class WSI(torch.optim.Optimizer):
    """Trains a converted model: W = L R of each factored layer by `wasi.linalg.wsi_step`, other parameters by SGD or AdamW.

    The step takes the gradient of the weight itself, as far as rank-K matrices can follow it, instead of the
    gradients of two factors whose scales depend on each other; L stays orthonormal. Any other optimiser may
    be used on model.parameters() in its stead: L and R are then trained as LoRA's factors are.

    Parameters
    ----------
    module: the converted model.
    params: parameters or groups of them as any PyTorch optimiser takes; L and R of a layer belong in one group (default:
        all that require a gradient, those of fewer than two dimensions without weight decay).
    kind: "sgd" (heavy ball; weight decay is added to the gradient) or "adamw" (decoupled).
    lr, momentum, weight_decay, betas, eps: as usual.
    clip_norm: the largest norm of the whole gradient, or None. A factored layer counts with the norm of its gradient's
        projection on the tangent space of rank-K matrices, which torch.nn.utils.clip_grad_norm_ does not know.

    After a step `gradient_norm` is the norm before clipping. Raises ValueError for what does not fit,
    TypeError for parameters that are not float32 on the CPU; `step` raises FloatingPointError where the
    gradient is not finite, and ArithmeticError with the layer's name where a factor's rank has collapsed.

    Source: WASI (arXiv 2510.09160), section 3.1.

    >>> import torch, wasi.torch
    >>> layer = torch.nn.Sequential(torch.nn.Linear(8, 8))
    >>> model = wasi.torch.convert(layer, "wsi", wasi.torch.MethodOptions(targets=("0",), rank=2), verbose=False)
    >>> optimizer = wasi.torch.WSI(model, lr=0.1)
    >>> model(torch.ones(4, 8)).square().sum().backward()
    >>> optimizer.step()
    >>> optimizer.gradient_norm > 0
    True
    """

    def __init__(self, module, params=None, lr=1e-2, kind="sgd", momentum=0.0, weight_decay=0.0, betas=(0.9, 0.999), eps=1e-8,
                 clip_norm=None):
        if kind not in OPTIMIZERS:
            raise ValueError(f"kind: expected one of {', '.join(OPTIMIZERS)}, got {kind!r}")
        if clip_norm is not None and not clip_norm > 0:
            raise ValueError(f"clip_norm: expected a positive norm or None, got {clip_norm}")
        for name, value, top in (("lr", lr, math.inf), ("momentum", momentum, 1), ("weight_decay", weight_decay, math.inf)):
            if not 0 <= value < top:
                raise ValueError(f"{name}: expected a number from 0{'' if top == math.inf else ' to below 1'}, got {value}")
        self.kind, self.clip_norm, self.gradient_norm = kind, clip_norm, None
        self._names = {p: name for name, p in module.named_parameters()}
        if params is None:
            trained = [p for p in module.parameters() if p.requires_grad]
            params = [{"params": [p for p in trained if p.ndim > 1]},
                      {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0}]
            params = [group for group in params if group["params"]]
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "betas": tuple(betas), "eps": eps}
        super().__init__(params, defaults)
        group_of = {p: i for i, group in enumerate(self.param_groups) for p in group["params"]}
        self._partners = {}  # {L: (R, the layer's name)} of those that are trained together
        for name, layer in module.named_modules():
            if not isinstance(layer, FactoredLinear) or not {layer.L, layer.R} <= group_of.keys():
                continue
            if group_of[layer.L] != group_of[layer.R]:
                raise ValueError(f"params: expected L and R of {name} in one group, got them in two")
            if layer.L.requires_grad and layer.R.requires_grad:
                self._partners[layer.L] = layer.R, name
                _orthonormalize(layer)
        for p in group_of:
            as_array(p, self._name(p))
            if not p.is_contiguous():
                raise ValueError(f"{self._name(p)}: expected a contiguous parameter, got strides {p.stride()}")

    def _name(self, p):
        return self._names.get(p, "a parameter")

    @torch.no_grad()
    def step(self, closure=None):
        """One update; returns what the closure, if there is one, returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        pairs, plain = [], []
        second = {R for R, _ in self._partners.values()}
        for group in self.param_groups:
            for p in group["params"]:
                if p in self._partners:
                    pairs += self._pair(p, group)
                elif p.grad is not None and p not in second:
                    plain.append((p, as_array(p.grad.contiguous(), f"the gradient of {self._name(p)}"), group))
        norms = [with_layer_name(name, linalg.wsi_gradient_norm2, *arrays) for _, name, arrays, _ in pairs]
        norm2 = sum(n for n, _ in norms) + sum(ops.sum_of_squares(g) for _, g, _ in plain)
        if not math.isfinite(norm2):
            raise FloatingPointError("the gradient is not finite: lower lr")
        self.gradient_norm = math.sqrt(norm2)
        scale = 1.0 if self.clip_norm is None else min(1.0, self.clip_norm / (self.gradient_norm + 1e-6))
        for p, gradient, group in plain:
            self._update(p, gradient, group, scale)
        for (p, name, arrays, group), (_, T) in zip(pairs, norms):
            self._update_pair(p, name, arrays, group, scale, T)
        return loss

    def _pair(self, L, group):
        """[(L, the layer's name, (L, R, dL, dR), group)], or [] where there is no gradient."""
        R, name = self._partners[L]
        if L.grad is None and R.grad is None:
            return []
        if L.grad is None or R.grad is None:
            raise RuntimeError(f"{name}: expected gradients of both L and R, got that of {'R' if L.grad is None else 'L'} alone; "
                               "freeze them before the optimiser is made")
        arrays = tuple(as_array(t.contiguous(), f"{name}.{what}") for what, t in
                       (("L", L), ("R", R), ("L.grad", L.grad), ("R.grad", R.grad)))
        return [(L, name, arrays, group)]

    def _state(self, p, shapes):
        """What is remembered of a parameter, and the arrays in it by name: zeros at first."""
        state = self.state[p]
        state.setdefault("step", 0)
        for name, shape in shapes.items():
            if name not in state:
                state[name] = torch.zeros(shape)
        return state, {name: state[name].numpy() for name in shapes}

    def _rule(self, group):
        return "adamw" if self.kind == "adamw" else "momentum" if group["momentum"] else "sgd"

    def _update(self, p, gradient, group, scale):
        state, arrays = self._state(p, dict.fromkeys(MOMENTS[self._rule(group)], p.shape))
        if self.kind == "sgd":
            ops.sgd_update(p.numpy(), gradient, arrays.get("m"), group["lr"], group["momentum"], group["weight_decay"], False,
                           scale)
        else:
            ops.adamw_update(p.numpy(), gradient, arrays["m"], arrays["v"], group["lr"], *group["betas"], group["eps"],
                             group["weight_decay"], state["step"] + 1, scale)
        state["step"] += 1
        torch.autograd.graph.increment_version(p)

    def _update_pair(self, L, name, arrays, group, scale, T):
        R, rule = self._partners[L][0], self._rule(group)
        state, moments = self._state(L, wsi_state_shapes(L.shape[0], R.shape[1], L.shape[1], rule))
        memory = SimpleNamespace(optimizer=rule, arrays=moments, n_steps=state["step"])
        with_layer_name(name, linalg.wsi_step, *arrays, group["lr"], scale, group["weight_decay"], memory,
                        group["momentum"], group["betas"], group["eps"], T)
        state["step"] = memory.n_steps
        torch.autograd.graph.increment_version((L, R))


@torch.no_grad()
def _orthonormalize(layer):
    """Gives L orthonormal columns where another optimiser has taken them away; L R stays."""
    L = layer.L.numpy()
    if (layer.L.T @ layer.L - torch.eye(layer.rank)).abs().max() < 1e-4:
        return
    new = torch.from_numpy(linalg.orthonormalize(L))
    layer.R.copy_((new.T @ layer.L) @ layer.R)
    layer.L.copy_(new)
