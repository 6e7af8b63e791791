"""Chooses ranks, residual bits, activation ranks, micro-batch and recomputation for a memory budget.

1. `measure`: the error of every choice of every layer on calibration batches.
2. `cost`: the bytes of every choice; `probe`: those of the rest of a step, measured at a few samples.
3. For each way to walk a batch (micro-batches, recomputation) the knapsack of `wasi.ops.knapsack` is solved exactly. A way is
   charged its time by an estimate, and the quickest whose error is near the best one's is taken.
4. The plan found is probed as a whole; what the sum of parts missed is put right and the knapsack solved again.
"""

from dataclasses import dataclass

import numpy as np

from wasi import ops
from wasi.layers import Mlp
from wasi.linalg.wsi import MOMENTS
from wasi.models.factorize import find_targets
from wasi.models.methods import default_start
from wasi.models.plan import LayerPlan, Plan, format_bytes, model_record, parse_bytes
from wasi.names import MODES, PLANNED, STARTS
from wasi.planning import cost
from wasi.planning.cost import Choice, Site
from wasi.planning.measure import GELU_ERROR, measure_errors
from wasi.planning.probe import Probe

VARIANCES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98)
SHARES = (1 / 64, 1 / 32, 1 / 16, 3 / 32, 1 / 8, 3 / 16, 1 / 4, 3 / 8, 1 / 2, 3 / 4)  # of full rank, tried as well
NEAR = 1.05  # a quicker way is taken where its error is at most so many times the best one's
GRAINS = (1, 2**6, 2**12, 2**18)  # bytes are rounded up to these, one after another, where the exact solution takes too long
HARMLESS = 2**27  # bytes: steps up to this are probed in full, whatever the budget
IMAGES_AHEAD = 4  # batches that a Loader may hold at once: handed out, before, and two made ahead


class InfeasibleError(ValueError):
    """No choice of ranks fits the budget or reaches the target error; the text names the least that does."""


@dataclass(frozen=True)
class _Way:
    """How a batch is walked."""

    micro_batch: int
    recompute: bool

    def seconds(self, tokens):
        """Relative time of a step: a forward more of three, and products that are short of rows."""
        return (4 / 3 if self.recompute else 1) * (1 + 64 / (self.micro_batch * tokens))


class _Layer:
    """One layer's choices: every treatment of its weight with every one of its input; their errors add up."""

    def __init__(self, site, errors, factored, rule):
        self.site = site
        weights = errors.weights if factored else {(None, 0): 0.0}
        inputs = {(None, None): 0.0}
        for ranks, error in errors.activations.items():
            inputs.update({(ranks, bits): error + GELU_ERROR[bits] ** 2 / 3 for bits in (4, 2)})
        self.choices = [[Choice(*weight, *kept) for kept in inputs] for weight in weights]
        self._error2 = {Choice(*weight, *kept): a + b for weight, a in weights.items() for kept, b in inputs.items()}
        self._own = np.array([self._own_bytes(Choice(*weight, None, None), rule) for weight in weights])
        self._rule = rule

    def _own_bytes(self, choice, rule):
        weights, trained = cost.weight_bytes(self.site, choice)
        return weights + cost.FLOAT * trained + cost.optimizer_bytes(self.site, choice, rule)

    def error2(self, choice):
        return self._error2[choice]

    def bytes(self, choice, way):
        """Additive bytes of a choice."""
        saved = 0 if way.recompute else cost.saved_bytes(self.site, choice, way.micro_batch)
        return self._own_bytes(choice, self._rule) + saved

    def front(self, way):
        """Choices that no other beats in both bytes and error: lists of choices, bytes and squared errors, bytes rising."""
        total = np.repeat(self._own[:, None], len(self.choices[0]), 1)
        if not way.recompute:
            compressed = [cost.saved_bytes(self.site, c, way.micro_batch) for c in self.choices[0][1:]]
            total[:, 1:] += np.array(compressed, np.int64)
            total[:, 0] += [cost.saved_bytes(self.site, row[0], way.micro_batch) for row in self.choices]
        flat = [c for row in self.choices for c in row]
        errors = np.array([self._error2[c] for c in flat])
        kept, least = [], np.inf
        for i in np.lexsort((errors, total.ravel())).tolist():
            if errors[i] < least:
                kept.append(i)
                least = errors[i]
        return [flat[i] for i in kept], total.ravel()[kept].tolist(), errors[kept].tolist()


@dataclass
class _Problem:
    """What stays the same over all ways."""

    model: object
    layers: dict  # _Layer by name
    probe: Probe
    rule: str
    batch_size: int
    fixed_weights: int  # bytes of what is not planned, trained numbers included
    fixed_trained: int  # numbers
    input_bytes: int
    budget: int | None

    def outside(self, choices):
        """(weights, gradients, optimiser) in bytes of the whole model."""
        weights, gradients = self.fixed_weights, cost.FLOAT * self.fixed_trained
        optimizer = gradients * len(MOMENTS[self.rule])
        for name, choice in choices.items():
            site = self.layers[name].site
            own, trained = cost.weight_bytes(site, choice)
            weights += own
            gradients += cost.FLOAT * trained
            optimizer += cost.optimizer_bytes(site, choice, self.rule)
        return weights, gradients, optimizer

    def layer_bytes(self, choices, way):
        """Additive bytes of all layers."""
        return sum(self.layers[name].bytes(choice, way) for name, choice in choices.items())

    def lightest(self, way):
        return {name: layer.front(way)[0][0] for name, layer in self.layers.items()}

    def step_bytes(self, choices, way):
        limit = np.inf if self.budget is None else 1.2 * self.budget - sum(self.outside(choices)) - self.input_bytes
        return self.probe.step(choices, way.recompute, way.micro_batch, max(limit, HARMLESS))

    def total(self, choices, step):
        return sum(self.outside(choices)) + self.input_bytes + step.peak

    def error2(self, choices):
        return sum(self.layers[name].error2(choice) for name, choice in choices.items())


def plan(model, batches, budget_bytes=None, target_error=None, method="wasi", batch_size=32, micro_batch="auto", recompute="auto",
         optimizer="sgd", momentum=0.9, mode="approximate", target_modules=None, ranks=None, start=None):
    """Chooses what each layer becomes, so that a training step of `model` takes at most `budget_bytes` and errs least.

    Minimises the sum over layers of err^2 (`wasi.planning.measure`), exactly, subject to predicted peak <= budget_bytes; or, with
    target_error alone, the bytes that layers hold (`LayerPlan.bytes`; scratch is predicted, not minimised) subject to a root mean
    square error <= target_error, the batch walked whole.

    Parameters
    ----------
    model: a dense model; left as it was. batches: calibration batches (images, labels), as for training; one or more.
    budget_bytes: bytes, or text such as "64MiB": weights, gradients, optimiser, images, saved activations and scratch together.
    target_error: relative error, above 0. With both, the plan keeps to both.
    method: "dense", "asi", "wsi", "wasi" or "qwasi" (bits 0, 4 or 8 a layer), see `wasi.models.methods`.
    batch_size: of a step. micro_batch: samples in flight at once, recompute: whether blocks are run again in backward; "auto":
        the quickest way whose error is at most 5 % above that of the best way.
    optimizer, momentum: as for training; they decide what state is kept.
    mode: "exact": activations are kept or recomputed, never compressed; "approximate": compressed where that saves memory.
    target_modules: groups or tails of names, or None, as for `factorize`.
    ranks: the ranks to choose among, or None for a grid of explained variances and of shares of the full rank.
    start: of the factors, "svd", "whitened" or, for qwasi, "gradient"; None: the best known, `wasi.models.methods.default_start`.
        Layers of a qwasi plan that get no residual start whitened where the others start from the gradient.

    Returns a `Plan`. Raises ValueError for arguments out of range, and InfeasibleError, a ValueError, that names the least bytes
    or error that can be had.
    Sources: WASI (arXiv 2510.09160), section 3.4.
    """
    budget = None if budget_bytes is None else parse_bytes(budget_bytes)
    rule = _check(budget, target_error, method, mode, batch_size, micro_batch, recompute, optimizer, momentum, start)
    names = find_targets(model, target_modules)
    if any(model.get_module(name).window for name in names):
        raise ValueError("target_modules: expected linear layers of a transformer; plans do not treat convolutions")
    batches = _check_batches(batches)
    _check_ranks(model, names, ranks)
    factored, compressing = method in ("wsi", "wasi", "qwasi"), method in ("asi", "wasi", "qwasi") and mode != "exact"
    start = (start or default_start(method, True)) if factored else "svd"
    lossy = "whitened" if start == "gradient" else start
    starts = ({0: lossy, 4: start, 8: start} if method == "qwasi" else {0: lossy}) if factored else {}
    # Other inputs are kept anyway, by the norm or the attention beside them: compressing them would only add to it.
    after_gelu = {name for name in names if _follows_gelu(model, name)}
    shapes = {name: model.get_module(name).weight.data.shape for name in names}
    errors = measure_errors(model, names, batches, lambda name, spectrum: _ranks_of(shapes[name], spectrum, ranks), starts,
                            after_gelu if compressing else ())
    sites = {name: Site(*shapes[name], errors[name].in_shape[:-1], name in after_gelu) for name in names}
    layers = {name: _Layer(sites[name], errors[name], factored, rule) for name in names}
    planned = sum(O * I for O, I in shapes.values())
    trained = sum(p.data.size for _, p in model.named_parameters()) - planned
    images, labels = batches[0]
    problem = _Problem(model, layers, Probe(model, images, labels, sites, rule), rule, batch_size, cost.FLOAT * trained, trained,
                       IMAGES_AHEAD * batch_size * images[0].nbytes, budget)
    way, chosen, step = _solve(problem, _ways(batch_size, micro_batch, recompute), budget, target_error)
    return _as_plan(problem, way, chosen, step, method=method, mode=mode, start=start,
                    calibration=0 if start == "svd" else len(batches), budget_bytes=budget, target_error=target_error)


def _check(budget, target_error, method, mode, batch_size, micro_batch, recompute, optimizer, momentum, start):
    """Raises ValueError naming the argument; returns the optimiser's rule."""
    if budget is None and target_error is None:
        raise ValueError("budget_bytes, target_error: expected at least one of them")
    if target_error is not None and not (isinstance(target_error, int | float) and 0 < target_error < np.inf):
        raise ValueError(f"target_error: expected a number above 0, got {target_error!r}")
    for name, value, allowed in (("method", method, PLANNED), ("mode", mode, MODES), ("optimizer", optimizer, ("sgd", "adamw")),
                                 ("recompute", recompute, (True, False, "auto")),
                                 ("start", start, (None, *(s for s in STARTS if s != "gradient" or method == "qwasi")))):
        if value not in allowed:
            raise ValueError(f"{name}: expected one of {', '.join(map(str, allowed))}, got {value!r}")
    if not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"batch_size: expected a whole number from 1, got {batch_size!r}")
    if micro_batch != "auto" and not (isinstance(micro_batch, int) and 1 <= micro_batch <= batch_size):
        raise ValueError(f"micro_batch: expected 'auto' or 1 to batch_size {batch_size}, got {micro_batch!r}")
    return optimizer if optimizer == "adamw" else "momentum" if momentum else "sgd"


def _check_batches(batches):
    checked = []
    for i, batch in enumerate(batches):
        if not (isinstance(batch, tuple | list) and len(batch) == 2 and len(batch[0]) == len(batch[1]) > 0):
            raise ValueError(f"batches[{i}]: expected (images, labels) of equal lengths")
        checked.append((batch[0], np.asarray(batch[1], np.int64)))
    if not checked:
        raise ValueError("batches: expected at least one calibration batch, got none")
    return checked


def _check_ranks(model, names, ranks):
    if ranks is None:
        return
    for name in names:
        largest = min(model.get_module(name).weight.data.shape)
        bad = [r for r in ranks if not (isinstance(r, int) and 1 <= r <= largest)]
        if bad or not ranks:
            raise ValueError(f"ranks: expected whole numbers from 1 to {largest} for {name}, got {bad or list(ranks)}")


def _ranks_of(shape, spectrum, ranks):
    """The ranks to try for a layer: given ones, or a grid of explained variances and of shares, where smaller than the weight."""
    if ranks is not None:
        return sorted(set(ranks))
    O, I = shape
    energy = np.cumsum(np.asarray(spectrum, np.float64) ** 2)
    found = {int(np.searchsorted(energy, v * energy[-1])) + 1 for v in VARIANCES}
    found |= {round(share * len(spectrum)) for share in SHARES} - {0}
    return sorted({min(K, len(spectrum)) for K in found if K * (O + I) < O * I} | {1})


def _follows_gelu(model, name):
    parent = model.get_module(name.rpartition(".")[0])
    return isinstance(parent, Mlp) and parent.fc2 is model.get_module(name)


def _ways(batch_size, micro_batch, recompute):
    sizes = [micro_batch]
    if micro_batch == "auto":
        sizes = [batch_size]
        while sizes[-1] > 1:
            sizes.append(-(-sizes[-1] // 2))
    return [_Way(size, again) for size in sizes for again in ((False, True) if recompute == "auto" else (recompute,))]


def _solve(problem, ways, budget, target_error):
    """(way, {name: Choice}, StepBytes) of the plan; the model is probed with it."""
    tokens = max((layer.site.n_tokens for layer in problem.layers.values()), default=1)
    limit2 = None if target_error is None else target_error**2 * len(problem.layers)
    ways = sorted(ways, key=lambda way: way.seconds(tokens))
    bases = {}
    candidates, least_bytes, least_error2 = [], {}, np.inf
    for way in ways:
        base = bases[way] = _base_bytes(problem, way)
        found = _choose(problem, way, base, budget, limit2)
        least_bytes[way], least_error2 = found.least_bytes, min(least_error2, found.least_error2)
        if found.choices is not None:
            candidates.append((way, problem.error2(found.choices)))
    best = min((error2 for _, error2 in candidates), default=0.0)
    order = [way for way, error2 in candidates if budget is None or error2 <= NEAR**2 * best + 1e-12]
    order += [way for way, _ in candidates if way not in order]
    for way in order:
        settled = _settle(problem, way, bases[way], budget, limit2)
        if settled is not None:
            return (way, *settled)
    if budget is not None and (target_error is None or np.isinf(least_error2)):
        raise _too_little(problem, min(least_bytes, key=least_bytes.get), budget)
    least = (least_error2 / max(1, len(problem.layers))) ** 0.5
    within = f" within {format_bytes(budget)}" if budget is not None else ""
    raise InfeasibleError(f"target_error: {target_error:g} is out of reach{within}: the least error is {least:.6f}")


def _too_little(problem, way, budget):
    """The error for a budget that nothing fits, with the peak of the lightest plan as it is measured."""
    lightest = problem.lightest(way)
    least = problem.total(lightest, problem.step_bytes(lightest, way))
    return InfeasibleError(f"budget_bytes: {format_bytes(budget)} is too little: the least for this model, method and batch is "
                           f"{format_bytes(least)} ({least} bytes)")


@dataclass
class _Found:
    choices: dict | None
    least_bytes: float  # peak of the lightest choices
    least_error2: float  # of the best choices within the budget


def _base_bytes(problem, way):
    """What a peak has beyond its layers' additive bytes: everything that is not planned, and the step's scratch."""
    lightest = problem.lightest(way)
    return problem.total(lightest, problem.step_bytes(lightest, way)) - problem.layer_bytes(lightest, way)


def _choose(problem, way, base, budget, limit2):
    """The best choices under a budget, or the lightest under an error; where both are given, the first within the second."""
    fronts = [layer.front(way) for layer in problem.layers.values()]
    weights, errors = [front[1] for front in fronts], [front[2] for front in fronts]
    for grain in GRAINS:
        bytes_ = [[-(-w // grain) * grain for w in row] for row in weights]
        try:
            if budget is None:
                found = ops.knapsack(bytes_, errors, limit2)
                least_bytes, least_error2 = base + found.value, found.weight
            else:
                found = ops.knapsack(errors, bytes_, budget - base)
                lightest = sum(min(row) for row in bytes_)
                least_bytes, least_error2 = base + lightest, found.value if found.feasible else np.inf
            break
        except MemoryError:
            if grain == GRAINS[-1]:
                raise
    reached = found.feasible and (limit2 is None or budget is None or found.value <= limit2 * (1 + 1e-12))
    choices = {name: front[0][c] for name, front, c in zip(problem.layers, fronts, found.choice)} if reached else None
    return _Found(choices, least_bytes, least_error2)


def _settle(problem, way, base, budget, limit2):
    """Solves, probes the solution, corrects the base by what it really takes, and solves again until both agree.

    Returns (choices, StepBytes) of the best solution that was measured within the budget, or None.
    """
    best = None
    for _ in range(6):
        choices = _choose(problem, way, base, budget, limit2).choices
        if choices is None:
            break
        step = problem.step_bytes(choices, way)
        total = problem.total(choices, step)
        planned = base + problem.layer_bytes(choices, way)
        if budget is None:
            return choices, step
        if total <= budget and (best is None or problem.error2(choices) < problem.error2(best[0])):
            best = choices, step
        if total <= budget and planned - total < 0.005 * budget:
            break
        base += total - planned if total > budget else (total - planned) // 2
    return best


def _as_plan(problem, way, choices, step, **fields):
    weights, gradients, optimizer = problem.outside(choices)
    whole, work = problem.probe.flops(choices, way.recompute, problem.batch_size, way.micro_batch)
    layers = []
    for name, choice in choices.items():
        layer, flops = problem.layers[name], work[name]
        own, trained = cost.weight_bytes(layer.site, choice)
        layers.append(LayerPlan(
            name, layer.site.out_features, layer.site.in_features, choice.rank, choice.bits, choice.activation_ranks,
            choice.gelu_bits, layer.error2(choice) ** 0.5, own, cost.FLOAT * trained,
            cost.optimizer_bytes(layer.site, choice, problem.rule),
            0 if way.recompute else cost.saved_bytes(layer.site, choice, way.micro_batch),
            flops.forward, flops.backward, flops.update))
    error = (problem.error2(choices) / max(1, len(choices))) ** 0.5
    return Plan(
        model=model_record(problem.model), optimizer=problem.rule, batch_size=problem.batch_size, micro_batch=way.micro_batch,
        recompute=way.recompute, error=error, weight_bytes=weights, gradient_bytes=gradients, optimizer_bytes=optimizer,
        input_bytes=problem.input_bytes, saved_bytes=step.saved, scratch_bytes=step.peak - step.saved,
        forward_flops=whole.forward, backward_flops=whole.backward, update_flops=whole.update, layers=tuple(layers), **fields)
