"""`wasi predict`: classes of images that nobody has labelled, as CSV."""

import contextlib
import csv
import os
import sys
from pathlib import Path

import numpy as np

from wasi.cli import options
from wasi.cli.models import classes_of, model_file
from wasi.models import load_model
from wasi.models.images import probabilities
from wasi.training.data import ImageError, Transform, read_image
from wasi.training.dataset import SUFFIXES


def run(args):
    options.set_machine(args)
    for flag, value in (("--top", args.top), ("--batch-size", args.batch_size)):
        if value < 1:
            raise ValueError(f"{flag}: expected at least 1, got {value}")
    model, extra = load_model(model_file(args.model))
    if model.architecture == "llama":
        raise ValueError("model: expected one of images, got a llama")
    classes = classes_of(extra) or [str(i) for i in range(model.config.num_classes)]
    numbers = [""] if args.top == 1 else range(1, min(args.top, len(classes)) + 1)
    paths = [path for name in args.images for path in images_at(name)]
    n_read = 0
    with open(args.out, "w", newline="") if args.out else contextlib.nullcontext(sys.stdout) as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["file", *(f"{word}{i}" for i in numbers for word in ("class", "probability"))])
        for names, images in batches(paths, Transform(model.config.img_size), args.batch_size):
            for name, row in zip(names, probabilities(model.forward(images))):
                best = np.argsort(-row, kind="stable")[: len(numbers)]
                table.writerow([name, *(cell for k in best for cell in (classes[k], f"{row[k]:.4f}"))])
            n_read += len(names)
    if not n_read:
        raise ValueError(f"images: expected some that can be read, got {len(paths)} files in {', '.join(args.images)}")
    return 0


def images_at(name):
    """The file that a path names, or the images in a folder and in those below, sorted; hidden ones are passed over."""
    path = Path(name)
    if not path.is_dir():
        return [path]
    found = []
    for folder, folders, files in os.walk(path):
        folders[:] = [f for f in folders if not f.startswith(".")]
        found += [Path(folder) / f for f in files if not f.startswith(".") and f.lower().endswith(SUFFIXES)]
    return sorted(found)


def batches(paths, transform, size):
    """Yields (names, uint8 (B, 3, S, S)) of the images that can be read; the others are named on stderr."""
    names, images = [], []
    for path in paths:
        try:
            images.append(transform.batch([read_image(path, transform.min_side)]))
        except ImageError as error:
            print(f"not used: {error}", file=sys.stderr)
        else:
            names.append(os.fsencode(path).decode("utf-8", "backslashreplace"))
        if len(names) == size:
            yield names, np.concatenate(images)
            names, images = [], []
    if names:
        yield names, np.concatenate(images)
