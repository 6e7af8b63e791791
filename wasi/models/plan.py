"""A plan: rank, residual bits and activation ranks of every layer, and what a training step with them takes.

`wasi.plan` makes one, this module reads, checks and carries it out. A plan is a readable JSON file that may come from a stranger:
`Plan.load` limits its size, checks every type and range, and names what it does not know; `Plan.apply` allocates nothing by the
plan's numbers that the model itself does not bound.
"""

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path

from wasi.drawing import name_bars, new_figure, save_png, series_style, stacked_bars
from wasi.layers import ActivationCompression, ActivationPolicy
from wasi.linalg.wsi import RULES
from wasi.models.factorize import factorize, find_targets
from wasi.models.weights import atomic_file
from wasi.names import MODES, PLANNED, PLANNED_STARTS

FORMAT_VERSION = 3  # 1: nothing in 16 or 8 bits, no update layer by layer; 2: no average of the weights
LARGEST_FILE = 8 * 2**20  # bytes: some ten thousand layers


class PlanError(ValueError):
    """A plan that cannot be read, or that was made for another model or another run."""


@dataclass(frozen=True)
class LayerPlan:
    """What one layer becomes, and what that takes in one step."""

    name: str
    out_features: int
    in_features: int
    rank: int | None  # of its factors; None: the layer stays dense
    bits: int  # 4 or 8: what truncation cuts off is kept, frozen, in so many bits; 0: it is lost
    activation_ranks: tuple | None  # (batch, tokens, channels) of its compressed input: shares or numbers; None: kept as it is
    gelu_bits: int | None  # of the derivative of the GELU before it; None: GELU's input is kept
    error: float  # relative error of its output and gradients on the calibration batches, in 0..1
    weight_bytes: int  # factors and residual, or the dense weight; without the bias
    gradient_bytes: int
    optimizer_bytes: int
    average_bytes: int
    saved_bytes: int  # kept from forward to backward because of these choices
    forward_flops: int  # of a whole batch
    backward_flops: int
    update_flops: int

    @property
    def flops(self):
        """Of one training step."""
        return self.forward_flops + self.backward_flops + self.update_flops

    @property
    def bytes(self):
        """All of them together: what other ranks must not exceed."""
        return self.weight_bytes + self.gradient_bytes + self.optimizer_bytes + self.average_bytes + self.saved_bytes


@dataclass(frozen=True)
class Plan:
    """Ranks and policies for one model, method, optimiser and batch size, with the memory and work that they are to take."""

    method: str
    mode: str  # "approximate", or "exact": activations are kept or recomputed, never compressed
    model: dict  # the configuration that the plan was made for
    optimizer: str  # "sgd", "momentum" or "adamw"
    batch_size: int
    micro_batch: int  # samples in flight at once
    recompute: bool  # whether each block's forward is run again in backward
    saved_bits: int | None  # 16 or 8: blocks keep what they keep for backward in so many bits; None: exact
    gradient_bits: int  # 32, or 16: matrices' gradients are summed over micro-batches in bfloat16
    state_bits: int  # 32, or 16: matrices' momentum is kept in bfloat16
    layerwise: bool  # whether each layer is updated in backward, so that no full gradient exists, nor a norm to clip by
    ema: float | None  # decay of the average of the weights that is kept; None: none is
    start: str  # of the factors: "svd", "whitened" or "gradient" (then that of layers without a residual is "whitened")
    calibration: int  # batches that the start was measured with, and is to be made with; 0: it needs none
    budget_bytes: int | None
    target_error: float | None
    error: float  # root mean square of the layers' errors
    weight_bytes: int  # of the whole model
    gradient_bytes: int
    optimizer_bytes: int
    average_bytes: int  # of the averaged weights
    input_bytes: int  # images or tokens: the batch in work and those made ahead
    saved_bytes: int  # kept from forward to backward, all layers together
    scratch_bytes: int  # what the step holds beyond that at its highest
    forward_flops: int
    backward_flops: int
    update_flops: int
    layers: tuple  # of LayerPlan

    @property
    def flops(self):
        """Of one training step."""
        return self.forward_flops + self.backward_flops + self.update_flops

    @property
    def peak_bytes(self):
        """The most that arrays take at once during training."""
        return (self.weight_bytes + self.gradient_bytes + self.optimizer_bytes + self.average_bytes + self.input_bytes
                + self.saved_bytes + self.scratch_bytes)

    @property
    def training(self):
        """What `TrainConfig` is to be told, as keywords."""
        return {"micro_batch": None if self.micro_batch == self.batch_size else self.micro_batch,
                "gradient_bits": self.gradient_bits, "state_bits": self.state_bits, "layerwise": self.layerwise, "ema": self.ema}

    def record(self):
        """What `save` writes, for `of_record` to read."""
        return {"format_version": FORMAT_VERSION, **asdict(self), "peak_bytes": self.peak_bytes}

    @staticmethod
    def of_record(record):
        """The plan of a record. Raises PlanError naming the key that is missing, unknown or out of range."""
        return _read_plan(record)

    def save(self, path):
        """Writes the plan as JSON; the file appears whole or not at all."""
        with atomic_file(path) as file:
            file.write((json.dumps(self.record(), indent=1) + "\n").encode())

    @staticmethod
    def load(path):
        """Reads a plan. Raises PlanError naming the key that is missing, unknown or out of range; FileNotFoundError."""
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"plan: expected a JSON file, got {str(path)!r}, which is not a file")
        if path.stat().st_size > LARGEST_FILE:
            raise PlanError(f"plan: expected a file of at most {LARGEST_FILE} bytes, {path.name} has {path.stat().st_size}")
        try:
            record = json.loads(path.read_bytes(), parse_constant=_no_constant)
        except (ValueError, RecursionError) as error:
            raise PlanError(f"plan: {path.name} is not JSON ({error})") from error
        try:
            return _read_plan(record)
        except PlanError as error:
            raise PlanError(f"{error} [{path.name}]") from error

    def check(self, model):
        """Raises PlanError where the plan was made for another model, naming what differs."""
        mine, theirs = model_record(model), self.model
        other = sorted(k for k in mine.keys() | theirs.keys() if mine.get(k) != theirs.get(k))
        if other:
            raise PlanError("plan: made for another model: "
                            + ", ".join(f"{k} {_short(theirs.get(k))} where this one has {_short(mine.get(k))}" for k in other))
        try:
            names = find_targets(model, [layer.name for layer in self.layers])
        except ValueError as error:
            raise PlanError(f"plan: {error}") from error
        if len(set(names)) != len(self.layers):
            raise PlanError("plan: layers: expected each layer once")
        for layer in self.layers:
            O, I = model.get_module(layer.name).weight.data.shape
            if (layer.out_features, layer.in_features) != (O, I):
                raise PlanError(f"plan: {layer.name}: made for {layer.out_features} x {layer.in_features}, "
                                f"this model's is {O} x {I}")
            if layer.rank is not None and layer.rank > min(O, I):
                raise PlanError(f"plan: {layer.name}: rank: expected 1 to {min(O, I)}, got {layer.rank}")

    def apply(self, model, calibration=None):
        """Readies a dense `model` for training as planned, in place, and returns it.

        calibration: labelled batches (images, labels) for the factors' start; not needed for the start "svd". They are walked in
        the plan's micro-batches; besides, the dense weights and, for the start "gradient", their gradients are there for a while.
        Raises PlanError where the plan does not fit the model; the model is then as it was.
        """
        self.check(model)
        size = self.micro_batch
        calibration = [(images[i : i + size], labels[i : i + size])
                       for images, labels in calibration or () for i in range(0, len(images), size)]
        factored = [layer for layer in self.layers if layer.rank is not None]
        if factored and self.start != "svd" and not calibration:
            raise PlanError(f"calibration: expected labelled batches for the start {self.start!r}, got none")
        # Those that keep what the weight has beyond the factors come first: the others start from the model that they leave.
        for bits in (8, 4, 0):
            ranks = {layer.name: layer.rank for layer in factored if layer.bits == bits}
            if ranks:
                start = "whitened" if self.start == "gradient" and bits == 0 else self.start
                factorize(model, rank_pattern=ranks, target_modules=tuple(ranks), verbose=False, residual_bits=bits or None,
                          whiten=calibration if start == "whitened" else None,
                          gradients=calibration if start == "gradient" else None)
        apply_policies(model, self.layers, self.recompute, self.saved_bits)
        return model

    def __str__(self):
        head = (f"{self.method}, {self.mode}: batch {self.batch_size} in micro-batches of {self.micro_batch}, {self.optimizer}"
                + (", blocks recomputed" if self.recompute else "")
                + (f", {self.saved_bits} bits kept" if self.saved_bits else "")
                + (", layer by layer" if self.layerwise else "")
                + (", gradients in 16 bits" if self.gradient_bits == 16 else "")
                + (", momentum in 16 bits" if self.state_bits == 16 else "")
                + (f", weights averaged by {self.ema:g}" if self.ema else ""))
        lines = [head, f"{'layer':<24}{'shape':>12}{'rank':>6}{'bits':>5}{'activations':>15}{'weights':>10}{'grad+opt':>10}"
                       f"{'saved':>10}{'GFLOP':>8}{'error':>8}"]
        for r in self.layers:
            kept = "-" if r.activation_ranks is None else " x ".join(f"{a:g}" for a in r.activation_ranks)
            shape = f"{r.out_features} x {r.in_features}"
            lines.append(f"{r.name:<24}{shape:>12}{r.rank or 'dense':>6}{r.bits or '-':>5}{kept:>15}"
                         f"{_kib(r.weight_bytes):>10}{_kib(r.gradient_bytes + r.optimizer_bytes):>10}{_kib(r.saved_bytes):>10}"
                         f"{r.flops / 1e9:>8.2f}{r.error:>8.3f}")
        parts = {"weights": self.weight_bytes, "gradients": self.gradient_bytes, "optimiser": self.optimizer_bytes,
                 **({"average": self.average_bytes} if self.ema else {}), "inputs": self.input_bytes, "saved": self.saved_bytes,
                 "scratch": self.scratch_bytes}
        lines.append("peak " + format_bytes(self.peak_bytes) + ": "
                     + ", ".join(f"{name} {format_bytes(n)}" for name, n in parts.items()))
        limit = [f"budget {format_bytes(self.budget_bytes)}"] if self.budget_bytes is not None else []
        limit += [f"target error {self.target_error:g}"] if self.target_error is not None else []
        lines.append(f"error {self.error:.4f}, {self.flops / 1e9:.2f} GFLOP a step"
                     + (f" ({', '.join(limit)})" if limit else ""))
        return "\n".join(lines)

    def plot(self, path):
        """Draws bytes and error of every layer into a PNG."""
        kinds = {"weights": "weight_bytes", "gradients": "gradient_bytes", "optimiser": "optimizer_bytes",
                 "saved for backward": "saved_bytes", "averaged weights": "average_bytes"}
        names = [layer.name for layer in self.layers]
        with new_figure(min(40, max(7, 0.28 * len(names))), 6, 2, 1, sharex=True) as (figure, ((upper,), (lower,))):
            stacked_bars(upper, names, {label: [getattr(layer, field) / 2**20 for layer in self.layers]
                                        for label, field in kinds.items()})
            upper.set(ylabel="MiB", title=f"{self.method}: {format_bytes(self.peak_bytes)} at the peak, error {self.error:.3f}")
            color = series_style(len(kinds))["color"]
            lower.bar(range(len(names)), [layer.error for layer in self.layers], width=0.8, color=color)
            name_bars(lower, names)
            lower.set(ylabel="relative error")
            figure.legend(*upper.get_legend_handles_labels(), loc="outside upper right", ncols=4)
            save_png(figure, path)


def apply_policies(model, layers, recompute, saved_bits):
    """Sets what layers and blocks keep for backward, as LayerPlans say."""
    chosen = {layer.name: layer for layer in layers}
    for name, layer in chosen.items():
        if layer.activation_ranks is not None:
            model.get_module(name).compression = ActivationCompression(layer.activation_ranks)
    names = {id(module): name for name, module in model.named_modules()}
    for block in model.blocks:
        second = chosen.get(f"{names[id(block)]}.mlp.fc2")
        block.policy = ActivationPolicy(recompute=recompute, gelu_bits=second and second.gelu_bits, saved_bits=saved_bits)


def model_record(model):
    """The configuration of a dense model and how many numbers of it are frozen, as JSON gives it back."""
    frozen = sum(p.data.size for _, p in model.named_parameters() if not p.trainable)
    return {"class": type(model).__name__, "n_frozen": frozen, **json.loads(json.dumps(asdict(model.config)))}


_UNITS = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


def parse_bytes(value, name="budget_bytes"):
    """A number of bytes from a whole number, or from text such as "64MiB", whatever its case.

    >>> parse_bytes("1.5 KiB")
    1536
    """
    if isinstance(value, str):
        text = value.strip()
        unit = next((u for u in sorted(_UNITS, key=len, reverse=True) if text.lower().endswith(u.lower())), None)
        try:
            number = float(text[: -len(unit)]) if unit else math.nan
        except ValueError:
            number = math.nan
        if not (math.isfinite(number) and number > 0):
            raise ValueError(f"{name}: expected a number with a unit out of {', '.join(_UNITS)}, such as '64MiB', "
                             f"got {_short(value)}")
        return int(number * _UNITS[unit])
    if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
        raise ValueError(f"{name}: expected a positive whole number of bytes, or text such as '64MiB', got {_short(value)}")
    return value


def format_bytes(n):
    """Bytes for people.

    >>> format_bytes(3 * 2**19)
    '1.5 MiB'
    """
    return f"{n / 2**20:.1f} MiB" if n >= 2**20 / 10 else f"{n / 2**10:.1f} KiB"


def _kib(n):
    return f"{n / 2**10:,.0f} K"


def _short(value):
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _no_constant(text):
    raise ValueError(f"{text} is not a number of JSON")


def _whole(least, most):
    def check(value):
        return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most
    return check, f"a whole number from {least} to {most}"


def _real(least, most):
    def check(value):
        return isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= most
    return check, f"a number from {least:g} to {most:g}"


def _one_of(*values):
    return lambda value: any(value is v or (type(value) is type(v) and value == v) for v in values), \
        "one of " + ", ".join(map(repr, values))


def _or_none(rule):
    return lambda value: value is None or rule[0](value), rule[1] + ", or null"


def _text(value):
    return isinstance(value, str) and 0 < len(value) <= 200


def _ranks(value):
    whole, share = _whole(1, 2**31 - 1)[0], _real(0, 1)[0]
    return isinstance(value, list) and len(value) == 3 and all(whole(v) or (share(v) and v > 0) for v in value)


_BYTES, _SIZE, _COUNT = _whole(0, 2**50), _whole(1, 2**31 - 1), _whole(0, 2**62)

_LAYER_RULES = {
    "name": (_text, "a name"),
    "out_features": _SIZE,
    "in_features": _SIZE,
    "rank": _or_none(_SIZE),
    "bits": _one_of(0, 4, 8),
    "activation_ranks": _or_none((_ranks, "three shares in (0, 1] or whole numbers")),
    "gelu_bits": _one_of(None, 2, 4),
    "error": _real(0, 1e6),
    "weight_bytes": _BYTES,
    "gradient_bytes": _BYTES,
    "optimizer_bytes": _BYTES,
    "average_bytes": _BYTES,
    "saved_bytes": _BYTES,
    "forward_flops": _COUNT,
    "backward_flops": _COUNT,
    "update_flops": _COUNT,
}

_PLAN_RULES = {
    "format_version": _one_of(FORMAT_VERSION),
    "method": _one_of(*PLANNED),
    "mode": _one_of(*MODES),
    "model": (lambda v: isinstance(v, dict), "an object"),
    "optimizer": _one_of(*RULES),
    "batch_size": _SIZE,
    "micro_batch": _SIZE,
    "recompute": _one_of(False, True),
    "saved_bits": _one_of(None, 8, 16),
    "gradient_bits": _one_of(16, 32),
    "state_bits": _one_of(16, 32),
    "layerwise": _one_of(False, True),
    "ema": _or_none(_real(0, 1)),
    "start": _one_of(*PLANNED_STARTS),
    "calibration": _whole(0, 2**20),
    "budget_bytes": _or_none(_BYTES),
    "target_error": _or_none(_real(0, 1e6)),
    "error": _real(0, 1e6),
    "weight_bytes": _BYTES,
    "gradient_bytes": _BYTES,
    "optimizer_bytes": _BYTES,
    "average_bytes": _BYTES,
    "input_bytes": _BYTES,
    "saved_bytes": _BYTES,
    "scratch_bytes": _BYTES,
    "peak_bytes": _BYTES,
    "forward_flops": _COUNT,
    "backward_flops": _COUNT,
    "update_flops": _COUNT,
    "layers": (lambda v: isinstance(v, list), "a list"),
}


def _check_record(record, rules, where):
    """Raises PlanError for a record that is no object, lacks keys, has unknown ones or values out of range."""
    if not isinstance(record, dict):
        raise PlanError(f"plan: {where}: expected an object, got {_short(record)}")
    for problem, keys in (("unknown", record.keys() - rules.keys()), ("missing", rules.keys() - record.keys())):
        if keys:
            raise PlanError(f"plan: {where}: {problem} keys {', '.join(_short(k) for k in sorted(keys)[:8])}")
    for key, (check, expected) in rules.items():
        if not check(record[key]):
            raise PlanError(f"plan: {where}: {key}: expected {expected}, got {_short(record[key])}")


def _read_plan(record):
    version = record.get("format_version") if isinstance(record, dict) else None
    if _whole(FORMAT_VERSION + 1, 2**31)[0](version):
        raise PlanError(f"plan: format_version {version} is newer than this package reads ({FORMAT_VERSION})")
    if version == 1:  # which knew none of these
        record = {"saved_bits": None, "gradient_bits": 32, "state_bits": 32, "layerwise": False, **record}
        if isinstance(record.get("model"), dict):
            record["model"] = {"n_frozen": 0, **record["model"]}
    if version in (1, 2):
        record = {"ema": None, "average_bytes": 0, **record, "format_version": FORMAT_VERSION}
        if isinstance(record.get("layers"), list):
            record["layers"] = [{"average_bytes": 0, **item} if isinstance(item, dict) else item for item in record["layers"]]
    _check_record(record, _PLAN_RULES, "the plan")
    layers = []
    for i, item in enumerate(record["layers"]):
        _check_record(item, _LAYER_RULES, f"layers[{i}]")
        if item["bits"] and item["rank"] is None:
            raise PlanError(f"plan: layers[{i}]: bits: expected 0 for a dense layer, got {item['bits']}")
        if item["gelu_bits"] and item["activation_ranks"] is None:
            raise PlanError(f"plan: layers[{i}]: gelu_bits: expected null where the input is not compressed")
        ranks = item["activation_ranks"]
        if record["start"] == "gradient" and record["method"] != "qwasi":
            raise PlanError("plan: start: expected 'svd' or 'whitened' for a method without residuals, got 'gradient'")
        layers.append(LayerPlan(**{**item, "activation_ranks": ranks and tuple(ranks)}))
    if record["micro_batch"] > record["batch_size"]:
        raise PlanError(f"plan: micro_batch: expected at most the batch of {record['batch_size']}, got {record['micro_batch']}")
    if record["layerwise"] and record["micro_batch"] < record["batch_size"]:
        raise PlanError(f"plan: micro_batch: expected the batch of {record['batch_size']} where layers are updated one by one, "
                        f"got {record['micro_batch']}")
    fields = {k: v for k, v in record.items() if k not in ("format_version", "peak_bytes")}
    plan = Plan(**{**fields, "layers": tuple(layers)})
    if plan.peak_bytes != record["peak_bytes"]:
        raise PlanError(f"plan: peak_bytes: expected the sum of its parts {plan.peak_bytes}, got {record['peak_bytes']}")
    return plan
