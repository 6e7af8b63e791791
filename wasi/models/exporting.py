"""Hands models on: weights under the names that PyTorch's libraries have for them, dense or as two linears a layer."""

import contextlib
import json
from pathlib import Path

import numpy as np

from wasi import ops
from wasi.layers import FactoredLinear
from wasi.layers.frozen import Bf16Embedding
from wasi.layers.windows import WindowAttention, relative_positions
from wasi.models.inference import mergeable
from wasi.models.llama_files import hugging_face_decoder, write_hugging_face
from wasi.models.published_names import HUGGING_FACE, TORCHVISION, their_name
from wasi.models.weights import atomic_file, kernel_of, published_shape, write_tensors

# What each architecture can be exported as.
FORMATS = {"vit": ("timm", "torchvision", "hugging-face", "onnx"), "swin": ("timm", "torchvision", "hugging-face", "onnx"),
           "resnet": ("timm", "torchvision", "onnx"), "llama": ("hugging-face", "onnx")}


def export(model, path, format, factored=False, opset=17, classes=None, overwrite=False):
    """Writes a model for other programs; the model stays as it is.

    Layers that hold factors, residuals, updates or bfloat16 are multiplied out to dense float32 ones.

    Parameters
    ----------
    path: the file to write, or, for "hugging-face", the folder.
    format: "timm" or "torchvision", a safetensors file whose tensors their `load_state_dict` takes as they are;
        "hugging-face", config.json and model.safetensors for `from_pretrained` of transformers, of images' models with the
        preprocessor_config.json of their pixels; "onnx" (needs the onnx library), see `wasi.models.onnx`.
    factored: write two linears for a layer of factors without a residual, a `torch.nn.Sequential` of R without and L with
        bias: NAME.0.weight (K, I), NAME.1.weight (O, K), NAME.1.bias; for a convolution one to K channels and one of 1 x 1.
        Other layers are dense. Not for torchvision's and Hugging Face's transformers of images, whose attention is not made
        of the same linear layers.
    opset: of an ONNX file.
    classes: names of the classes, kept in the file's metadata.
    overwrite: replace what is there.

    Raises ValueError for a format that the architecture cannot have, FileExistsError, and OSError where nothing can be
    written; a file appears whole or not at all. The names are those of timm 1.0, torchvision 0.29 and transformers 5.

    >>> import wasi
    >>> model = wasi.factorize(wasi.create_model("vit_micro_patch4_32"), rank=8, verbose=False)
    >>> export(model, "mine.safetensors", "timm")
    """
    if model.architecture not in FORMATS:
        raise ValueError(f"model: expected an architecture out of {', '.join(FORMATS)}, got {model.architecture!r}")
    if format not in FORMATS[model.architecture]:
        raise ValueError(f"format: expected {' or '.join(map(repr, FORMATS[model.architecture]))} for the architecture "
                         f"{model.architecture!r}, got {format!r}")
    if factored and format in ("torchvision", "hugging-face") and model.architecture in ("vit", "swin"):
        raise ValueError(f"factored: expected False for {format}, whose attention is not made of the same linear layers")
    path = Path(path)
    if path.exists() and not overwrite:
        raise FileExistsError(f"path: {str(path)!r} is there already; remove it, or replace it by overwrite=True (--overwrite)")
    if format == "onnx":
        from wasi.models.onnx import onnx_model

        graph = onnx_model(model, opset, factored, classes).SerializeToString()
        with _named_errors(path), atomic_file(path) as file:
            file.write(graph)
        return
    tensors = export_tensors(model, factored)
    if format == "hugging-face":
        if model.architecture == "llama":
            tensors, settings = hugging_face_decoder(model.config, tensors, classes)
            settings = {"config.json": settings}
        else:
            tensors, settings = hugging_face_images(model, tensors, classes)
        with _named_errors(path):
            write_hugging_face(path, tensors, settings)
        return
    if format == "torchvision" and model.architecture in TORCHVISION:  # a ResNet's names are timm's
        tensors |= {f"{name}.relative_position_index": relative_positions(module.window)
                    for name, module in model.named_modules() if isinstance(module, WindowAttention)}
        tensors = {their_name(name, TORCHVISION[model.architecture]): array for name, array in tensors.items()}
    with _named_errors(path):
        write_tensors(path, tensors, {"format": "pt"} | ({"classes": json.dumps(list(classes))} if classes else {}))


@contextlib.contextmanager
def _named_errors(path):
    """A context whose OSErrors say what could not be written."""
    try:
        yield
    except OSError as error:
        raise type(error)(f"path: {str(path)!r} cannot be written ({error.strerror or error})") from error


def export_tensors(model, factored=False):
    """{name: float32 array} of a model with all layers multiplied out, in the shapes that published files have.

    factored: layers of factors without a residual stay two, as `export` says. Arrays are copied where they
    need be alone.
    """
    tensors, done = {}, []
    for name, layer in mergeable(model):
        bias = getattr(layer, "bias", None)
        done.append(name + ".")
        window = getattr(layer, "window", None)
        if factored and isinstance(layer, FactoredLinear) and layer.residual is None:
            tensors[f"{name}.0.weight"] = layer.R.data if window is None else kernel_of(layer.R.data, window)
            tensors[f"{name}.1.weight"] = layer.L.data if window is None else layer.L.data[:, :, None, None]
            name += ".1"
        elif window is not None:
            tensors[f"{name}.weight"] = kernel_of(layer.merged_weight(), window)
        else:
            tensors[f"{name}.weight"] = published_shape(model, f"{name}.weight", layer.merged_weight())
        if bias is not None:
            tensors[f"{name}.bias"] = bias.data
    for name, layer in model.named_modules():
        if isinstance(layer, Bf16Embedding):
            tensors[f"{name}.weight"] = ops.bf16_expand(layer.bits)
    for name, p in model.named_parameters():
        if not name.startswith(tuple(done)):
            tensors[name] = np.ascontiguousarray(published_shape(model, name, p.data))
    return tensors


def hugging_face_images(model, tensors, classes):
    """({Hugging Face's name: array}, {file: settings}) of a ViT or a Swin transformer.

    tensors: {timm name: array}; queries, keys and values, which are one linear there, become three.
    """
    split = {}
    for name, array in tensors.items():
        parts = zip("qkv", np.split(array, 3)) if ".attn.qkv." in name else [("qkv", array)]
        split |= {name.replace("attn.qkv", f"attn.{part}"): a for part, a in parts}
    c, is_vit = model.config, model.architecture == "vit"
    settings = {"model_type": model.architecture, "image_size": c.img_size, "patch_size": c.patch_size, "num_channels": 3,
                "hidden_act": "gelu", "qkv_bias": True, "layer_norm_eps": c.norm_eps, "torch_dtype": "float32",
                "architectures": ["ViTForImageClassification" if is_vit else "SwinForImageClassification"],
                "id2label": {str(i): str(name) for i, name in enumerate(classes or map("LABEL_{}".format, range(c.num_classes)))}}
    if is_vit:
        settings |= {"hidden_size": c.embed_dim, "num_hidden_layers": c.depth, "num_attention_heads": c.num_heads,
                     "intermediate_size": int(c.embed_dim * c.mlp_ratio)}
    else:
        settings |= {"embed_dim": c.embed_dim, "depths": c.depths, "num_heads": c.num_heads, "window_size": c.window_size,
                     "mlp_ratio": c.mlp_ratio}
    pixels = {"image_processor_type": "ViTImageProcessor", "size": {"height": c.img_size, "width": c.img_size}, "do_resize": True,
              "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": c.mean, "image_std": c.std}
    tensors = {their_name(name, HUGGING_FACE[model.architecture]): array for name, array in split.items()}
    return tensors, {"preprocessor_config.json": pixels, "config.json": settings}
