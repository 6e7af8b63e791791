"""`wasi info`: what a model file holds."""

import math

from wasi.cli.models import classes_of, model_file
from wasi.models import load_model
from wasi.models.llama_files import weight_files
from wasi.models.plan import format_bytes
from wasi.models.weights import TensorFile
from wasi.training.checkpoint import Checkpoint


def run(args):
    paths = weight_files(args.model) or [model_file(args.model)]
    files = [TensorFile(path) for path in paths]
    for path in paths:
        print(f"{path}: {format_bytes(path.stat().st_size)}")
    if "wasi" not in files[0].metadata:
        found = [(name, file.dtype(name), file.shape(name)) for file in files for name in file.names]
        for name, dtype, shape in found:
            print(f"{name:<60}{dtype:>6}  {' x '.join(map(str, shape))}")
        print(f"{len(found)} tensors, {sum(math.prod(shape) for *_, shape in found):,} numbers; not written by wasi")
        return 0
    file, path = files[0], paths[0]
    model, extra = load_model(path)
    print(f"architecture {model.architecture}: " + ", ".join(f"{k} {v}" for k, v in vars(model.config).items()))
    classes = classes_of(extra)
    if classes:
        print(f"{len(classes)} classes: {', '.join(classes)}")
    if "checkpoint" in file.metadata:
        progress = Checkpoint(path).progress
        print(f"checkpoint: after step {progress.step}, in epoch {progress.epoch}")
    print(model.summary())
    model.print_trainable_parameters()
    return 0
