"""Swaps the linears of a PyTorch model for WASI ones, and back."""

import contextlib
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

import wasi
from wasi import ops
from wasi.models.factorize import (
    FactorizedLayer,
    Sources,
    check_rank,
    check_share,
    check_start_scale,
    factorization_table,
    match_targets,
    ranks_by_name,
    ranks_of_share,
)
from wasi.models.methods import STARTS, MethodOptions, default_start
from wasi.models.plan import Plan, PlanError
from wasi.torch.layers import FactoredLinear, Gelu, InputCompression, Linear, as_array

METHODS = ("dense", "asi", "amc", "wsi", "wasi", "qwasi")  # as in wasi.models.methods
ALL_LINEAR = "all-linear"  # the target that is every nn.Linear
GROUP = 32  # weights that share a scale in a residual of 4 bits


@dataclass(frozen=True)
class _Choice:
    """What one linear becomes."""

    factored: bool
    rank: int | None = None  # None: by variance
    bits: int = 0  # of the residual; 0: none
    activation_ranks: tuple | None = None


def convert(module, method, options=None, exclude_modules=(), calibration=None, gelu_bits=None, verbose=True):
    """Swaps nn.Linear layers of a PyTorch model for WASI ones, in place, and returns the model.

    Parameters
    ----------
    module: any model whose linears are float32 on the CPU. Layers that are frozen, or of a subclass of nn.Linear, stay.
    method: one of METHODS with its `options`, or a `wasi.Plan`, whose layers are then found by their names; its
        micro-batches and recomputed blocks are the business of your loop.
    options: a MethodOptions: targets (groups "mlp", "attn", "all" of timm's and Llama's names, dotted tails such as "fc1"
        or "attention.query", or "all-linear"), ranks or a share, bits, start, activation_ranks.
    exclude_modules: targets that stay.
    calibration: an iterable of losses, computed as it is walked:
        ``(F.cross_entropy(model(x), y) for x, y in batches)``. The factors then start from the layers' inputs or gradients
        there ("whitened", "fisher", "gradient") instead of the plain SVD of the weights.
    gelu_bits: 2 or 4 also swaps every nn.GELU (exact, not its tanh approximation) for one that keeps so many bits a number
        of its derivative instead of its input: the gradient is no longer exact. A plan says it for the GELU beside a layer.
    verbose: print a table of ranks and parameters.

    Make the optimiser afterwards: factors are new parameters (biases, and weights that stay dense, are not).
    A linear that several names share stays shared. Raises ValueError or PlanError before anything is changed;
    TypeError for other types and devices.

    >>> import torch, wasi.torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.GELU(), torch.nn.Linear(256, 10))
    >>> wasi.torch.convert(model, "wsi", wasi.torch.MethodOptions(targets=("0",), rank=8), verbose=False)[0]
    FactoredLinear(in_features=64, out_features=256, bias=True, rank=8)
    """
    linears = {name: layer for name, layer in module.named_modules(remove_duplicate=False) if type(layer) is nn.Linear}
    if isinstance(method, Plan):
        if options is not None or gelu_bits is not None:
            raise ValueError("options, gelu_bits: expected None with a plan, which decides them")
        choices, variance, share, scale = _planned(method, linears), None, None, 1.0
        start = method.start
        excluded = set(match_targets(list(choices), exclude_modules)) if exclude_modules else set()
        choices = {name: choice for name, choice in choices.items() if name not in excluded}
        gelus = {path: layer.gelu_bits for layer in method.layers if layer.gelu_bits
                 for path in _gelus(module, layer.name.rpartition(".")[0])}
    else:
        if method not in METHODS:
            raise ValueError(f"method: expected a wasi.Plan or one of {', '.join(METHODS)}, got {method!r}")
        options = options or MethodOptions()
        check_share(options.share, options.rank)
        check_start_scale(options.start_scale)
        choices, variance, share = _chosen(method, options, linears, exclude_modules), options.variance, options.share
        scale = options.start_scale
        start = options.start or default_start(method, calibration is not None, share)
        if start == "gradient" and method != "qwasi":
            raise ValueError("start: expected 'svd', 'whitened' or 'fisher' for a method without residuals, "
                             f"got {start!r} for {method}")
        gelus = {} if gelu_bits is None else dict.fromkeys(_gelus(module), gelu_bits)
        if gelu_bits is not None and not gelus:
            raise ValueError("gelu_bits: expected a model with nn.GELU modules, got none")
    _check(module, linears, choices, variance)
    new_gelus = {path: Gelu(bits, path) for path, bits in gelus.items()}
    starts = {name: _start_of(choice, start, calibration is not None) for name, choice in choices.items() if choice.factored}
    sources = Sources(*_calibrate(linears, starts, calibration), scale=scale)
    ranks = ranks_of_share({name: choice.rank for name, choice in choices.items() if choice.factored},
                           lambda name: as_array(linears[name].weight, name), share, sources)
    choices = {name: replace(choice, rank=ranks.get(name)) for name, choice in choices.items()}
    paths, table = {}, []
    for name, linear in linears.items():
        paths.setdefault(linear, []).append(name)
    for name, choice in choices.items():
        if linears[name] not in paths:
            continue  # shared, and done under another name
        new, row = _layer(name, linears[name], choice, variance, sources, "hosvd" if method == "amc" else "asi")
        for path in paths.pop(linears[name]):
            module.set_submodule(path, new)
        table += row
    for path, new in new_gelus.items():
        module.set_submodule(path, new.train(module.get_submodule(path).training))
    wasi.set_num_threads(min(torch.get_num_threads(), 256))
    if verbose and table:
        print(factorization_table(table))
    return module


def merge(module):
    """Swaps every WASI layer of a PyTorch model for the nn.Linear (nn.GELU) that computes the same, in place; returns the model.

    A WASI layer itself gives its nn.Linear. Weights are trainable then; biases are as they were.

    >>> import torch, wasi.torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(64, 32))
    >>> options = wasi.torch.MethodOptions(targets=("0",), rank=8)
    >>> wasi.torch.merge(wasi.torch.convert(model, "wsi", options, verbose=False))[0]
    Linear(in_features=64, out_features=32, bias=True)
    """
    if isinstance(module, (Linear, FactoredLinear)):
        return _dense(module)
    made = {}
    for name, layer in list(module.named_modules(remove_duplicate=False)):
        if isinstance(layer, Gelu):
            module.set_submodule(name, nn.GELU().train(layer.training))
        elif isinstance(layer, (Linear, FactoredLinear)):
            made[layer] = made.get(layer) or _dense(layer)
            module.set_submodule(name, made[layer])
    return module


def restore(module, state_dict, activation_ranks=None):
    """Converts a dense model as the one was whose `state_dict` it is given, and loads that; returns the model.

    Ranks and residuals are read from the tensors; what is kept of inputs is not among them, so
    `activation_ranks` says it again. Raises ValueError where factors do not fit the model's linears, and what
    load_state_dict raises.
    """
    linears = {name: layer for name, layer in module.named_modules() if type(layer) is nn.Linear}
    names = [key.removesuffix(".L") for key in state_dict if key.endswith(".L") and f"{key[:-1]}R" in state_dict]
    for name in names:
        L, R, codes = (state_dict.get(f"{name}.{part}") for part in ("L", "R", "residual_codes"))
        linear = linears.get(name)
        if linear is None or (len(L), R.shape[-1]) != tuple(linear.weight.shape):
            has = "none" if linear is None else f"one of {linear.out_features} x {linear.in_features}"
            raise ValueError(f"state_dict: {name}: expected a linear of {len(L)} x {R.shape[-1]} in the model, got {has}")
    for name in names:
        L, R = (torch.empty(state_dict[f"{name}.{part}"].shape) for part in ("L", "R"))
        residual = None
        if f"{name}.residual_codes" in state_dict:
            parts = (state_dict.get(f"{name}.residual_{part}") for part in ("codes", "s", "r", "c"))
            residual = ops.QuantizedMatrix(*(None if t is None else torch.empty_like(t).numpy() for t in parts), GROUP)
        compression = activation_ranks and InputCompression(activation_ranks)
        module.set_submodule(name, FactoredLinear(L, R, linears[name].bias, residual, name, compression))
    module.load_state_dict(state_dict)
    wasi.set_num_threads(min(torch.get_num_threads(), 256))
    return module


def _gelus(module, within=""):
    """Names of the exact nn.GELU modules, of the whole model or directly within the module of that name."""
    named = module.named_modules(remove_duplicate=False) if not within else (
        (f"{within}.{name}", child) for name, child in module.get_submodule(within).named_children())
    return [name for name, layer in named if type(layer) is nn.GELU and layer.approximate == "none"]


def _dense(layer):
    new = nn.Linear(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
    weight = layer.merged_weight()
    new.weight = weight if isinstance(weight, nn.Parameter) else nn.Parameter(weight)
    new.weight.requires_grad_(True)
    new.bias = layer.bias
    return new.train(layer.training)


def _chosen(method, options, linears, exclude_modules):
    """{name: _Choice} of a method."""
    if options.freeze:
        raise ValueError(f"freeze: expected none, as requires_grad_(False) does it in PyTorch, got {options.freeze}")
    trained = [name for name, linear in linears.items() if linear.weight.requires_grad]
    targets = options.targets or ("mlp",)
    named = [t for t in targets if t != ALL_LINEAR]
    try:
        names = match_targets(trained, named, exclude_modules) if named else []
    except ValueError as error:
        raise ValueError(f"{error}; {ALL_LINEAR!r} takes every one") from None
    if ALL_LINEAR in targets:
        excluded = set(match_targets(trained, exclude_modules)) if exclude_modules else set()
        names = [name for name in trained if name not in excluded]
    factored = method in ("wsi", "wasi", "qwasi")
    bits = options.bits if method == "qwasi" else 0
    if bits not in (0, 4, 8):
        raise ValueError(f"bits: expected 4 or 8, got {bits}")
    kept = options.activation_ranks or ((0.5, 0.5, 64) if method in ("asi", "amc", "wasi") else None)
    ranks = ranks_by_name(names, options.rank, options.rank_pattern)
    return {name: _Choice(factored, ranks[name] if factored else None, bits, kept) for name in names}


def _planned(plan, linears):
    """{name: _Choice} of a plan. Raises PlanError where the model has no such linear."""
    wrong = []
    for layer in plan.layers:
        linear, size = linears.get(layer.name), (layer.out_features, layer.in_features)
        if linear is None:
            wrong.append(f"{layer.name}: the model has no nn.Linear of that name")
        elif tuple(linear.weight.shape) != size:
            wrong.append(f"{layer.name}: made for {size[0]} x {size[1]}, this model's is {linear.out_features} x "
                         f"{linear.in_features}")
    if wrong:
        raise PlanError("plan: " + "; ".join(wrong))
    return {layer.name: _Choice(layer.rank is not None, layer.rank, layer.bits, layer.activation_ranks) for layer in plan.layers
            if layer.rank is not None or layer.activation_ranks is not None}


def _check(module, linears, choices, variance):
    """Raises ValueError or TypeError for layers that cannot become what they are to."""
    users = {}
    for path, parameter in module.named_parameters(remove_duplicate=False):
        users.setdefault(parameter, []).append(path)
    for name, choice in choices.items():
        linear = linears[name]
        W = as_array(linear.weight, f"{name}.weight")
        as_array(linear.bias, f"{name}.bias")
        if choice.activation_ranks is not None:
            InputCompression(choice.activation_ranks)
        if linear._forward_hooks or linear._forward_pre_hooks or linear._backward_hooks or linear._backward_pre_hooks:
            raise ValueError(f"{name}: expected a layer without hooks, which would be lost; register them after the conversion")
        if not choice.factored:
            continue
        others = [path for path in users[linear.weight] if linears.get(path.rpartition(".")[0]) is not linear]
        if others:
            raise ValueError(f"{name}: its weight is shared with {', '.join(others)}; expected it among exclude_modules")
        if not np.isfinite(W).all():
            raise ValueError(f"{name}.weight: holds NaN or Inf")
        check_rank(name, linear, choice.rank)
        if choice.rank is None and not 0 < variance <= 1:
            raise ValueError(f"variance: expected a share in (0, 1], got {variance}")


def _start_of(choice, start, calibrated):
    """What a layer's factors start from."""
    if start not in STARTS:
        raise ValueError(f"start: expected one of {', '.join(STARTS)}, got {start!r}")
    if start == "gradient" and not choice.bits:
        start = "whitened"  # factors that are all there is of the weight must stand for it
    if start != "svd" and not calibrated:
        raise ValueError(f"calibration: expected losses for the start {start!r}, got None")
    return start


def _calibrate(linears, starts, calibration):
    """({name: E[x' x]} of layers with the start "whitened" or "fisher", {name: dLoss/dW} of those with "gradient",
    {name: E[d' d]} of the outputs' gradients of those with "fisher")."""
    grams, slopes = ({name: [np.zeros((n, n)), 0] for name, n in sizes.items()} for sizes in (
        {name: linears[name].in_features for name, start in starts.items() if start in ("whitened", "fisher")},
        {name: linears[name].out_features for name, start in starts.items() if start == "fisher"}))
    sloped = {name: linears[name].weight for name, start in starts.items() if start == "gradient"}
    if calibration is None or not (grams or sloped):
        return {}, {}, {}
    gradients = {name: torch.zeros_like(W) for name, W in sloped.items()}
    outputs = []  # (name, output) of the batch in work

    def collect(name):
        def hook(layer, inputs, output):
            _add_gram(grams[name], inputs[0])
            if name in slopes and output.requires_grad:
                outputs.append((name, output))
        return hook

    n_batches = 0
    with contextlib.ExitStack() as stack, torch.set_grad_enabled(bool(sloped or slopes)):
        for name in grams:
            stack.callback(linears[name].register_forward_hook(collect(name)).remove)
        for loss in calibration:
            n_batches += 1
            if sloped or outputs:
                found = torch.autograd.grad(loss, [*sloped.values(), *(y for _, y in outputs)], allow_unused=True)
                for total, G in zip(gradients.values(), found):
                    total += 0 if G is None else G
                for (name, _), d in zip(outputs, found[len(sloped) :]):
                    if d is not None:
                        _add_gram(slopes[name], d)
                outputs.clear()
            del loss
    missing = [name for found in (grams, slopes) for name, (_, n) in found.items() if n == 0]
    missing += [name for name, G in gradients.items() if not G.any()]
    if missing:
        raise ValueError(f"calibration: expected losses of batches that reach {', '.join(dict.fromkeys(missing))}, computed as "
                         f"they are asked for (a generator); got {n_batches} that do not")
    covariances, slopes = ({name: gram / n for name, (gram, n) in found.items()} for found in (grams, slopes))
    return covariances, {name: G.numpy() for name, G in gradients.items()}, slopes


def _add_gram(total, x):
    """Adds the rows of x (..., n) to [x' x (n, n), their number]."""
    rows = x.detach().reshape(-1, x.shape[-1]).numpy()
    total[0] += rows.T @ rows
    total[1] += len(rows)


def _layer(name, linear, choice, variance, sources, compression_method):
    """The layer that takes the place of an nn.Linear, and its row in the table, if it is factored from its Sources."""
    compression = choice.activation_ranks and InputCompression(choice.activation_ranks, compression_method)
    if not choice.factored:
        return Linear.of(linear, name, compression), []
    W = np.ascontiguousarray(as_array(linear.weight, "weight"))
    keep = {"variance": variance} if choice.rank is None else {"rank": choice.rank}
    L, R, kept = sources.factors(name, W, **keep)
    L, R = np.ascontiguousarray(L), np.ascontiguousarray(R)
    residual = ops.quantize_residual(W - L @ R, choice.bits, GROUP) if choice.bits else None
    layer = FactoredLinear(L, R, linear.bias, residual, name, compression)
    return layer.train(linear.training), [FactorizedLayer(name, *W.shape, L.shape[1], kept)]
