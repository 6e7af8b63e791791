"""Stronger augmentation: mixtures of a batch's images with soft targets, random chains of picture operations.

Everything is a function of its arguments: randomness comes in as `rng`, inputs are left alone. `train` mixes by
a generator of its own for each step (TrainConfig.mixup and cutmix), `Transform(augment=RandAugment())` gets one
for each image of each epoch: both are the same after an interruption.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageEnhance, ImageOps


def soft_targets(labels, n_classes, smoothing=0.0):
    """One-hot rows, of which `smoothing` is spread over all classes: float32 B x n_classes, rows sum to 1.

    >>> soft_targets(np.array([1]), 2, smoothing=0.5).tolist()
    [[0.25, 0.75]]
    """
    if not 0 <= smoothing <= 1:
        raise ValueError(f"smoothing: expected a number from 0 to 1, got {smoothing}")
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise TypeError(
            f"labels: expected integers of shape (B,), got {labels.dtype} of shape {labels.shape}"
        )
    if labels.size and not 0 <= labels.min() <= labels.max() < n_classes:
        raise ValueError(f"labels: expected 0 to {n_classes - 1}, got {labels.min()} to {labels.max()}")
    targets = np.full((len(labels), n_classes), smoothing / n_classes, np.float32)
    targets[np.arange(len(labels)), labels] += 1 - smoothing
    return targets


def mixup(images, targets, rng, alpha=0.2):
    """Blends each image, and its target, with another of the batch: l x + (1 - l) x'.

    Each image has its own l ~ Beta(alpha, alpha).

    Parameters: images (B, 3, H, W) uint8 or float32; targets (B, n_classes) float32; rng
    numpy.random.Generator; alpha > 0. Returns new (images, targets) of the same types; uint8 is rounded to
    the nearest. Raises TypeError or ValueError naming the argument that does not fit. Source: Zhang et al.,
    mixup (arXiv 1710.09412), equation 1.
    """
    _check(images, targets, alpha)
    partner = rng.permutation(len(images))
    share = rng.beta(alpha, alpha, len(images)).astype(np.float32)
    mixed = np.empty_like(images)
    for i, (j, l) in enumerate(zip(partner, share)):
        blend = l * images[i].astype(np.float32) + (1 - l) * images[j]
        mixed[i] = np.rint(blend) if images.dtype == np.uint8 else blend
    return mixed, _blend(targets, partner, share)


def cutmix(images, targets, rng, alpha=1.0):
    """Pastes a random rectangle of another image of the batch into each; targets are mixed by area.

    The rectangle has the image's proportions and, before it is cut off at the border, the area 1 - l,
    l ~ Beta(alpha, alpha).

    Parameters, returns, raises: as `mixup`.
    Source: Yun et al., CutMix (arXiv 1905.04899), equations 1 and 2.
    """
    _check(images, targets, alpha)
    n, _, height, width = images.shape
    partner = rng.permutation(n)
    side = np.sqrt(1 - rng.beta(alpha, alpha, n))
    y0, y1 = _interval(rng.uniform(0, height, n), side * height, height)
    x0, x1 = _interval(rng.uniform(0, width, n), side * width, width)
    mixed = images.copy()
    for i, j in enumerate(partner):
        mixed[i, :, y0[i] : y1[i], x0[i] : x1[i]] = images[j, :, y0[i] : y1[i], x0[i] : x1[i]]
    share = 1 - (y1 - y0) * (x1 - x0) / (height * width)
    return mixed, _blend(targets, partner, share.astype(np.float32))


def mix(images, labels, n_classes, rng, mixup_alpha=0.0, cutmix_alpha=0.0, prob=1.0):
    """A batch mixed with probability `prob`: by `mixup` or `cutmix`, whichever has an alpha above 0; with both, one at random.

    images, labels: (B, 3, H, W) uint8 or float32, (B,) integers.
    Returns new images and soft targets (B, n_classes) float32, or the very arguments where the batch is left as it is.
    """
    if rng.random() >= prob:
        return images, labels
    by_mixup = rng.random() < 0.5 if mixup_alpha and cutmix_alpha else bool(mixup_alpha)
    targets = soft_targets(labels, n_classes)
    return mixup(images, targets, rng, mixup_alpha) if by_mixup else cutmix(images, targets, rng, cutmix_alpha)


def _check(images, targets, alpha):
    if images.dtype not in (np.uint8, np.float32) or images.ndim != 4:
        raise TypeError(
            f"images: expected uint8 or float32 (B, 3, H, W), got {images.dtype} of shape {images.shape}"
        )
    if targets.dtype != np.float32 or targets.ndim != 2:
        raise TypeError(
            f"targets: expected float32 (B, n_classes), got {targets.dtype} of shape {targets.shape}"
        )
    if len(targets) != len(images):
        raise ValueError(f"targets: expected {len(images)} rows, got {len(targets)}")
    if alpha <= 0:
        raise ValueError(f"alpha: expected a number above 0, got {alpha}")


def _interval(centre, length, size):
    """(start, stop), whole numbers, of intervals cut off at 0 and size."""
    ends = np.rint([centre - length / 2, centre + length / 2]).astype(int)
    return np.clip(ends, 0, size)


def _blend(targets, partner, share):
    return share[:, None] * targets + (1 - share[:, None]) * targets[partner]


# ---- RandAugment -------------------------------------------------------------------------------------------

FILL = (128, 128, 128)  # what comes into view from beyond the border


def _affine(image, matrix):
    return image.transform(
        image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR, fillcolor=FILL
    )


def _solarize(image, strength):
    return ImageOps.solarize(image, round(256 * (1 - abs(strength))))


# By name: image and strength to image. Strength is -1 to 1; its sign counts only where there are two
# directions.
OPERATIONS = {
    "identity": lambda image, strength: image,
    "auto_contrast": lambda image, strength: ImageOps.autocontrast(image),
    "equalize": lambda image, strength: ImageOps.equalize(image),
    "rotate": lambda image, strength: image.rotate(30 * strength, Image.Resampling.BILINEAR, fillcolor=FILL),
    "shear_x": lambda image, strength: _affine(
        image, (1, 0.3 * strength, -0.15 * strength * image.height, 0, 1, 0)
    ),
    "shear_y": lambda image, strength: _affine(
        image, (1, 0, 0, 0.3 * strength, 1, -0.15 * strength * image.width)
    ),
    "translate_x": lambda image, strength: _affine(image, (1, 0, 0.45 * strength * image.width, 0, 1, 0)),
    "translate_y": lambda image, strength: _affine(image, (1, 0, 0, 0, 1, 0.45 * strength * image.height)),
    "solarize": _solarize,
    "posterize": lambda image, strength: ImageOps.posterize(image, 8 - round(4 * abs(strength))),
    "color": lambda image, strength: ImageEnhance.Color(image).enhance(1 + 0.9 * strength),
    "contrast": lambda image, strength: ImageEnhance.Contrast(image).enhance(1 + 0.9 * strength),
    "brightness": lambda image, strength: ImageEnhance.Brightness(image).enhance(1 + 0.9 * strength),
    "sharpness": lambda image, strength: ImageEnhance.Sharpness(image).enhance(1 + 0.9 * strength),
}


@dataclass(frozen=True)
class RandAugment:
    """`n_ops` picture operations drawn from `operations`, one after the other, each in a random direction.

    Source: Cubuk et al., RandAugment (arXiv 1909.13719); ranges as in timm.

    >>> image = Image.new("RGB", (8, 8))
    >>> RandAugment()(image, np.random.default_rng(0)).size
    (8, 8)
    """

    n_ops: int = 2
    magnitude: float = 9  # of 10
    operations: tuple = tuple(OPERATIONS)

    def __post_init__(self):
        if self.n_ops < 0:
            raise ValueError(f"n_ops: expected at least 0, got {self.n_ops}")
        if not 0 <= self.magnitude <= 10:
            raise ValueError(f"magnitude: expected a number from 0 to 10, got {self.magnitude}")
        unknown = set(self.operations) - OPERATIONS.keys()
        if unknown or not self.operations:
            raise ValueError(f"operations: expected some of {', '.join(OPERATIONS)}, got {self.operations}")

    def __call__(self, image, rng):
        """A new Pillow image (RGB) of the same size."""
        for name in rng.choice(self.operations, self.n_ops):
            image = OPERATIONS[name](image, self.magnitude / 10 * rng.choice((-1, 1)))
        return image
