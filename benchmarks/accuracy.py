"""Fine-tuning accuracy of the given ViT-Ti: dense, WSI in factor space (plain and whitened start) and the published WSI.

Every run sees the same images in the same order. The ranks of all factored runs at a threshold are those of the plain SVD at that
threshold, so a row compares methods at equal ranks. Writes benchmarks/results/wsi_accuracy.{md,json}.

    python benchmarks/accuracy.py --data cifar10_jpg.tar.gz --weights vit_tiny_patch16_224.safetensors
"""

import argparse
import itertools
import statistics
import time

from harness import context, write_results

import wasi
from wasi.layers.published import WsiDenseLinear
from wasi.training.data import Loader, Transform, open_splits
from wasi.training.loop import TrainConfig, train

METHODS = ("published", "plain", "whitened")


def fine_tune(args, method, ranks, seed, loaders):
    """Top-1 after each epoch of one run; ranks: {layer: rank} or None for dense."""
    model = wasi.create_model("vit_tiny_patch16_224", num_classes=10, img_size=args.img_size, weights=args.weights, seed=seed)
    train_loader, val_loader = loaders(seed)
    if method == "published":
        for name, rank in ranks.items():
            layer = model.get_module(name)
            model.set_module(name, WsiDenseLinear(layer.weight.data, layer.bias.data, rank))
    elif method in ("plain", "whitened"):
        batches = [x for x, _ in itertools.islice(loaders(seed)[0], args.calibration)] if method == "whitened" else None
        wasi.factorize(model, rank_pattern=ranks, whiten=batches, target_modules=(args.targets,), verbose=False)
    config = TrainConfig(epochs=args.epochs, lr=args.lr, momentum=args.momentum, n_warmup=args.warmup)
    started = time.perf_counter()
    result = train(model, train_loader, val_loader, config, progress=False)
    print(f"{method} seed {seed}: {[round(100 * e['val_accuracy'], 2) for e in result.epochs]} "
          f"in {time.perf_counter() - started:.0f} s", flush=True)
    return [100 * e["val_accuracy"] for e in result.epochs]


def plain_ranks(args, variance):
    """The ranks that the plain SVD needs at a threshold."""
    model = wasi.create_model("vit_tiny_patch16_224", num_classes=10, img_size=args.img_size, weights=args.weights)
    wasi.factorize(model, variance, target_modules=(args.targets,), verbose=False)
    return {row.name: row.rank for row in model.factorization}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--img-size", type=int, default=112)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--lr", type=float, default=0.02)
    parser.add_argument("--momentum", type=float, default=0.9)
    parser.add_argument("--warmup", type=int, default=10)
    parser.add_argument("--variances", type=float, nargs="+", default=[0.7, 0.8, 0.9])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--targets", default="mlp")
    parser.add_argument("--limit", type=int, default=3000, help="training images")
    parser.add_argument("--limit-val", type=int, default=1000)
    parser.add_argument("--calibration", type=int, default=4, help="batches for the whitened start")
    args = parser.parse_args()

    splits = open_splits(args.data)
    train_set, val_set = splits["train"].subset(args.limit, 0), splits["test"].subset(args.limit_val, 0)

    def loaders(seed):
        return (Loader(train_set, args.batch_size, Transform(args.img_size, train=True), shuffle=True, seed=seed, drop_last=True),
                Loader(val_set, 100, Transform(args.img_size, train=False)))

    origin = context(None)

    def record(method, variance, ranks):
        top1 = [fine_tune(args, method, ranks, seed, loaders) for seed in args.seeds]
        return {"method": method, "variance": variance, "ranks": ranks, "top1": top1, **origin}

    records = [record("dense", None, None)]
    for variance in args.variances:
        ranks = plain_ranks(args, variance)
        records += [record(method, variance, ranks) for method in METHODS]

    def ranks(r):
        return f"{min(r['ranks'].values())}-{max(r['ranks'].values())}" if r["ranks"] else "full"

    def top1(epoch):
        return lambda r: " / ".join(f"{f(s[epoch] for s in r['top1']):.1f}" for f in (statistics.mean, min, max))

    title = f"Fine-tuning ViT-Ti/16 by WSI: top-1 % after each epoch, mean / min / max of seeds {args.seeds}"
    write_results("wsi_accuracy", title, records, {
                      "method": lambda r: r["method"],
                      "variance of the plain SVD": lambda r: r["variance"] or "",
                      "ranks (of 192)": ranks,
                      **{f"epoch {e + 1}": top1(e) for e in range(args.epochs)},
                  })


if __name__ == "__main__":
    main()
