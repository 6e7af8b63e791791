"""`wasi info`: what a model file holds."""

import math

from wasi.cli.models import classes_of, model_file
from wasi.models import load_model
from wasi.models.plan import format_bytes
from wasi.models.weights import TensorFile
from wasi.training.checkpoint import Checkpoint


def run(args):
    path = model_file(args.model)
    file = TensorFile(path)
    print(f"{path}: {format_bytes(path.stat().st_size)}")
    if "wasi" not in file.metadata:
        for name in file.names:
            print(f"{name:<60}{file.dtype(name):>6}  {' x '.join(map(str, file.shape(name)))}")
        total = sum(math.prod(file.shape(name)) for name in file.names)
        print(f"{len(file.names)} tensors, {total:,} numbers; not written by wasi")
        return 0
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
