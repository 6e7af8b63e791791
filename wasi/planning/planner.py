"""Chooses ranks, residual bits, activation ranks, and how a step is walked, kept and updated, for a memory budget.

1. `measure`: the error of every choice of every layer on calibration batches, and of keeping activations in fewer bits.
2. `cost`: the bytes of every choice; `probe`: those of the rest of a step, measured at a few samples.
3. A way is what all layers share: micro-batch, recomputation, bits of what is kept, of gradients and of the optimiser's state,
   updates layer by layer. Each is charged its time by an estimate and its error by that of the best ranks that the budget
   leaves, found greedily; the quickest whose error is near the best one's is taken.
4. For this way the knapsack of `wasi.ops.knapsack` is solved exactly. The plan found is probed as a whole; what the sum of
   parts missed is put right and the knapsack solved again.
"""

import itertools
from dataclasses import asdict, dataclass, field, replace
from typing import NamedTuple

import numpy as np

from wasi import ops
from wasi.layers import BasicBlock, Mlp, uses_batch_statistics
from wasi.models.factorize import find_targets
from wasi.models.methods import default_start
from wasi.models.plan import LayerPlan, Plan, format_bytes, model_record, parse_bytes
from wasi.names import MODES, PLANNED, PLANNED_STARTS
from wasi.planning import cost
from wasi.planning.cost import Choice, Site, Way
from wasi.planning.measure import GELU_ERROR, kept_errors, measure_errors
from wasi.planning.probe import Probe

VARIANCES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98)
SHARES = (1 / 64, 1 / 32, 1 / 16, 3 / 32, 1 / 8, 3 / 16, 1 / 4, 3 / 8, 1 / 2, 3 / 4)  # of full rank, tried as well
MOST_SETTLED = 6  # ways that are solved exactly, at most
NEAR = 1.05  # a quicker way is taken where its error is at most so many times the best one's
GRAINS = (1, 2**6, 2**12, 2**18)  # bytes are rounded up to these, one after another, where the exact solution takes too long
HARMLESS = 2**27  # bytes: steps up to this are probed in full, whatever the budget
ROUNDING = 2.0**-9  # relative error of a number in bfloat16, at most
IMAGES_AHEAD = 4  # batches that a Loader may hold at once: handed out, before, and two made ahead


class InfeasibleError(ValueError):
    """No choice of ranks fits the budget or reaches the target error; the text names the least that does."""


class _Layer:
    """One layer's choices: every treatment of its weight with every one of its input; their errors add up."""

    def __init__(self, site, errors, factored):
        self.site = site
        weights = errors.weights if factored else {(None, 0): 0.0}
        inputs = {(None, None): 0.0}
        gelu_bits = (4, 2) if site.follows_gelu else (None,)
        for ranks, error in errors.activations.items():
            inputs.update({(ranks, bits): error + GELU_ERROR[bits] ** 2 / 3 for bits in gelu_bits})
        self._choices = [Choice(*weight, *kept) for weight in weights for kept in inputs]
        self._errors2 = np.array([a + b for a in weights.values() for b in inputs.values()])
        self._error2 = dict(zip(self._choices, self._errors2.tolist()))
        self._weights, self._trained = np.array([cost.weight_bytes(site, c) for c in self._choices], np.int64).T
        self._saved = {}  # by (micro-batch, bits)

    @property
    def least_error2(self):
        return min(self._error2.values())

    def error2(self, choice):
        return self._error2[choice]

    def bytes(self, choice, way, width):
        """Additive bytes of a choice. width: of what a trained number has besides itself."""
        weights, trained = cost.weight_bytes(self.site, choice)
        return weights + trained * width + cost.saved_bytes(self.site, choice, way)

    def front(self, way, width):
        """Choices that no other beats in both bytes and error: their indices, bytes and squared errors, bytes rising."""
        total = self._weights + self._trained * width + self._saved_bytes(way)
        order = np.lexsort((self._errors2, total))
        errors = self._errors2[order]
        best = errors < np.concatenate([[np.inf], np.minimum.accumulate(errors)[:-1]])
        return order[best], total[order[best]], errors[best]

    def choice(self, index):
        return self._choices[index]

    def _saved_bytes(self, way):
        key = None if way.recompute else (way.micro_batch, way.saved_bits)
        if key not in self._saved:
            self._saved[key] = np.array([cost.saved_bytes(self.site, c, way) for c in self._choices], np.int64)
        return self._saved[key]


@dataclass
class _Problem:
    """What stays the same over all ways."""

    model: object
    layers: dict  # _Layer by name
    probe: Probe
    rule: str
    batch_size: int
    kept_errors: dict  # {bits: {name: err^2}} of keeping activations in so many bits
    fixed_weights: int  # bytes of what is not planned, frozen or trained
    fixed_trained: tuple  # (numbers of matrices, other numbers) of it that are trained
    fixed_averaged: int  # numbers of it that change in training
    ema: float | None
    input_bytes: int
    budget: int | None
    _bases: dict = field(default_factory=dict)
    _fronts: dict = field(default_factory=dict)

    def outside(self, choices, way):
        """(weights, gradients, optimiser, average) in bytes of the whole model."""
        weights, gradients, optimizer, average = self.fixed_weights, 0, 0, self.fixed_averaged * self.average_width
        for is_matrix, trained in zip((True, False), self.fixed_trained):
            gradients += trained * way.gradient_width(is_matrix)
            optimizer += trained * way.state_width(self.rule, is_matrix)
        for name, choice in choices.items():
            own, trained = cost.weight_bytes(self.layers[name].site, choice)
            weights += own
            gradients += trained * way.gradient_width()
            optimizer += trained * way.state_width(self.rule)
            average += trained * self.average_width
        return weights, gradients, optimizer, average

    @property
    def average_width(self):
        """Bytes of a trained number's average."""
        return cost.FLOAT if self.ema else 0

    def width(self, way):
        """Bytes of what a trained number of a planned layer has besides itself."""
        return way.gradient_width() + way.state_width(self.rule) + self.average_width

    def fronts(self, way):
        if way not in self._fronts:
            self._fronts[way] = [layer.front(way, self.width(way)) for layer in self.layers.values()]
        return self._fronts[way]

    def layer_bytes(self, choices, way):
        """Additive bytes of all layers."""
        return sum(self.layers[name].bytes(choice, way, self.width(way)) for name, choice in choices.items())

    def lightest(self, way):
        return {name: layer.choice(front[0][0]) for (name, layer), front in zip(self.layers.items(), self.fronts(way))}

    def step_bytes(self, choices, way):
        limit = np.inf if self.budget is None else 1.2 * self.budget - sum(self.outside(choices, way)) - self.input_bytes
        return self.probe.step(choices, way, max(limit, HARMLESS))

    def total(self, choices, way, step=None):
        """Bytes at the peak."""
        return sum(self.outside(choices, way)) + self.input_bytes + (step or self.step_bytes(choices, way)).peak

    def base(self, way):
        """What a peak has beyond its layers' additive bytes, in the lightest plan: what is not planned, and scratch."""
        if way not in self._bases:
            lightest = self.lightest(way)
            self._bases[way] = self.total(lightest, way) - self.layer_bytes(lightest, way)
        return self._bases[way]

    def least_base(self, way):
        """At most `base`: without the gradients that come and go in backward where they do not last."""
        lightest = self.lightest(way)
        step = self.step_bytes(lightest, replace(way, gradient_bits=32, state_bits=32, layerwise=False))
        return self.total(lightest, way, step) - self.layer_bytes(lightest, way)

    def error2(self, choices, way):
        return sum(self.layer_error2(name, choice, way) for name, choice in choices.items())

    def layer_error2(self, name, choice, way):
        return self.layers[name].error2(choice) + self.way_error2(name, way)

    def way_error2(self, name, way):
        """What a way adds to a layer's squared error."""
        n_sums = -(-self.batch_size // way.micro_batch)
        rounding = (n_sums * (way.gradient_bits == 16) + (way.state_bits == 16)) * ROUNDING**2 / 3
        return rounding + (self.kept_errors[way.saved_bits][name] if way.saved_bits else 0.0)


def plan(model, batches, budget_bytes=None, target_error=None, method="wasi", batch_size=32, micro_batch="auto", recompute="auto",
         saved_bits="auto", gradient_bits="auto", state_bits="auto", layerwise="auto", optimizer="sgd", momentum=0.9,
         clip_norm=1.0, mode="approximate", target_modules=None, ranks=None, start=None, ema=None):
    """Chooses what each layer becomes, so that a training step of `model` takes at most `budget_bytes` and errs least.

    Minimises the sum over layers of err^2 (`wasi.planning.measure`), exactly, subject to predicted peak <= budget_bytes; or, with
    target_error alone, the bytes that layers hold (`LayerPlan.bytes`; scratch is predicted, not minimised) subject to a root mean
    square error <= target_error, the batch walked whole.

    Parameters
    ----------
    model: a dense model; left as it was. batches: calibration batches (images, labels) or (tokens, targets), as for training;
        one or more. Texts are planned for the length that these have.
    budget_bytes: bytes, or text such as "64MiB": weights and their average, gradients, optimiser, images, saved activations and
        scratch together.
    target_error: relative error, above 0. With both, the plan keeps to both.
    method: "dense", "asi", "wsi", "wasi" or "qwasi" (bits 0, 4 or 8 a layer), see `wasi.models.methods`.
    batch_size: of a step.
    micro_batch: samples in flight at once; recompute: whether blocks are run again in backward; saved_bits: None, 16 or 8, of
        what blocks keep; gradient_bits, state_bits: 32 or 16, of the matrices' gradients and momentum; layerwise: whether a layer
        is updated in backward, which needs whole batches and clip_norm None. "auto": the quickest way whose error is at most 5 %
        above that of the best way; fewer bits are tried where the budget does not do for every layer's best choice. Where batch
        norms are trained, "auto" walks batches whole.
    optimizer, momentum, clip_norm: as for training; they decide what state is kept, and whether the whole gradient is.
    mode: "exact": gradients are exact: activations are kept or recomputed, never compressed nor kept in fewer bits, nor are
        gradients and momentum; "approximate": all of these where that saves memory.
    target_modules: groups or tails of names, or None, as for `factorize`.
    ranks: the ranks to choose among, or None for a grid of explained variances and of shares of the full rank.
    start: of the factors, "svd", "whitened" or, for qwasi, "gradient"; None: the best known, `wasi.models.methods.default_start`.
        Layers of a qwasi plan that get no residual start whitened where the others start from the gradient.
    ema: as for training: the decay of the average of the weights, which takes their memory again; None: none is kept.

    Returns a `Plan`. Raises ValueError for arguments out of range, and InfeasibleError, a ValueError, that names the least bytes
    or error that can be had.
    Sources: WASI (arXiv 2510.09160), section 3.4.
    """
    budget = None if budget_bytes is None else parse_bytes(budget_bytes)
    options = {"micro_batch": micro_batch, "recompute": recompute, "saved_bits": saved_bits, "gradient_bits": gradient_bits,
               "state_bits": state_bits, "layerwise": layerwise}
    rule = _check(budget, target_error, method, mode, batch_size, options, optimizer, momentum, clip_norm, start, ema)
    if uses_batch_statistics(model):
        if mode == "exact" and micro_batch not in ("auto", batch_size):
            raise ValueError(f"micro_batch: expected 'auto' or {batch_size} in mode 'exact', as batch norm takes the statistics "
                             f"of micro-batches; got {micro_batch}")
        options["micro_batch"] = batch_size if micro_batch == "auto" else micro_batch
    ways = _ways(batch_size, options, mode == "exact", rule, clip_norm, budget)
    names = find_targets(model, target_modules)
    batches = _check_batches(batches)
    _check_ranks(model, names, ranks)
    factored, compressing = method in ("wsi", "wasi", "qwasi"), method in ("asi", "wasi", "qwasi") and mode != "exact"
    start = (start or default_start(method, True)) if factored else "svd"
    lossy = "whitened" if start == "gradient" else start
    starts = ({0: lossy, 4: start, 8: start} if method == "qwasi" else {0: lossy}) if factored else {}
    # Other inputs are kept anyway, by the norm or the attention beside them: compressing them would only add to it.
    after_gelu = {name for name in names if _follows_gelu(model, name)}
    keeping = after_gelu | {name for name in names if _owns_block_input(model, name)}
    shapes = {name: model.get_module(name).weight.data.shape for name in names}
    errors = measure_errors(model, names, batches, lambda name, spectrum: _ranks_of(shapes[name], spectrum, ranks), starts,
                            keeping if compressing else ())
    sites = {name: Site(*shapes[name], errors[name].tokens, name in after_gelu, name in keeping, errors[name].in_shape)
             for name in names}
    kept = kept_errors(model, names, batches[0], {way.saved_bits for way in ways} - {None})
    layers = {name: _Layer(sites[name], errors[name], factored) for name in names}
    planned = {id(model.get_module(name).weight) for name in names}
    others = [p for _, p in model.named_parameters() if id(p) not in planned]
    trained = [sum(p.data.size for p in others if p.trainable and (p.data.ndim == 2) == is_matrix) for is_matrix in (True, False)]
    averaged = sum(p.data.size for p in others if p.changes)
    weights = sum(p.data.nbytes for p in others) + sum(module.fixed_bytes for _, module in model.named_modules())
    samples, labels = batches[0]
    problem = _Problem(model, layers, Probe(model, samples, labels, sites, rule, ema is not None), rule, batch_size, kept,
                       weights, tuple(trained), averaged, ema, IMAGES_AHEAD * batch_size * samples[0].nbytes, budget)
    way, chosen, step = _solve(problem, ways, budget, target_error)
    return _as_plan(problem, way, chosen, step, method=method, mode=mode, start=start,
                    calibration=0 if start == "svd" else len(batches), budget_bytes=budget, target_error=target_error)


def _check(budget, target_error, method, mode, batch_size, options, optimizer, momentum, clip_norm, start, ema):
    """Raises ValueError naming the argument; returns the optimiser's rule."""
    if budget is None and target_error is None:
        raise ValueError("budget_bytes, target_error: expected at least one of them")
    if target_error is not None and not (isinstance(target_error, int | float) and 0 < target_error < np.inf):
        raise ValueError(f"target_error: expected a number above 0, got {target_error!r}")
    allowed = {"method": PLANNED, "mode": MODES, "optimizer": ("sgd", "adamw"), "recompute": (True, False, "auto"),
               "saved_bits": (None, 16, 8, "auto"), "gradient_bits": (32, 16, "auto"), "state_bits": (32, 16, "auto"),
               "layerwise": (True, False, "auto"),
               "start": (None, *(s for s in PLANNED_STARTS if s != "gradient" or method == "qwasi"))}
    given = {"method": method, "mode": mode, "optimizer": optimizer, "start": start, **options}
    for name, values in allowed.items():
        if given[name] not in values:
            raise ValueError(f"{name}: expected one of {', '.join(map(str, values))}, got {given[name]!r}")
    if mode == "exact":
        for name, exact in (("saved_bits", None), ("gradient_bits", 32), ("state_bits", 32)):
            if options[name] not in (exact, "auto"):
                raise ValueError(f"{name}: expected {exact} in mode 'exact', got {options[name]}")
    if not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"batch_size: expected a whole number from 1, got {batch_size!r}")
    micro_batch = options["micro_batch"]
    if micro_batch != "auto" and not (isinstance(micro_batch, int) and 1 <= micro_batch <= batch_size):
        raise ValueError(f"micro_batch: expected 'auto' or 1 to batch_size {batch_size}, got {micro_batch!r}")
    if clip_norm is not None and not (isinstance(clip_norm, int | float) and clip_norm > 0):
        raise ValueError(f"clip_norm: expected a positive norm or None, got {clip_norm!r}")
    if ema is not None and not (isinstance(ema, int | float) and 0 < ema < 1):
        raise ValueError(f"ema: expected a decay between 0 and 1 or None, got {ema!r}")
    if options["layerwise"] is True and (clip_norm is not None or micro_batch not in ("auto", batch_size)
                                         or options["gradient_bits"] == 16):
        raise ValueError("layerwise: expected clip_norm None, whole batches and gradients in 32 bits with it, got "
                         f"clip_norm {clip_norm}, micro_batch {micro_batch}, gradient_bits {options['gradient_bits']}")
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


def _owns_block_input(model, name):
    """Whether this is the one reader, in backward, of what a residual network's block is given."""
    parent = model.get_module(name.rpartition(".")[0])
    return isinstance(parent, BasicBlock) and parent.conv1 is model.get_module(name) and parent.downsample is None


def _ways(batch_size, options, exact, rule, clip_norm, budget):
    """The Ways to try. Without a budget nothing is given up to meet it, so the quickest of them will do."""
    def values(name, *candidates):
        return candidates if options[name] == "auto" else (options[name],)

    sizes = [batch_size]
    while sizes[-1] > 1:
        sizes.append(-(-sizes[-1] // 2))
    fewer = not exact and budget is not None
    ways = []
    for size, recompute, saved, state in itertools.product(
            values("micro_batch", *sizes), values("recompute", False, True), values("saved_bits", None, *(16, 8) * fewer),
            values("state_bits", 32, *(16,) * (fewer and rule != "sgd"))):
        may_update = clip_norm is None and size == batch_size and options["gradient_bits"] != 16
        for layerwise in values("layerwise", False, *(True,) * may_update):
            if layerwise and not may_update:
                continue
            for gradient in (32,) if layerwise else values("gradient_bits", 32, *(16,) * (fewer and not may_update)):
                ways.append(Way(size, recompute, saved, gradient, state, layerwise))
    return ways


def _solve(problem, ways, budget, target_error):
    """(way, {name: Choice}, StepBytes) of the plan; the model is probed with it."""
    tokens = max((layer.site.n_tokens for layer in problem.layers.values()), default=1)
    limit2 = np.inf if target_error is None else target_error**2 * len(problem.layers) * (1 + 1e-12)
    ways = sorted(ways, key=lambda way: way.seconds(tokens))
    if budget is None:
        found = _knapsack(problem, ways[0], limit2, by_error=True)
        if found.choices is None:
            raise _out_of_reach(problem, target_error, found.error2)
        return ways[0], found.choices, problem.step_bytes(found.choices, ways[0])
    near = NEAR**2 * sum(layer.least_error2 for layer in problem.layers.values()) + 1e-12
    errors2, settled = {}, {}  # by way, the quickest first: squared errors, as estimated until they are settled

    def settle(way):
        settled[way] = found = _settle(problem, way, budget)
        errors2[way] = np.inf if found is None else problem.error2(found[0], way)

    for way in ways:
        errors2[way] = _greedy_error2(problem, way, budget)
        if errors2[way] <= near:  # no other has much less
            settle(way)
            if errors2[way] <= min(near, limit2):
                return (way, *settled[way])
    while (best := min(errors2.values())) < np.inf:
        enough = min(NEAR**2 * best + 1e-12, max(best, limit2))
        way = next(way for way, error2 in errors2.items() if error2 <= enough)
        if way in settled:
            if errors2[way] > limit2:
                raise _out_of_reach(problem, target_error, best, budget)
            return (way, *settled[way])
        settle(way)
        if sum(np.isfinite(errors2[w]) and errors2[w] <= limit2 for w in settled) == MOST_SETTLED:
            errors2 = {way: error2 for way, error2 in errors2.items() if way in settled}
    raise _too_little(problem, ways, budget)


def _out_of_reach(problem, target_error, error2, budget=None):
    least = (error2 / max(1, len(problem.layers))) ** 0.5
    within = f" within {format_bytes(budget)}" if budget is not None else ""
    return InfeasibleError(f"target_error: {target_error:g} is out of reach{within}: the least error is {least:.6f}")


def _greedy_error2(problem, way, budget):
    """The squared error of what the budget allows at best, about; infinite where it surely is too small for this way.

    From the lightest choices on, the steps along the convex hulls of the layers' fronts are taken that gain most for a byte.
    """
    left = budget - problem.least_base(way)
    error2, gains, steps = 0.0, [], []
    for name, (_, n_bytes, errors) in zip(problem.layers, problem.fronts(way)):
        left -= n_bytes[0]
        error2 += errors[0] + problem.way_error2(name, way)
        at = 0
        while at < len(errors) - 1:
            slopes = (errors[at] - errors[at + 1 :]) / (n_bytes[at + 1 :] - n_bytes[at])
            to = at + 1 + int(np.argmax(slopes))
            gains.append(errors[at] - errors[to])
            steps.append(n_bytes[to] - n_bytes[at])
            at = to
    if left < 0:
        return np.inf
    gains, steps = np.array(gains), np.array(steps)
    order = np.argsort(-gains / steps, kind="stable")
    return float(error2 - gains[order][np.cumsum(steps[order]) <= left].sum())


def _too_little(problem, ways, budget):
    """The error for a budget that nothing fits, with the peak of the lightest plan as it is measured."""
    least = np.inf
    for way in sorted(ways, key=lambda way: problem.least_base(way) + problem.layer_bytes(problem.lightest(way), way)):
        lightest = problem.lightest(way)
        if problem.least_base(way) + problem.layer_bytes(lightest, way) >= least:
            break
        least = min(least, problem.total(lightest, way))
    return InfeasibleError(f"budget_bytes: {format_bytes(budget)} is too little: the least for this model, method and batch is "
                           f"{format_bytes(least)} ({least} bytes); smaller images or batches take less")


class _Found(NamedTuple):
    choices: dict | None
    error2: float


def _knapsack(problem, way, limit, by_error):
    """Choices of least error whose additive bytes are within a limit; by_error: of least bytes, their error within it."""
    fronts = problem.fronts(way)
    weights, errors = [front[1].tolist() for front in fronts], [front[2].tolist() for front in fronts]
    of_way = sum(problem.way_error2(name, way) for name in problem.layers)
    for grain in GRAINS:
        bytes_ = [[-(-w // grain) * grain for w in row] for row in weights]
        try:
            if by_error:
                found = ops.knapsack(bytes_, errors, limit - of_way)
            else:
                found = ops.knapsack(errors, bytes_, limit)
            break
        except MemoryError:
            if grain == GRAINS[-1]:
                raise
    choices = {name: layer.choice(front[0][c])
               for (name, layer), front, c in zip(problem.layers.items(), fronts, found.choice)} if found.feasible else None
    return _Found(choices, of_way + (found.weight if by_error else found.value))


def _settle(problem, way, budget):
    """The best solution that was measured within the budget, as (choices, StepBytes), or None.

    What is measured exceeds what the sum of parts says, the more the larger the ranks. So the knapsack is given less than the
    budget, by interpolation between the lightest solution and the last one measured, until it is used up but for 0.5 %.
    """
    best, base = problem.lightest(way), problem.base(way)
    planned = measured = base + problem.layer_bytes(best, way)
    if measured > budget:
        return None
    most = above = given = budget
    for _ in range(8):
        choices = _knapsack(problem, way, given - base, by_error=False).choices
        if choices is None:  # by the coarse bytes of a knapsack that would take too long
            break
        total = problem.total(choices, way)
        if total > budget:
            most, above = given, total
        else:
            best, planned, measured = choices, given, total
            if given == budget or total >= 0.995 * budget:
                break
        given = int(planned + (most - planned) * min(0.95, max(0.05, (budget - measured) / (above - measured))))
    return best, problem.step_bytes(best, way)


def _as_plan(problem, way, choices, step, **fields):
    weights, gradients, optimizer, average = problem.outside(choices, way)
    whole, work = problem.probe.flops(choices, way, problem.batch_size)
    layers = []
    for name, choice in choices.items():
        site, flops = problem.layers[name].site, work[name]
        own, trained = cost.weight_bytes(site, choice)
        layers.append(LayerPlan(
            name, site.out_features, site.in_features, choice.rank, choice.bits, choice.activation_ranks, choice.gelu_bits,
            problem.layer_error2(name, choice, way) ** 0.5, own, trained * way.gradient_width(),
            trained * way.state_width(problem.rule), trained * problem.average_width, cost.saved_bytes(site, choice, way),
            flops.forward, flops.backward, flops.update))
    error = (problem.error2(choices, way) / max(1, len(choices))) ** 0.5
    return Plan(
        model=model_record(problem.model), optimizer=problem.rule, batch_size=problem.batch_size, **asdict(way),
        error=error, weight_bytes=weights, gradient_bytes=gradients, optimizer_bytes=optimizer, average_bytes=average,
        ema=problem.ema, input_bytes=problem.input_bytes, saved_bytes=step.saved, scratch_bytes=step.peak - step.saved,
        forward_flops=whole.forward, backward_flops=whole.backward, update_flops=whole.update, layers=tuple(layers), **fields)
