"""Reads decoders: safetensors with Hugging Face's names beside a config.json, llama2.c's files, and wasi's own."""

import json
import math
import re
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np

from wasi.models.llama import Llama, LlamaConfig, random_arrays
from wasi.models.published_names import HUGGING_FACE, their_name
from wasi.models.weights import TensorFile, WeightsError, atomic_file, write_tensors

_INDEX = "model.safetensors.index.json"
_HEADER = "dim, hidden_dim, n_layers, n_heads, n_kv_heads, vocab_size, seq_len"

# Hugging Face's settings, and our fields.
_SETTINGS = {"vocab_size": "vocab_size", "hidden_size": "embed_dim", "intermediate_size": "hidden_dim",
             "num_hidden_layers": "depth", "num_attention_heads": "num_heads", "num_key_value_heads": "num_kv_heads",
             "head_dim": "head_dim", "max_position_embeddings": "max_length", "rms_norm_eps": "norm_eps",
             "rope_theta": "rope_theta"}


def hugging_face_name(name, classifier=False):
    """The name that Hugging Face's Llama gives one of our parameters, or of the two linears NAME.0, NAME.1 that stand for one."""
    part = re.fullmatch(r"(.+)\.([01])\.weight", name)
    if part:
        return hugging_face_name(f"{part[1]}.weight", classifier).removesuffix("weight") + f"{part[2]}.weight"
    if name == "head.weight":
        return "score.weight" if classifier else "lm_head.weight"
    return their_name(name, HUGGING_FACE["llama"])


def load_llama(path, num_classes=None, last_layers=None, seed=0):
    """A decoder from a file or folder of published weights.

    Parameters: path, a folder with config.json and safetensors by Hugging Face's names (one file, or several with their index),
    one such safetensors file beside its config.json, or a llama2.c checkpoint (.bin); num_classes, for a classifier instead of a
    language model, whose head is drawn by `seed` unless the file has one for so many classes; last_layers, how many of the last
    blocks are trained: matrices that are frozen then (`Llama.train_last`) stay in the safetensors file where they are float32 or
    bfloat16, mapped, not copied and not searched for NaN. Tensors may be float32, float16 or bfloat16.

    Raises WeightsError for another architecture, settings that are not supported, and, all at once, tensors that are missing or
    of another shape or type, before any memory is taken for them; FileNotFoundError.
    """
    config, tensors = open_llama(path, num_classes)
    new = random_arrays(seed)
    frozen = () if last_layers is None else config.frozen_names(last_layers)
    model = Llama(config, lambda name, shape: tensors[name](name in frozen) if name in tensors else new(name, shape))
    if last_layers is not None:
        model.train_last(last_layers)
    return model


def open_llama(path, num_classes=None):
    """(LlamaConfig, {name: function(frozen) that gives the array}) of what `load_llama` reads. Raises as it, before it reads any.

    num_classes: the head of a file for other classes, or of a language model, is left out.
    """
    path = Path(path)
    config, tensors = read_llama2c(path) if path.suffix == ".bin" and path.is_file() else _read_hugging_face(path)
    if num_classes is not None and num_classes != config.num_classes:
        config = replace(config, num_classes=num_classes, tied=False)
        tensors = {name: read for name, read in tensors.items() if name != "head.weight"}
    return config, tensors


def read_llama2c(path):
    """(LlamaConfig, {name: function(frozen) that gives the array}) of a llama2.c checkpoint: 7 int32, then float32 tensors.

    The sizes of the header must give the size of the file to the byte. Rows of queries and keys come in the order of `ops.rope`.
    """
    path = Path(path)
    size = path.stat().st_size
    with open(path, "rb") as file:
        header = file.read(28)
    if len(header) < 28:
        raise WeightsError(f"weights: {path.name} has {size} bytes, fewer than the header of a llama2.c checkpoint")
    C, hidden, depth, heads, kv_heads, vocabulary, context = sizes = struct.unpack("<7i", header)
    tied = vocabulary > 0
    numbers = f"({_HEADER}) = {sizes}"
    if min(C, hidden, depth, heads, kv_heads, context) < 1 or vocabulary == 0:
        raise WeightsError(f"weights: {path.name} is not a llama2.c checkpoint: its header says {numbers}")
    try:
        config = LlamaConfig(abs(vocabulary), C, hidden, depth, heads, kv_heads, context, tied=tied)
    except ValueError as error:
        raise WeightsError(f"weights: {path.name} is not a llama2.c checkpoint: its header says {numbers} ({error})") from error
    thin = kv_heads * config.head_dim
    order = [("embed.weight", (abs(vocabulary), C)), ("norm1.weight", (depth, C)),
             ("attn.q_proj.weight", (depth, C, C)), ("attn.k_proj.weight", (depth, thin, C)),
             ("attn.v_proj.weight", (depth, thin, C)), ("attn.o_proj.weight", (depth, C, C)), ("norm2.weight", (depth, C)),
             ("mlp.gate_proj.weight", (depth, hidden, C)), ("mlp.down_proj.weight", (depth, C, hidden)),
             ("mlp.up_proj.weight", (depth, hidden, C)), ("norm.weight", (C,)), ("rope", (context, config.head_dim))]
    order += [] if tied else [("head.weight", (abs(vocabulary), C))]
    want = 28 + 4 * sum(math.prod(shape) for _, shape in order)
    if size != want:
        raise WeightsError(f"weights: {path.name} is truncated or not a llama2.c checkpoint: its header says {numbers}, which "
                           f"makes {want} bytes, and the file has {size}")
    numbers = np.memmap(path, "<f4", "r", offset=28)
    tensors, at = {}, 0

    def reader(name, array):
        def read(frozen=False):
            W = array
            if name.endswith(("q_proj.weight", "k_proj.weight")):
                W = W.reshape(-1, config.head_dim // 2, 2, C).swapaxes(1, 2).reshape(W.shape)  # neighbours to halves
            W = np.array(W, np.float32)
            if not np.isfinite(W).all():
                raise WeightsError(f"weights: tensor {name!r} of {path.name} holds NaN or Inf")
            return W
        return read

    for name, shape in order:
        array = numbers[at : at + math.prod(shape)].reshape(shape)
        at += array.size
        if len(shape) == 3 or name in ("norm1.weight", "norm2.weight"):
            tensors |= {f"blocks.{i}.{name}": reader(name, part) for i, part in enumerate(array)}
        elif name != "rope":
            tensors[name] = reader(name, array)
    return config, tensors


def save_hugging_face(model, folder):
    """Writes a dense decoder as config.json and model.safetensors (float32) by Hugging Face's names; `load_llama` reads it too.

    folder: made where it does not exist. Raises ValueError for a model with other layers than dense ones: `wasi.merge` it first.
    """
    shapes, parameters = model.config.shapes(), dict(model.named_parameters())
    if parameters.keys() != shapes.keys():
        raise ValueError("model: expected dense layers alone, as wasi.merge gives them; these are not: "
                         f"{', '.join(sorted(shapes.keys() - parameters.keys()))}")
    tensors, settings = hugging_face_decoder(model.config, {name: p.data for name, p in parameters.items()})
    write_hugging_face(folder, tensors, {"config.json": settings})


def hugging_face_decoder(config, tensors, classes=None):
    """({Hugging Face's name: array}, the settings of config.json) of a decoder.

    tensors: {our name: array}; classes: names of a classifier's classes.
    """
    classifier = config.num_classes is not None
    settings = {"architectures": ["LlamaForSequenceClassification" if classifier else "LlamaForCausalLM"], "model_type": "llama",
                "hidden_act": "silu", "attention_bias": False, "mlp_bias": False, "torch_dtype": "float32",
                "tie_word_embeddings": config.tied, **{key: getattr(config, ours) for key, ours in _SETTINGS.items()}}
    if classifier:
        names = classes or [f"LABEL_{i}" for i in range(config.num_classes)]
        settings["id2label"] = {str(i): name for i, name in enumerate(names)}
    return {hugging_face_name(name, classifier): array for name, array in tensors.items()}, settings


def write_hugging_face(folder, tensors, settings):
    """Writes model.safetensors and the JSON files {name: settings} to a folder, made where there is none; each is atomic."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: np.ascontiguousarray(array, np.float32) for name, array in tensors.items()}
    write_tensors(folder / "model.safetensors", tensors, {"format": "pt"})
    for name, content in settings.items():
        with atomic_file(folder / name) as file:
            file.write((json.dumps(content, indent=1) + "\n").encode())


def read_config(path):
    """The LlamaConfig of a Hugging Face config.json. Raises WeightsError naming what it cannot take."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"weights: expected config.json beside the safetensors file, got no {str(path)!r}")
    try:
        settings = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"weights: {path.name} is not JSON ({error})") from error
    if not isinstance(settings, dict):
        raise WeightsError(f"weights: {path.name}: expected an object of settings, got {type(settings).__name__}")
    known = ("LlamaForCausalLM", "LlamaForSequenceClassification")
    architecture = (settings.get("architectures") or [None])[0] if isinstance(settings.get("architectures"), list) else None
    if settings.get("model_type") != "llama" or architecture not in (None, *known):
        raise WeightsError(f"weights: {path.name}: expected the architecture llama ({', '.join(known)}), got model_type "
                           f"{settings.get('model_type')!r}, architectures {settings.get('architectures')!r}")
    wrong = []

    def number(key, default=None, kind=int):
        value = settings.get(key, default)
        if isinstance(value, bool) or not isinstance(value, (int, kind)) or not 0 < value < 2**31:
            wrong.append(f"{key}: expected a positive {'whole ' if kind is int else ''}number, got {value!r}")
            return 1
        return value

    rope = settings.get("rope_parameters") or settings.get("rope_scaling") or {}
    if not isinstance(rope, dict) or rope.get("rope_type", rope.get("type", "default")) != "default":
        wrong.append(f"rope_scaling: expected none, got {rope!r}")
        rope = {}
    for key, only in (("hidden_act", "silu"), ("attention_bias", False), ("mlp_bias", False)):
        if settings.get(key, only) != only:
            wrong.append(f"{key}: expected {only!r}, got {settings[key]!r}")
    settings.setdefault("rope_theta", rope.get("rope_theta", 10000.0))
    heads, n_labels = number("num_attention_heads"), None
    if architecture == "LlamaForSequenceClassification":
        n_labels = len(settings["id2label"]) if isinstance(settings.get("id2label"), dict) else number("num_labels", 2)
    shape = {"vocab_size": number("vocab_size"), "embed_dim": number("hidden_size"), "hidden_dim": number("intermediate_size"),
             "depth": number("num_hidden_layers"), "num_heads": heads,
             "num_kv_heads": number("num_key_value_heads", heads) if settings.get("num_key_value_heads") is not None else heads,
             "max_length": number("max_position_embeddings", 2048),
             "head_dim": number("head_dim") if settings.get("head_dim") is not None else None,
             "norm_eps": number("rms_norm_eps", 1e-6, float), "rope_theta": number("rope_theta", kind=float)}
    if wrong:
        raise WeightsError(f"weights: {path.name}: " + "; ".join(wrong))
    tied = bool(settings.get("tie_word_embeddings", False)) and n_labels is None
    try:
        return LlamaConfig(**shape, tied=tied, num_classes=n_labels)
    except ValueError as error:
        raise WeightsError(f"weights: {path.name}: {error}") from error


def _read_hugging_face(path):
    """As `read_llama2c`, from a folder or a safetensors file."""
    folder = path if path.is_dir() else path.parent
    files = weight_files(path) or [path / "model.safetensors" if path.is_dir() else path]
    if path.is_dir() and not is_published(path):
        raise WeightsError(f"weights: {str(path)!r} is a run folder; `wasi export` makes a folder of published weights of it")
    opened = [TensorFile(file) for file in files]
    if "wasi" in opened[0].metadata:
        raise WeightsError(f"weights: {path.name} is a file of wasi's own; `wasi export` makes published weights of it")
    config = read_config(folder / "config.json")
    where = {name: file for file in opened for name in file.names}
    if config.depth > len(where):
        raise WeightsError(f"weights: config.json says {config.depth} layers, and the file has {len(where)} tensors")
    wrong, tensors = [], {}
    for name, shape in config.shapes().items():
        stored = hugging_face_name(name, config.num_classes is not None)
        file = where.get(stored)
        if file is None:
            wrong.append(f"{stored}: missing")
        elif file.shape(stored) != shape:
            wrong.append(f"{stored}: expected shape {shape}, got {file.shape(stored)}")
        elif file.dtype(stored) not in TensorFile.READABLE:
            wrong.append(f"{stored}: expected {', '.join(TensorFile.READABLE)}, got {file.dtype(stored)}")
        else:
            mappable = len(shape) == 2 and file.dtype(stored) in ("F32", "BF16")
            tensors[name] = lambda frozen=False, file=file, stored=stored, mappable=mappable: (
                file.mapped(stored) if frozen and mappable else file.read(stored))
    if wrong:
        raise WeightsError(f"weights: {path.name} does not fit its config.json: " + "; ".join(wrong))
    return config, tensors


def is_published(folder):
    """Whether a folder has weights by Hugging Face's names, or says so."""
    folder = Path(folder)
    if (folder / _INDEX).is_file() or not (folder / "config.json").is_file():
        return True
    try:
        return "arguments" not in json.loads((folder / "config.json").read_text())  # which a run folder of wasi train has
    except (ValueError, RecursionError, TypeError):
        return True


def weight_files(path):
    """The files that the index in a folder names, in that folder; [] where it has no index."""
    index = Path(path) / _INDEX
    if not index.is_file():
        return []
    try:
        names = sorted({str(name) for name in json.loads(index.read_text())["weight_map"].values()})
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise WeightsError(f"weights: {index.name} is not an index of safetensors files ({error})") from error
    outside = [name for name in names if Path(name).name != name]
    if outside or not names:
        raise WeightsError(f"weights: {index.name} names files outside its folder: {', '.join(outside)}")
    return [index.parent / name for name in names]
