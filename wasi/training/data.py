"""Labelled images for training.

A source is opened, a transform chosen, and a loader iterated over:

    splits = open_splits("flowers.tar.gz")                 # or a folder, .tar, .npz; sign_digits() is shipped
    loader = Loader(splits["train"], 64, Transform(224, train=True), shuffle=True)
    for images, labels in loader:                          # uint8 B x 3 x S x S, int64 B
        x = normalise(images, loader.transform.mean, loader.transform.std)
"""

from importlib.resources import as_file, files

from wasi.training.dataset import Dataset, ImageError, Problem, decode, read_image
from wasi.training.loader import Loader
from wasi.training.sources import open_dataset, open_splits
from wasi.training.transforms import HALF, IMAGENET_MEAN, IMAGENET_STD, Transform, normalise

__all__ = [
    "HALF",
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "Dataset",
    "ImageError",
    "Loader",
    "Problem",
    "Transform",
    "decode",
    "normalise",
    "open_dataset",
    "open_splits",
    "read_image",
    "sign_digits",
]


def sign_digits():
    """The shipped data set, a dict of `Dataset` "train" and "test": hands signing 0 to 9, 64 x 64 px.

    2,062 images of ten classes. Signers, told apart by the numbers of their photographs, are in one of the
    splits only. Source: Mavi, "A New Dataset and Proposed Convolutional Neural Network Architecture for
    Classification of American Sign Language Digits", arXiv 2011.08927; Apache-2.0.

    >>> {split: len(images) for split, images in sign_digits().items()}
    {'train': 1651, 'test': 411}
    """
    with as_file(files("wasi") / "data" / "sign_digits" / "sign_digits.tar.gz") as path:
        return open_splits(path)
