"""Where labelled images come from: folders, tar archives read in place, .npz arrays.

A folder or archive holds `<class>/...` or `{train,val,test}/<class>/...`, possibly under one more folder.
Images are sorted by path, classes by name, so a folder and a tar of it are the same data set. What is not
used is named in `problems`; only hidden files, and files of other kinds outside of the class folders, are
passed over.
"""

import gzip
import io
import math
import os
import tarfile
import weakref
import zipfile
import zlib
from pathlib import Path, PurePosixPath

import numpy as np

from wasi.training.dataset import SUFFIXES, Dataset, ImageError, Problems, decode

SPLITS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
}

# An encoded image inside of an archive is read whole; a longer one is refused.
MAX_ENCODED_BYTES = 1 << 28

# Beyond the images that may be kept, so much of a .tar.gz is decompressed: of more, its images cannot fit.
_MORE_BYTES = 1 << 26

# A name or an extended header of a tar archive, and the header of an array in a .npz: what is longer is refused unread.
_MAX_HEADER_BYTES = 1 << 16
_EXTENSIONS = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)


def open_dataset(path, split="train", memory_limit_bytes=1 << 30):
    """One split of a source of labelled images as a `Dataset`; a source without splits is all "train".

    Parameters: as `open_splits`; split is "train", "val" or "test".
    Raises ValueError where the source has no such split.
    """
    splits = open_splits(path, memory_limit_bytes)
    if split not in splits:
        raise ValueError(f"split: {str(path)!r} has {', '.join(splits)}, not {split!r}")
    return splits[split]


def open_splits(path, memory_limit_bytes=1 << 30):
    """Opens a source of labelled images: a dict of `Dataset` by split, "train", "val" and "test".

    Only splits that are there; a source without any is all "train". They have the same `classes` and
    `problems`.

    Parameters
    ----------
    path : a folder `<class>/image` or `{train,val,test}/<class>/image`;
        a `.tar` of such folders, read in place;
        a `.tar.gz` or `.tgz` of them, whose encoded images are kept in memory;
        a `.npz` with `images` (uint8, N x H x W x 3 or N x H x W) and `labels` (integers, N), or with
        `train_images`, `train_labels`, `test_images`, ..., and optionally `classes` (names).
    memory_limit_bytes : the most that a `.tar.gz` or `.npz` may keep in memory.

    Raises FileNotFoundError for a missing path; ValueError where the source is of no known kind, is damaged,
    has no images or one class only, or needs more memory. Single images that cannot be used are listed in
    `problems`.
    """
    path = Path(path)
    name = path.name.lower()
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder")
    if path.is_dir():
        return _open_folder(path)
    if name.endswith(".tar"):
        return _open_tar(path)
    if name.endswith((".tar.gz", ".tgz")):
        return _open_tar_gz(path, memory_limit_bytes)
    if name.endswith(".npz"):
        return _open_npz(path, memory_limit_bytes)
    raise ValueError(f"{path}: unknown format; expected a folder, .tar, .tar.gz, .tgz or .npz")


# ---- folders and archives ----------------------------------------------------------------------------------


class _EncodedImages:
    """Source whose image files lie at `places`; `fetch(place)` gives what `decode` takes."""

    def __init__(self, names, places, fetch, problems):
        self._names, self._places, self._fetch, self.problems = names, places, fetch, problems

    def name(self, row):
        return self._names[row]

    def read(self, row, min_side):
        return decode(self._fetch(self._places[row]), min_side)


def _open_folder(path):
    problems = Problems()
    files, folders = {}, set()
    _walk(path, (), (), files, folders, problems)
    if not files and not folders:
        raise ValueError(f"{path}: the folder is empty")
    return _splits_of_paths(path, files, folders, lambda place: place, problems)


def _walk(path, parts, above, files, folders, problems):
    """Collects files {parts: path} and folders {parts}. Links are followed, except back to a folder above."""
    status = os.stat(path)
    identity = (status.st_dev, status.st_ino)
    if identity in above:
        problems.add(_text(parts), "a link to a folder above it")
        return
    for entry in os.scandir(path):
        inner = (*parts, entry.name)
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            folders.add(inner)
            _walk(entry.path, inner, (*above, identity), files, folders, problems)
        elif entry.is_file():
            files[inner] = entry.path
        else:
            problems.add(_text(inner), "a broken link or a device")


def _text(parts):
    """A path as text that can be printed, whatever bytes the file system holds."""
    return os.fsencode("/".join(parts)).decode("utf-8", "backslashreplace")


class _Member(tarfile.TarInfo):
    """Member whose damaged header is an error; tarfile takes one for the end, and so drops the rest."""

    @classmethod
    def frombuf(cls, *args):
        member = super().frombuf(*args)
        if member.type in _EXTENSIONS and not 0 <= member.size <= _MAX_HEADER_BYTES:  # tarfile would read it whole
            raise tarfile.ReadError(f"damaged header (an extended header of {member.size} bytes)")
        return member

    @classmethod
    def fromtarfile(cls, archive):
        try:
            member = super().fromtarfile(archive)
        except (tarfile.EmptyHeaderError, tarfile.EOFHeaderError) as end:
            archive.has_end_mark = isinstance(end, tarfile.EOFHeaderError)
            raise
        except (tarfile.HeaderError, ValueError, OverflowError, IndexError, KeyError, RecursionError) as error:
            raise tarfile.ReadError(f"damaged header ({error})") from None
        if not 0 <= member.size < 1 << 60:
            raise tarfile.ReadError(f"damaged header (a size of {member.size} bytes)")
        return member


def _image_members(archive, folders, problems):
    """Yields (parts, member) of the regular files; lists the members that are not used. Keeps no members."""
    while (member := archive.next()) is not None:
        archive.members.clear()
        parts = tuple(part for part in PurePosixPath(member.name).parts if part != ".")
        hidden = any(part.startswith(".") for part in parts)
        if member.name.startswith("/") or ".." in parts:
            problems.add(member.name, "path leads out of the archive")
        elif member.issym() or member.islnk():
            problems.add(member.name, "a link")
        elif member.isdir():
            if not hidden:
                folders.add(parts)
        elif not member.isreg() or member.issparse() or not parts:
            problems.add(member.name, "a device, a sparse file, or of an unknown type")
        elif member.size > MAX_ENCODED_BYTES:
            problems.add(member.name, f"{member.size} bytes, more than the {MAX_ENCODED_BYTES} that are read")
        elif not hidden:
            yield parts, member
    if not archive.has_end_mark:
        problems.add(Path(archive.name).name, "the archive ends without its end mark: it may have been cut")


def _open_tar(path):
    problems = Problems()
    folders = set()
    try:
        with tarfile.open(path, "r:", tarinfo=_Member, errors="backslashreplace") as archive:
            files = {
                parts: (member.offset_data, member.size)
                for parts, member in _image_members(archive, folders, problems)
            }
    except tarfile.TarError as error:
        raise ValueError(f"{path}: not a whole tar archive: {error}") from error
    return _splits_of_paths(path, files, folders, _Slices(path).fetch, problems)


class _Slices:
    """Reads pieces of a file by offset, from any thread; the file is closed with the last reference."""

    def __init__(self, path):
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self._descriptor)

    def fetch(self, place):
        offset, size = place
        data = os.pread(self._descriptor, size, offset)
        if len(data) != size:
            raise ImageError(f"the archive ends {size - len(data)} bytes too early")
        return io.BytesIO(data)


class _Limited:
    """A file that is read up to so many bytes, and not on and on at its end, as tarfile does to skip what is not there."""

    def __init__(self, file, path, n_bytes):
        self._file, self._path, self._left, self._beyond = file, path, n_bytes, 0

    def read(self, n):
        data = self._file.read(n)
        self._left -= len(data)
        self._beyond += not data
        if self._beyond > 2:
            raise EOFError("it ends within a member")
        if self._left < 0:
            raise ValueError(f"{self._path}: it decompresses to more than memory_limit_bytes allows; gunzip it: a plain .tar is "
                             "read in place")
        return data


def _open_tar_gz(path, memory_limit_bytes):
    problems = Problems()
    files, folders, total = {}, set(), 0
    try:
        with gzip.open(path) as file:
            unzipped = _Limited(file, path, memory_limit_bytes + _MORE_BYTES)
            with tarfile.open(path, "r|", unzipped, tarinfo=_Member, errors="backslashreplace") as archive:
                for parts, member in _image_members(archive, folders, problems):
                    if not _is_image(parts):
                        files[parts] = None
                        continue
                    total += member.size
                    if total > memory_limit_bytes:
                        raise ValueError(
                            f"{path}: its images take more than memory_limit_bytes ({memory_limit_bytes}); "
                            f"gunzip it: a plain .tar is read in place"
                        )
                    files[parts] = archive.extractfile(member).read()
            while unzipped.read(1 << 20):  # to the end, where the checksum is
                pass
    except (tarfile.TarError, EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path}: not a whole gzipped tar archive: {error}") from error
    return _splits_of_paths(path, files, folders, io.BytesIO, problems)


def _is_image(parts):
    return parts[-1].lower().endswith(SUFFIXES)


def _splits_of_paths(path, files, folders, fetch, problems):
    """{split: Dataset} from {parts: place} and the set of folders."""
    images = sorted(parts for parts in files if _is_image(parts))
    if not images:
        raise ValueError(
            f"{path}: no images ({' '.join(SUFFIXES)}) among {len(files)} files, "
            f"{len(problems)} others could not be used"
        )
    top, class_at = _levels(path, images)
    used, class_folders = [], set()
    for parts in images:
        if len(parts) > class_at + 1:
            used.append(parts)
            class_folders.add(parts[: class_at + 1])
        else:
            problems.add(_text(parts), "lies in no class folder")
    for parts in sorted(files.keys() - set(images)):
        if parts[: class_at + 1] in class_folders:
            problems.add(_text(parts), "not an image by its suffix")
    for parts in sorted(folders):
        if len(parts) == class_at + 1 and parts[:top] == used[0][:top] and parts not in class_folders:
            problems.add(_text(parts), "a folder without images")

    source = _EncodedImages(
        [_text(parts) for parts in used], [files[parts] for parts in used], fetch, problems
    )
    split_names = [SPLITS[parts[top].lower()] if class_at > top else "train" for parts in used]
    classes, labels = np.unique([parts[class_at] for parts in used], return_inverse=True)
    return _datasets(path, source, split_names, [str(name) for name in classes], labels)


def _levels(path, images):
    """(top, class_at): how many folders lie above the split or class folders, and above the class folders."""
    top = 0
    while True:
        names = {parts[top] for parts in images if len(parts) > top + 1}
        split_names = {
            parts[top] for parts in images if len(parts) > top + 2 and parts[top].lower() in SPLITS
        }
        others = {name for name in names if name.lower() not in SPLITS}
        if not names:
            raise ValueError(f"{path}: {len(images)} images, none of them in a class folder")
        if split_names and others:
            raise ValueError(
                f"{path}: folders of splits ({', '.join(sorted(split_names))}) beside others with images "
                f"({', '.join(sorted(others))}); expected only train, val, test, or only classes"
            )
        if split_names:
            return top, top + 1
        if len(names) > 1 or all(len(parts) <= top + 2 for parts in images):
            return top, top
        top += 1


def _datasets(path, source, split_names, classes, labels):
    """{split: Dataset} of the source's rows, given each row's split and label."""
    if len(classes) < 2:
        raise ValueError(f"{path}: only one class, {classes[0]!r}; expected at least two")
    split_names = np.array(split_names)
    rows = {split: np.flatnonzero(split_names == split) for split in ("train", "val", "test")}
    return {
        split: Dataset(source, classes, labels[rows[split]], rows[split])
        for split in rows
        if len(rows[split])
    }


# ---- arrays ------------------------------------------------------------------------------------------------


class _Arrays:
    """Source over uint8 arrays, N x H x W x 3 or N x H x W, one after the other."""

    def __init__(self, arrays):
        self._arrays = arrays  # {key: array}
        self._places = [(key, row) for key, array in arrays.items() for row in range(len(array))]
        self.problems = Problems()

    def name(self, row):
        return "{}[{}]".format(*self._places[row])

    def read(self, row, min_side):
        key, i = self._places[row]
        image = self._arrays[key][i]
        return image if image.ndim == 3 else np.repeat(image[:, :, None], 3, axis=2)


def _open_npz(path, memory_limit_bytes):
    with open(path, "rb") as file:
        try:
            headers = _npz_headers(path, file)
            pairs = _npz_pairs(path, headers)
            for key in pairs:
                _check_images(path, key, *headers[key])
            total = sum(math.prod(shape) * dtype.itemsize for shape, dtype in headers.values())
            if total > memory_limit_bytes:
                raise ValueError(
                    f"{path}: its arrays take {total} bytes, more than memory_limit_bytes "
                    f"({memory_limit_bytes})"
                )
            file.seek(0)
            with np.load(file, allow_pickle=False) as archive:
                arrays = {key: archive[key] for key in pairs}
                labels = {
                    key: _labels(path, labels_key, archive[labels_key], len(arrays[key]))
                    for key, (_, labels_key) in pairs.items()
                }
                classes = [str(name) for name in archive["classes"].ravel()] if "classes" in headers else None
        except MemoryError:
            raise
        except Exception as error:  # zipfile and NumPy raise a dozen types on damaged files
            if str(path) in str(error):
                raise
            reason = str(error) or type(error).__name__
            raise ValueError(f"{path}: not a whole .npz archive: {reason}") from error

    source = _Arrays(arrays)
    split_names = [split for key, (split, _) in pairs.items() for _ in range(len(arrays[key]))]
    values = np.concatenate(list(labels.values()))
    if not len(values):
        raise ValueError(f"{path}: no images")
    if classes is None:
        distinct = np.unique(values)
        classes, values = [str(value) for value in distinct], np.searchsorted(distinct, values)
    elif values.max() >= len(classes):
        raise ValueError(f"{path}: label {values.max()} in a set of {len(classes)} classes")
    return _datasets(path, source, split_names, classes, values)


def _npz_headers(path, file):
    """{key: (shape, dtype)}, read without the arrays: a huge one is refused before it is allocated."""
    headers = {}
    with zipfile.ZipFile(file) as archive:
        for name in archive.namelist():
            with archive.open(name) as member:
                start = io.BytesIO(member.read(_MAX_HEADER_BYTES))
            try:
                major, _ = np.lib.format.read_magic(start)
                read = (
                    np.lib.format.read_array_header_1_0
                    if major == 1
                    else np.lib.format.read_array_header_2_0
                )
                shape, _, dtype = read(start)
            except Exception as error:  # the parser of its literals raises a dozen types
                raise ValueError(f"{path}: {name}: not an array: {error}") from None
            if dtype.hasobject:
                raise ValueError(f"{path}: {name}: holds Python objects, which are not loaded")
            key = name.removesuffix(".npy")
            if key in headers:
                raise ValueError(f"{path}: {key}: two arrays of that name")
            if not all(0 <= n < 1 << 48 for n in shape):
                raise ValueError(f"{path}: {name}: an impossible shape {shape}")
            headers[key] = shape, dtype
    return headers


def _npz_pairs(path, headers):
    """{images key: (split, labels key)}."""
    pairs = {"images": ("train", "labels")} if "images" in headers else {}
    for prefix, split in SPLITS.items():
        if f"{prefix}_images" in headers:
            pairs[f"{prefix}_images"] = split, f"{prefix}_labels"
    if not pairs:
        raise ValueError(
            f"{path}: expected an array 'images' or 'train_images', got {', '.join(sorted(headers))}"
        )
    for key, (_, labels_key) in pairs.items():
        if labels_key not in headers:
            raise ValueError(f"{path}: {key!r} without {labels_key!r}")
    return pairs


def _check_images(path, key, shape, dtype):
    if dtype != np.uint8 or len(shape) not in (3, 4) or (len(shape) == 4 and shape[3] != 3):
        raise ValueError(
            f"{path}: {key}: expected uint8 N x H x W x 3 or N x H x W, got {dtype} of shape {shape}"
        )


def _labels(path, key, labels, n):
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.dtype.kind not in "iu" or labels.shape != (n,) or (n and labels.min() < 0):
        raise ValueError(
            f"{path}: {key}: expected {n} integers from 0, got {labels.dtype} of shape {labels.shape}"
        )
    return labels.astype(np.int64)
