"""Accuracy of the methods beside dense training: fine-tuning a pretrained ViT, what qwasi's factors start from, from scratch.

Trains what the run folders do not hold yet and writes the table from them, so an interrupted command goes on where it was:

    python benchmarks/accuracy.py finetune --data cifar10_jpg.tar.gz --weights vit_tiny.safetensors --out runs/finetune
    python benchmarks/accuracy.py starts --data cifar10_jpg.tar.gz --weights vit_tiny.safetensors --out runs/starts
    python benchmarks/accuracy.py scratch --data cifar10_jpg.tar.gz --out runs/scratch

A seed fixes the new head, the images' order and their augmentation, for every method alike. The table's accuracy is that of the
last epoch on `--limit-test` images; each method takes of its learning rates the one that does best there with the first seed.
Curves by epoch come from `--limit-val` other images. All linears of the blocks are factored. Writes
benchmarks/results/NAME_accuracy.{md,json}.
"""

import argparse
import gc
import itertools
import json
import shutil
import statistics
from dataclasses import asdict, dataclass, field
from pathlib import Path

from harness import RESULTS, commit, context, mib, write_results

import wasi
from wasi.layers import ActivationPolicy
from wasi.models import find_targets
from wasi.models.methods import FACTORED, MethodOptions, apply_method
from wasi.training.data import Loader, Transform, open_splits
from wasi.training.loop import TrainConfig, train
from wasi.training.runlog import RunFolder, read_result, write_json
from wasi.training.step import evaluate

TARGETS = ("all",)


@dataclass(frozen=True)
class Row:
    """One row of the table: a method, its options, and the learning rates that it may choose from."""

    method: str
    lrs: tuple
    share: float | None = None  # factors of so many times the weight's parameters
    options: dict = field(default_factory=dict)  # of MethodOptions
    recompute: bool = False
    most_seeds: int | None = None  # for a row whose place is clear after so many


# Ranks: qwasi's keep weights, gradients and momentum below a sixth of dense training's; wsi's keep its training FLOPs below a
# half, and lora's then takes the same bytes as wsi.
FINETUNE = {
    "dense": Row("dense", (0.01, 0.02, 0.04)),
    "qwasi, 8 bits, rank 7": Row("qwasi", (0.01, 0.02, 0.03), options={"rank": 7, "bits": 8}, recompute=True),
    "qwasi, 4 bits, rank 12": Row("qwasi", (0.02, 0.03), options={"rank": 12, "bits": 4}, recompute=True),
    "wsi, whitened": Row("wsi", (0.03,), share=0.4),
    "lora, rank 12": Row("lora", (0.08,), options={"rank": 12}),
    "wsi-dense, ranks of wsi": Row("wsi-dense", (0.03,), share=0.4, most_seeds=1),
}
STARTS = {
    "dense": Row("dense", (0.03,)),
    **{f"qwasi, rank 12, {start}": Row("qwasi", (0.03,), options={"rank": 12, "start": start})
       for start in ("svd", "whitened", "gradient")},
}
SCRATCH = {
    "dense": Row("dense", (0.001, 0.003)),
    "wsi, half the parameters": Row("wsi", (0.003,), share=0.5),
    "wasi, half the parameters": Row("wasi", (0.003,), share=0.5),
}

# A table's title, rows, and what is not named on the command line.
_PRETRAINED = {"model": "vit_tiny_patch16_224", "batch_size": 32, "optimizer": "sgd", "weight_decay": 0.0, "warmup": 10}
TABLES = {
    "finetune": ("Fine-tuning", FINETUNE, {**_PRETRAINED, "img_size": 112, "epochs": 5, "limit": 1000}),
    "starts": ("Starts of qwasi", STARTS, {**_PRETRAINED, "img_size": 80, "epochs": 3, "limit": 1500}),
    "scratch": ("Training from scratch", SCRATCH,
                {"model": "vit_micro_patch4_32", "img_size": 32, "epochs": 12, "batch_size": 64, "optimizer": "adamw",
                 "weight_decay": 0.05, "warmup": 100, "limit": 4000}),
}


def ready_model(args, row, seed, loader, num_classes):
    """The model of a row, ready for training."""
    model = wasi.create_model(args.model, num_classes=num_classes, img_size=args.img_size, weights=args.weights, seed=seed)
    pattern = None
    if row.share is not None:
        shapes = {name: model.get_module(name).weight.data.shape for name in find_targets(model, TARGETS)}
        pattern = {name: max(1, round(row.share * O * I / (O + I))) for name, (O, I) in shapes.items()}
    calibration = list(itertools.islice(loader, args.calibration)) if args.weights and row.method in FACTORED else None
    options = MethodOptions(targets=TARGETS, rank_pattern=pattern, seed=seed, **row.options)
    apply_method(model, row.method, options, calibration, verbose=False)
    if row.recompute:
        model.set_policy(ActivationPolicy(recompute=True, gelu_bits=model.blocks[0].policy.gelu_bits))
    return model


def make_loader(args, images, seed, train):
    batch_size = min(args.batch_size if train else 100, len(images))
    return Loader(images, batch_size, Transform(args.img_size, train=train), shuffle=train, seed=seed, drop_last=train,
                  n_workers=0, cache_bytes=2**29)


def run(args, name, row, lr, seed, sets):
    """Trains one run unless its folder holds it; returns its results."""
    path = Path(args.out) / f"{name.replace(', ', '-').replace(' ', '-')}_lr-{lr:g}_seed-{seed}"
    of_row = {k: v for k, v in asdict(row).items() if k not in ("lrs", "most_seeds")}
    settings = {"name": name, "lr": lr, "seed": seed, "row": of_row,
                "sets": {kind: len(images) for kind, images in sets.items()}, "epochs": args.epochs,
                "img_size": args.img_size, "model": args.model, "batch_size": args.batch_size}
    if not (path / "test.json").exists():
        if path.exists():  # began and did not end
            shutil.rmtree(path)
        folder = RunFolder(path)
        folder.write_json("config.json", settings)
        train_loader, val_loader, test_loader = (make_loader(args, images, seed, kind == "train")
                                                 for kind, images in sets.items())
        model = ready_model(args, row, seed, train_loader, len(sets["train"].classes))
        train_loader.set_epoch(0)
        config = TrainConfig(args.epochs, lr, args.optimizer, momentum=args.momentum, weight_decay=args.weight_decay,
                             n_warmup=args.warmup)
        result = train(model, train_loader, val_loader, config, folder, progress=False)
        if result.interrupted:
            raise KeyboardInterrupt
        test = evaluate(model, test_loader)
        del model
        gc.collect()
        write_json(path / "test.json", {"accuracy": test.accuracy, "loss": test.loss, "commit": commit()})
        print(f"{path.name}: test {100 * test.accuracy:.2f} %, {result.seconds_per_step:.3f} s a step", flush=True)
    there = json.loads((path / "config.json").read_text())
    if json.loads(json.dumps(settings)) != there:
        raise ValueError(f"out: {path} holds a run with other settings; name another folder")
    return {**read_result(path), "test": json.loads((path / "test.json").read_text()), "lr": lr}


def resident_bytes(result):
    """Weights, gradients and optimiser state."""
    return sum(v for k, v in result["counted"].items() if k != "saved_bytes")


def main(words=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("table", choices=TABLES)
    add("--data", required=True)
    add("--weights")
    add("--model")
    add("--out", required=True, help="folder of the runs")
    add("--img-size", type=int)
    add("--epochs", type=int)
    add("--batch-size", type=int)
    add("--optimizer", choices=("sgd", "adamw"))
    add("--momentum", type=float, default=0.9)
    add("--weight-decay", type=float)
    add("--warmup", type=int)
    add("--calibration", type=int, default=4, help="batches for the start of factors")
    add("--limit", type=int, help="training images")
    add("--limit-val", type=int, default=300)
    add("--limit-test", type=int, default=2000)
    add("--seeds", type=int, nargs="+", default=[0, 1, 2])
    add("--rows", nargs="+", help="beside dense training, only the rows that start with one of these words")
    add("--threads", type=int, default=1)
    add("--results", default=RESULTS, help="folder of the table")
    args = parser.parse_args(words)
    title, rows, defaults = TABLES[args.table]
    for name, value in defaults.items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    wasi.set_num_threads(args.threads)
    rows = {n: r for n, r in rows.items() if not args.rows or n == "dense" or n.startswith(tuple(args.rows))}

    splits = open_splits(args.data)
    held_out = splits["test"].subset(args.limit_val + args.limit_test, 0)
    val_set, test_set = held_out.split(args.limit_val / len(held_out), 0)
    sets = {"train": splits["train"].subset(args.limit, 0), "val": val_set, "test": test_set}

    best = {}
    for name, row in rows.items():
        tried = {lr: run(args, name, row, lr, args.seeds[0], sets) for lr in row.lrs}
        best[name] = max(tried, key=lambda lr: tried[lr]["test"]["accuracy"])
    results = {name: [] for name in rows}
    for seed in args.seeds:
        for name, row in rows.items():
            if len(results[name]) != row.most_seeds:
                results[name].append(run(args, name, row, best[name], seed, sets))
        write_table(args, title, results)


def write_table(args, title, results):
    """Reads the runs' results into benchmarks/results/NAME_accuracy.{md,json}."""
    dense = results["dense"]
    records = [{"method": name, "lr": runs[0]["lr"], "seeds": args.seeds[: len(runs)],
                "top1": [100 * r["test"]["accuracy"] for r in runs],
                "lead": [100 * (r["test"]["accuracy"] - d["test"]["accuracy"]) for r, d in zip(runs, dense)],
                "resident_bytes": resident_bytes(runs[0]), "counted": runs[0]["counted"],
                "step_peak_bytes": runs[0]["step_peak_bytes"], "flops_per_image": runs[0]["flops_per_image"],
                "seconds_per_step": [r["seconds_per_step"] for r in runs],
                **context(args.threads), "commit": runs[0]["test"]["commit"]}
               for name, runs in results.items()]
    first = records[0]

    def over_seeds(values):
        spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
        return f"{statistics.fmean(values):.1f}{spread}"

    def ratio(key):
        return lambda r: f"{r[key] / first[key]:.2f}"

    title = (f"{title}: {args.model}, {args.img_size} px, {args.limit} images, "
             f"{args.epochs} epochs: top-1 % on {args.limit_test} test images, mean ± deviation of seeds {records[0]['seeds']}")
    write_results(f"{args.table}_accuracy", title, records, {
        "method": lambda r: r["method"],
        "lr": lambda r: f"{r['lr']:g}",
        "seeds": lambda r: len(r["seeds"]),
        "top-1 %": lambda r: over_seeds(r["top1"]),
        "less dense's, same seed": lambda r: over_seeds(r["lead"]),
        "weights + gradients + optimiser, MiB": lambda r: f"{r['resident_bytes'] / 2**20:.1f}",
        "of dense's": ratio("resident_bytes"),
        "saved for backward, MiB": lambda r: mib(r["counted"]["saved_bytes"]),
        "peak of a step's arrays, MiB": lambda r: mib(r["step_peak_bytes"]),
        "peak of dense's": ratio("step_peak_bytes"),
        "training FLOPs of dense's": ratio("flops_per_image"),
    }, folder=args.results)


if __name__ == "__main__":
    main()
