"""Every reader of files that may come from strangers, as a function of the file's bytes, with whole files to start from.

`check(reader, data)` holds a reader to what docs/trust.md promises: it takes the file, or raises a ValueError or an OSError that
names it, within a second and 64 MiB. What else comes out is raised as a Finding.
"""

import contextlib
import functools
import io
import json
import resource
import struct
import tarfile
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np

import wasi
from wasi.models import load_llama, load_tokenizer, save_hugging_face
from wasi.models.llama_files import read_config
from wasi.models.methods import MethodOptions, apply_method
from wasi.models.plan import Plan, PlanError
from wasi.models.tokenizer import ByteTokenizer
from wasi.models.weights import TensorFile, load_weights, model_tensors, write_tensors
from wasi.reports.curves import memory_lines
from wasi.reports.runs import read_run
from wasi.training import checkpoint, dataset
from wasi.training.data import open_splits
from wasi.training.dataset import ImageError
from wasi.training.optimizer import Optimizer
from wasi.training.runlog import read_csv, read_result, read_steps
from wasi.training.text import open_sentences

CORPUS = Path(__file__).parent / "corpus"
MOST_BYTES, MOST_SECONDS = 64 * 2**20, 1.0

CONFIG = {"img_size": 8, "num_classes": 2, "embed_dim": 8, "depth": 1, "num_heads": 2}
LLAMA = {"vocab_size": 11, "embed_dim": 8, "hidden_dim": 12, "depth": 1, "num_heads": 2, "num_kv_heads": 1, "max_length": 6}

RESNET = {"img_size": 8, "num_classes": 2, "widths": (4, 4), "depths": (1, 1)}
SWIN = {"img_size": 8, "num_classes": 2, "embed_dim": 8, "depths": (1, 1), "num_heads": (2, 2), "window_size": 2}


class Finding(AssertionError):
    """A reader did what docs/trust.md says that it does not."""


class Reader:
    """name: of its folder in the corpus; file: the name that a file of this kind has; read(path); seeds(): whole files."""

    def __init__(self, file, read, seeds, around=None):
        self.file, self.read, self._seeds, self._around = file, read, seeds, around

    def seeds(self):
        return self._seeds()

    def write(self, folder, data):
        """Puts a file with these bytes into a folder, with what has to lie beside it or around it; returns its path."""
        path = folder / self.file
        (self._around or _as_it_is)(path, data)
        return path


def _as_it_is(path, data):
    path.write_bytes(data)


@contextlib.contextmanager
def _limited_memory():
    """What the process asks for beyond 64 MiB more than now is a MemoryError."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MOST_BYTES, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def check(reader, data, folder):
    """Reads a file of these bytes; returns whether it was taken, raises Finding."""
    path = reader.write(folder, data)
    started = time.thread_time()
    try:
        with _limited_memory():
            reader.read(path)
        refused = None
    except (ValueError, OSError) as error:
        refused = error
    except Exception as error:
        raise Finding(f"{type(error).__name__}: {error}") from error
    seconds = time.thread_time() - started
    if seconds > MOST_SECONDS:
        raise Finding(f"took {seconds:.1f} s")
    if isinstance(refused, FileNotFoundError):  # of a file that this one names
        return False
    if refused is not None and reader.file.partition("/")[0] not in str(refused):
        raise Finding(f"the error does not name {reader.file}: {type(refused).__name__}: {refused}") from refused
    return refused is None


# ---- models ----------------------------------------------------------------------------------------------------------------


def _vit(seed=0):
    return wasi.create_model("vit_micro_patch4_32", seed=seed, **CONFIG)


def _models():
    """One of each kind of layer."""
    yield _vit()
    for method in ("wsi", "qwasi", "lora", "qlora", "svd-llm-lora"):
        calibration = [(np.zeros((2, 3, 8, 8), np.uint8), np.zeros(2, np.int64))]
        yield apply_method(_vit(), method, MethodOptions(rank=2, lora_rank=2, start="svd" if method == "qwasi" else None),
                           calibration if method.startswith("svd-llm") else None, verbose=False)
    yield wasi.create_model("llama_micro", **LLAMA)
    for method in ("dense", "wasi"):
        yield apply_method(wasi.create_model("resnet18", **RESNET), method, MethodOptions(rank=2), verbose=False)
    for method in ("dense", "wasi"):
        swin = wasi.create_model("swin_micro_patch2_window4_32", **SWIN)
        yield apply_method(swin, method, MethodOptions(rank=2), verbose=False)


def _bytes_of(write):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file"
        write(path)
        return path.read_bytes()


def _model_files():
    return [_bytes_of(lambda path, model=model: wasi.save_model(model, path)) for model in _models()]


def _read_weights(path):
    file = TensorFile(path)
    for name in file.names:
        file.shape(name), file.dtype(name)
        with contextlib.suppress(ValueError):
            file.read(name)
        if file.dtype(name) in ("F32", "BF16"):
            float(file.mapped(name).ravel()[:1].sum())
    load_weights(_vit(), path)


def _read_model(path):
    wasi.load_model(path)


@functools.cache
def _model_of_each_kind():
    return [model_tensors(model) for model in _models()]


def _header_seeds():
    return [bytes([kind]) + metadata["wasi"].encode() for kind, (_, metadata) in enumerate(_model_of_each_kind())]


def _write_header(path, data):
    """The first byte says which model's tensors; the rest is the header."""
    models = _model_of_each_kind()
    tensors, _ = models[data[0] % len(models) if data else 0]
    write_tensors(path, tensors, {"wasi": data[1:].decode("utf-8", "replace")})


# ---- checkpoints -----------------------------------------------------------------------------------------------------------


class _Steps:
    """A loader that gives one batch."""

    def __iter__(self):
        yield np.zeros((2, 3, 8, 8), np.uint8), np.zeros(2, np.int64)

    def __len__(self):
        return 1


@functools.cache
def _parts_of_checkpoint():
    """(tensors, metadata) of a run of wasi that made one step."""
    from wasi.training.step import accumulate_gradient

    model = apply_method(_vit(), "wasi", MethodOptions(rank=2, activation_ranks=(1.0, 0.5, 4)), verbose=False)
    optimizer = Optimizer(model, "adamw")
    accumulate_gradient(model, *next(iter(_Steps())))
    optimizer.step(0.01)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "checkpoints" / "step-00000001.safetensors"
        checkpoint.save_checkpoint(path, model, {"optimizer": optimizer},
                                   {"progress": asdict(checkpoint.Progress(step=1)), "loader": None, "plan": None, "config": {}})
        file = TensorFile(path)
        return path.read_bytes(), {name: file.raw(name) for name in file.names}, file.metadata


def _write_state(path, data):
    """A checkpoint with this state, its checksum made anew."""
    _, tensors, metadata = _parts_of_checkpoint()
    metadata = {**metadata, "checkpoint": data.decode("utf-8", "replace")}
    checksums = {**json.loads(metadata["crc32"]), "metadata": checkpoint._metadata_checksum(metadata)}
    write_tensors(path, tensors, {**metadata, "crc32": json.dumps(checksums)})


def _read_checkpoint(path):
    found = checkpoint.Checkpoint(path)
    found.check(config={})
    model = found.empty_model()
    found.restore_model(model)
    found.restore("optimizer", Optimizer(model, "adamw"))
    found.summary()


# ---- decoders and tokenizers -----------------------------------------------------------------------------------------------


def _llama2c_seeds():
    for vocabulary in (11, -11):
        n = 11 * 8 * (2 if vocabulary < 0 else 1) + 8 + 64 + 32 + 32 + 64 + 8 + 3 * 96 + 8 + 6 * 4
        yield struct.pack("<7i", 8, 12, 1, 2, 1, vocabulary, 6) + np.linspace(-1, 1, n, dtype="<f4").tobytes()


def _tokenizer_seeds():
    pieces = [b"<unk>", b"<s>", b"</s>", *(b"<0x%02X>" % i for i in range(256)), b" ", b"a", b"b", b"ab"]
    return [struct.pack("<i", 6) + b"".join(struct.pack("<fi", -i, len(p)) + p for i, p in enumerate(pieces))]


def _read_tokenizer(path):
    tokenizer = load_tokenizer(path)
    tokenizer.decode(tokenizer.encode("ab é"))


def _tokenizer_json_seeds():
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.BPE({"<s>": 0, "a": 1, "b": 2, "ab": 3}, [("a", "b")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
    return [tokenizer.to_str().encode()]


_SETTINGS = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 11, "hidden_size": 8,
             "intermediate_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1,
             "max_position_embeddings": 6, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu",
             "tie_word_embeddings": True, "rope_scaling": None}


@functools.cache
def _published_llama():
    with tempfile.TemporaryDirectory() as folder:
        save_hugging_face(wasi.create_model("llama_micro", **LLAMA), folder)
        return (Path(folder) / "model.safetensors").read_bytes()


def _write_settings(path, data):
    (path.parent / "model.safetensors").write_bytes(_published_llama())
    path.write_bytes(data)


def _write_index(path, data):
    _write_settings(path.parent / "config.json", json.dumps(_SETTINGS).encode())
    path.write_bytes(data)


# ---- plans and run folders -------------------------------------------------------------------------------------------------


@functools.cache
def _plan_seeds():
    model = wasi.create_model("vit_micro_patch4_32", **CONFIG)
    batch = np.zeros((4, 3, 8, 8), np.uint8), np.array([0, 1, 0, 1])
    return [json.dumps(wasi.plan(model, [batch], "32MiB", method=method, batch_size=4).record()).encode()
            for method in ("wasi", "qwasi")]


def _read_plan(path):
    plan = Plan.load(path)
    str(plan)
    with contextlib.suppress(PlanError):
        plan.check(_vit())


def _write_run(path, data, files=None):
    """The first byte says which file of a run folder the rest is."""
    files = files or _LOGS
    path.mkdir(exist_ok=True)
    for name in files:
        (path / name).write_bytes(_run_files()[name])
    (path / files[data[0] % len(files) if data else 0]).write_bytes(data[1:])


@functools.cache
def _run_files():
    """{name: content} of the files of a run folder."""
    from wasi.training.loop import TrainConfig, train
    from wasi.training.ranks import RankAdaptation
    from wasi.training.runlog import RunFolder, environment

    with tempfile.TemporaryDirectory() as folder:
        model = apply_method(_vit(), "wsi", MethodOptions(rank=2), verbose=False)
        config = TrainConfig(epochs=2, checkpoint_every=0, track_subspaces=1, adapt_ranks=RankAdaptation(every=1))
        train(model, _Steps(), _Steps(), config, RunFolder(folder), progress=False)
        settings = {"method": "wsi", "environment": environment(), "arguments": ["--rank", "2"], "start_rss_bytes": 10**8}
        (Path(folder) / "config.json").write_text(json.dumps(settings))
        return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir()) if path.suffix in (".json", ".csv")}


def _run_seeds(n=3):
    return [bytes([i]) + _run_files()[name] for i, name in enumerate((*_LOGS, *_TOLD)[:n])]


_LOGS = ("result.json", "steps.csv", "ranks.csv")  # read by plots and --resume
_TOLD = ("config.json", "epochs.json", "layers.json", "subspaces.csv", "confusion.csv")  # and by reports


def _read_run(path):
    read_result(path)
    read_steps(path / "steps.csv")
    read_csv(path / "ranks.csv")


def _write_report(path, data):
    _write_run(path, data, (*_LOGS, *_TOLD))


def _read_report(path):
    """What a report tells of a run; its page is drawn in test_report.py."""
    run = read_run(path, "run")
    memory_lines(run)
    _ = run.method, run.environment, run.counted_peak_bytes, run.measured_peak_bytes


# ---- images and texts ------------------------------------------------------------------------------------------------------


def _images():
    from PIL import Image

    pixels = np.arange(192, dtype=np.uint8).reshape(8, 8, 3)
    for format in ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "PPM"):
        out = io.BytesIO()
        Image.fromarray(pixels).save(out, format)
        yield out.getvalue()


def _tar_bytes(compressed=False):
    out, png = io.BytesIO(), next(_images())
    with tarfile.open(fileobj=out, mode="w:gz" if compressed else "w") as archive:
        for name in ("cat/0.png", "dog/1.png", "cat/" + 120 * "x" + ".png"):
            member = tarfile.TarInfo(name)
            member.size = len(png)
            archive.addfile(member, io.BytesIO(png))
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
            member = tarfile.TarInfo("dog/link.png")
            member.type, member.linkname = kind, "../../etc/passwd"
            archive.addfile(member)
    return out.getvalue()


def _npz_bytes(save):
    out = io.BytesIO()
    save(out, images=np.zeros((4, 4, 4, 3), np.uint8), labels=np.array([0, 1, 0, 1]), classes=["a", "b"])
    return out.getvalue()


def _read_images(path):
    dataset.MAX_PIXELS = 2**22  # an image takes four bytes a pixel while it is decoded, up to this limit
    for split in open_splits(path, memory_limit_bytes=8 * 2**20).values():
        for i in range(len(split)):
            with contextlib.suppress(ImageError):
                split.read(i)


def _write_image(path, data):
    for name, content in (("cat/0.png", data), ("dog/0.png", next(_images()))):
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)


def _read_sentences(path):
    open_sentences(path, ByteTokenizer())


READERS = {
    "weights": Reader("weights.safetensors", _read_weights, lambda: _model_files()[:1]),
    "model": Reader("model.safetensors", _read_model, _model_files),
    "model-header": Reader("model.safetensors", _read_model, _header_seeds, _write_header),
    "checkpoint": Reader("step-00000001.safetensors", _read_checkpoint, lambda: [_parts_of_checkpoint()[0]]),
    "checkpoint-state": Reader("step-00000001.safetensors", _read_checkpoint,
                               lambda: [_parts_of_checkpoint()[2]["checkpoint"].encode()], _write_state),
    "llama2c": Reader("model.bin", load_llama, lambda: list(_llama2c_seeds())),
    "llama-config": Reader("config.json", lambda path: (read_config(path), load_llama(path.parent)),
                           lambda: [json.dumps(_SETTINGS).encode()], _write_settings),
    "llama-index": Reader("model.safetensors.index.json", lambda path: load_llama(path.parent),
                          lambda: [b'{"weight_map": {"model.norm.weight": "model.safetensors"}}'], _write_index),
    "tokenizer-bin": Reader("tokenizer.bin", _read_tokenizer, _tokenizer_seeds),
    "tokenizer-json": Reader("tokenizer.json", _read_tokenizer, _tokenizer_json_seeds),
    "plan": Reader("plan.json", _read_plan, lambda: list(_plan_seeds())),
    "run": Reader("run", _read_run, _run_seeds, _write_run),
    "report": Reader("run", _read_report, lambda: _run_seeds(8), _write_report),
    "tar": Reader("images.tar", _read_images, lambda: [_tar_bytes()]),
    "tar-gz": Reader("images.tar.gz", _read_images, lambda: [_tar_bytes(compressed=True)]),
    "npz": Reader("images.npz", _read_images, lambda: [_npz_bytes(np.savez), _npz_bytes(np.savez_compressed)]),
    "image": Reader("images", _read_images, lambda: list(_images()), _write_image),
    "sentences": Reader("train.tsv", _read_sentences, lambda: ["sentence\tlabel\na é\t0\nb\t1\n".encode()]),
}
