"""Makes models by name and from files."""

import json
import math
from dataclasses import replace

from wasi.layers import FactoredLinear
from wasi.layers.frozen import Bf16Embedding, Bf16Linear
from wasi.layers.lora import LoraFactoredLinear, LoraLinear
from wasi.layers.module import blank
from wasi.models.llama import LLAMA_CONFIGS, Llama, LlamaConfig, create_llama, random_arrays
from wasi.models.resnet import RESNET_CONFIGS, ResNet, ResNetConfig
from wasi.models.swin import SWIN_CONFIGS, SwinConfig, SwinTransformer
from wasi.models.vit import CONFIGS, VisionTransformer, ViTConfig
from wasi.models.weights import FORMAT_VERSION, TensorFile, WeightsError, load_weights

# What a file whose metadata are damaged makes the code that reads them raise.
_MALFORMED = (ArithmeticError, AttributeError, IndexError, KeyError, RecursionError, TypeError, ValueError)
_IMAGES = {**CONFIGS, **RESNET_CONFIGS, **SWIN_CONFIGS}  # configurations of models of images, by name
_MODELS = {ResNetConfig: ResNet, SwinConfig: SwinTransformer, ViTConfig: VisionTransformer}
_CONFIGS = {"llama": LlamaConfig, "resnet": ResNetConfig, "swin": SwinConfig, "vit": ViTConfig}


def list_models():
    """The names that `create_model` knows."""
    return sorted([*_IMAGES, *LLAMA_CONFIGS])


def create_model(name, num_classes=None, img_size=None, weights=None, seed=0, **overrides):
    """Makes a model.

    Parameters: name, one of `list_models()`; num_classes, default that of the architecture; img_size in pixels a side, default
    the architecture's; weights, a safetensors file with timm or torchvision names, or None for random weights drawn by `seed`
    (None: blank ones, which take no memory and cannot be trained); further keywords replace fields of the configuration
    (embed_dim, depth, ...). A decoder has random weights here, and is a language model unless num_classes is given; `load_llama`
    reads published ones.
    Returns the model. Raises ValueError for an unknown name or an impossible size; see `load_weights` for the file's errors.

    >>> create_model("vit_tiny_patch16_224", num_classes=10, img_size=32, depth=1).config.grid
    2
    """
    if name in LLAMA_CONFIGS:
        if img_size is not None or weights is not None:
            raise ValueError(f"img_size, weights: expected None for {name}, which takes text; load_llama reads its weights")
        return create_llama(name, num_classes, seed, **overrides)
    if name not in _IMAGES:
        raise ValueError(f"name: expected one of {', '.join(list_models())}, got {name!r}")
    changes = {k: v for k, v in {"num_classes": num_classes, "img_size": img_size, **overrides}.items() if v is not None}
    config = replace(_IMAGES[name], **changes)
    model = _MODELS[type(config)](config, seed)
    if weights is not None:
        load_weights(model, weights)
    return model


def load_model(path):
    """The model that `save_model` wrote, whatever its layers, and the `extra` dict that was saved with it.

    Raises WeightsError for a file that is not a wasi model, is newer than this package, is damaged, or lacks tensors;
    FileNotFoundError. What the file says of the model is compared with its tensors first, so a small file takes little memory.
    """
    file, header = open_model(path)
    try:
        model = empty_model(header)
        restore_model(model, file, header)
        return model, header["extra"]
    except WeightsError:
        raise
    except _MALFORMED as error:
        raise WeightsError(f"weights: {file.path.name} is damaged ({type(error).__name__}: {error})") from error


def open_model(path):
    """A TensorFile of what `save_model` wrote, and the header: format_version, architecture, config, layers, extra.

    The file has a tensor of the right shape, or factors, for each parameter of the configuration. Raises as `load_model`.
    """
    file = TensorFile(path)
    if "wasi" not in file.metadata:
        raise WeightsError(f"weights: {file.path.name} was not saved by wasi; create_model(name, weights=...) and wasi train "
                           "--weights take published weights, of decoders with their config.json beside them")
    try:
        header = json.loads(file.metadata["wasi"])
        if header["format_version"] > FORMAT_VERSION:
            raise WeightsError(f"weights: {file.path.name} has format version {header['format_version']}; "
                               f"this package reads up to {FORMAT_VERSION}")
        if header["architecture"] not in _CONFIGS:
            raise WeightsError(f"weights: {file.path.name} holds an architecture that this package does not know: "
                               f"{header['architecture']!r}")
        _check_tensors(file, _config(header))
    except WeightsError:
        raise
    except _MALFORMED as error:
        what = f"{type(error).__name__}: {error}"
        raise WeightsError(f"weights: the description in {file.path.name} is damaged ({what})") from error
    return file, header


def _config(header):
    """The configuration that the header describes. Raises ValueError, TypeError or ArithmeticError for one that cannot be."""
    return _CONFIGS[header["architecture"]](**header["config"])


def _check_tensors(file, config):
    """Raises WeightsError naming tensors of the configuration that the file has not, in no form, or not in that shape."""
    names = set(file.names)
    n_blocks = sum(getattr(config, "depths", ())) or config.depth
    if n_blocks > len(names):
        raise WeightsError(f"weights: {file.path.name} describes {n_blocks} blocks, and has {len(names)} tensors")
    wrong = []
    for name, shape in config.shapes().items():
        got = _shape_in(file, names, name)
        if got is None:
            wrong.append(f"{name}: missing")
        elif got != shape and not (len(got) == 4 and len(shape) == 2 and (got[0], math.prod(got[1:])) == shape):
            wrong.append(f"{name}: expected shape {shape}, got {got}")
    if wrong:
        raise WeightsError(f"weights: {file.path.name} does not fit the model that it describes: {'; '.join(wrong)}")


def _shape_in(file, names, name):
    """The shape of a parameter of the dense model as the file has it, whole or in factors; None where it has it not."""
    if name in names:
        return file.shape(name)
    layer, _, tail = name.rpartition(".")
    for other in {"weight": ("bits",), "bias": ("up.bias",)}.get(tail, ()):
        if f"{layer}.{other}" in names:
            return file.shape(f"{layer}.{other}")
    for left, right in (("L", "R"), ("B", "A"), ("up.weight", "down.weight")) if tail == "weight" else ():
        if f"{layer}.{left}" in names and f"{layer}.{right}" in names:
            left, right = file.shape(f"{layer}.{left}"), file.shape(f"{layer}.{right}")
            fit = len(left) == len(right) == 2 and left[1] == right[0] > 0
            return (left[0], right[1]) if fit else (left, right)
    return None


def empty_model(header):
    """A dense model of the configuration in the header, its weights blank, for `restore_model` to fill."""
    config = _config(header)
    if isinstance(config, LlamaConfig):
        return Llama(config, random_arrays(None))
    return _MODELS[type(config)](config, seed=None)


def restore_model(model, file, header):
    """Gives a model of that configuration, whatever its layers were, the layers and the values of the file."""
    _restore_layers(model, file, header["layers"])
    load_weights(model, file)


def _restore_layers(model, file, layers):
    """Puts factored and LoRA layers, yet without values, where the file has their tensors; `load_weights` fills them."""
    names = set(file.names)

    def empty(name):
        return blank(file.shape(name))

    for name in (n for n, about in layers.items() if about.get("bf16")):
        if f"{name}.bits" not in names or file.dtype(f"{name}.bits") != "U16":
            raise WeightsError(f"weights: {file.path.name} lacks the bfloat16 bits of {name}")
        kind = Bf16Embedding if name == "embed" else Bf16Linear
        model.set_module(name, kind(file.mapped(f"{name}.bits")))
    for name in (n for n, about in layers.items() if about.get("lora_on_factors")):
        if not {f"{name}.up.weight", f"{name}.down.weight"} <= names:
            raise WeightsError(f"weights: {file.path.name} lacks a factor of {name}")
        bias = model.get_module(name).bias
        new = LoraFactoredLinear(empty(f"{name}.up.weight"), empty(f"{name}.down.weight"), bias and bias.data, 1, 1.0, None)
        model.set_module(name, new)
    for tail, other in ((".L", ".R"), (".A", ".B")):
        for name in sorted(n[: -len(tail)] for n in names if n.endswith(tail)):
            if name + other not in names:
                raise WeightsError(f"weights: {file.path.name} has {name}{tail} but not {name}{other}")
            bias = model.get_module(name).bias
            bias = bias and bias.data
            about = layers.get(name, {})
            quantized = file.read_quantized(f"{name}.quantized", about["group"]) if "group" in about else None
            if tail == ".L":
                new = FactoredLinear(empty(name + tail), empty(name + other), bias, quantized, about.get("plain", False))
            else:
                base = empty(f"{name}.weight") if quantized is None else quantized
                rank = file.shape(name + tail)[0]
                if (file.shape(name + tail), file.shape(name + other)) != ((rank, base.shape[1]), (base.shape[0], rank)):
                    raise WeightsError(f"weights: {file.path.name} has updates of another shape than the weight of {name}")
                new = LoraLinear(base, bias, rank, about["scale"] * rank, None)
            model.set_module(name, new)
