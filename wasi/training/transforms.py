"""From a decoded image to a square uint8 array of the model's input size, and on to normalised floats."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image

# Of x / 255, by channel. ViTs trained by AugReg, as in timm, take 0.5 for all of them.
HALF = (0.5, 0.5, 0.5)
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

CROPS = ("auto", "resized", "pad", "squash")


@dataclass(frozen=True)
class Transform:
    """Makes a square uint8 image of an image: at random for training, always in the same way otherwise.

    crop      train                                        not train
    resized   random area and aspect ratio, resized        shorter side to img_size / crop_pct, centre crop
    pad       shorter side to img_size, random shift       shorter side to img_size, centre crop
    squash    both sides to img_size, random shift         both sides to img_size
    auto      "pad" for an image whose shorter side is img_size or less, "resized" for the others

    A random shift goes up to `pad` * img_size beyond the image, which is black there. In training images are
    mirrored with probability `flip`, and `augment` comes last.

    >>> image = np.zeros((40, 60, 3), np.uint8)
    >>> Transform(32)(image).shape
    (32, 32, 3)
    >>> Transform(32, train=True)(image, np.random.default_rng(0)).shape
    (32, 32, 3)
    """

    img_size: int  # side of the result, px
    train: bool = False
    mean: tuple = HALF  # for `normalise`: of x / 255, by channel
    std: tuple = HALF
    crop: str = "auto"
    crop_pct: float = 0.875  # what the centre crop leaves of the shorter side
    scale: tuple = (0.35, 1.0)  # range of the random crop's area, as a fraction of the image's
    ratio: tuple = (3 / 4, 4 / 3)  # range of the random crop's width / height
    pad: float = 0.125  # largest shift beyond the border, as a fraction of img_size
    flip: float = 0.5  # probability of a left-right mirror image
    augment: Callable | None = None  # (Pillow image, rng) -> Pillow image of the same size

    def __post_init__(self):
        if self.img_size < 1:
            raise ValueError(f"img_size: expected at least 1, got {self.img_size}")
        if self.crop not in CROPS:
            raise ValueError(f"crop: expected one of {', '.join(CROPS)}, got {self.crop!r}")
        if not 0 < self.crop_pct <= 1:
            raise ValueError(f"crop_pct: expected a number above 0, up to 1, got {self.crop_pct}")
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(f"scale: expected an increasing pair above 0, up to 1, got {self.scale}")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise ValueError(f"ratio: expected an increasing pair above 0, got {self.ratio}")
        if not 0 <= self.pad <= 1:
            raise ValueError(f"pad: expected a number from 0 to 1, got {self.pad}")
        if not 0 <= self.flip <= 1:
            raise ValueError(f"flip: expected a probability, got {self.flip}")
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise ValueError(
                f"mean, std: expected three numbers each, std above 0, got {self.mean}, {self.std}"
            )

    @property
    def min_side(self):
        """The shorter side (px) that an image should keep when it is decoded at reduced size."""
        if self.train:  # the narrowest crop still has img_size pixels
            return math.ceil(
                self.img_size / math.sqrt(self.scale[0] * min(self.ratio[0], 1 / self.ratio[1], 1))
            )
        return round(self.img_size / self.crop_pct)

    def __call__(self, image, rng=None):
        """The image (Pillow, or uint8 H x W x 3) as uint8 img_size x img_size x 3. Training needs rng."""
        return self.finish(self.prepare(image), rng)

    def batch(self, images, rng=None):
        """A sequence of images, each as `__call__` takes it, as a model takes them: uint8 (B, 3, img_size, img_size).

        >>> Transform(32).batch([np.zeros((40, 60, 3), np.uint8)]).shape
        (1, 3, 32, 32)
        """
        batch = np.empty((len(images), 3, self.img_size, self.img_size), np.uint8)
        for place, image in zip(batch, images):
            place[:] = self(image, rng).transpose(2, 0, 1)
        return batch

    def prepare(self, image):
        """The part that is the same in every epoch: a Pillow image, resized unless it is to be cropped."""
        if isinstance(image, np.ndarray):
            image = Image.fromarray(image)
        crop, size = self._crop_of(image), self.img_size
        if crop == "resized" and self.train:
            return image
        if crop == "squash":
            return _resize(image, size, size)
        if crop == "resized":
            return _centre(_shorter_side(image, round(size / self.crop_pct)), size)
        image = _shorter_side(image, size)
        return image if self.train else _centre(image, size)

    def finish(self, image, rng=None):
        """The random part, of what `prepare` gave: uint8 img_size x img_size x 3."""
        if not self.train:
            return np.asarray(image)
        if rng is None:
            raise ValueError(
                "rng: expected a numpy.random.Generator, as this transform draws at random; got None"
            )
        size = self.img_size
        if self._crop_of(image) == "resized":
            image = _resize(
                image, size, size, _random_box(image.width, image.height, self.scale, self.ratio, rng)
            )
        else:
            image = _random_shift(image, size, round(self.pad * size), rng)
        if rng.random() < self.flip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if self.augment is not None:
            image = self.augment(image, rng)
        return np.asarray(image)

    def _crop_of(self, image):
        if self.crop != "auto":
            return self.crop
        return "pad" if min(image.size) <= self.img_size else "resized"


def _resize(image, width, height, box=None):
    if image.size == (width, height) and box is None:
        return image
    return image.resize((width, height), Image.Resampling.BICUBIC, box, reducing_gap=3.0)


def _shorter_side(image, size):
    factor = size / min(image.size)
    return _resize(image, max(size, round(image.width * factor)), max(size, round(image.height * factor)))


def _centre(image, size):
    x, y = round((image.width - size) / 2), round((image.height - size) / 2)
    return image.crop((x, y, x + size, y + size))


def _random_shift(image, size, pad, rng):
    x = int(rng.integers(-pad, image.width - size + pad + 1))
    y = int(rng.integers(-pad, image.height - size + pad + 1))
    return image.crop((x, y, x + size, y + size))


def _random_box(width, height, scale, ratio, rng):
    """(x0, y0, x1, y1) of uniform area and log-uniform aspect; after ten that do not fit, a central box."""
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for _ in range(10):
        area, aspect = width * height * rng.uniform(*scale), math.exp(rng.uniform(low, high))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            x, y = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
            return x, y, x + w, y + h
    w = min(width, max(1, round(height * ratio[1])))
    h = min(height, max(1, round(width / ratio[0])))
    x, y = (width - w) // 2, (height - h) // 2
    return x, y, x + w, y + h


def normalise(images, mean=HALF, std=HALF, out=None):
    """(images / 255 - mean) / std, channel by channel.

    Parameters: images uint8 (..., 3, H, W); mean, std three numbers each; out float32 of that shape or None.
    Returns float32, which is `out` where that is given.
    Raises TypeError or ValueError naming the argument that does not fit.

    >>> normalise(np.full((1, 3, 1, 1), 255, np.uint8)).ravel().tolist()
    [1.0, 1.0, 1.0]
    """
    if images.dtype != np.uint8:
        raise TypeError(f"images: expected uint8, got {images.dtype}")
    if images.ndim < 3 or images.shape[-3] != 3:
        raise ValueError(f"images: expected a shape (..., 3, H, W), got {images.shape}")
    std = np.asarray(std, np.float64).reshape(3, 1, 1)
    mean = np.asarray(mean, np.float64).reshape(3, 1, 1)
    out = np.multiply(images, (1 / (255 * std)).astype(np.float32), out=out, dtype=np.float32)
    out -= (mean / std).astype(np.float32)
    return out
