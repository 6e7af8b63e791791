"""Training methods by name: each turns a dense model into the layers that the method trains."""

from dataclasses import dataclass

import numpy as np

from wasi import ops
from wasi.layers import ActivationCompression, ActivationPolicy
from wasi.layers.lora import LoraLinear
from wasi.layers.published import WsiDenseLinear
from wasi.models.factorize import factorization_table, factorize, find_targets, ranks_by_name

METHODS = {
    "dense": "every weight is trained as it is",
    "asi": "weights are dense; what backward needs of the targets' inputs is kept as Tucker factors",
    "amc": "asi with the full decomposition at every step",
    "wsi": "targets become trained low-rank factors; what truncation cuts off is lost",
    "qwasi": "targets become trained low-rank factors over a frozen 4- or 8-bit residual",
    "wasi": "wsi and asi together",
    "wsi-dense": "the published WSI: dense weights and gradients stay, products use a followed low-rank approximation",
    "lora": "targets are frozen; trained low-rank updates are added; the head is trained",
    "qlora": "lora over weights frozen in 4 or 8 bits",
}


@dataclass(frozen=True)
class MethodOptions:
    """What the methods can be told; each takes what concerns it."""

    targets: tuple = ("mlp",)  # groups ("mlp", "attn", "all") or tails of names
    variance: float = 0.9  # share of the squared singular values that factors keep
    rank: int | None = None  # one rank for every target instead
    rank_pattern: dict | None = None  # {layer name: rank}, which goes before both
    bits: int = 4  # of the frozen residual or base
    alpha: float = 16.0  # LoRA's: the update is scaled by alpha / rank
    seed: int = 0  # of LoRA's random start
    activation_ranks: tuple | None = None  # (batch, tokens, channels) for compressed inputs: shares or numbers; None: the
    #                                        method's default, (0.5, 0.5, 64) for asi, amc and wasi, else inputs stay as they are


def apply_method(model, method, options=MethodOptions(), whiten=None, verbose=True):
    """Readies `model` for training by a method of METHODS, in place, and returns it.

    whiten: calibration batches for the start of the factored methods, or None for the plain SVD.
    Raises ValueError for an unknown method and for what `factorize` refuses.
    """
    if method not in METHODS:
        raise ValueError(f"method: expected one of {', '.join(METHODS)}, got {method!r}")
    names = find_targets(model, options.targets)
    if method in ("wsi", "wasi", "qwasi", "wsi-dense"):
        dense = {name: model.get_module(name) for name in names}
        factorize(model, options.variance, options.rank, options.rank_pattern, whiten, options.targets, verbose=False)
        if method == "qwasi":
            keep_residuals(model, {name: layer.weight.data for name, layer in dense.items()}, options.bits)
        if method == "wsi-dense":
            for name, layer in dense.items():
                rank = model.get_module(name).rank
                model.set_module(name, WsiDenseLinear(layer.weight.data, layer.bias and layer.bias.data, rank))
        if verbose:
            print(factorization_table(model.factorization))
    elif method in ("lora", "qlora"):
        add_lora(model, options, quantized=method == "qlora")
    ranks = options.activation_ranks or ((0.5, 0.5, 64) if method in ("asi", "amc", "wasi") else None)
    if ranks is not None:
        for name in names:
            model.get_module(name).compression = ActivationCompression(ranks, "hosvd" if method == "amc" else "asi")
        if all(block.mlp.fc2.compression for block in model.blocks):
            model.set_policy(ActivationPolicy(gelu_bits=4))
    return model


def keep_residuals(model, weights, bits):
    """Gives each factored layer what its factors lack of the dense weight, quantised: W = L R + Q. weights: {name: W}."""
    for name, W in weights.items():
        layer = model.get_module(name)
        layer.residual = ops.quantize_residual(W - layer.L.data @ layer.R.data, bits)


def add_lora(model, options, quantized):
    """Puts a LoraLinear in the place of each target, and freezes all but the updates and the head."""
    rng = np.random.default_rng(options.seed)
    names = find_targets(model, options.targets)
    ranks = ranks_by_name(names, 8 if options.rank is None else options.rank, options.rank_pattern)
    for _, p in model.named_parameters():
        p.trainable = False
    for name in names:
        layer = model.get_module(name)
        base = ops.quantize_residual(layer.weight.data, options.bits) if quantized else layer.weight.data
        new = LoraLinear(base, layer.bias and layer.bias.data, ranks[name], options.alpha, rng)
        if new.bias is not None:
            new.bias.trainable = False
        model.set_module(name, new)
    for p in (model.head.weight, model.head.bias):
        p.trainable = True
