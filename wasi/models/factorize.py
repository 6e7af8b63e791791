"""Replaces a model's dense linears by factored ones: truncated SVD, plain or whitened by calibration inputs."""

from dataclasses import dataclass

import numpy as np

from wasi import linalg
from wasi.layers import FactoredLinear, Linear, Module

# What a target's short name stands for, in the models of this package.
TARGET_GROUPS = {
    "all": ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"),
    "attn": ("attn.qkv", "attn.proj"),
    "mlp": ("mlp.fc1", "mlp.fc2"),
}


@dataclass(frozen=True)
class FactorizedLayer:
    """One row of what `factorize` did."""

    name: str
    out_features: int
    in_features: int
    rank: int
    variance: float  # share of the (whitened) weight's squared singular values that was kept

    @property
    def parameters_before(self):
        return self.out_features * self.in_features

    @property
    def parameters_after(self):
        return self.rank * (self.out_features + self.in_features)


def find_targets(model, target_modules, exclude_modules=()):
    """Names of the dense linears that match: a group ("mlp", "attn", "all") or a dotted tail such as "attn.qkv" or "fc1".

    Raises ValueError for a target that matches nothing.
    """
    def matches(name, targets):
        return [t for t in targets
                if any(name == tail or name.endswith("." + tail) for tail in TARGET_GROUPS.get(t, (t,)))]

    linears = [name for name, module in model.named_modules() if isinstance(module, Linear)]
    found = [name for name in linears if matches(name, target_modules)]
    used = {t for name in linears for t in matches(name, target_modules)}
    missing = [t for t in target_modules if t not in used]
    if missing:
        raise ValueError(f"target_modules: {missing} match none of the model's linear layers ({', '.join(linears)})")
    return [name for name in found if not matches(name, exclude_modules)]


class _GramLinear(Module):
    """Stands in for a linear during calibration: passes on its output and sums x' x of its inputs in float64."""

    def __init__(self, linear):
        self.linear = linear
        self.gram = np.zeros((linear.in_features, linear.in_features))
        self.n_rows = 0

    def forward(self, x, train=False, keep_input=True):
        rows = x.reshape(-1, x.shape[-1])
        self.gram += rows.T @ rows
        self.n_rows += len(rows)
        return self.linear.forward(x)


def input_covariances(model, names, batches):
    """E[x' x] (I, I) of each named linear's inputs x over batches of images; float64 arrays by name.

    Raises ValueError where there is no batch.
    """
    collectors = {name: _GramLinear(model.get_module(name)) for name in names}
    for name, collector in collectors.items():
        model.set_module(name, collector)
    try:
        for batch in batches:
            model.forward(batch[0] if isinstance(batch, tuple) else batch)
    finally:
        for name, collector in collectors.items():
            model.set_module(name, collector.linear)
    if any(c.n_rows == 0 for c in collectors.values()):
        raise ValueError("whiten: expected at least one calibration batch, got none")
    return {name: c.gram / c.n_rows for name, c in collectors.items()}


def factorize(model, variance=0.9, rank=None, rank_pattern=None, whiten=None, target_modules=("mlp",),
              exclude_modules=(), verbose=True):
    """Replaces linears of `model` by rank-K factors, in place, and returns the model.

    Parameters
    ----------
    variance: share in (0, 1] of the squared singular values to keep: K is the smallest rank that keeps it.
    rank: one rank for every target instead; rank_pattern: {name: rank}, which goes before both.
    whiten: None for the plain SVD, or an iterable of calibration batches (images, or tuples that start with them): then
        the error that is minimised is that of the layers' outputs on these images (SVD-LLM's idea).
    target_modules, exclude_modules: groups ("mlp", "attn", "all") or tails of names ("attn.qkv").
    verbose: print a table of what was done; it is also kept as `model.factorization`, a list of FactorizedLayer.

    Raises ValueError for targets that match nothing, variances outside (0, 1], ranks above a dimension.
    Source: WASI (arXiv 2510.09160), section 3.2; whitening after SVD-LLM (arXiv 2403.07378).

    >>> from wasi.models import create_model
    >>> model = factorize(create_model("vit_micro_patch8_64"), variance=0.5, verbose=False)
    >>> model.factorization[0].name
    'blocks.0.mlp.fc1'
    """
    names = find_targets(model, target_modules, exclude_modules)
    ranks = ranks_by_name(names, rank, rank_pattern)
    for name in names:
        _check_rank(name, model.get_module(name), ranks[name])
    if rank is None and not 0 < variance <= 1:
        raise ValueError(f"variance: expected a share in (0, 1], got {variance}")
    covariances = {} if whiten is None else input_covariances(model, names, whiten)
    done = []
    for name in names:
        layer = model.get_module(name)
        W = layer.weight.data
        keep = {"variance": variance} if ranks[name] is None else {"rank": ranks[name]}
        if whiten is None:
            U, s, Vt = linalg.truncated_svd(W, **keep)
            L, R = U, s[:, None] * Vt
            kept = float((s.astype(float) ** 2).sum() / (W.astype(float) ** 2).sum())
        else:
            L, R, s = linalg.whitened_svd(W, covariances.pop(name), **keep)
            kept = float((s[: L.shape[1]].astype(float) ** 2).sum() / (s.astype(float) ** 2).sum())
        model.set_module(name, FactoredLinear(L, R, layer.bias and layer.bias.data))
        done.append(FactorizedLayer(name, *W.shape, L.shape[1], kept))
    model.factorization = done
    if verbose:
        print(factorization_table(done))
    return model


def ranks_by_name(names, rank, rank_pattern=None):
    """{name: its rank}: that of rank_pattern where it has one, else `rank`. Raises ValueError for a pattern of other layers."""
    pattern = rank_pattern or {}
    unknown = [n for n in pattern if n not in names]
    if unknown:
        raise ValueError(f"rank_pattern: {unknown} are not among the targets ({', '.join(names)})")
    return {name: pattern.get(name, rank) for name in names}


def _check_rank(name, layer, rank):
    largest = min(layer.out_features, layer.in_features)
    if rank is not None and not 1 <= rank <= largest:
        raise ValueError(f"rank: expected 1 to {largest} for {name} ({layer.out_features} x {layer.in_features}), got {rank}")


def factorization_table(layers):
    """A text table of FactorizedLayer rows with a total."""
    lines = [f"{'layer':<24}{'shape':>14}{'rank':>6}{'variance':>10}{'parameters':>22}"]
    for r in layers:
        lines.append(f"{r.name:<24}{f'{r.out_features} x {r.in_features}':>14}{r.rank:>6}{r.variance:>10.3f}"
                     f"{f'{r.parameters_before:,} -> {r.parameters_after:,}':>22}")
    before, after = sum(r.parameters_before for r in layers), sum(r.parameters_after for r in layers)
    lines.append(f"{'total':<54}{f'{before:,} -> {after:,}':>22}")
    return "\n".join(lines)
