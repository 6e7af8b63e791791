"""Reads and writes safetensors files: published weights by timm's or torchvision's names, and wasi's own models.

A file of wasi's own holds timm names (a factored layer's `weight` becomes `L` and `R`) and, as metadata, the architecture, so
`load_model` needs nothing else.
"""

import contextlib
import json
import math
import os
import secrets
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from wasi import ops
from wasi.layers.frozen import Bf16Embedding, Bf16Linear
from wasi.layers.linear import FactoredLinear, Linear
from wasi.layers.lora import LoraFactoredLinear, LoraLinear
from wasi.layers.published import DenseWeightLinear
from wasi.models.published_names import names_in_file

FORMAT_VERSION = 1

PARTIAL = ".part"  # ends the name of a file that is being written
_DTYPES = {"float32": "F32", "float64": "F64", "int64": "I64", "uint8": "U8", "uint16": "U16"}
_BIAS_TABLE = ".relative_position_bias_table"
_PATCHES = "patch_embed.proj.weight"


class WeightsError(ValueError):
    """A weights file that does not fit the model; the text names every tensor concerned."""


@dataclass
class LoadReport:
    """What `load_weights` did with a file."""

    loaded: list = field(default_factory=list)  # names taken as they are
    resized: list = field(default_factory=list)  # position and bias tables resized to the model's grid or window
    replaced: list = field(default_factory=list)  # head tensors of another class count: the model's own stay
    unused: list = field(default_factory=list)  # tensors of the file that the model has no place for

    def __str__(self):
        parts = [f"{len(self.loaded)} tensors loaded"]
        parts += [f"{what}: {', '.join(names)}" for what, names in
                  [("resized", self.resized), ("left new (other number of classes)", self.replaced),
                   ("not used", self.unused)] if names]
        return "; ".join(parts)


class TensorFile:
    """A safetensors file opened for reading tensor by tensor, so only one is in memory twice.

    Raises FileNotFoundError, or WeightsError where the file is truncated or not safetensors.
    """

    READABLE = ("F32", "F16", "BF16", "F64")

    def __init__(self, path):
        self.path = Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(f"weights: expected a safetensors file, got {str(path)!r}, which is not a file")
        try:
            self._file = safe_open(self.path, framework="numpy")
            self.names = list(self._file.keys())
            self.metadata = self._file.metadata() or {}
            self._header = self._bytes = None
        except (SafetensorError, OSError, ValueError) as error:
            raise WeightsError(f"weights: expected a safetensors file, but {self.path.name} is truncated or not one "
                               f"({error})") from error

    def shape(self, name):
        return tuple(self._slice(name).get_shape())

    def dtype(self, name):
        return self._slice(name).get_dtype()

    def _slice(self, name):
        try:
            return self._file.get_slice(name)
        except SafetensorError as error:
            raise WeightsError(f"weights: {self.path.name} has no tensor {name!r}") from error

    def raw(self, name):
        """The tensor as the file has it, copied. bfloat16 that was not saved as bits is refused by TypeError."""
        return self._file.get_tensor(name)

    def mapped(self, name):
        """A float32, bfloat16 (as uint16 bits) or uint16 tensor as a read-only array on the file itself, which takes no memory.

        Only a tensor that does not lie at a multiple of its number's size is copied.
        """
        begin, end = self._place(name)
        kind = np.dtype(np.float32 if self.dtype(name) == "F32" else np.uint16)
        if self._bytes is None:
            self._bytes = np.memmap(self.path, np.uint8, "r")
        raw = self._bytes[begin:end].view(np.ndarray)
        return (raw.copy() if begin % kind.itemsize else raw).view(kind).reshape(self.shape(name))

    def _place(self, name):
        """First byte of a tensor in the file, and the byte after its last. The library checked them when it opened the file."""
        if self._header is None:
            with open(self.path, "rb") as file:
                n = int.from_bytes(file.read(8), "little")
                self._header, self._start = json.loads(file.read(n)), 8 + n
        begin, end = self._header[name]["data_offsets"]
        return self._start + begin, self._start + end

    def read_quantized(self, prefix, group):
        """The `ops.QuantizedMatrix` whose arrays lie under `prefix`. Raises WeightsError where they do not fit together."""
        arrays = {part: self._file.get_tensor(f"{prefix}.{part}") if f"{prefix}.{part}" in self.names else None
                  for part in ("codes", "s", "r", "c")}
        matrix = ops.QuantizedMatrix(**arrays, group=group)
        try:
            ops.quant_linear(np.zeros((1, matrix.c.size), np.float32), matrix)
        except (AttributeError, TypeError, ValueError) as error:
            raise WeightsError(f"weights: the quantised matrix {prefix} of {self.path.name} is damaged ({error})") from error
        return matrix

    def read(self, name):
        """The tensor as a float32 array. Raises WeightsError for other than floating types and for NaN or Inf."""
        dtype = self.dtype(name)
        if dtype not in self.READABLE:
            raise WeightsError(f"weights: tensor {name!r} of {self.path.name}: expected {', '.join(self.READABLE)}, got {dtype}")
        if dtype == "BF16":
            begin, end = self._place(name)
            bits = np.fromfile(self.path, "<u2", (end - begin) // 2, offset=begin)
            array = ops.bf16_expand(bits).reshape(self.shape(name))
        else:
            array = np.ascontiguousarray(self._file.get_tensor(name), np.float32)
        if not ops.all_finite(array):
            raise WeightsError(f"weights: tensor {name!r} of {self.path.name} holds NaN or Inf")
        return array


def load_weights(model, path):
    """Fills a model with the weights of a safetensors file (a path or a TensorFile); returns a LoadReport.

    Names are timm's or torchvision's. A position table of another grid and a relative position bias table of another window are
    resized bicubically; a head for another number of classes is skipped, so the model keeps its new one. Nothing is changed
    unless the whole file fits.

    Raises WeightsError naming all tensors that are missing or have another shape or type; FileNotFoundError.
    """
    file = path if isinstance(path, TensorFile) else TensorFile(path)
    by_name = names_in_file(file.names, model.architecture)
    parameters = dict(model.named_parameters())
    windows = convolutions(model)
    report = LoadReport(unused=sorted(set(by_name) - set(parameters)))
    wrong, new = [], {}
    for name, parameter in parameters.items():
        if name not in by_name:
            wrong.append(f"{name}: missing")
            continue
        got, want, dtype = file.shape(by_name[name]), parameter.data.shape, file.dtype(by_name[name])
        if name in windows:
            k = windows[name].kernel
            want = (want[0], want[1] // k**2, k, k)
        elif name == _PATCHES and len(got) == 4:
            want = (want[0], 3, model.config.patch_size, model.config.patch_size)
        if dtype not in TensorFile.READABLE:
            wrong.append(f"{name}: expected {', '.join(TensorFile.READABLE)}, got {dtype}")
        elif got == want:
            report.loaded.append(name)
        elif _is_resizable(name, got, want):
            report.resized.append(name)
        elif name.startswith(("head.", "fc.")) and got[1:] == want[1:]:
            report.replaced.append(name)
        else:
            wrong.append(f"{name}: expected shape {want}, got {got}")
    if wrong:
        other = f"; {len(report.unused)} tensors of other names, such as {report.unused[0]}" if report.unused else ""
        raise WeightsError(f"weights: {file.path.name} does not fit the model: {'; '.join(wrong)}{other}")
    for name in report.loaded + report.resized:
        array = file.read(by_name[name])
        if name in windows:
            new[name] = np.ascontiguousarray(array.transpose(0, 2, 3, 1)).reshape(len(array), -1)
        elif name not in report.resized:
            new[name] = array.reshape(parameters[name].data.shape)
        elif name == "pos_embed":
            new[name] = resize_positions(array, model.config.grid)
        else:
            new[name] = resize_grid(array, math.isqrt(len(parameters[name].data)))
    for name, array in new.items():
        parameters[name].data = array
    return report


def _is_resizable(name, got, want):
    """Whether a table of shape `got` is one of `want` for another grid of positions."""
    if name == "pos_embed":
        return len(got) == 3 and got[::2] == want[::2] and _is_grid(got[1] - 1)
    return name.endswith(_BIAS_TABLE) and len(got) == 2 and got[1:] == want[1:] and _is_grid(got[0])


def _is_grid(n):
    return n > 0 and math.isqrt(n) ** 2 == n


def resize_positions(pos_embed, grid):
    """Resizes a position table (1, 1 + g*g, C), class token first, to (1, 1 + grid*grid, C), bicubically.

    The class token's row is kept. Anti-aliased when shrinking, as timm does it.
    """
    return np.concatenate([pos_embed[:, :1], resize_grid(pos_embed[0, 1:], grid)[None]], axis=1)


def resize_grid(table, grid):
    """Resizes a table (g*g, C) of a square grid to (grid*grid, C), bicubically; anti-aliased when shrinking."""
    old = math.isqrt(len(table))
    weights = _bicubic_matrix(old, grid)
    table = np.einsum("ia,jb,abc->ijc", weights, weights, table.reshape(old, old, -1).astype(np.float64))
    return np.ascontiguousarray(table.reshape(grid * grid, -1), np.float32)


def _bicubic_matrix(n_in, n_out, a=-0.5):
    """(n_out, n_in) weights of Keys' cubic convolution; when shrinking, the kernel widens with the scale."""
    scale = n_in / n_out
    width = max(scale, 1.0)
    center = (np.arange(n_out) + 0.5) * scale
    t = np.abs((np.arange(n_in) + 0.5 - center[:, None]) / width)
    near = ((a + 2) * t - (a + 3)) * t * t + 1
    far = ((t - 5) * t + 8) * t * a - 4 * a
    w = np.where(t < 1, near, np.where(t < 2, far, 0.0))
    return w / w.sum(1, keepdims=True)


def convolutions(model):
    """{name of a weight: its Window} of the convolutions among a model's dense linears."""
    return {f"{name}.weight": module.window for name, module in model.named_modules()
            if isinstance(module, Linear) and module.window is not None}


def published_shape(model, name, array):
    """The array in the shape that published files have: kernels (O, C, k, k) of convolutions and of the patch projection."""
    if name == _PATCHES:
        p = model.config.patch_size
        return array.reshape(-1, 3, p, p)
    parent, _, last = name.rpartition(".")
    module = model.get_module(parent) if last == "weight" else None
    is_convolution = isinstance(module, Linear) and module.window is not None
    return kernel_of(array, module.window) if is_convolution else array


def kernel_of(rows, window):
    """The kernel (O, C, k, k) of a convolution whose weight has rows of patches (O, k k C)."""
    return rows.reshape(len(rows), window.kernel, window.kernel, -1).transpose(0, 3, 1, 2)


def save_model(model, path, extra=None):
    """Writes a model to a safetensors file that `load_model` reads. The file appears whole or not at all.

    Layers that compute with a low-rank approximation of a trained dense weight (wsi-dense) are saved as the dense layers that
    they compute. extra: a JSON-able dict kept in the metadata (class names, for example).
    Raises OSError where the folder cannot be written to; then nothing is left behind.
    """
    tensors, metadata = model_tensors(model, extra)
    for name, module in model.named_modules():
        if isinstance(module, DenseWeightLinear):
            tensors[f"{name}.weight"] = np.ascontiguousarray(published_shape(model, f"{name}.weight", module.merged_weight()))
    write_tensors(path, tensors, metadata)


def model_tensors(model, extra=None):
    """What `save_model` writes: {name: array}, not copied where they need not be, and the metadata."""
    tensors = {name: np.ascontiguousarray(published_shape(model, name, p.data)) for name, p in model.named_parameters()}
    layers = {}  # what a layer is besides its tensors
    for name, module in model.named_modules():
        quantized = getattr(module, "quantized", None)
        if quantized is not None:
            tensors |= {f"{name}.quantized.{part}": getattr(quantized, part) for part in ("codes", "s", "r", "c")
                        if getattr(quantized, part) is not None}
            layers.setdefault(name, {})["group"] = quantized.group
        if isinstance(module, (Bf16Embedding, Bf16Linear)):
            tensors[f"{name}.bits"] = module.bits
            layers[name] = {"bf16": True}
        if isinstance(module, LoraLinear):
            layers.setdefault(name, {})["scale"] = module.scale
        elif isinstance(module, LoraFactoredLinear):
            layers.setdefault(name, {})["lora_on_factors"] = True
        elif isinstance(module, FactoredLinear) and module.plain:
            layers.setdefault(name, {})["plain"] = True
    return tensors, {"wasi": json.dumps({"format_version": FORMAT_VERSION, "architecture": model.architecture,
                                         "config": asdict(model.config), "layers": layers, "extra": extra or {}})}


@contextlib.contextmanager
def atomic_file(path):
    """A context that gives a binary file to write; what was written appears as `path` at its end, whole or, where the body
    raises, not at all, and survives a power cut. Raises OSError; then nothing is left behind.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}{PARTIAL}")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)  # readable as any file that is simply written
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def write_tensors(path, tensors, metadata):
    """Writes a safetensors file array by array, without copies of them, as an `atomic_file`.

    tensors: {name: array}; metadata: {key: text}. Raises OSError; then nothing is left behind.
    """
    order = sorted(tensors, key=lambda name: (-tensors[name].itemsize, name))  # each lies at a multiple of its item's size
    header, end = {"__metadata__": metadata}, 0
    for name in order:
        array = tensors[name]
        begin, end = end, end + array.nbytes
        header[name] = {"dtype": _DTYPES[array.dtype.name], "shape": array.shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with atomic_file(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            file.write(np.ascontiguousarray(tensors[name]).reshape(-1).view(np.uint8))


def check_arrays(what, arrays, shapes):
    """Raises WeightsError, naming all that is wrong, unless arrays are float32, finite, and of these names and shapes."""
    wrong = [f"{name}: missing" for name in sorted(shapes.keys() - arrays.keys())]
    wrong += [f"{name}: unknown" for name in sorted(arrays.keys() - shapes.keys())]
    for name in sorted(shapes.keys() & arrays.keys()):
        array = arrays[name]
        if array.shape != shapes[name] or array.dtype != np.float32:
            wrong.append(f"{name}: expected float32 {shapes[name]}, got {array.dtype} {array.shape}")
        elif not ops.all_finite(array):
            wrong.append(f"{name}: holds NaN or Inf")
    if wrong:
        raise WeightsError(f"{what}: {'; '.join(wrong)}")


def check_numbers(what, record, counts=(), reals=()):
    """Raises WeightsError, naming all that is wrong, unless these entries of a JSON object are counts from 0, or finite."""
    wrong = [f"{name}: expected a whole number from 0, got {record.get(name)!r}" for name in counts
             if type(record.get(name)) is not int or not 0 <= record[name] < 2**53]
    wrong += [f"{name}: expected a finite number, got {record.get(name)!r}" for name in reals
              if type(record.get(name)) not in (int, float) or not abs(record[name]) < 1e300]
    if wrong:
        raise WeightsError(f"{what}: {'; '.join(wrong)}")
