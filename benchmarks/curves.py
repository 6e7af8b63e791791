"""The same dense fine-tuning run in PyTorch and in wasi: ViT-Ti on CIFAR-10, the same batches, head, rate and clipping.

    python benchmarks/curves.py --data cifar10_jpg.tar.gz --weights vit_tiny_patch16_224.safetensors
"""

import argparse
import tempfile
from pathlib import Path

import harness
import numpy as np
import torch
import torch_finetune

import wasi
from wasi.training.data import Loader, Transform, open_splits
from wasi.training.optimizer import Optimizer
from wasi.training.schedule import learning_rate
from wasi.training.step import accumulate_gradient


def wasi_losses(weights, batches, img_size, lr, clip, warmup):
    """The loss of each step, taken before its update."""
    images, labels = batches["images"], batches["labels"]
    model = wasi.create_model("vit_tiny_patch16_224", num_classes=len(batches["head_bias"]), img_size=img_size, weights=weights)
    model.head.weight.data[:], model.head.bias.data[:] = batches["head_weight"], batches["head_bias"]
    optimizer = Optimizer(model, "sgd", clip_norm=clip)
    losses = []
    for step in range(len(images)):
        losses.append(accumulate_gradient(model, images[step], labels[step]).loss)
        optimizer.step(learning_rate(step, lr, len(images), "cosine", warmup))
    return losses


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--img-size", type=int, default=112)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--lr", type=float, default=0.01)
    parser.add_argument("--clip", type=float, default=1.0)
    parser.add_argument("--warmup", type=int, default=5)
    args = parser.parse_args()

    train_set = open_splits(args.data)["train"].subset(args.batch_size * args.steps, 0)
    loader = Loader(train_set, args.batch_size, Transform(args.img_size, train=True), shuffle=True, drop_last=True)
    images, labels = (np.concatenate(parts) for parts in zip(*loader))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "batches.npz"
        torch_finetune.write_batches(path, images, labels, args.batch_size, 10)
        batches = dict(np.load(path))
    ours = wasi_losses(args.weights, batches, args.img_size, args.lr, args.clip, args.warmup)
    theirs, exact = (torch_finetune.train(args.weights, batches, 10, args.img_size, args.lr, clip=args.clip, warmup=args.warmup,
                                          schedule=torch_finetune.warmup_cosine, dtype=dtype)
                     for dtype in (torch.float32, torch.float64))
    origin = harness.context(None)
    records = [{"step": i, "wasi": a, "torch": b, "torch_float64": c, "difference": abs(a - b) / b, "rounding": abs(b - c) / c,
                **origin} for i, (a, b, c) in enumerate(zip(ours, theirs, exact))]
    largest, rounding = (max(r[key] for r in records) for key in ("difference", "rounding"))
    title = (f"Dense fine-tuning of ViT-Ti, loss by step: wasi within {largest:.1e} of PyTorch, "
             f"PyTorch in float32 within {rounding:.1e} of itself in float64")
    harness.write_results("dense_curves", title, records, {
        "step": lambda r: r["step"],
        "PyTorch": lambda r: f"{r['torch']:.6f}",
        "wasi": lambda r: f"{r['wasi']:.6f}",
        "relative difference": lambda r: f"{r['difference']:.1e}",
        "PyTorch, float64": lambda r: f"{r['torch_float64']:.6f}",
    })
    print(title)


if __name__ == "__main__":
    main()
