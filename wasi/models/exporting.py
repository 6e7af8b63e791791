"""Hands models on: weights under the names that PyTorch's libraries have for them, dense or as two linears a layer."""

import contextlib
import json
import re
from pathlib import Path

import numpy as np

from wasi import ops
from wasi.layers import FactoredLinear
from wasi.layers.frozen import Bf16Embedding
from wasi.layers.windows import WindowAttention, relative_positions
from wasi.models.inference import mergeable
from wasi.models.llama_files import hugging_face_decoder, write_hugging_face
from wasi.models.weights import atomic_file, kernel_of, published_shape, write_tensors

# What each architecture can be exported as.
FORMATS = {"vit": ("timm", "torchvision", "hugging-face", "onnx"), "swin": ("timm", "torchvision", "hugging-face", "onnx"),
           "resnet": ("timm", "torchvision", "onnx"), "llama": ("hugging-face", "onnx")}

# timm's names of ViT and Swin, as patterns, and torchvision's.
_TORCHVISION = {
    "vit": [
        (r"patch_embed\.proj\.(.*)", r"conv_proj.\1"),
        (r"cls_token", "class_token"),
        (r"pos_embed", "encoder.pos_embedding"),
        (r"norm\.(.*)", r"encoder.ln.\1"),
        (r"head\.(.*)", r"heads.head.\1"),
        (r"blocks\.(\d+)\.norm([12])\.(.*)", r"encoder.layers.encoder_layer_\1.ln_\2.\3"),
        (r"blocks\.(\d+)\.attn\.qkv\.(.*)", r"encoder.layers.encoder_layer_\1.self_attention.in_proj_\2"),
        (r"blocks\.(\d+)\.attn\.proj\.(.*)", r"encoder.layers.encoder_layer_\1.self_attention.out_proj.\2"),
        (r"blocks\.(\d+)\.mlp\.fc1\.(.*)", r"encoder.layers.encoder_layer_\1.mlp.0.\2"),
        (r"blocks\.(\d+)\.mlp\.fc2\.(.*)", r"encoder.layers.encoder_layer_\1.mlp.3.\2"),
    ],
    "swin": [
        (r"patch_embed\.proj\.(.*)", r"features.0.0.\1"),
        (r"patch_embed\.norm\.(.*)", r"features.0.2.\1"),
        (r"norm\.(.*)", r"norm.\1"),
        (r"head\.fc\.(.*)", r"head.\1"),
        (r"layers\.(\d+)\.downsample\.(.*)", lambda m: f"features.{2 * int(m[1])}.{m[2]}"),
        (r"layers\.(\d+)\.blocks\.(\d+)\.mlp\.fc1\.(.*)", lambda m: f"features.{2 * int(m[1]) + 1}.{m[2]}.mlp.0.{m[3]}"),
        (r"layers\.(\d+)\.blocks\.(\d+)\.mlp\.fc2\.(.*)", lambda m: f"features.{2 * int(m[1]) + 1}.{m[2]}.mlp.3.{m[3]}"),
        (r"layers\.(\d+)\.blocks\.(\d+)\.(.*)", lambda m: f"features.{2 * int(m[1]) + 1}.{m[2]}.{m[3]}"),
    ],
}

# timm's names of a block's parts, and those of Hugging Face's ViT and Swin transformer.
_HUGGING_FACE_PARTS = {
    "norm1": "layernorm_before", "norm2": "layernorm_after", "attn.proj": "attention.output.dense",
    "attn.q": "attention.{inner}.query", "attn.k": "attention.{inner}.key", "attn.v": "attention.{inner}.value",
    "attn.relative_position_bias_table": "attention.self.relative_position_bias_table",
    "mlp.fc1": "intermediate.dense", "mlp.fc2": "output.dense",
}
_HUGGING_FACE = {
    "vit": [
        (r"patch_embed\.proj\.(.*)", r"vit.embeddings.patch_embeddings.projection.\1"),
        (r"cls_token", "vit.embeddings.cls_token"),
        (r"pos_embed", "vit.embeddings.position_embeddings"),
        (r"norm\.(.*)", r"vit.layernorm.\1"),
        (r"head\.(.*)", r"classifier.\1"),
        (r"blocks\.(\d+)\.(.*?)(\.weight|\.bias|)",
         lambda m: f"vit.encoder.layer.{m[1]}.{_HUGGING_FACE_PARTS[m[2]].format(inner='attention')}{m[3]}"),
    ],
    "swin": [
        (r"patch_embed\.proj\.(.*)", r"swin.embeddings.patch_embeddings.projection.\1"),
        (r"patch_embed\.norm\.(.*)", r"swin.embeddings.norm.\1"),
        (r"norm\.(.*)", r"swin.layernorm.\1"),
        (r"head\.fc\.(.*)", r"classifier.\1"),
        (r"layers\.(\d+)\.downsample\.(.*)", lambda m: f"swin.encoder.layers.{int(m[1]) - 1}.downsample.{m[2]}"),
        (r"layers\.(\d+)\.blocks\.(\d+)\.(.*?)(\.weight|\.bias|)",
         lambda m: f"swin.encoder.layers.{m[1]}.blocks.{m[2]}.{_HUGGING_FACE_PARTS[m[3]].format(inner='self')}{m[4]}"),
    ],
}


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
        raise FileExistsError(f"path: {str(path)!r} is there already; remove it, or overwrite it")
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
    if format == "torchvision" and model.architecture in _TORCHVISION:  # a ResNet's names are timm's
        tensors |= {f"{name}.relative_position_index": relative_positions(module.window)
                    for name, module in model.named_modules() if isinstance(module, WindowAttention)}
        tensors = {renamed(name, _TORCHVISION[model.architecture]): array for name, array in tensors.items()}
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
    tensors = {renamed(name, _HUGGING_FACE[model.architecture]): array for name, array in split.items()}
    return tensors, {"preprocessor_config.json": pixels, "config.json": settings}


def renamed(name, patterns):
    """The name that the first fitting one of (pattern, replacement) gives a tensor."""
    for pattern, replacement in patterns:
        match = re.fullmatch(pattern, name)
        if match:
            return replacement(match) if callable(replacement) else match.expand(replacement)
    raise KeyError(name)
