"""Makes models by name and from files."""

import json

import numpy as np

from wasi.layers import FactoredLinear
from wasi.layers.frozen import Bf16Embedding, Bf16Linear
from wasi.layers.lora import LoraFactoredLinear, LoraLinear
from wasi.models.llama import LLAMA_CONFIGS, Llama, LlamaConfig, create_llama
from wasi.models.swin import SWIN_CONFIGS, SwinConfig, SwinTransformer, create_swin
from wasi.models.vit import CONFIGS, VisionTransformer, ViTConfig, create_vit
from wasi.models.weights import FORMAT_VERSION, TensorFile, WeightsError, load_weights


def list_models():
    """The names that `create_model` knows."""
    return sorted([*CONFIGS, *LLAMA_CONFIGS, *SWIN_CONFIGS])


def create_model(name, num_classes=None, img_size=None, weights=None, seed=0, **overrides):
    """Makes a model.

    Parameters: name, one of `list_models()`; num_classes, default that of the architecture; img_size in pixels a side, default
    the architecture's; weights, a safetensors file with timm or torchvision names, or None for random weights drawn by `seed`;
    further keywords replace fields of the configuration (embed_dim, depth, ...). A decoder has random weights here, and is a
    language model unless num_classes is given; `load_llama` reads published ones.
    Returns the model. Raises ValueError for an unknown name or an impossible size; see `load_weights` for the file's errors.

    >>> create_model("vit_tiny_patch16_224", num_classes=10, img_size=32, depth=1).config.grid
    2
    """
    if name in LLAMA_CONFIGS:
        if img_size is not None or weights is not None:
            raise ValueError(f"img_size, weights: expected None for {name}, which takes text; load_llama reads its weights")
        return create_llama(name, num_classes, seed, **overrides)
    if name not in CONFIGS and name not in SWIN_CONFIGS:
        raise ValueError(f"name: expected one of {', '.join(list_models())}, got {name!r}")
    create = create_swin if name in SWIN_CONFIGS else create_vit
    model = create(name, num_classes, img_size, seed, **overrides)
    if weights is not None:
        load_weights(model, weights)
    return model


def load_model(path):
    """The model that `save_model` wrote, whatever its layers, and the `extra` dict that was saved with it.

    Raises WeightsError for a file that is not a wasi model, is newer than this package, or lacks tensors; FileNotFoundError.
    """
    file, header = open_model(path)
    model = empty_model(file, header)
    restore_model(model, file, header)
    return model, header["extra"]


def open_model(path):
    """A TensorFile of what `save_model` wrote, and the header: format_version, architecture, config, layers, extra.

    Raises as `load_model`.
    """
    file = TensorFile(path)
    if "wasi" not in file.metadata:
        raise WeightsError(f"weights: {file.path.name} was not saved by wasi; make the model with "
                           "create_model(name, weights=...)")
    header = json.loads(file.metadata["wasi"])
    if header["format_version"] > FORMAT_VERSION:
        raise WeightsError(f"weights: {file.path.name} has format version {header['format_version']}; "
                           f"this package reads up to {FORMAT_VERSION}")
    return file, header


def empty_model(file, header):
    """A dense model of the configuration in the header, for `restore_model` to fill."""
    config = {k: tuple(v) if isinstance(v, list) else v for k, v in header["config"].items()}
    if header["architecture"] == "vit":
        return VisionTransformer(ViTConfig(**config), seed=None)
    if header["architecture"] == "swin":
        return SwinTransformer(SwinConfig(**config), seed=None)
    if header["architecture"] == "llama":
        return Llama(LlamaConfig(**config), lambda name, shape: np.zeros(shape, np.float32))
    raise WeightsError(f"weights: {file.path.name} holds an architecture that this package does not know: "
                       f"{header['architecture']!r}")


def restore_model(model, file, header):
    """Gives a model of that configuration, whatever its layers were, the layers and the values of the file."""
    _restore_layers(model, file, header["layers"])
    load_weights(model, file)


def _restore_layers(model, file, layers):
    """Puts factored and LoRA layers, yet without values, where the file has their tensors; `load_weights` fills them."""
    names = set(file.names)

    def empty(name):
        return np.zeros(file.shape(name), np.float32)

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
                new = LoraLinear(base, bias, rank, about["scale"] * rank, None)
            model.set_module(name, new)
