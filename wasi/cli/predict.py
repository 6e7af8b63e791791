"""`wasi predict`: classes of images or sentences that nobody has labelled, as CSV."""

import contextlib
import csv
import io
import os
import sys
from pathlib import Path

import numpy as np

from wasi.cli import options, texts
from wasi.cli.models import classes_of, model_file, take_over
from wasi.models import load_model
from wasi.models.images import probabilities
from wasi.models.weights import atomic_file
from wasi.training.data import ImageError, Transform, read_image
from wasi.training.dataset import SUFFIXES
from wasi.training.text import TokenSet, open_lines


def run(args):
    options.set_machine(args)
    model, extra = load_model(model_file(args.model))
    take_over(args, model, ("length",))
    for flag, value in (("--top", args.top), ("--batch-size", args.batch_size), ("--length", args.length)):
        if value < 1:
            raise ValueError(f"{flag}: expected at least 1, got {value}")
    if texts.task_of(model) == "lm":
        raise ValueError("model: expected a classifier, got a language model, which wasi generate takes")
    classes = classes_of(extra) or [str(i) for i in range(model.config.num_classes)]
    numbers = [""] if args.top == 1 else range(1, min(args.top, len(classes)) + 1)
    what, batches = ("sentence", sentences(args, model)) if model.architecture == "llama" else ("file", images(args, model))
    n_read = 0
    with text_file(args.out) if args.out else contextlib.nullcontext(sys.stdout) as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow([what, *(f"{word}{i}" for i in numbers for word in ("class", "probability"))])
        for names, inputs in batches:
            for name, row in zip(names, probabilities(model.forward(inputs))):
                best = np.argsort(-row, kind="stable")[: len(numbers)]
                table.writerow([name, *(cell for k in best for cell in (classes[k], f"{row[k]:.4f}"))])
            n_read += len(names)
        if not n_read:
            raise ValueError(f"inputs: expected some {what}s that can be read, got none in {', '.join(args.inputs)}")
    return 0


def sentences(args, model):
    """Yields (sentences, token ids (B, N)) of the lines of text files."""
    tokenizer = texts.open_tokenizer(args.tokenizer, args.model)
    lines = [line for name in args.inputs for line in open_lines(name)]
    for start in range(0, len(lines), args.batch_size):
        part = lines[start : start + args.batch_size]
        tokens = TokenSet([np.array(tokenizer.encode(line)[: args.length], np.int64) for line in part], [0] * len(part), ("",))
        texts.check_texts(model, tokens)
        yield part, tokens.batch(np.arange(len(part)))[0]


def images(args, model):
    """Yields (names, uint8 (B, 3, S, S)) of the images that can be read; the others are named on stderr."""
    transform = Transform(model.config.img_size)
    names, pixels = [], []
    for path in (path for name in args.inputs for path in images_at(name)):
        try:
            pixels.append(transform.batch([read_image(path, transform.min_side)]))
        except ImageError as error:
            print(f"not used: {error}", file=sys.stderr)
        else:
            names.append(os.fsencode(path).decode("utf-8", "backslashreplace"))
        if len(names) == args.batch_size:
            yield names, np.concatenate(pixels)
            names, pixels = [], []
    if names:
        yield names, np.concatenate(pixels)


@contextlib.contextmanager
def text_file(path):
    """A context that gives a file to write text to, which appears whole or not at all."""
    with atomic_file(path) as binary:
        file = io.TextIOWrapper(binary, encoding="utf-8", newline="")
        yield file
        file.detach()  # what is in its buffer is in the binary file's now


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
