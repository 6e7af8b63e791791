"""Multiplies layers out to dense ones: all of them, to hand a model on, or those that this machine runs faster so."""

import math
import statistics
import time
from dataclasses import dataclass

import numpy as np

from wasi import ops
from wasi.layers import Embedding, Linear, Module
from wasi.layers.frozen import Bf16Embedding

# A layer is merged where that is faster by more than this; below, its factors are as fast and smaller.
MIN_GAIN = 0.05


@dataclass(frozen=True)
class InferenceChoice:
    """One row of what `optimize_for_inference` measured: layers of one kind and the same sizes."""

    layers: tuple  # names
    kind: str  # "FactoredLinear 768 x 192 rank 32 + 4 bits"
    rows: int  # tokens, or pixels, that come in at once
    seconds: float  # as it is
    merged_seconds: float  # multiplied out, dense float32
    merged: bool


class _Recorder(Module):
    """Stands in for a linear and notes the largest input: (rows, I), or the shape of a convolution's images."""

    def __init__(self, linear):
        self.linear = linear
        self.shape = None

    def forward(self, x, train=False, keep_input=True):
        shape = x.shape if getattr(self.linear, "window", None) else (x.size // x.shape[-1], x.shape[-1])
        if self.shape is None or math.prod(shape) > math.prod(self.shape):
            self.shape = shape
        return self.linear.forward(x)


def merge(model):
    """Replaces every layer that holds factors, residuals, updates or bfloat16 by a dense one of the same function, in place.

    What `save_model` then writes has the tensors of the published architecture alone, under timm's names for a ViT, so PyTorch
    loads it unchanged; of a decoder `save_hugging_face` does. Returns the model, every weight trainable.

    >>> import wasi
    >>> model = merge(wasi.factorize(wasi.create_model("vit_micro_patch4_32"), rank=8, verbose=False))
    >>> model.blocks[0].mlp.fc1.weight.data.shape
    (256, 64)
    """
    for name, layer in mergeable(model):
        model.set_module(name, _dense(layer))
    tables = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, Bf16Embedding)]
    for name, layer in tables:
        model.set_module(name, Embedding(ops.bf16_expand(layer.bits)))
    for _, p in model.named_parameters():
        p.trainable = True
        p.data = np.require(p.data, requirements="W")  # a copy of what is mapped from a file
    return model


def optimize_for_inference(model, example, rounds=7, verbose=True):
    """Replaces layers that hold factors, residuals or updates by dense ones where those are faster, in place.

    model: any model of this package. example: what its `forward` takes, of the batch size and shape to come. rounds: timings of
    each candidate, in alternation; medians are compared. The function that the model computes stays the same but for rounding (a
    residual's activations are then no longer rounded to 8 bits). Gradients are let go of: the model is not meant to be trained
    on.
    Raises ValueError for less than one round.
    Returns the model; what was measured is kept as `model.inference_choices`, a list of InferenceChoice, and printed if verbose.

    >>> import numpy as np, wasi
    >>> model = wasi.factorize(wasi.create_model("vit_micro_patch4_32"), rank=64, verbose=False)
    >>> model = optimize_for_inference(model, np.zeros((1, 3, 32, 32), np.uint8), verbose=False)
    >>> len(model.inference_choices)  # fc1 and fc2
    2
    """
    if rounds < 1:
        raise ValueError(f"rounds: expected at least 1, got {rounds}")
    recorders = {name: _Recorder(layer) for name, layer in mergeable(model)}
    with model.replaced(recorders):
        model.forward(example)
    for _, p in model.named_parameters():
        p.grad = p.packed = None
    groups = {}
    for name, recorder in recorders.items():
        if recorder.shape is not None:
            groups.setdefault((_describe(recorder.linear), recorder.shape), []).append(name)
    choices = []
    for (kind, shape), names in groups.items():
        layer = recorders[names[0]].linear
        as_it_is, merged = _compare(layer, _dense(layer), shape, rounds)
        better = merged < (1 - MIN_GAIN) * as_it_is
        for name in names if better else ():
            model.set_module(name, _dense(recorders[name].linear))
        choices.append(InferenceChoice(tuple(names), kind, math.prod(shape[:-1]), as_it_is, merged, better))
    model.inference_choices = choices
    if verbose:
        print(choices_table(choices))
    return model


def mergeable(model):
    """(name, layer) of what is not dense already; outermost, so a layer made of such layers is one."""
    found = []
    for name, layer in model.named_modules():
        if hasattr(layer, "merged_weight") and not any(name.startswith(outer + ".") for outer, _ in found):
            found.append((name, layer))
    return found


def _describe(layer):
    parts = [type(layer).__name__, f"{layer.out_features} x {layer.in_features}"]
    if getattr(layer, "rank", None) is not None:
        parts.append(f"rank {layer.rank}")
    window = getattr(layer, "window", None)
    if window is not None:
        parts.append(f"of {window.kernel} x {window.kernel} / {window.stride}")
    if getattr(layer, "quantized", None) is not None:
        parts.append(f"+ {layer.quantized.bits} bits")
    return " ".join(parts)


def _dense(layer):
    bias = getattr(layer, "bias", None)
    dense = Linear(layer.merged_weight(), bias and bias.data)
    dense.adopt(layer)
    return dense


def _compare(layer, merged, shape, rounds):
    """Median seconds of both layers on random numbers, timed in alternation after a call each to warm up."""
    x = np.random.default_rng(0).standard_normal(shape, np.float32)
    seconds = ([], [])
    for round_ in range(rounds + 1):
        for candidate, times in zip((layer, merged), seconds):
            start = time.perf_counter()
            candidate.forward(x)
            if round_:
                times.append(time.perf_counter() - start)
    return tuple(statistics.median(times) for times in seconds)


def choices_table(choices):
    """A text table of InferenceChoice rows."""
    lines = [f"{'layers':>6}  {'kind':<48}{'rows':>7}{'as it is':>12}{'dense':>12}  choice"]
    for c in choices:
        lines.append(f"{len(c.layers):>6}  {c.kind:<48}{c.rows:>7}{1e3 * c.seconds:>9.3f} ms{1e3 * c.merged_seconds:>9.3f} ms  "
                     + ("dense" if c.merged else "as it is"))
    return "\n".join(lines)
