"""Files from strangers: each is taken, or refused by an error that names it, quickly and in little memory (docs/trust.md).

`stress/fuzz.py` looks for files that are neither; those it found are kept in `stress/corpus` and read here again.
"""

import gzip
import json
import random
import shutil
import struct
import tarfile
import tracemalloc
import warnings
import zipfile
import zlib

import pytest
from images import image_files, write_folder
from mutate import mutate
from readers import CORPUS, READERS, check
from test_training import Batches

import wasi
from wasi.models import WeightsError
from wasi.models.methods import MethodOptions, apply_method
from wasi.models.weights import TensorFile, check_numbers, write_tensors
from wasi.training import checkpoint, dataset
from wasi.training.callbacks import Callback
from wasi.training.checkpoint import newest_checkpoint
from wasi.training.config import EarlyStopping
from wasi.training.data import open_splits
from wasi.training.loop import TrainConfig, train
from wasi.training.ranks import RankAdaptation
from wasi.training.runlog import RunFolder

FOUND = sorted(path for path in CORPUS.glob("*/*") if path.is_file())


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Files of tests need not survive a power cut."""
    monkeypatch.setattr("os.fsync", lambda descriptor: None)
    monkeypatch.setattr(dataset, "MAX_PIXELS", dataset.MAX_PIXELS)  # which a reader lowers


@pytest.fixture(params=READERS)
def reader(request):
    if request.param == "tokenizer-json":
        pytest.importorskip("tokenizers")
    return READERS[request.param]


@pytest.mark.parametrize("path", FOUND, ids=lambda path: f"{path.parent.name}-{path.name[:6]}")
def test_files_that_were_once_too_much(path, tmp_path):
    check(READERS[path.parent.name], path.read_bytes(), tmp_path)


def test_whole_files_are_taken(reader, tmp_path):
    for i, data in enumerate(reader.seeds()):
        (tmp_path / str(i)).mkdir()
        assert check(reader, data, tmp_path / str(i))


def test_files_cut_at_any_byte(reader, tmp_path):
    """At every byte of the first 300, where headers are, and at every 97th of the rest; `stress/fuzz.py --cut` does it at all."""
    whole = min(reader.seeds(), key=len)
    for n in [*range(min(300, len(whole))), *range(300, len(whole), 97), len(whole) - 1]:
        check(reader, whole[:n], tmp_path)


def test_damaged_files(reader, tmp_path):
    warnings.simplefilter("ignore")  # Pillow's, zipfile's
    rng, seeds = random.Random(1), reader.seeds()
    for _ in range(100):
        check(reader, mutate(rng.choice(seeds), rng), tmp_path)


# ---- safetensors -----------------------------------------------------------------------------------------------------------


def safetensors(header, data=b"\0" * 64):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def tensor(begin, end, shape, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize("data", [
    safetensors({"a": tensor(0, 40, [10]), "b": tensor(36, 64, [7])}),
    safetensors({"a": tensor(0, 32, [8]), "b": tensor(36, 64, [7])}),
    safetensors({"a": tensor(0, 32, [8])}),
    safetensors({"a": tensor(0, 64, [8])}),
    safetensors({"a": tensor(32, 0, [8]), "b": tensor(32, 64, [8])}),
    safetensors({"a": tensor(0, 64, [2**62, 2**62, 16])}),
    safetensors({"a": tensor(0, 64, [2**32, 2**32])}),
    safetensors({"a": tensor(0, 64, [-4, -4])}),
    safetensors({"a": tensor(0, 2**64, [16])}),
    safetensors({"a": tensor(0, 2**63 - 1, [2**61])}),
    safetensors(b'{"a": {"dtype": "F32", "shape": [16], "data_offsets": [0, 64]}, "a": {"dtype": "F32", "shape": [8], '
                b'"data_offsets": [0, 32]}}'),
    safetensors(b"[" * 100_000),
    b"\xff" * 8 + b"{}",
    (2**63 - 1).to_bytes(8, "little") + b"{}",
    b"",
], ids=["overlap", "hole", "rest", "short-shape", "backwards", "wrapping", "wrapping-to-0", "negative", "beyond-64-bits",
        "gigantic", "duplicate", "deep", "header-of-2^64", "header-of-2^63", "empty"])
def test_hostile_safetensors(data, tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(data)
    with pytest.raises(WeightsError, match="a.safetensors is truncated or not one"):
        TensorFile(path)
    assert not check(READERS["weights"], data, tmp_path)


# ---- archives and images ---------------------------------------------------------------------------------------------------


def refused(path, match, most_bytes=64 * 2**20, **options):
    tracemalloc.start()
    with pytest.raises(ValueError, match=match):
        open_splits(path, **options)
    assert tracemalloc.get_traced_memory()[1] < most_bytes
    tracemalloc.stop()


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK])
@pytest.mark.parametrize("compressed", [False, True])
def test_a_long_extended_header_is_refused_unread(tmp_path, kind, compressed):
    member = tarfile.TarInfo("x")
    member.type, member.size = kind, 2**33 - 1
    data = member.tobuf(tarfile.GNU_FORMAT) + (b"\0" * 2**27 if compressed else b"\0" * 1024)
    path = tmp_path / ("a.tar.gz" if compressed else "a.tar")
    path.write_bytes(gzip.compress(data, 1) if compressed else data)
    refused(path, f"{path.name}: .*an extended header of 8589934591 bytes", 4 * 2**20)


def test_a_tar_gz_that_decompresses_without_end_is_refused(tmp_path):
    member = tarfile.TarInfo("about.txt")
    member.size = 2**40
    packer = zlib.compressobj(1, zlib.DEFLATED, 31)
    with open(tmp_path / "a.tar.gz", "wb") as file:
        file.write(packer.compress(member.tobuf()))
        for _ in range(256):
            file.write(packer.compress(b"\0" * 2**20))
        file.write(packer.flush())
    refused(tmp_path / "a.tar.gz", "a.tar.gz: it decompresses to more", memory_limit_bytes=2**20)


def test_a_member_that_ends_far_beyond_its_tar_gz_is_no_work(tmp_path):
    member = tarfile.TarInfo("cat/about.txt")
    member.size = 2**59
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(member.tobuf(tarfile.GNU_FORMAT) + bytes(10240)))
    refused(tmp_path / "a.tar.gz", "a.tar.gz: not a whole gzipped tar archive: it ends within a member")


def npy_header(text, version=2):
    return b"\x93NUMPY" + bytes([version, 0]) + struct.pack("<I" if version > 1 else "<H", len(text)) + text


@pytest.mark.parametrize("members, match", [
    ({"images.npy": npy_header(b" " * 2**27)}, "images.npy: not an array"),
    ({"images.npy": npy_header(b"[" * 5000)}, "images.npy: not an array"),
    ({"images.npy": npy_header(b"{'descr': '|u1', 'fortran_order': False, 'shape': (-1, -8, 8)}")}, "an impossible shape"),
    ({"images.npy": npy_header(b"{'descr': '|u1', 'fortran_order': False, 'shape': (0, 9223372036854775808, 8)}")}, "impossible"),
    ({"images": npy_header(b"{'descr': '|u1', 'fortran_order': False, 'shape': (1000000000, 8, 8)}"),
      "images.npy": npy_header(b"{'descr': '|u1', 'fortran_order': False, 'shape': (1, 8, 8)}")}, "two arrays of that name"),
], ids=["header-of-128-MiB", "deep", "negative", "beyond-64-bits", "two-names"])
def test_hostile_npz(tmp_path, members, match):
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    refused(tmp_path / "a.npz", f"a.npz: .*{match}", 4 * 2**20)


def test_an_image_that_grows_beyond_the_limit_is_refused_before_it_is_decoded(tmp_path, rng, monkeypatch):
    """40 KB that would take 256 MiB."""
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = zlib.compress(b"\0" * (10_000 * 1251), 9)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 10_000, 10_000, 1, 0, 0, 0, 0)) + chunk(b"IDAT", rows)
    path = write_folder(tmp_path / "images", {**image_files(rng, (), n=1), "cat/bomb.png": bomb + chunk(b"IEND", b"")})
    train = open_splits(path)["train"]
    tracemalloc.start()
    assert len(train.checked()) == 3
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()
    assert [p.name for p in train.problems] == ["cat/bomb.png"]


def test_a_long_text_is_encoded_in_no_more_than_a_second(tmp_path):
    path = tmp_path / "tokenizer.bin"
    path.write_bytes(READERS["tokenizer-bin"].seeds()[0])
    tokenizer = wasi.load_tokenizer(path)
    assert len(tokenizer.encode("ab" * 20_000)) == 20_002


def test_nothing_that_runs_code_is_among_the_image_formats():
    assert not {"EPS", "PDF", "WMF", "GBR"} & set(dataset.FORMATS)


# ---- runs that are to go on -------------------------------------------------------------------------------------------------


class Kept(Batches):
    """Batches that say where they stand."""

    def state_dict(self):
        return {"epoch": 0, "batch": 0}

    def load_state_dict(self, state):
        check_numbers("batches", state, ("epoch", "batch"))


JUNK = ("x", None, -1, float("inf"), float("nan"), [], {}, 1.5, True, 2**70, [[]], {"a": 1})
RESUMED = TrainConfig(epochs=3, optimizer="adamw", lr=1e-3, ema=0.9, adapt_ranks=RankAdaptation(every=1), track_subspaces=1,
                      early_stopping=EarlyStopping(patience=2), checkpoint_every=1, keep=3)


def places(value, at=()):
    """Every place in nested dicts and lists."""
    for key, item in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield (*at, key)
        yield from places(item, (*at, key))


def test_a_checkpoint_that_says_nonsense_is_refused_before_the_run_goes_on(tmp_path, monkeypatch):
    """One number, text or list of its state exchanged: the run goes on to its end, or the reader says what is wrong."""
    def model():
        return apply_method(wasi.create_model("vit_micro_patch4_32", seed=0, img_size=16, num_classes=3, embed_dim=8, depth=1,
                                              num_heads=2),
                            "wasi", MethodOptions(rank=2, activation_ranks=(1.0, 0.5, 4)), verbose=False)

    class Killed(Callback):
        def on_step_end(self, run):
            if run.progress.step == 3:
                raise KeyError("killed")

    def run(resume):
        loader = Kept(2)
        return train(model(), loader, loader, RESUMED, RunFolder(tmp_path, resume=resume), progress=False,
                     resume=newest_checkpoint(tmp_path) if resume else None, callbacks=() if resume else (Killed(),))

    monkeypatch.setattr("wasi.training.loop.plot_curves", lambda *args: None)
    with pytest.raises(KeyError):
        run(False)
    (tmp_path / "config.json").write_text("{}")
    path = newest_checkpoint(tmp_path).path
    file = TensorFile(path)
    tensors, metadata = {name: file.raw(name) for name in file.names}, file.metadata
    logs = {log: log.read_bytes() for log in tmp_path.glob("*.csv")}
    whole = [(at, junk) for at in places(json.loads(metadata["checkpoint"])) for junk in JUNK]
    n_refused = 0
    for at, junk in random.Random(0).sample(whole, 60):
        state = holder = json.loads(metadata["checkpoint"])
        for key in at[:-1]:
            holder = holder[key]
        holder[at[-1]] = junk
        spoilt = {**metadata, "checkpoint": json.dumps(state)}
        checksums = {**json.loads(metadata["crc32"]), "metadata": checkpoint._metadata_checksum(spoilt)}
        shutil.rmtree(path.parent)
        path.parent.mkdir()
        write_tensors(path, tensors, {**spoilt, "crc32": json.dumps(checksums)})
        for log, content in logs.items():
            log.write_bytes(content)
        try:
            run(True)
        except (ValueError, OSError):
            n_refused += 1
    assert n_refused > 30
