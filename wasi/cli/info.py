"""`wasi info`: what a model file holds."""

import math

from wasi.cli.models import classes_of, model_file
from wasi.models import load_model
from wasi.models.llama_files import read_llama2c, weight_files
from wasi.models.plan import format_bytes
from wasi.models.weights import TensorFile
from wasi.training.checkpoint import Checkpoint


def run(args):
    paths = weight_files(args.model) or [model_file(args.model)]
    llama2c = paths[0].suffix == ".bin" and paths[0].is_file()
    files = [] if llama2c else [TensorFile(path) for path in paths]
    for path in paths:
        print(f"{path}: {format_bytes(path.stat().st_size)}")
    if llama2c or "wasi" not in files[0].metadata:
        found = [(name, file.dtype(name), file.shape(name)) for file in files for name in file.names]
        if llama2c:
            found = [(name, "F32", shape) for name, shape in read_llama2c(paths[0])[0].shapes().items()]
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
