"""`wasi info`: what a model file holds."""

import json
import math

from wasi.cli.models import model_file
from wasi.models import load_model
from wasi.models.plan import format_bytes
from wasi.models.weights import TensorFile


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
    for name, value in (extra or {}).items():
        print(f"{name}: {', '.join(map(str, value)) if isinstance(value, list) else value}")
    if "checkpoint" in file.metadata:
        progress = json.loads(file.metadata["checkpoint"]).get("progress", {})
        print("checkpoint: " + ", ".join(f"{k} {progress[k]}" for k in ("step", "epoch") if k in progress))
    print(model.summary())
    model.print_trainable_parameters()
    return 0
