"""Training methods by name: each turns a dense model into the layers that the method trains."""

import math
from dataclasses import dataclass

import numpy as np

from wasi import ops
from wasi.layers import ActivationCompression, ActivationPolicy, FactoredLinear, Mlp
from wasi.layers.lora import LoraFactoredLinear, LoraLinear
from wasi.layers.published import SvdLinear, WsiDenseLinear
from wasi.layers.residual import BatchNorm
from wasi.models.factorize import (
    check_ranks,
    check_start_scale,
    factorization_table,
    factorize,
    find_targets,
    ranks_of_share,
    trainability_kept,
)
from wasi.names import FACTORED, METHODS, STARTS


@dataclass(frozen=True)
class MethodOptions:
    """What the methods can be told; each takes what concerns it."""

    targets: tuple | None = None  # groups ("mlp", "attn", "conv", "all") or tails of names; None: the model's default
    variance: float = 0.9  # share of the squared singular values that factors keep
    rank: int | None = None  # one rank for every target instead
    share: float | None = None  # factors of so many times the targets' parameters in all instead (`factorize`)
    rank_pattern: dict | None = None  # {layer name: rank}, which goes before all of these
    bits: int = 4  # of the frozen residual or base
    start: str | None = None  # of factors: "svd", "whitened" or "fisher" of the weight, or "gradient" (over qwasi's residual
    #                           alone); None: what `default_start` says
    start_scale: float = 1.0  # of factors in the gradient's directions, beside the weight's: smaller ones turn faster
    alpha: float = 16.0  # LoRA's: the update is scaled by alpha / rank
    lora_rank: int = 8  # of the updates of svd-llm-lora, whose factors `rank` is about
    seed: int = 0  # of LoRA's random start
    freeze: tuple = ()  # names of parameters or modules that are left as they are, and are no targets; "stem": what comes
    #                     before the blocks, "batchnorm": every batch norm, which then follows no batch's statistics either
    activation_ranks: tuple | None = None  # (batch, tokens, channels) for compressed inputs: shares or numbers; None: the
    #                                        method's default, (0.5, 0.5, 64) for asi, amc and wasi, else inputs stay as they are


def default_start(method, calibrated, share=None):
    """What factors start from: the best known for the method, where there are calibration batches for it.

    >>> default_start("qwasi", True), default_start("wsi", True), default_start("wsi", False), default_start("wsi", True, 0.4)
    ('gradient', 'whitened', 'svd', 'fisher')
    """
    if method in ("wsi-dense", "svd") or not calibrated:  # these two follow the dense weight's own SVD
        return "svd"
    if method == "qwasi":
        return "gradient"
    return "whitened" if share is None or method.startswith("svd-llm") else "fisher"


def default_freeze(method, pretrained):
    """What a method leaves as it is unless told otherwise: of a pretrained model that qwasi trains, stem and batch norms."""
    return ("stem", "batchnorm") if method == "qwasi" and pretrained else ()


def check_method(model, method, options=MethodOptions(), calibrated=False):
    """(names of the targets, what their factors start from) of what `apply_method` would do with a model, which stays as it is.

    calibrated: whether there will be calibration batches. Raises ValueError as `apply_method`, for all but what only weights and
    batches tell.
    """
    if method not in METHODS:
        raise ValueError(f"method: expected one of {', '.join(METHODS)}, got {method!r}")
    with trainability_kept(model):
        freeze_parameters(model, options.freeze)
        used = method != "dense" or options.targets or options.activation_ranks
        names = find_targets(model, options.targets) if used else []
    start = _checked_start(method, options, calibrated) if method in FACTORED else "svd"
    if method in ("qwasi", "qlora") and options.bits not in (4, 8):
        raise ValueError(f"bits: expected 4 or 8, got {options.bits}")
    if method in FACTORED or method in ("lora", "qlora"):
        rank = options.rank if method in FACTORED else _rank_of_updates(options)
        ranks = check_ranks(model, names, rank, options.rank_pattern, options.variance, options.share)
        if method == "svd-llm-lora":
            for name, rank in ranks.items():
                _check_lora_rank(name, rank, options)
    check_start_scale(options.start_scale)
    if not math.isfinite(options.alpha):
        raise ValueError(f"alpha: expected a finite number, got {options.alpha}")
    if options.activation_ranks is not None:
        ActivationCompression(options.activation_ranks)
    return names, start


def _checked_start(method, options, calibrated):
    """What the factors of a method of FACTORED start from. Raises ValueError for what it cannot start from."""
    start = options.start or default_start(method, calibrated, options.share)
    if start not in STARTS:
        raise ValueError(f"start: expected one of {', '.join(STARTS)}, got {start!r}")
    if start == "gradient" and method != "qwasi":
        raise ValueError(f"start: expected 'svd', 'whitened' or 'fisher' for {method}, which keeps no residual, got {start!r}")
    if start != "svd" and not calibrated:
        raise ValueError(f"calibration: expected batches for the start {start!r}, got None")
    if method in ("svd-llm", "svd-llm-lora") and start != "whitened":
        raise ValueError(f"start: expected 'whitened' and calibration batches for {method}, got {start!r}")
    return start


def apply_method(model, method, options=MethodOptions(), calibration=None, verbose=True):
    """Readies `model` for training by a method of METHODS, in place, and returns it.

    calibration: labelled batches (images, labels) that the factors' start is chosen on, or None for the plain SVD.
    Raises ValueError for an unknown method and for what `factorize` refuses; options that do not fit leave the model as it was
    (`check_method`).
    """
    names, start = check_method(model, method, options, calibration is not None)
    frozen = frozen_names(model, options.freeze)
    freeze_parameters(model, frozen)
    if method in FACTORED:
        _factorize(model, method, names, start, options, calibration)
        if verbose:
            print(factorization_table(model.factorization))
    elif method in ("lora", "qlora"):
        add_lora(model, names, options, quantized=method == "qlora")
    ranks = options.activation_ranks or ((0.5, 0.5, 64) if method in ("asi", "amc", "wasi") else None)
    if ranks is not None:
        compress_inputs(model, names, ranks, "hosvd" if method == "amc" else "asi")
        if all(isinstance(getattr(block, "mlp", None), Mlp) and block.mlp.fc2.compression for block in model.blocks):
            model.set_policy(ActivationPolicy(gelu_bits=4))
    kept = [name for name, _ in model.named_parameters() if _is_in(name, frozen)]
    freeze_parameters(model, kept)  # biases of targets are parameters anew
    return model


def _factorize(model, method, names, start, options, calibration):
    """Puts the layers of a method of FACTORED in the place of the targets."""
    dense = {name: model.get_module(name) for name in names} if method in ("wsi-dense", "svd") else {}
    factorize(model, options.variance, options.rank, options.rank_pattern, calibration if start == "whitened" else None,
              options.targets, verbose=False, residual_bits=options.bits if method == "qwasi" else None,
              gradients=calibration if start == "gradient" else None,
              fisher=calibration if start == "fisher" else None, share=options.share, start_scale=options.start_scale)
    for name, layer in dense.items():
        new = SvdLinear if method == "svd" else WsiDenseLinear
        model.set_module(name, new(layer.weight.data, layer.bias and layer.bias.data, model.get_module(name).rank))
    if method in ("svd-llm", "svd-llm-lora"):
        for name in names:
            layer = model.get_module(name)
            L, R = balanced(layer.L.data, layer.R.data)
            model.set_module(name, FactoredLinear(L, R, layer.bias and layer.bias.data, plain=True))
    if method == "svd-llm-lora":
        add_lora_on_factors(model, names, options)


def _is_in(name, modules):
    return any(name == m or name.startswith(m + ".") for m in modules)


def frozen_names(model, names):
    """Dotted names of parameters or modules, with those that the words "stem" and "batchnorm" stand for in their place."""
    own = [name for name, _ in model.named_parameters()]
    stem = [name for name in getattr(model, "stem", ()) if any(_is_in(n, (name,)) for n in own)]  # not one that a file maps
    groups = {"stem": stem, "batchnorm": [name for name, module in model.named_modules() if isinstance(module, BatchNorm)]}
    return tuple(n for name in names for n in groups.get(name, (name,)))


def freeze_parameters(model, names):
    """Leaves parameters as they are in training: those of these dotted names or words (`frozen_names`), or in such modules.

    Raises ValueError for a name that none has.
    """
    parameters = list(model.named_parameters())
    for name in frozen_names(model, names):
        found = [p for own, p in parameters if _is_in(own, (name,))]
        if not found:
            raise ValueError(f"freeze: the model has no parameters {name!r} ({', '.join(own for own, _ in parameters[:4])}, ...)")
        for p in found:
            p.trainable = False


def compress_inputs(model, names, ranks, method):
    """Gives each named linear an ActivationCompression; those that the module around them feeds with one input share it."""
    made = {}
    for name in names:
        parent, _, own = name.rpartition(".")
        groups = getattr(model.get_module(parent), "shared_inputs", ())
        key = parent, next((group for group in groups if own in group), own)
        if key not in made:
            made[key] = ActivationCompression(ranks, method)
        model.get_module(name).compression = made[key]


def balanced(L, R):
    """Factors of the same product whose columns of L and rows of R have the same norms, for plain gradient steps on both."""
    scale = np.sqrt(np.linalg.norm(R, axis=1) / np.linalg.norm(L, axis=0))
    scale[scale == 0] = 1
    return L * scale, R / scale[:, None]


def add_lora(model, names, options, quantized):
    """Puts a LoraLinear in the place of each target, and freezes all but the updates and the head."""
    rng = np.random.default_rng(options.seed)
    ranks = check_ranks(model, names, _rank_of_updates(options), options.rank_pattern, share=options.share)
    ranks = ranks_of_share(ranks, lambda name: model.get_module(name).weight.data, options.share)
    for name in names:
        layer = model.get_module(name)
        base = ops.quantize_residual(layer.weight.data, options.bits) if quantized else layer.weight.data
        model.set_module(name, LoraLinear(base, layer.bias and layer.bias.data, ranks[name], options.alpha, rng))
    freeze_all_but_updates(model)


def _rank_of_updates(options):
    """LoRA's: 8 where neither a rank nor a share is given."""
    return 8 if options.rank is None and options.share is None else options.rank


def add_lora_on_factors(model, names, options):
    """Puts a LoraFactoredLinear in the place of each factored target, and freezes all but the updates and the head."""
    rng = np.random.default_rng(options.seed)
    for name in names:
        layer = model.get_module(name)
        _check_lora_rank(name, layer.rank, options)
        bias = layer.bias and layer.bias.data
        model.set_module(name, LoraFactoredLinear(layer.L.data, layer.R.data, bias, options.lora_rank, options.alpha, rng))
    freeze_all_but_updates(model)


def _check_lora_rank(name, rank, options):
    """Raises ValueError for updates of a higher rank than the factors that they go with; rank: of these, None: not yet known."""
    if options.lora_rank < 1 or (rank is not None and options.lora_rank > rank):
        most = "" if rank is None else f" to {rank}"
        raise ValueError(f"lora_rank: expected 1{most} for the factors of {name}, got {options.lora_rank}")


def freeze_all_but_updates(model):
    """Leaves LoRA's A and B and a classifier's head trainable."""
    trained = {id(p) for _, m in model.named_modules() if isinstance(m, LoraLinear) for p in (m.A, m.B)}
    trained |= {id(p) for p in model.head_parameters()}
    for _, p in model.named_parameters():
        p.trainable = p.trainable and id(p) in trained
