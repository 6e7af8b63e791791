"""Labelled images: what a source of them looks like to the package, and how one image is decoded."""

import contextlib
import hashlib
import os
import threading
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

# Formats that Pillow may try. Others are left out on purpose: EPS, for one, starts an interpreter.
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")

# An image with more pixels is refused before it is decoded. (For Pillow this limit is only a warning.)
MAX_PIXELS = 89_478_485

EXIF_ORIENTATION = 0x0112


class ImageError(ValueError):
    """An image that cannot be read; the text begins with its name."""


class Problem(NamedTuple):
    """Something in a source that is not among its images, or an image that cannot be read."""

    name: str
    reason: str


class Problems(list):
    """List of `Problem`, one a name, filled from several threads."""

    def __init__(self):
        super().__init__()
        self._names = set()
        self._lock = threading.Lock()

    def add(self, name, reason):
        with self._lock:
            if name not in self._names:
                self._names.add(name)
                self.append(Problem(name, reason))


def decode(file, min_side=None):
    """Decodes an image file: a Pillow image in RGB, upright as its EXIF orientation says.

    Grey and palette images are converted, an alpha channel is dropped, 16-bit grey keeps its upper 8 bits; of
    an animation the first frame is taken. Images of more than `MAX_PIXELS` pixels are refused.

    Parameters: file (path or binary file); min_side (px) lets a JPEG be decoded at 1/2, 1/4 or 1/8 of its
    size, which is several times faster, as long as its shorter side keeps that many pixels.
    """
    try:
        opened = Image.open(file, formats=FORMATS)
    except UnidentifiedImageError:
        raise ImageError(f"not an image in a known format ({', '.join(FORMATS)})") from None
    with opened as image:
        if image.width * image.height > MAX_PIXELS:
            raise ImageError(
                f"{image.width} x {image.height} pixels, more than the {MAX_PIXELS} that are decoded"
            )
        if min_side is not None:
            image.draft(None, (min_side, min_side))
        image.load()
        upright = image if image.getexif().get(EXIF_ORIENTATION, 1) == 1 else ImageOps.exif_transpose(image)
        return _to_rgb(upright)


def read_image(path, min_side=None):
    """The image of a file as `decode` gives it, for a `Transform`. Raises ImageError whose text begins with the path.

    >>> from wasi.training.data import Transform, read_image
    >>> x = Transform(224).batch([read_image("new.jpg")])  # doctest: +SKIP
    """
    try:
        return decode(path, min_side)
    except MemoryError:
        raise
    except Exception as error:  # as in Dataset.read
        raise ImageError(f"{os.fsencode(path).decode('utf-8', 'backslashreplace')}: {_reason(error)}") from error


def _reason(error):
    """What went wrong, without the file's name, for a line that begins with it."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__


def _to_rgb(image):
    if image.mode == "RGB":
        return image
    if image.mode == "I" or image.mode.startswith("I;16"):
        grey = np.asarray(image).clip(0, 0xFFFF) >> 8
        return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ImageError("floating-point pixels, whose range is not known")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")


class Dataset:
    """Images with class labels, read one by one; views of the same source share it and its `problems`.

    Attributes: classes (tuple of names), labels (int64, one an image, indices into `classes`), problems (list
    of `Problem`: everything of the whole source that could not be used, by name).

    `source` has `problems`, `name(row)` and `read(row, min_side)`; `rows` says which of its images are here.
    """

    def __init__(self, source, classes, labels, rows=None):
        self._source = source
        self._rows = np.arange(len(labels)) if rows is None else np.asarray(rows, np.int64)
        self.classes = tuple(classes)
        self.labels = np.array(labels, np.int64)
        self.labels.flags.writeable = False

    @property
    def problems(self):
        return self._source.problems

    def __len__(self):
        return len(self._rows)

    def __repr__(self):
        return f"Dataset({len(self)} images, {len(self.classes)} classes, {len(self.problems)} problems)"

    def name(self, i):
        """Name of image i: its path within the folder or archive, or its array and row."""
        return self._source.name(int(self._rows[i]))

    def read(self, i, min_side=None):
        """Image i in RGB: a Pillow image, or a uint8 array H x W x 3 where the source holds arrays.

        min_side: see `decode`. Raises ImageError, and lists the image in `problems`, where it cannot be read.
        """
        row = int(self._rows[i])
        try:
            return self._source.read(row, min_side)
        except MemoryError:
            raise
        except Exception as error:  # Pillow's decoders raise a dozen types on damaged files
            name, reason = self._source.name(row), _reason(error)
            self.problems.add(name, reason)
            raise ImageError(f"{name}: {reason}") from error

    def fingerprint(self):
        """Text that tells this set from others: of its classes, labels and names, and of four images."""
        digest = hashlib.sha256(repr((self.classes, self.labels.tolist())).encode())
        for i in range(len(self)):
            digest.update(self.name(i).encode(errors="surrogateescape") + b"\0")
        for i in sorted({k * (len(self) - 1) // 3 for k in range(4)}):
            with contextlib.suppress(ImageError):
                digest.update(np.ascontiguousarray(np.asarray(self.read(i))))
        return digest.hexdigest()[:32]

    def counts(self):
        """Images of each class: int64 (len(classes),)."""
        return np.bincount(self.labels, minlength=len(self.classes))

    def take(self, indices):
        """The Dataset of these images, in this order, over the same source and classes."""
        indices = np.asarray(indices, np.int64)
        return Dataset(self._source, self.classes, self.labels[indices], self._rows[indices])

    def with_classes(self, classes):
        """The same images, labelled by these classes, which are its own and others."""
        classes = tuple(classes)
        missing = [name for name in self.classes if name not in classes]
        if missing:
            raise ValueError(f"classes: expected the set's own among them, got none called {', '.join(missing)}")
        place = np.array([classes.index(name) for name in self.classes])
        return Dataset(self._source, classes, place[self.labels], self._rows)

    def split(self, fraction, seed=0, stratified=True):
        """Two random Datasets: about `fraction` of the images, and the rest; each in the order of this one.

        stratified: the fraction holds within each class, and a class of two or more images is on both sides.

        >>> from wasi.training.data import sign_digits
        >>> [len(part) for part in sign_digits()["train"].split(0.9)]
        [1485, 166]
        """
        if not 0 < fraction < 1:
            raise ValueError(f"fraction: expected a number between 0 and 1, got {fraction}")
        rng = np.random.default_rng(seed)
        if stratified:
            groups = [np.flatnonzero(self.labels == label) for label in range(len(self.classes))]
        else:
            groups = [np.arange(len(self))]
        first = [rng.permutation(group)[: _share(len(group), fraction)] for group in groups]
        chosen = np.zeros(len(self), bool)
        chosen[np.concatenate(first)] = True
        if chosen.all() or not chosen.any():
            raise ValueError(f"fraction: {fraction} of {len(self)} images leaves one side empty")
        return self.take(np.flatnonzero(chosen)), self.take(np.flatnonzero(~chosen))

    def subset(self, n=None, seed=0, *, per_class=None):
        """A random Dataset of n images, or of `per_class` images of each class; in the order of this one."""
        if (n is None) == (per_class is None):
            raise ValueError("subset: expected one of n and per_class")
        rng = np.random.default_rng(seed)
        if per_class is None:
            groups, size = [np.arange(len(self))], n
        else:
            groups, size = (
                [np.flatnonzero(self.labels == label) for label in range(len(self.classes))],
                per_class,
            )
        if size < 1:
            raise ValueError(f"{'n' if per_class is None else 'per_class'}: expected at least 1, got {size}")
        for group, name in zip(groups, ["the set"] if per_class is None else self.classes):
            if len(group) < size:
                raise ValueError(
                    f"{'n' if per_class is None else 'per_class'}: {size} images asked for, "
                    f"{name!r} has {len(group)}"
                )
        return self.take(
            np.sort(np.concatenate([rng.choice(group, size, replace=False) for group in groups]))
        )

    def checked(self):
        """The Dataset of those images that decode to the end; the others are named in `problems`.

        Reads every image once.
        """
        good = []
        for i in range(len(self)):
            try:
                self.read(i)
            except ImageError:
                continue
            good.append(i)
        return self.take(good)


def _share(n, fraction):
    """round(n * fraction), moved off 0 and n where there are images enough."""
    share = round(n * fraction)
    return min(max(share, 1), n - 1) if n > 1 else share
