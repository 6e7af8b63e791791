"""Replaces a model's dense linears by factored ones: what the factors hold at the start, and what is kept beside them.

The factors start as a truncated SVD of the weight, plain, whitened by calibration inputs, or weighted by the loss's Fisher
matrix there, or, over a frozen residual that holds the rest, in the directions of the loss's gradient.
"""

import contextlib
from dataclasses import dataclass

import numpy as np

from wasi import linalg, ops
from wasi._core import Arena
from wasi.layers import FactoredLinear, Linear

# What a target's short name stands for, in the models of this package.
TARGET_GROUPS = {
    "attn": ("attn.qkv", "attn.proj", "attn.q_proj", "attn.k_proj", "attn.v_proj", "attn.o_proj"),
    "conv": (".conv1", ".conv2", ".downsample.0"),  # of blocks: the dot leaves out the stem, conv1
    "mlp": ("mlp.fc1", "mlp.fc2", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"),
}
TARGET_GROUPS["all"] = TARGET_GROUPS["attn"] + TARGET_GROUPS["conv"] + TARGET_GROUPS["mlp"]


@dataclass(frozen=True)
class FactorizedLayer:
    """One row of what `factorize` did."""

    name: str
    out_features: int
    in_features: int
    rank: int
    variance: float  # share that was kept of the squared singular values that the start goes by

    @property
    def parameters_before(self):
        return self.out_features * self.in_features

    @property
    def parameters_after(self):
        return self.rank * (self.out_features + self.in_features)


def find_targets(model, target_modules=None, exclude_modules=()):
    """Names of the dense linears that are trained and match: a group ("mlp", "attn", "conv", "all") or a dotted tail like "fc1".

    None: the model's `default_targets`, ("conv",) of residual networks and ("mlp",) of others.

    Raises ValueError for a target that matches nothing.
    """
    linears = [name for name, module in model.named_modules() if isinstance(module, Linear) and module.weight.trainable]
    return match_targets(linears, target_modules or default_targets(model), exclude_modules)


def default_targets(model):
    """The groups that are treated unless others are named."""
    return getattr(model, "default_targets", ("mlp",))


def match_targets(linears, target_modules, exclude_modules=()):
    """Those of the names `linears` that `find_targets` takes."""
    def ends(name, tail):
        return name == tail or name.endswith(tail if tail.startswith(".") else f".{tail}")

    def matches(name, targets):
        return [t for t in targets if any(ends(name, tail) for tail in TARGET_GROUPS.get(t, (t,)))]

    found = [name for name in linears if matches(name, target_modules)]
    used = {t for name in linears for t in matches(name, target_modules)}
    missing = [t for t in target_modules if t not in used]
    if missing:
        raise ValueError(f"target_modules: {missing} match none of the model's linear layers ({', '.join(linears)})")
    return [name for name in found if not matches(name, exclude_modules)]


class _Calibrated(Linear):
    """Stands in for a linear during calibration: passes on what it would, and sums up its `Gram` and the gradients' E[dy' dy]."""

    def __init__(self, linear):
        super().__init__(linear.weight.data, linear.bias and linear.bias.data)
        O = self.out_features
        self.gram = Gram(linear)
        self._slopes = np.zeros((O, O))
        self._n_slopes = 0

    def forward(self, x, train=False, keep_input=True):
        y = super().forward(x)
        self.gram.add(x, y)
        self._saved = (x.shape,)
        return y

    def backward(self, dy, x=None, need_dx=True):
        (shape,) = self._take_saved()
        rows = dy.reshape(-1, dy.shape[-1])
        self._slopes += rows.T @ rows
        self._n_slopes += len(rows)
        size = None if self.window is None else shape[1:3]
        return ops.linear_backward(dy, None, self.weight.data, None, None, need_dx, window=self.window, size=size)

    def slopes(self):
        """E[dy' dy] (O, O)."""
        return self._slopes / self._n_slopes


class Gram:
    """Sums up E[x' x] (I, I) of a linear's inputs in float64; of a convolution with O < k k C that of its outputs instead.

    A whitened start needs no more (`linalg.whitened_svd`), and patches of 3 x 3 x 512 would need 170 MB.
    """

    def __init__(self, linear):
        O, I = linear.out_features, linear.in_features
        self._bias = linear.bias and linear.bias.data
        self._of_outputs = linear.window is not None and O < I
        self._linear = linear
        self._sum = np.zeros((O, O) if self._of_outputs else (I, I))
        self.n_rows = 0

    def add(self, x, y):
        """An input and its output."""
        if self._of_outputs:
            parts = [(y if self._bias is None else y - self._bias).reshape(-1, y.shape[-1])]
        else:
            parts = input_rows(self._linear, x)
        for rows in parts:
            self._sum += rows.T @ rows
            self.n_rows += len(rows)

    def mean(self):
        return self._sum / self.n_rows


def input_rows(linear, x):
    """The rows that a linear multiplies its weight by, in one or more arrays (n, I): those of x, or its patches."""
    if linear.window is None:
        yield x.reshape(-1, x.shape[-1])
        return
    for part in ops.image_tiles(x.shape, linear.window):
        yield ops.unfold(x[part], linear.window).reshape(-1, linear.in_features)


def input_covariances(model, names, batches):
    """The `Gram` of each named linear over batches of images: E[x' x] (I, I), or E[y' y]; float64 arrays by name.

    Raises ValueError where there is no batch.
    """
    layers = {name: _Calibrated(model.get_module(name)) for name in names}
    with model.replaced(layers), Arena():  # whose pages go back to the system
        for batch in batches:
            model.forward(batch[0] if isinstance(batch, tuple) else batch)
    if any(layer.gram.n_rows == 0 for layer in layers.values()):
        raise ValueError("whiten: expected at least one calibration batch, got none")
    return {name: layer.gram.mean() for name, layer in layers.items()}


def curvatures(model, names, batches):
    """The two factors of each named linear's Fisher matrix over labelled batches (images, labels): ({name: `Gram`'s mean},
    {name: E[dy' dy] (O, O)}), float64 arrays, dy the gradients of the loss by its outputs.

    No gradient of a weight exists while it runs. Raises ValueError where there is no batch, ArithmeticError where the loss is
    not finite.
    """
    layers = {name: _Calibrated(model.get_module(name)) for name in names}
    with all_frozen(model), model.replaced(layers), Arena():
        for images, labels in batches:
            loss, dlogits, _ = model.loss(model.forward(images, train=True), labels)
            if not np.isfinite(loss):
                raise ArithmeticError("fisher: the loss on the calibration batches is not finite")
            model.backward(dlogits)
    if any(layer.gram.n_rows == 0 for layer in layers.values()):
        raise ValueError("fisher: expected at least one calibration batch, got none")
    return {name: layer.gram.mean() for name, layer in layers.items()}, {name: layer.slopes() for name, layer in layers.items()}


@contextlib.contextmanager
def trainability_kept(model):
    """A context at whose end the model's parameters are trainable, or not, as they were at its beginning."""
    trainable = [(p, p.trainable) for _, p in model.named_parameters()]
    try:
        yield
    finally:
        for p, was in trainable:
            p.trainable = was


@contextlib.contextmanager
def all_frozen(model):
    """A context within which none of the model's parameters is trainable."""
    with trainability_kept(model):
        for _, p in model.named_parameters():
            p.trainable = False
        yield


def weight_gradients(model, names, batches):
    """dLoss/dW (O, I) of each named linear, summed over labelled batches (images, labels); float32 arrays by name.

    The gradients of these weights alone are dense while it runs; the model's own gradients must be clear, and stay so.
    Raises ValueError where there is no batch.
    """
    weights = {name: model.get_module(name).weight for name in names}
    try:
        with all_frozen(model), Arena():  # whose pages go back to the system
            for p in weights.values():
                p.trainable = True
                p.grad_buffer()
            n_batches = 0
            for images, labels in batches:
                _, dlogits, _ = model.loss(model.forward(images, train=True), labels)
                model.backward(dlogits)
                n_batches += 1
        if n_batches == 0:
            raise ValueError("gradients: expected at least one calibration batch, got none")
        return {name: p.grad for name, p in weights.items()}
    finally:
        for p in weights.values():
            p.grad = None


def gradient_factors(W, G, scale=1.0, **keep):
    """Factors whose tangent space holds the best rank-K part of a gradient G of W: L = U_K, R = s V_K' where G = U S V'.

    A step changes L R by L A + B R: with these L and R the gradient's leading K singular directions, and whatever A and B make of
    them later. s is `scale` times the root mean square singular value of W, so that R R' = s^2 1 and, at 1, L R is as large as W
    in K directions. Smaller factors turn faster to where later gradients lead, as LoRA's do, which start at 0.
    W, G: (O, I); keep: rank or variance, of G's squared singular values. Returns L (O, K), R (K, I), the share of |G|^2 kept.

    Source: the start of LoRA-GA (arXiv 2407.05000), for a step that keeps L orthonormal.
    """
    U, S, Vt = linalg.truncated_svd(G, **keep)
    return U, np.float32(scale) * gradient_scale(W) * Vt, _share(S, G)


class Sources:
    """What the factors of a model's linears start from, {layer name: array}; a layer without any starts from the plain SVD.

    covariances: E[x' x] of its inputs, or what `Gram` has in its place: whitened; slopes: E[d' d] of its outputs' gradients, with
    covariances: weighed by the loss; gradients: dLoss/dW (O, I), with the scale that `gradient_factors` takes.
    """

    def __init__(self, covariances=None, gradients=None, slopes=None, scale=1.0):
        self._scale = scale
        self.covariances, self.gradients, self.slopes = covariances or {}, gradients or {}, slopes or {}
        self._decomposed = {}  # {name: FisherSvd}, in the place of covariances and slopes

    def spectra(self, weights):
        """{name: singular values} that the loss tells layers apart by, of weights {name: (O, I)}; each needs slopes."""
        for name, W in weights.items():
            self._decomposed[name] = linalg.FisherSvd(W, self.covariances.pop(name), self.slopes.pop(name))
        return {name: self._decomposed[name].spectrum for name in weights}

    def factors(self, name, W, **keep):
        """Factors of a layer's weight W (O, I), whose sources are let go of; keep: rank or variance, or a rank after `spectra`.

        Returns L (O, K), R (K, I) and the share kept of the squared singular values that the start goes by.
        """
        decomposed, C, G, D = (found.pop(name, None) for found in
                               (self._decomposed, self.covariances, self.gradients, self.slopes))
        if decomposed is not None:
            return *decomposed.factors(**keep), _share(decomposed.spectrum[: keep["rank"]], decomposed.spectrum)
        if G is not None:
            return gradient_factors(W, G, self._scale, **keep)
        if C is None:
            U, s, Vt = linalg.truncated_svd(W, **keep)
            return U, s[:, None] * Vt, _share(s, W)
        L, R, s = linalg.whitened_svd(W, C, **keep) if D is None else linalg.fisher_svd(W, C, D, **keep)
        return L, R, _share(s[: L.shape[1]], s)


def gradient_scale(W):
    """The root mean square singular value of W."""
    return np.float32(np.linalg.norm(W) / min(W.shape) ** 0.5)


def _share(S, A):
    """Of A's squared numbers (or singular values), what those of S are; 1 where there is nothing."""
    total = float((A.astype(float) ** 2).sum())
    return float((S.astype(float) ** 2).sum()) / total if total > 0 else 1.0


def factorize(model, variance=0.9, rank=None, rank_pattern=None, whiten=None, target_modules=None,
              exclude_modules=(), verbose=True, residual_bits=None, gradients=None, fisher=None, share=None, start_scale=1.0):
    """Replaces linears of `model` by rank-K factors, in place, and returns the model.

    Parameters
    ----------
    variance: share in (0, 1] of the squared singular values to keep: K is the smallest rank that keeps it.
    rank: one rank for every target instead; rank_pattern: {name: rank}, which goes before both.
    whiten: None for the plain SVD, or an iterable of calibration batches (images, or tuples that start with them): then
        the error that is minimised is that of the layers' outputs on these images (SVD-LLM's idea).
    target_modules, exclude_modules: groups ("mlp", "attn", "conv", "all") or tails of names ("attn.qkv"); None: the model's
        default, as of `find_targets`.
    verbose: print a table of what was done; it is also kept as `model.factorization`, a list of FactorizedLayer.
    residual_bits: 4 or 8 keeps what the factors lack of the weight, frozen in so many bits, as the layers' residual;
        None: it is lost.
    gradients: with residual_bits, an iterable of labelled batches (images, labels): the factors start in the leading
        directions of the loss's gradient (`gradient_factors`), by whose singular values `variance` then counts. The dense
        gradient of the targets exists while this is computed.
    start_scale: of factors that start so, beside the weight's (`gradient_factors`).
    fisher: an iterable of labelled batches: then the error that is minimised is that of the loss on them, to second order
        (`linalg.fisher_svd`).
    share: instead of rank and variance, factors of so many times the targets' parameters in all, above 0 and at most 1. With
        `fisher` they go to the layers where the loss misses them most (`allocated_ranks`), else to all in proportion. Layers of
        rank_pattern stand aside.

    Raises ValueError for targets that match nothing, variances outside (0, 1], ranks above a dimension, gradients without
    a residual, more than one of whiten, gradients and fisher, a start_scale that is not above 0.
    Source: WASI (arXiv 2510.09160), section 3.2; whitening after SVD-LLM (arXiv 2403.07378); fisher: arXiv 2505.17974.

    >>> from wasi.models import create_model
    >>> model = factorize(create_model("vit_micro_patch8_64"), variance=0.5, verbose=False)
    >>> model.factorization[0].name
    'blocks.0.mlp.fc1'
    """
    names = find_targets(model, target_modules, exclude_modules)
    ranks = check_ranks(model, names, rank, rank_pattern, variance, share)
    if gradients is not None and residual_bits is None:
        raise ValueError("gradients: expected residual_bits of 4 or 8 with them: these factors alone do not stand for the weight")
    check_start_scale(start_scale)
    if sum(batches is not None for batches in (whiten, gradients, fisher)) > 1:
        raise ValueError("whiten, gradients, fisher: expected at most one of them")
    if fisher is not None:
        covariances, slopes = curvatures(model, names, fisher)
        sources = Sources(covariances, slopes=slopes)
    else:
        sources = Sources(None if whiten is None else input_covariances(model, names, whiten),
                          None if gradients is None else weight_gradients(model, names, gradients), scale=start_scale)
    ranks = ranks_of_share(ranks, lambda name: model.get_module(name).weight.data, share, sources)
    done = []
    for name in names:
        layer = model.get_module(name)
        W = layer.weight.data
        keep = {"variance": variance} if ranks[name] is None else {"rank": ranks[name]}
        L, R, kept = sources.factors(name, W, **keep)
        residual = ops.quantize_residual(W - L @ R, residual_bits) if residual_bits is not None else None
        model.set_module(name, FactoredLinear(L, R, layer.bias and layer.bias.data, residual))
        done.append(FactorizedLayer(name, *W.shape, L.shape[1], kept))
    model.factorization = done
    if verbose:
        print(factorization_table(done))
    return model


def check_ranks(model, names, rank, rank_pattern=None, variance=1.0, share=None):
    """`ranks_by_name` of a model's dense linears. Raises ValueError for ranks, a variance or a share that cannot be."""
    ranks = ranks_by_name(names, rank, rank_pattern)
    for name in names:
        check_rank(name, model.get_module(name), ranks[name])
    if rank is None and not 0 < variance <= 1:
        raise ValueError(f"variance: expected a share in (0, 1], got {variance}")
    check_share(share, rank)
    return ranks


def ranks_by_name(names, rank, rank_pattern=None):
    """{name: its rank}: that of rank_pattern where it has one, else `rank`. Raises ValueError for a pattern of other layers."""
    pattern = rank_pattern or {}
    unknown = [n for n in pattern if n not in names]
    if unknown:
        raise ValueError(f"rank_pattern: {unknown} are not among the targets ({', '.join(names)})")
    return {name: pattern.get(name, rank) for name in names}


def check_start_scale(scale):
    """Raises ValueError for a scale that is no number above 0."""
    if not 0 < scale < np.inf:
        raise ValueError(f"start_scale: expected a finite number above 0, got {scale}")


def check_share(share, rank):
    """Raises ValueError for a share that is none, or beside a rank."""
    if share is not None and rank is not None:
        raise ValueError(f"share: expected None with a rank, got {share} and rank {rank}")
    if share is not None and not 0 < share <= 1:
        raise ValueError(f"share: expected a number in (0, 1], got {share}")


def ranks_of_share(ranks, weight_of, share, sources=None):
    """{name: rank} with ranks in the place of None, whose factors have `share` of those weights' parameters in all.

    ranks: {name: rank or None}; weight_of(name): (O, I); share None: as they are. With slopes among the Sources of these weights
    the ranks go where they tell, and stay decomposed for `Sources.factors`; else to all in proportion.
    """
    if share is None:
        return ranks
    weights = {name: weight_of(name) for name, rank in ranks.items() if rank is None}
    if sources is not None and sources.slopes:
        return ranks | allocated_ranks(sources.spectra(weights), {name: W.shape for name, W in weights.items()}, share)
    return ranks | {name: min(*W.shape, max(1, round(share * W.size / sum(W.shape)))) for name, W in weights.items()}


def allocated_ranks(spectra, shapes, share):
    """{name: rank}: the ranks that lose the least of the layers' squared singular values with `share` of their parameters.

    spectra: {name: singular values, descending}, in one unit for all layers (`linalg.fisher_svd`); shapes: {name: (O, I)}.
    A rank of a layer takes O + I parameters; those with the most squared singular value a parameter come first, until the next
    one does not fit. Each layer gets at least one.

    >>> allocated_ranks({"a": np.array([9.0, 8, 1]), "b": np.array([3.0, 2, 1])}, {"a": (3, 3), "b": (3, 3)}, 1.0)
    {'a': 2, 'b': 1}
    """
    costs = {name: sum(shape) for name, shape in shapes.items()}
    left = share * sum(O * I for O, I in shapes.values()) - sum(costs.values())
    ranks = dict.fromkeys(spectra, 1)
    gains = [(float(s) ** 2 / costs[name], name) for name, spectrum in spectra.items() for s in spectrum[1:]]
    for _, name in sorted(gains, key=lambda gain: -gain[0]):
        left -= costs[name]
        if left < 0:
            break
        ranks[name] += 1
    return ranks


def check_rank(name, layer, rank):
    """Raises ValueError for a rank that the layer cannot have; None is any."""
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
