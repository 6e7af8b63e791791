import io
import os
import subprocess
import sys
import tarfile
import time
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from images import image_files, jpeg, pixels, write_folder, write_npz, write_tar
from PIL import Image

from wasi.training import dataset as dataset_module
from wasi.training import sources
from wasi.training.data import ImageError, open_dataset, open_splits, sign_digits


@pytest.fixture
def files(rng):
    return image_files(rng)


def samples(dataset):
    return [(np.asarray(dataset.read(i)).tobytes(), int(dataset.labels[i])) for i in range(len(dataset))]


# ---- the same data from every kind of source ---------------------------------------------------------------


def test_all_sources_give_the_same_samples(tmp_path, files):
    paths = [
        write_folder(tmp_path / "folder", files),
        write_tar(tmp_path / "a.tar", files),
        write_tar(tmp_path / "a.tar.gz", files),
        write_tar(tmp_path / "a.tgz", files),
        write_npz(tmp_path / "a.npz", files),
    ]
    wanted = open_splits(paths[0])
    assert list(wanted) == ["train", "test"]
    for path in paths:
        splits = open_splits(path)
        assert list(splits) == ["train", "test"]
        for split, dataset in splits.items():
            assert dataset.classes == ("cat", "dog", "emu") and dataset.problems == []
            assert dataset.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
            assert samples(dataset) == samples(wanted[split])
    names = [[open_dataset(path).name(i) for i in range(12)] for path in paths[:4]]
    assert names == [sorted(name for name in files if name.startswith("train"))] * 4
    assert open_dataset(paths[4], "test").name(3) == "test_images[3]"


@pytest.mark.parametrize("prefix", ["", "./", "top/", "top/inner/"])
@pytest.mark.parametrize("splits", [(), ("train", "valid", "test"), ("Train", "val")])
def test_layouts(tmp_path, rng, prefix, splits):
    files = {prefix + name: data for name, data in image_files(rng, splits, n=1).items()}
    files[prefix + "README.txt"] = b"about"
    for path in (write_tar(tmp_path / "a.tar", files), write_folder(tmp_path / "folder", files)):
        opened = open_splits(path)
        assert list(opened) == [{"Train": "train", "valid": "val"}.get(s, s) for s in splits or ["train"]]
        assert all(
            dataset.labels.tolist() == [0, 1, 2] and dataset.problems == [] for dataset in opened.values()
        )


def test_what_is_not_used_is_named(tmp_path, files):
    files |= {
        "train/cat/notes.txt": b"",
        "train/loose.png": files["train/cat/00.png"],
        "train/cat/.hidden.png": b"",
        "train/cat/deeper/a.png": files["train/cat/00.png"],
    }
    folder = write_folder(tmp_path / "folder", files)
    (folder / "train" / "fox").mkdir()
    empty = tarfile.TarInfo("train/fox")
    empty.type = tarfile.DIRTYPE
    for path in (folder, write_tar(tmp_path / "a.tar", files, [empty])):
        dataset = open_dataset(path)
        assert len(dataset) == 13 and "train/cat/deeper/a.png" in [dataset.name(i) for i in range(13)]
        assert sorted(dataset.problems) == [
            ("train/cat/notes.txt", "not an image by its suffix"),
            ("train/fox", "a folder without images"),
            ("train/loose.png", "lies in no class folder"),
        ]


def test_links_in_folders(tmp_path, files):
    folder = write_folder(tmp_path / "folder", files)
    (folder / "train/cat/loop").symlink_to(folder / "train")
    (folder / "train/cat/gone.png").symlink_to(folder / "nowhere")
    (folder / "train/gnu").symlink_to(folder / "test/dog")
    os.mkfifo(folder / "train/cat/pipe.png")
    dataset = open_dataset(folder)
    assert dataset.classes == ("cat", "dog", "emu", "gnu") and len(dataset) == 16
    assert sorted(dataset.problems) == [
        ("train/cat/gone.png", "a broken link or a device"),
        ("train/cat/loop", "a link to a folder above it"),
        ("train/cat/pipe.png", "a broken link or a device"),
    ]


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz"])
def test_unsafe_members_are_named_and_ignored(tmp_path, files, name):
    members = []
    for member_name, kind in [
        ("train/cat/link.png", tarfile.SYMTYPE),
        ("train/cat/hard.png", tarfile.LNKTYPE),
        ("train/cat/dev.png", tarfile.CHRTYPE),
        ("train/cat/pipe.png", tarfile.FIFOTYPE),
        ("train/cat/../../../up.png", tarfile.REGTYPE),
        ("/etc/cat/abs.png", tarfile.REGTYPE),
    ]:
        member = tarfile.TarInfo(member_name)
        member.type, member.linkname = kind, "/etc/passwd"
        members.append(member)
    dataset = open_dataset(write_tar(tmp_path / name, files, members))
    assert len(dataset) == 12
    assert {p.name: p.reason for p in dataset.problems} == {
        "train/cat/link.png": "a link",
        "train/cat/hard.png": "a link",
        "train/cat/dev.png": "a device, a sparse file, or of an unknown type",
        "train/cat/pipe.png": "a device, a sparse file, or of an unknown type",
        "train/cat/../../../up.png": "path leads out of the archive",
        "/etc/cat/abs.png": "path leads out of the archive",
    }


def test_a_later_member_of_the_same_name_replaces_the_earlier(tmp_path, files):
    path = write_tar(tmp_path / "a.tar", files)
    with tarfile.open(path, "a") as archive:
        member = tarfile.TarInfo("train/cat/00.png")
        member.size = len(files["train/dog/00.png"])
        archive.addfile(member, io.BytesIO(files["train/dog/00.png"]))
    dataset = open_dataset(path)
    assert len(dataset) == 12 and samples(dataset)[0][0] == samples(dataset)[4][0]


# ---- bad sources -------------------------------------------------------------------------------------------


def refuse(path, match, error=ValueError, **options):
    with pytest.raises(error, match=match):
        open_splits(path, **options)


def test_bad_sources_are_refused_by_name(tmp_path, rng, files):
    refuse(tmp_path / "none", "none: no such file or folder", FileNotFoundError)
    (tmp_path / "empty").mkdir()
    refuse(tmp_path / "empty", "empty: the folder is empty")
    refuse(write_folder(tmp_path / "texts", {"a/b.txt": b""}), "texts: no images .* among 1 files")
    refuse(
        write_folder(tmp_path / "flat", {"b.png": b"", "c.png": b""}),
        "flat: 2 images, none of them in a class folder",
    )
    refuse(write_folder(tmp_path / "one", {"cat/b.png": b""}), "one: only one class, 'cat'")
    refuse(
        write_folder(tmp_path / "one2", {"train/cat/b.png": b"", "test/cat/b.png": b""}),
        "only one class, 'cat'",
    )
    refuse(
        write_folder(tmp_path / "mixed", {"train/cat/b.png": b"", "more/b.png": b""}),
        r"folders of splits \(train\) beside others with images \(more\)",
    )
    (tmp_path / "data.zip").write_bytes(b"PK")
    refuse(tmp_path / "data.zip", "data.zip: unknown format; expected a folder, .tar")
    with pytest.raises(ValueError, match="has train, test, not 'val'"):
        open_dataset(write_tar(tmp_path / "a.tar", files), "val")


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz"])
def test_damaged_archives_are_refused(tmp_path, files, name):
    path = write_tar(tmp_path / name, files)
    whole = path.read_bytes()
    for damaged in (b"", b"text", os.urandom(5000), whole[: len(whole) // 2], whole[:100]):
        path.write_bytes(damaged)
        refuse(path, f"{name}: not a whole .*tar archive")


def test_a_damaged_header_is_not_taken_for_the_end(tmp_path, files):
    path = write_tar(tmp_path / "a.tar", files)
    data = bytearray(path.read_bytes())
    with tarfile.open(path) as archive:
        data[archive.getmembers()[5].offset] ^= 1
    path.write_bytes(data)
    refuse(path, "a.tar: not a whole tar archive: damaged header")


def test_an_archive_cut_between_members_is_reported(tmp_path, files):
    path = write_tar(tmp_path / "a.tar", files)
    with tarfile.open(path) as archive:
        cut = archive.getmembers()[20].offset
    path.write_bytes(path.read_bytes()[:cut])
    assert [tuple(p) for p in open_dataset(path).problems] == [
        ("a.tar", "the archive ends without its end mark: it may have been cut")
    ]


def test_a_flipped_bit_in_gz_is_noticed(tmp_path, files):
    path = write_tar(tmp_path / "a.tar.gz", files)
    data = bytearray(path.read_bytes())
    data[-6] ^= 1  # the checksum
    path.write_bytes(data)
    refuse(path, "a.tar.gz: not a whole gzipped tar archive: CRC check failed")


def test_memory_limit(tmp_path, files):
    refuse(
        write_tar(tmp_path / "a.tgz", files),
        r"memory_limit_bytes \(5000\); gunzip it",
        memory_limit_bytes=5000,
    )
    refuse(
        write_npz(tmp_path / "a.npz", files),
        r"more than memory_limit_bytes \(5000\)",
        memory_limit_bytes=5000,
    )


def test_a_huge_array_is_refused_before_it_is_allocated(tmp_path):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "|u1", "fortran_order": False, "shape": (10**9, 99, 99, 3)}
    )
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("images.npy", header.getvalue())
        archive.writestr("labels.npy", header.getvalue())
    refuse(tmp_path / "a.npz", "a.npz: its arrays take [0-9]{14} bytes")


def test_bad_arrays_are_refused_by_name(tmp_path):
    images, labels = np.zeros((4, 5, 6, 3), np.uint8), np.array([0, 1, 0, 1])

    def refuse_arrays(match, **arrays):
        np.savez(tmp_path / "a.npz", **arrays)
        refuse(tmp_path / "a.npz", match)

    refuse_arrays("expected an array 'images' or 'train_images', got x", x=labels)
    refuse_arrays("'images' without 'labels'", images=images)
    refuse_arrays(
        "images: expected uint8 N x H x W x 3 or N x H x W, got float64", images=images / 2, labels=labels
    )
    refuse_arrays(r"images: .* got uint8 of shape \(4, 5, 6, 2\)", images=images[..., :2], labels=labels)
    refuse_arrays(
        r"labels: expected 4 integers from 0, got int64 of shape \(3,\)", images=images, labels=labels[:3]
    )
    refuse_arrays("labels: expected 4 integers from 0", images=images, labels=labels - 1)
    refuse_arrays("labels: expected 4 integers from 0, got float64", images=images, labels=labels / 2)
    refuse_arrays("only one class, '0'", images=images, labels=labels * 0)
    refuse_arrays("label 1 in a set of 1 classes", images=images, labels=labels, classes=["a"])
    refuse_arrays("no images", images=images[:0], labels=labels[:0])
    refuse_arrays("labels.npy: holds Python objects", images=images, labels=np.array([None] * 4))
    (tmp_path / "a.npz").write_bytes(b"PK\x03\x04 and so on")
    refuse(tmp_path / "a.npz", "a.npz: not a whole .npz archive")


def test_grey_arrays_and_column_labels(tmp_path):
    grey = np.arange(60, dtype=np.uint8).reshape(3, 4, 5)
    np.savez(
        tmp_path / "a.npz",
        train_images=grey,
        train_labels=[[7], [9], [9]],
        test_images=grey[:1],
        test_labels=[[9]],
    )
    splits = open_splits(tmp_path / "a.npz")
    assert splits["train"].classes == ("7", "9") and splits["test"].labels.tolist() == [1]
    assert np.array_equal(splits["train"].read(2), np.stack([grey[2]] * 3, axis=2))


# ---- single images -----------------------------------------------------------------------------------------


def open_one(tmp_path, name, data):
    """A set whose first image has this file."""
    good = jpeg(np.zeros((8, 8, 3), np.uint8))
    return open_dataset(write_folder(tmp_path / "one", {f"a/{name}": data, "b/good.jpg": good}))


def test_bad_images_are_named_and_counted(tmp_path, rng):
    good = jpeg(pixels(rng))
    text = jpeg(pixels(rng), format="PNG")
    files = {
        "a/0 good.jpg": good,
        "a/1 text.jpg": b"not an image",
        "a/2 cut.jpg": good[:-300],
        "a/3 empty.jpg": b"",
        "a/4 cut.png": text[:-500],
        "b/0 good.jpg": good,
    }
    for path in (write_folder(tmp_path / "folder", files), write_tar(tmp_path / "a.tar", files)):
        dataset = open_dataset(path)
        with pytest.raises(ImageError, match="a/2 cut.jpg: image file is truncated"):
            dataset.read(2)
        assert [p.name for p in dataset.problems] == ["a/2 cut.jpg"]
        checked = dataset.checked()
        assert [checked.name(i) for i in range(len(checked))] == ["a/0 good.jpg", "b/0 good.jpg"]
        assert sorted(p.name for p in checked.problems) == [
            "a/1 text.jpg",
            "a/2 cut.jpg",
            "a/3 empty.jpg",
            "a/4 cut.png",
        ]
        assert dict(checked.problems)["a/1 text.jpg"].startswith("not an image in a known format (JPEG, PNG")


def test_decompression_bombs_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(dataset_module, "MAX_PIXELS", 10_000)
    bomb = jpeg(np.zeros((100, 101, 3), np.uint8), format="PNG")
    with pytest.raises(ImageError, match="a/x.png: 101 x 100 pixels, more than the 10000 that are decoded"):
        open_one(tmp_path, "x.png", bomb).read(0)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side, match", [(10_000, "10000 x 10000 pixels"), (60_000, "decompression bomb")])
def test_pillows_warning_is_an_error(tmp_path, side, match):
    header = bytearray(jpeg(np.zeros((1, 1), np.uint8), format="PNG"))
    header[16:24] = side.to_bytes(4, "big") * 2
    header[29:33] = zlib.crc32(header[12:29]).to_bytes(4, "big")
    with pytest.raises(ImageError, match=match):
        open_one(tmp_path, "x.png", bytes(header)).read(0)


def test_a_long_member_is_refused(tmp_path, files, monkeypatch):
    monkeypatch.setattr(sources, "MAX_ENCODED_BYTES", 10_000)
    files["train/cat/long.png"] = bytes(10_001)
    dataset = open_dataset(write_tar(tmp_path / "a.tar", files))
    assert [tuple(p) for p in dataset.problems] == [
        ("train/cat/long.png", "10001 bytes, more than the 10000 that are read")
    ]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path, orientation):
    image = np.zeros((16, 32, 3), np.uint8)
    image[:8, :16] = 255  # white top left quarter
    exif = Image.Exif()
    exif[0x0112] = orientation
    seen = np.asarray(open_one(tmp_path, "x.png", jpeg(image, format="PNG", exif=exif)).read(0))
    assert seen.shape == ((16, 32, 3) if orientation <= 4 else (32, 16, 3))
    corner = {1: (0, 0), 2: (0, -1), 3: (-1, -1), 4: (-1, 0), 5: (0, 0), 6: (0, -1), 7: (-1, -1), 8: (-1, 0)}[
        orientation
    ]
    assert seen[corner].tolist() == [255, 255, 255] and seen.mean() == 255 / 4


@pytest.mark.parametrize(
    "mode, colour, want",
    [
        ("L", 77, [77, 77, 77]),
        ("RGBA", (1, 2, 3, 9), [1, 2, 3]),
        ("LA", (5, 0), [5, 5, 5]),
        ("1", 1, [255, 255, 255]),
        ("I;16", 0x4D00, [77, 77, 77]),
        ("P", 0, [10, 20, 30]),
    ],
)
def test_other_modes_become_rgb(tmp_path, mode, colour, want):
    image = Image.new(mode, (9, 7), colour)
    options = {}
    if mode == "P":
        image.putpalette([10, 20, 30])
        options["transparency"] = b"\0"
    out = io.BytesIO()
    image.save(out, "PNG", **options)
    seen = np.asarray(open_one(tmp_path, "x.png", out.getvalue()).read(0))
    assert seen.dtype == np.uint8 and seen.shape == (7, 9, 3) and (seen == want).all()


def test_a_jpeg_is_decoded_at_reduced_size(tmp_path, rng):
    dataset = open_one(tmp_path, "x.jpg", jpeg(pixels(rng, 400, 600)))
    assert dataset.read(0).size == (600, 400)
    assert dataset.read(0, min_side=100).size == (150, 100)
    assert dataset.read(0, min_side=101).size == (300, 200)


# ---- views -------------------------------------------------------------------------------------------------


def test_split(tmp_path):
    labels = np.repeat([0, 1, 2], [100, 10, 2])
    np.savez(
        tmp_path / "a.npz",
        images=np.arange(112, dtype=np.uint8)[:, None, None].repeat(2, 1).repeat(2, 2),
        labels=labels,
    )
    dataset = open_dataset(tmp_path / "a.npz")
    for stratified in (True, False):
        one, other = dataset.split(0.8, seed=3, stratified=stratified)
        rows = [[int(part.read(i)[0, 0, 0]) for i in range(len(part))] for part in (one, other)]
        assert sorted(rows[0] + rows[1]) == list(range(112)) and rows == [sorted(part) for part in rows]
        assert [part.labels.tolist() for part in (one, other)] == [labels[part].tolist() for part in rows]
        again, _ = dataset.split(0.8, seed=3, stratified=stratified)
        different, _ = dataset.split(0.8, seed=4, stratified=stratified)
        assert samples(again) == samples(one) != samples(different)
    one, other = dataset.split(0.8)
    assert one.counts().tolist() == [80, 8, 1] and other.counts().tolist() == [20, 2, 1]
    with pytest.raises(ValueError, match="fraction: expected a number between 0 and 1, got 1"):
        dataset.split(1)
    with pytest.raises(ValueError, match="leaves one side empty"):
        dataset.take([0]).split(0.5)


def test_subset(files, tmp_path):
    dataset = open_dataset(write_tar(tmp_path / "a.tar", files))
    assert dataset.subset(per_class=2).labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert (
        samples(dataset.subset(5, seed=1))
        == samples(dataset.subset(5, seed=1))
        != samples(dataset.subset(5, seed=2))
    )
    with pytest.raises(ValueError, match="per_class: 5 images asked for, 'cat' has 4"):
        dataset.subset(per_class=5)
    with pytest.raises(ValueError, match="n: 13 images asked for, 'the set' has 12"):
        dataset.subset(13)
    with pytest.raises(ValueError, match="expected one of n and per_class"):
        dataset.subset()
    with pytest.raises(ValueError, match="n: expected at least 1, got 0"):
        dataset.subset(0)
    with pytest.raises(ValueError, match="read-only"):
        dataset.labels[0] = 1


# ---- real data ---------------------------------------------------------------------------------------------


def test_sign_digits():
    splits = sign_digits()
    assert {name: len(part) for name, part in splits.items()} == {"train": 1651, "test": 411}
    assert splits["train"].counts().tolist() == [164, 164, 165, 164, 166, 166, 166, 166, 166, 164]
    assert splits["test"].counts().tolist() == [41, 42, 41, 42, 41, 41, 41, 40, 42, 40]
    for part in splits.values():
        assert part.classes == tuple("0123456789") and part.problems == []
        assert {part.read(i).size for i in range(0, len(part), 50)} == {(64, 64)}


def test_sign_digits_are_what_the_script_makes(shared_data, tmp_path):
    script = Path(__file__).parents[1] / "tools" / "make_sign_digits.py"
    subprocess.run([sys.executable, script, shared_data("sign_digits.tar"), "--folder", tmp_path], check=True)
    made = open_splits(tmp_path / "sign_digits.tar.gz")
    for split, part in sign_digits().items():
        assert [part.name(i) for i in range(len(part))] == [
            made[split].name(i) for i in range(len(made[split]))
        ]
        for i in range(0, len(part), 20):  # JPEG libraries may round differently
            difference = np.asarray(part.read(i), int) - np.asarray(made[split].read(i), int)
            assert np.abs(difference).mean() < 1


def test_cifar10(shared_data):
    start = time.process_time()
    splits = open_splits(shared_data("cifar10_jpg.tar.gz"))
    assert time.process_time() - start < 10
    assert {name: len(part) for name, part in splits.items()} == {"train": 50_000, "test": 10_000}
    for part in splits.values():
        assert len(part.classes) == 10 and set(part.counts()) == {len(part) // 10}
        assert part.read(len(part) - 1).size == (32, 32)


MEMORY_SCRIPT = """
import sys
from wasi.training.data import Loader, Transform, open_dataset

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

dataset = open_dataset(sys.argv[1])
loader = Loader(dataset, 4, Transform(64, train=True), shuffle=True, prefetch=2)
next(iter(loader))
before = resident()
peak = 0
for epoch in range(3):
    for images, labels in loader:
        peak = max(peak, resident() - before)
print(peak, loader.buffer_bytes)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="reads /proc")
def test_iterating_does_not_gather_memory(tmp_path, rng):
    """Three epochs over 60 images of 1 MB: memory grows by less than eight decoded images and the batches."""
    picture = jpeg(pixels(rng, 512, 682))
    path = write_tar(tmp_path / "a.tar.gz", {f"{'ab'[i % 2]}/{i}.jpg": picture for i in range(60)})
    done = subprocess.run(
        [sys.executable, "-P", "-c", MEMORY_SCRIPT, path], capture_output=True, text=True, check=True
    )
    peak, buffers = map(int, done.stdout.split())
    assert peak < 8 * 512 * 682 * 4 + buffers
