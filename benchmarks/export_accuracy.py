"""A fine-tuned model handed on: its accuracy in wasi, in PyTorch from the exported safetensors, in ONNX Runtime.

    python benchmarks/export_accuracy.py --data cifar10_jpg.tar.gz --weights vit_tiny_patch16_224.safetensors \\
        --out export_accuracy

Each other program runs in a process of its own, which sees nothing but the exported file and the images. Few training steps: what
counts is that the numbers agree.
"""

import argparse
import itertools
import sys
import tempfile
from pathlib import Path

import harness
import numpy as np

import wasi
from wasi.models.methods import MethodOptions, apply_method
from wasi.training.data import Loader, Transform, open_splits
from wasi.training.optimizer import Optimizer
from wasi.training.step import accumulate_gradient

# Program: the format that it reads, whether factors stay two products.
PROGRAMS = {"PyTorch": ("timm", False), "ONNX Runtime": ("onnx", False), "ONNX Runtime, factored": ("onnx", True)}


def in_pytorch(file, images, labels, model_name, img_size):
    """Set-up: the plain PyTorch model with the file's tensors; the step classifies the images."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
    import torch
    from torch_models import create_model, load_file

    model = create_model(model_name, img_size, 10)
    model.load_state_dict(load_file(file), strict=True)

    def logits(x):
        with torch.no_grad():
            return model.eval()(torch.from_numpy(x)).numpy()

    return lambda: _classify(file, logits, images, labels)


def in_onnx_runtime(file, images, labels, model_name, img_size):
    """As `in_pytorch`."""
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return lambda: _classify(file, lambda x: session.run(["logits"], {"images": x})[0], images, labels)


def _classify(file, logits, images, labels):
    """Accuracy; the logits are left beside the file."""
    x = np.load(images)
    found = np.concatenate([logits(x[i : i + 32]) for i in range(0, len(x), 32)])
    np.save(f"{file}.logits.npy", found)
    return {"accuracy": float((found.argmax(1) == np.load(labels)).mean())}


COLUMNS = {
    "trained by": lambda r: r["method"],
    "run by": lambda r: r["program"],
    "file, MiB": lambda r: f"{r['file_bytes_on_disk'] / 2**20:.1f}",
    "top-1 %": lambda r: f"{100 * r['values']['accuracy']:.2f}",
    "less wasi's": lambda r: f"{100 * (r['values']['accuracy'] - r['own_accuracy']):+.2f}",
    "largest difference of a logit": lambda r: f"{r['difference']:.1e}",
}


def trained(method, args, train_set):
    """The model after a few steps by a method."""
    model = wasi.create_model(args.model, num_classes=10, img_size=args.img_size, weights=args.weights)
    loader = Loader(train_set.subset(args.batch * args.steps, 0), args.batch, Transform(args.img_size, train=True), shuffle=True,
                    drop_last=True)
    apply_method(model, method, MethodOptions(targets=("all",), rank=args.rank), list(itertools.islice(loader, 2)), verbose=False)
    optimizer = Optimizer(model, "sgd", momentum=0.9, clip_norm=1.0)
    for images, labels in loader:
        accumulate_gradient(model, images, labels)
        optimizer.step(0.01)
    return model


def records_of(method, args, data, folder):
    """Trains by a method, and yields a record of each program that runs the exported model."""
    model = trained(method, args, data["train"])
    for _, module in model.named_modules():
        module.exact = True  # products with a residual as those of the exported weights, not rounded to 8 bits
    pixels, labels = (np.concatenate(parts) for parts in
                      zip(*Loader(data["test"].subset(args.images, 0), args.batch, Transform(args.img_size))))
    mean, std = (np.array(v, np.float32).reshape(3, 1, 1) for v in (model.config.mean, model.config.std))
    np.save(folder / "images.npy", ((pixels / np.float32(255) - mean) / std).astype(np.float32))
    np.save(folder / "labels.npy", labels)
    logits = np.concatenate([model.forward(pixels[i : i + args.batch]) for i in range(0, len(pixels), args.batch)])
    own = {"method": method, "own_accuracy": float((logits.argmax(1) == labels).mean())}
    for program, (format, factored) in PROGRAMS.items():
        file = folder / f"{method}-{factored}.{format}"
        wasi.export(model, file, format, factored)
        function = in_pytorch if format == "timm" else in_onnx_runtime
        arguments = {"file": str(file), "images": str(folder / "images.npy"), "labels": str(folder / "labels.npy"),
                     "model_name": args.model, "img_size": args.img_size}
        record = harness.run_isolated(function, arguments, steps=1, warmup=0, threads=args.threads)
        difference = float(np.abs(np.load(f"{file}.logits.npy") - logits).max())
        yield {"program": program, **own, "difference": difference, "file_bytes_on_disk": file.stat().st_size, **record}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--model", default="vit_tiny_patch16_224")
    parser.add_argument("--img-size", type=int, default=96)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--methods", nargs="+", default=["qwasi", "wsi"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", metavar="NAME", help="write NAME.json and NAME.md to benchmarks/results/")
    args = parser.parse_args()
    wasi.set_num_threads(args.threads)
    data, records = open_splits(args.data), []
    with tempfile.TemporaryDirectory() as folder:
        for method in args.methods:
            for record in records_of(method, args, data, Path(folder)):
                records.append(record)
                print(harness.markdown_table([record], COLUMNS).splitlines()[2], flush=True)
    if args.out:
        own = ", ".join(f"{r['method']} {100 * r['own_accuracy']:.2f} %" for r in records[:: len(PROGRAMS)])
        title = (f"{args.model} after {args.steps} steps at {args.img_size} px, exported: top-1 on {args.images} images beside "
                 f"wasi's own ({own})")
        harness.write_results(args.out, title, records, COLUMNS)


if __name__ == "__main__":
    main()
