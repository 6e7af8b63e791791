"""Dense fine-tuning in plain PyTorch: the run that wasi's dense training must reproduce, loss by loss.

    python benchmarks/torch_finetune.py --weights vit_tiny_patch16_224.safetensors --batches batches.npz --out losses.json

Both sides read the same batches and the same new head from one file, `batches.npz`:

    images       uint8 (T, B, 3, S, S)    step t trains on images[t % T]
    labels       int64 (T, B)
    head_weight  float32 (num_classes, C)
    head_bias    float32 (num_classes,)

One step t, on every parameter p with gradient g of the mean cross-entropy:

    g <- g * min(1, clip / (|g| + 1e-6))                    |g| over all parameters together
    v <- momentum * v + g + weight_decay * p                v = 0 at the start
    p <- p - lr_t * v
"""

import argparse
import json
import math
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import harness
from torch_models import create_model, load_weights, preprocess


def constant(t, lr, warmup, steps):
    """lr, after the same linear warm-up as warmup_cosine."""
    return lr * (t + 1) / warmup if t < warmup else lr


def warmup_cosine(t, lr, warmup, steps):
    """lr (t + 1) / warmup for t < warmup, then lr / 2 (1 + cos(pi (t - warmup) / (steps - warmup)))."""
    if t < warmup:
        return lr * (t + 1) / warmup
    return lr * 0.5 * (1 + math.cos(math.pi * (t - warmup) / (steps - warmup)))


SCHEDULES = {"constant": constant, "cosine": warmup_cosine}


def write_batches(path, images, labels, batch, num_classes, width=192, seed=0):
    """Writes the file described above: whole batches of the images in their order, and a random head.

    Parameters: images uint8 (n, 3, S, S), labels (n,), width C of the model. The head's weight is normal with a
    standard deviation of 0.02 from numpy.random.default_rng(seed), its bias zero.
    """
    T = len(images) // batch
    weight = np.random.default_rng(seed).normal(0, 0.02, (num_classes, width)).astype(np.float32)
    np.savez(path, images=np.asarray(images[: T * batch], np.uint8).reshape(T, batch, *images.shape[1:]),
             labels=np.asarray(labels[: T * batch], np.int64).reshape(T, batch),
             head_weight=weight, head_bias=np.zeros(num_classes, np.float32))


def train(weights, batches, num_classes, img_size, lr, momentum=0.0, weight_decay=0.0, clip=None, schedule=constant,
          steps=None, warmup=0, model_name="vit_tiny_patch16_224", dtype=torch.float32, **changes):
    """Trains all parameters and returns the loss of each step, taken before its update.

    Parameters: weights, a safetensors file or a dict of arrays by timm name; batches, the arrays described above;
    clip, the largest gradient norm, or None; schedule, a function (t, lr, warmup, steps) -> lr_t; steps, T by default;
    dtype, torch.float64 shows what rounding does to a run; changes, further arguments of create_model.
    """
    expected = (num_classes, img_size)
    got = (len(batches["head_bias"]), batches["images"].shape[-1])
    if got != expected:
        raise ValueError(f"batches: expected (num_classes, img_size) {expected}, got {got}")
    steps = len(batches["images"]) if steps is None else steps
    model = create_model(model_name, img_size, num_classes, **changes)
    load_weights(model, weights, head=(batches["head_weight"], batches["head_bias"])).to(dtype)
    optimizer = torch.optim.SGD(model.parameters(), lr, momentum, weight_decay=weight_decay)
    losses = []
    for t in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = schedule(t, lr, warmup, steps)
        row = t % len(batches["images"])
        logits = model(preprocess(batches["images"][row]).to(dtype))
        loss = F.cross_entropy(logits, torch.as_tensor(batches["labels"][row]))
        optimizer.zero_grad()
        loss.backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        losses.append(loss.item())
    return losses


def main():
    parser = argparse.ArgumentParser(description="Dense fine-tuning in PyTorch; writes the loss of each step.")
    parser.add_argument("--weights", required=True, help="safetensors file with timm's names")
    parser.add_argument("--batches", required=True, help="npz file with images, labels, head_weight, head_bias")
    parser.add_argument("--model", default="vit_tiny_patch16_224")
    parser.add_argument("--lr", type=float, default=0.05)
    parser.add_argument("--momentum", type=float, default=0.0)
    parser.add_argument("--weight-decay", type=float, default=0.0)
    parser.add_argument("--clip", type=float)
    parser.add_argument("--schedule", choices=SCHEDULES, default="cosine")
    parser.add_argument("--warmup", type=int, default=0, help="steps of linear warm-up")
    parser.add_argument("--steps", type=int, help="as many as there are batches by default")
    parser.add_argument("--float64", action="store_true")
    parser.add_argument("--threads", type=int, default=harness.cpu_count())
    parser.add_argument("--out", required=True, help="JSON file to write")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with np.load(args.batches) as file:
        batches = dict(file)
    settings = {"lr": args.lr, "momentum": args.momentum, "weight_decay": args.weight_decay, "clip": args.clip,
                "warmup": args.warmup, "steps": args.steps or len(batches["images"]), "model_name": args.model}
    seconds, losses = harness.timed(lambda: train(
        args.weights, batches, len(batches["head_bias"]), batches["images"].shape[-1], **settings,
        schedule=SCHEDULES[args.schedule], dtype=torch.float64 if args.float64 else torch.float32))
    record = {"losses": losses, "seconds": seconds, "schedule": args.schedule, **settings, **harness.context(args.threads)}
    Path(args.out).write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
