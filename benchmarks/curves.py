"""The same dense training run in PyTorch and in wasi: the same batches, weights, head, rate and clipping.

    python benchmarks/curves.py --data cifar10_jpg.tar.gz --weights vit_tiny_patch16_224.safetensors
    python benchmarks/curves.py --data cifar10_jpg.tar.gz --model swin_tiny_patch4_window7_224 --window-size 4 --img-size 64

Without --weights both start from wasi's random ones. Pixels are scaled to [-1, 1] for either model. With --perturb E PyTorch
also runs from weights w (1 + E n), n normal: how far rounding alone carries its curve from itself.
"""

import argparse
import tempfile
from pathlib import Path

import harness
import numpy as np
import torch
import torch_finetune

import wasi
from wasi.models.weights import published_shape
from wasi.training.data import Loader, Transform, open_splits
from wasi.training.optimizer import Optimizer
from wasi.training.schedule import learning_rate
from wasi.training.step import accumulate_gradient

SCALING = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}  # as torch_models.preprocess


def wasi_losses(model, batches, lr, clip, warmup):
    """The loss of each step, taken before its update."""
    images, labels = batches["images"], batches["labels"]
    optimizer = Optimizer(model, "sgd", clip_norm=clip)
    losses = []
    for step in range(len(images)):
        losses.append(accumulate_gradient(model, images[step], labels[step]).loss)
        optimizer.step(learning_rate(step, lr, len(images), "cosine", warmup))
    return losses


def perturbed(weights, size):
    """The weights times 1 + size n, n normal."""
    rng = np.random.default_rng(0)
    return {name: (w * (1 + size * rng.standard_normal(w.shape))).astype(w.dtype) for name, w in weights.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--weights", help="(default: random)")
    parser.add_argument("--model", default="vit_tiny_patch16_224")
    parser.add_argument("--window-size", type=int, help="of a Swin transformer (default: the model's)")
    parser.add_argument("--img-size", type=int, default=112)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--lr", type=float, default=0.01)
    parser.add_argument("--clip", type=float, default=1.0)
    parser.add_argument("--warmup", type=int, default=5)
    parser.add_argument("--perturb", type=float, metavar="E")
    parser.add_argument("--out", default="dense_curves", metavar="NAME", help="of the tables in benchmarks/results/")
    args = parser.parse_args()

    changes = {} if args.window_size is None else {"window_size": args.window_size}
    model = wasi.create_model(args.model, num_classes=10, img_size=args.img_size, weights=args.weights, **SCALING, **changes)
    start = {name: published_shape(model, name, p.data).copy() for name, p in model.named_parameters()}
    head = model.head_parameters()
    train_set = open_splits(args.data)["train"].subset(args.batch_size * args.steps, 0)
    loader = Loader(train_set, args.batch_size, Transform(args.img_size, train=True), shuffle=True, drop_last=True)
    images, labels = (np.concatenate(parts) for parts in zip(*loader))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "batches.npz"
        torch_finetune.write_batches(path, images, labels, args.batch_size, 10, head[0].data.shape[1])
        batches = dict(np.load(path))
    head[0].data[:], head[1].data[:] = batches["head_weight"], batches["head_bias"]
    ours = wasi_losses(model, batches, args.lr, args.clip, args.warmup)

    def torch_losses(weights, dtype=torch.float32):
        return torch_finetune.train(weights, batches, 10, args.img_size, args.lr, clip=args.clip, warmup=args.warmup,
                                    schedule=torch_finetune.warmup_cosine, model_name=args.model, dtype=dtype, **changes)

    theirs, exact = torch_losses(start), torch_losses(start, torch.float64)
    origin = harness.context(None)
    records = [{"step": i, "wasi": a, "torch": b, "torch_float64": c, "difference": abs(a - b) / b, "rounding": abs(b - c) / c,
                **origin} for i, (a, b, c) in enumerate(zip(ours, theirs, exact))]
    columns = {
        "step": lambda r: r["step"],
        "PyTorch": lambda r: f"{r['torch']:.6f}",
        "wasi": lambda r: f"{r['wasi']:.6f}",
        "relative difference": lambda r: f"{r['difference']:.1e}",
        "PyTorch, float64": lambda r: f"{r['torch_float64']:.6f}",
    }
    largest, rounding = (max(r[key] for r in records) for key in ("difference", "rounding"))
    title = (f"Dense training of {args.model} from {'published' if args.weights else 'random'} weights, loss by step: "
             f"wasi within {largest:.1e} of PyTorch, PyTorch in float32 within {rounding:.1e} of itself in float64")
    if args.perturb:
        for record, other in zip(records, torch_losses(perturbed(start, args.perturb))):
            record["perturbed"] = abs(other - record["torch"]) / record["torch"]
        title += f" and {max(r['perturbed'] for r in records):.1e} of itself from weights moved by {args.perturb:g} of each"
        columns |= {"PyTorch from itself in float64": lambda r: f"{r['rounding']:.1e}",
                    f"PyTorch from itself, weights moved by {args.perturb:g}": lambda r: f"{r['perturbed']:.1e}"}
    harness.write_results(args.out, title, records, columns)
    print(title)


if __name__ == "__main__":
    main()
