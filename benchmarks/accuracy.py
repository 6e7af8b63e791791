"""Accuracy of the methods beside dense training: fine-tuning a pretrained ViT, from scratch, what qwasi's factors start from,
and what each saving that changes the gradient costs.

Trains what the run folders do not hold yet and writes the table from them, so an interrupted command goes on where it was:

    python benchmarks/accuracy.py finetune --data cifar10_jpg.tar.gz --weights vit_tiny.safetensors --out runs/finetune
    python benchmarks/accuracy.py starts --data cifar10_jpg.tar.gz --weights vit_tiny.safetensors --out runs/starts
    python benchmarks/accuracy.py cost --data cifar10_jpg.tar.gz --weights vit_tiny.safetensors --out runs/cost
    python benchmarks/accuracy.py scratch --data cifar10_jpg.tar.gz --out runs/scratch

A seed fixes the new head, the images' order and their augmentation, for every method alike. The table's accuracy is that of the
last epoch on `--limit-test` images; each method takes of its learning rates the one with the least loss on `--limit-val` other
images with the first seed. All linears of the blocks are factored. Differences are between runs of one seed, on the same images;
their deviation is over seeds, and beside it stands what the choice of test images adds: the standard error of the mean difference
over these images. Writes benchmarks/results/NAME_accuracy.{md,json}.
"""

import argparse
import gc
import itertools
import json
import shutil
import statistics
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
from harness import RESULTS, commit, context, mib, write_results

import wasi
from wasi.layers import ActivationPolicy, FactoredLinear
from wasi.models import load_model
from wasi.models.methods import FACTORED, MethodOptions, apply_method, default_freeze
from wasi.names import PRECISIONS
from wasi.training.data import Loader, Transform, open_splits
from wasi.training.loop import TrainConfig, train
from wasi.training.runlog import RunFolder, read_result, write_json

TARGETS = ("all",)
N_CURVE = 100  # validation images of the curves by epoch
EMBEDDINGS = ("patch_embed", "pos_embed", "cls_token")


@dataclass(frozen=True)
class Row:
    """One row of the table: a method, its options, and the learning rates that it may choose from."""

    method: str
    lrs: tuple
    share: float | None = None  # factors of so many times the weights' parameters
    options: dict = field(default_factory=dict)  # of MethodOptions
    policy: dict = field(default_factory=dict)  # of ActivationPolicy
    train: dict = field(default_factory=dict)  # of TrainConfig
    precision: str = "float32"  # of linear layers' products
    exact_tiles: bool = False  # qwasi's residual is multiplied in float32
    calibration: int = 4  # batches for the start of factors
    most_seeds: int | None = None  # for a row whose place is clear after so many


def first_blocks(n):
    """Names of all before block n."""
    return (*EMBEDDINGS, *(f"blocks.{i}" for i in range(n)))


# Ranks: qwasi's keep weights, gradients and momentum below a sixth of dense training's; wsi's keep its training FLOPs below a
# half, lora's then takes the same bytes as wsi, and dense training of the last blocks as many FLOPs.
FROZEN = "dense, embeddings frozen"  # the other row that differences are taken from
RECOMPUTE, BFLOAT16 = {"recompute": True}, {"gradient_bits": 16, "state_bits": 16}
_WHITENED = {"start": "whitened"}
FINETUNE = {
    "dense": Row("dense", (0.01, 0.02, 0.04)),
    FROZEN: Row("dense", (0.02,), options={"freeze": EMBEDDINGS}),
    "qwasi, 8 bits, rank 12, embeddings frozen": Row(
        "qwasi", (0.02,), options={"rank": 12, "bits": 8, "freeze": EMBEDDINGS}, policy=RECOMPUTE, train=BFLOAT16),
    "qwasi, 4 bits, rank 18, embeddings frozen": Row(
        "qwasi", (0.02,), options={"rank": 18, "bits": 4, "freeze": EMBEDDINGS}, policy=RECOMPUTE, train=BFLOAT16),
    "qwasi, 8 bits, rank 7": Row("qwasi", (0.01, 0.02, 0.03), options={"rank": 7, "bits": 8}, policy=RECOMPUTE),
    "qwasi, 4 bits, rank 12": Row("qwasi", (0.02, 0.03), options={"rank": 12, "bits": 4}, policy=RECOMPUTE),
    "wsi, fisher": Row("wsi", (0.03,), share=0.4, calibration=16),
    "wsi, whitened": Row("wsi", (0.03,), share=0.4, options=_WHITENED),
    "wsi, whitened, last 4 blocks": Row("wsi", (0.03,), share=0.65, options={"freeze": first_blocks(8), **_WHITENED}),
    "dense, last 3 blocks": Row("dense", (0.03,), options={"freeze": first_blocks(9)}),
    "wasi, fisher": Row("wasi", (0.03,), share=0.4, calibration=16),
    "wasi, whitened": Row("wasi", (0.03,), share=0.4, options=_WHITENED, most_seeds=1),
    "asi": Row("asi", (0.02,), most_seeds=1),
    "lora, rank 12": Row("lora", (0.08,), options={"rank": 12}),
    "qlora, 4 bits, rank 12": Row("qlora", (0.08,), options={"rank": 12}, policy=RECOMPUTE),
    "wsi-dense, ranks of wsi": Row("wsi-dense", (0.03,), share=0.4, most_seeds=1),
}
STARTS = {
    "dense": Row("dense", (0.03,)),
    **{f"qwasi, rank 12, {start}": Row("qwasi", (0.03,), options={"rank": 12, "start": start})
       for start in ("svd", "whitened", "gradient")},
}
_SCRATCH_LRS = (0.003, 0.001)
SCRATCH = {
    "dense": Row("dense", _SCRATCH_LRS),
    "wsi, half the parameters": Row("wsi", _SCRATCH_LRS, share=0.5),
    "wsi, half the FLOPs": Row("wsi", _SCRATCH_LRS, share=0.38),
    "wasi, half the parameters": Row("wasi", _SCRATCH_LRS, share=0.5),
    "wsi-dense, ranks of wsi": Row("wsi-dense", _SCRATCH_LRS, share=0.5),
    "lora, as many parameters": Row("lora", _SCRATCH_LRS, share=0.5),
    "qwasi, 8 bits, rank 24": Row("qwasi", _SCRATCH_LRS, options={"rank": 24, "bits": 8}),
}


def transfer(dense_lrs, qwasi_lrs, lora_lrs):
    """Rows of the transfer tables by the rates that methods choose from."""
    frozen = {"freeze": default_freeze("qwasi", pretrained=True)}
    return {
        "dense": Row("dense", dense_lrs),
        "dense, stem and batch norms frozen": Row("dense", dense_lrs, options=frozen),
        "qwasi, 8 bits, rank 16": Row("qwasi", qwasi_lrs, options={"rank": 16, "bits": 8, **frozen}),
        "qwasi, 4 bits, rank 8": Row("qwasi", qwasi_lrs, options={"rank": 8, **frozen}),
        "qwasi, 4 bits, rank 8, all trained": Row("qwasi", dense_lrs, options={"rank": 8}),
        "qlora, 4 bits, rank 8": Row("qlora", lora_lrs, options={"rank": 8}),
        "lora, rank 8": Row("lora", lora_lrs, options={"rank": 8}),
        "wsi, half the parameters": Row("wsi", dense_lrs, share=0.5),
        "wasi, half the parameters": Row("wasi", dense_lrs, share=0.5),
    }


_MICRO = {"micro_batch": 8}
_QWASI = {"rank": 12, "bits": 8}
COST = {
    "dense": Row("dense", (0.02,)),
    "products in bfloat16": Row("dense", (0.02,), precision="bfloat16"),
    "kept in 16 bits": Row("dense", (0.02,), policy={"saved_bits": 16}),
    "kept in 8 bits": Row("dense", (0.02,), policy={"saved_bits": 8}),
    "kept in 8 bits, products in bfloat16": Row("dense", (0.02,), policy={"saved_bits": 8}, precision="bfloat16"),
    "4 bits of GELU's derivative": Row("dense", (0.02,), policy={"gelu_bits": 4}),
    "gradient and momentum in 16 bits": Row("dense", (0.02,), train={**BFLOAT16, **_MICRO}),
    "asi, half of each mode, 64 channels": Row("asi", (0.02,)),
    "asi, quarter of each mode, 32 channels": Row("asi", (0.02,), options={"activation_ranks": (0.25, 0.25, 32)}),
    "qwasi, float32 products": Row("qwasi", (0.02,), options=_QWASI, exact_tiles=True),
    "qwasi, 8-bit products": Row("qwasi", (0.02,), options=_QWASI),
}

# A table's title, rows, and what is not named on the command line.
_PRETRAINED = {"model": "vit_tiny_patch16_224", "batch_size": 32, "optimizer": "sgd", "weight_decay": 0.0, "warmup": 10}
TABLES = {
    "finetune": ("Fine-tuning", FINETUNE, {**_PRETRAINED, "img_size": 112, "epochs": 5, "limit": 1000}),
    "starts": ("Starts of qwasi", STARTS, {**_PRETRAINED, "img_size": 80, "epochs": 3, "limit": 1500}),
    "cost": ("The accuracy that savings cost", COST, {**_PRETRAINED, "img_size": 64, "epochs": 2, "limit": 1000}),
    "scratch": ("Training from scratch", SCRATCH,
                {"model": "vit_micro_patch4_32", "img_size": 32, "epochs": 10, "batch_size": 32, "optimizer": "adamw",
                 "weight_decay": 0.05, "warmup": 100, "limit": 10000}),
    **{name: ("Transfer from animals to vehicles", transfer(*lrs),
              {**_PRETRAINED, "model": model, "img_size": img_size, "epochs": 5, "limit": 1000})
       for name, model, img_size, *lrs in (("swin", "swin_mini_patch2_window4_32", 32, (0.01, 0.03), (0.02, 0.06), (0.03, 0.1)),
                                           ("resnet", "resnet18", 64, (0.03, 0.1), (0.1, 0.2), (0.1, 0.3)))},
}


def ready_model(args, row, seed, loader, num_classes):
    """The model of a row, ready for training."""
    model = wasi.create_model(args.model, num_classes=num_classes, img_size=args.img_size, weights=args.weights, seed=seed)
    calibration = list(itertools.islice(loader, row.calibration)) if args.weights and row.method in FACTORED else None
    options = MethodOptions(targets=TARGETS, share=row.share, seed=seed, **row.options)
    apply_method(model, row.method, options, calibration, verbose=False)
    if row.policy:
        model.set_policy(ActivationPolicy(**{"gelu_bits": model.blocks[0].policy.gelu_bits, **row.policy}))
    for _, module in model.named_modules():
        if row.exact_tiles and isinstance(module, FactoredLinear):
            module.exact = True
    return model


def make_loader(args, images, seed, train):
    batch_size = min(args.batch_size if train else 100, len(images))
    return Loader(images, batch_size, Transform(args.img_size, train=train), shuffle=train, seed=seed, drop_last=train,
                  n_workers=0, cache_bytes=2**29)


def folder_of(args, name, lr, seed):
    return Path(args.out) / f"{name.replace(', ', '-').replace(' ', '-')}_lr-{lr:g}_seed-{seed}"


def run(args, name, row, lr, seed, sets):
    """Trains one run unless its folder holds it; returns its results."""
    path = folder_of(args, name, lr, seed)
    of_row = {k: v for k, v in asdict(row).items() if k not in ("lrs", "most_seeds")}
    settings = {"name": name, "lr": lr, "seed": seed, "row": of_row, "images": len(sets["train"]), "epochs": args.epochs,
                "img_size": args.img_size, "model": args.model, "batch_size": args.batch_size}
    wasi.set_matmul_precision(row.precision)
    if not (path / "trained.json").exists():
        if path.exists():  # began and did not end
            shutil.rmtree(path)
        folder = RunFolder(path)
        folder.write_json("config.json", settings)
        train_loader = make_loader(args, sets["train"], seed, True)
        curve_loader = make_loader(args, sets["val"].subset(min(N_CURVE, len(sets["val"])), 0), seed, False)
        model = ready_model(args, row, seed, train_loader, len(sets["train"].classes))
        train_loader.set_epoch(0)
        config = TrainConfig(args.epochs, lr, args.optimizer, momentum=args.momentum, weight_decay=args.weight_decay,
                             n_warmup=args.warmup, checkpoint_every=0, **row.train)
        result = train(model, train_loader, curve_loader, config, folder, progress=False)
        if result.interrupted:
            raise KeyboardInterrupt
        del model
        gc.collect()
        write_json(path / "trained.json", {"commit": commit()})
        print(f"{path.name}: {result.seconds_per_step:.3f} s a step", flush=True)
    there = json.loads((path / "config.json").read_text())
    if json.loads(json.dumps(settings)) != there:
        raise ValueError(f"out: {path} holds a run with other settings; name another folder")
    return {**read_result(path), "path": path, "lr": lr, "commit": json.loads((path / "trained.json").read_text())["commit"]}


def tested(args, result, kind, sets):
    """A run's {"loss", "hits"} on the images of `kind`; hits: whether each was right, in the order of the set."""
    path = result["path"] / f"{kind}.json"
    if path.exists():
        record = json.loads(path.read_text())
        if len(record["hits"]) == len(sets[kind]):
            return {"loss": record["loss"], "hits": np.array([c == "1" for c in record["hits"]])}
    model, _ = load_model(result["path"] / "model.safetensors")
    loss, hits = 0.0, []
    for images, labels in make_loader(args, sets[kind], 0, False):
        logits = model.forward(images)
        loss += model.loss(logits, labels, need_gradient=False)[0] * len(images)
        hits += (logits.argmax(1) == labels).tolist()
    record = {"loss": loss / len(hits), "hits": "".join("01"[hit] for hit in hits)}
    write_json(path, record)
    print(f"{path.parent.name}: {kind} {100 * sum(hits) / len(hits):.2f} %, loss {record['loss']:.4f}", flush=True)
    return {"loss": record["loss"], "hits": np.array(hits)}


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
    add("--limit", type=int, help="training images")
    add("--limit-val", type=int, default=1000)
    add("--limit-test", type=int, default=4000)
    add("--seeds", type=int, nargs="+", default=[0, 1, 2])
    add("--rows", nargs="+", help="beside dense training, only the rows that start with one of these words")
    add("--one-rate", action="store_true", help="of each row's learning rates only the middle one")
    add("--finished", action="store_true", help="train nothing: the table of the runs that are there")
    add("--threads", type=int, default=1)
    add("--precision", choices=PRECISIONS, help="of all rows' products (default: what a row says)")
    add("--name", help="of the table's files (default: TABLE_accuracy)")
    add("--results", default=RESULTS, help="folder of the table")
    args = parser.parse_args(words)
    title, rows, defaults = TABLES[args.table]
    for name, value in defaults.items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    wasi.set_num_threads(args.threads)
    rows = {n: replace(r, precision=args.precision or r.precision, lrs=(r.lrs[len(r.lrs) // 2],) if args.one_rate else r.lrs)
            for n, r in rows.items() if not args.rows or n == "dense" or n.startswith(tuple(args.rows))}

    splits = open_splits(args.data)
    held_out = splits["test"].subset(args.limit_val + args.limit_test, 0)
    val_set, test_set = held_out.split(args.limit_val / len(held_out), 0)
    sets = {"train": splits["train"].subset(args.limit, 0), "val": val_set, "test": test_set}

    results = {name: [] for name in rows}
    for seed in args.seeds:
        for name, row in rows.items():
            if len(results[name]) == row.most_seeds:
                continue
            lrs = [results[name][0]["lr"]] if results[name] else row.lrs
            if args.finished:
                lrs = [lr for lr in lrs if (folder_of(args, name, lr, seed) / "trained.json").exists()]
                if not lrs:
                    continue
            tried = [run(args, name, row, lr, seed, sets) for lr in lrs]
            best = tried[0] if len(tried) == 1 else min(tried, key=lambda r: tested(args, r, "val", sets)["loss"])
            results[name].append({**best, "test": tested(args, best, "test", sets)})
            write_table(args, title, {n: r for n, r in results.items() if r})


def difference(runs, base):
    """Of top-1 %, seed by seed, and the standard error over images of its mean."""
    by_image = np.mean([100.0 * r["test"]["hits"] - 100.0 * b["test"]["hits"] for r, b in zip(runs, base)], axis=0)
    seeds = [100 * float(r["test"]["hits"].mean() - b["test"]["hits"].mean()) for r, b in zip(runs, base)]
    return {"seeds": seeds, "standard_error": float(by_image.std() / len(by_image) ** 0.5)}


def write_table(args, title, results):
    """Reads the runs' results into benchmarks/results/NAME_accuracy.{md,json}."""
    bases = {name: results[name] for name in ("dense", FROZEN) if name in results}
    records = [{"method": name, "lr": runs[0]["lr"], "seeds": args.seeds[: len(runs)],
                "top1": [100 * float(r["test"]["hits"].mean()) for r in runs], "loss": [r["test"]["loss"] for r in runs],
                "lead": {base: difference(runs, bases[base]) for base in bases},
                "resident_bytes": resident_bytes(runs[0]), "counted": runs[0]["counted"],
                "step_peak_bytes": runs[0]["step_peak_bytes"], "flops_per_image": runs[0]["flops_per_image"],
                "seconds_per_step": [r["seconds_per_step"] for r in runs],
                **context(args.threads), "commit": runs[0]["commit"]}
               for name, runs in results.items()]
    first = records[0]

    def over_seeds(values):
        spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
        return f"{statistics.fmean(values):.1f}{spread}"

    def lead(base):
        return lambda r: (f"{over_seeds(r['lead'][base]['seeds'])} ({r['lead'][base]['standard_error']:.1f})"
                          if r["method"] != base else "")

    def ratio(key):
        return lambda r: f"{r[key] / first[key]:.2f}"

    title = (f"{title}: {args.model}, {args.img_size} px, {args.limit} images, "
             f"{args.epochs} epochs: top-1 % on {args.limit_test} test images, mean ± deviation of seeds {records[0]['seeds']}"
             " (standard error from the choice of images)" + (f", products in {args.precision}" if args.precision else ""))
    write_results(args.name or f"{args.table}_accuracy", title, records, {
        "method": lambda r: r["method"],
        "lr": lambda r: f"{r['lr']:g}",
        "seeds": lambda r: len(r["seeds"]),
        "top-1 %": lambda r: over_seeds(r["top1"]),
        "test loss": lambda r: f"{statistics.fmean(r['loss']):.3f}",
        **{f"less that of {base}": lead(base) for base in bases},
        "weights + gradients + optimiser, MiB": lambda r: f"{r['resident_bytes'] / 2**20:.1f}",
        "of dense's": ratio("resident_bytes"),
        "saved for backward, MiB": lambda r: mib(r["counted"]["saved_bytes"]),
        "peak of a step's arrays, MiB": lambda r: mib(r["step_peak_bytes"]),
        "peak of dense's": ratio("step_peak_bytes"),
        "training FLOPs of dense's": ratio("flops_per_image"),
    }, folder=args.results)


if __name__ == "__main__":
    main()
