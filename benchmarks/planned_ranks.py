"""What planning is worth: ranks chosen by layer against one rank for all, at equal bytes, by fine-tuning a pretrained ViT.

    python benchmarks/planned_ranks.py --data cifar10_jpg.tar.gz --weights vit_tiny.safetensors --out runs/planned

For each method three plans of the same peak: one rank for every layer, walked plainly; ranks and residual bits by layer, walked
plainly; and all that a step may do (micro-batch, recomputation, bits of what is kept, of gradients and of momentum) chosen too.
The bytes are those of the first. A seed fixes the head, the images' order and augmentation for all alike. Trains what --out does
not hold yet, and writes benchmarks/results/planned_ranks.{md,json}.
"""

import argparse
import itertools
import statistics
from pathlib import Path

from harness import RESULTS, context, mib, write_results

import wasi
from wasi.models.plan import Plan
from wasi.training.data import Loader, Transform, open_splits
from wasi.training.loop import TrainConfig, train
from wasi.training.runlog import RunFolder, read_result

PLAIN = {"recompute": False, "saved_bits": None, "gradient_bits": 32, "state_bits": 32}


def make_loader(args, images, seed, training):
    batch_size = args.batch_size if training else 100
    return Loader(images, batch_size, Transform(args.img_size, train=training), shuffle=training, seed=seed, drop_last=training,
                  n_workers=0, cache_bytes=2**29)


def make_model(args, classes, seed):
    return wasi.create_model("vit_tiny_patch16_224", len(classes), args.img_size, args.weights, seed)


def make_plans(args, method, train_set):
    """{name: Plan}, read from the folder of the runs where they are there."""
    batches = list(itertools.islice(make_loader(args, train_set, 0, True), args.calibration))
    settings = {"method": method, "batch_size": args.batch_size, "target_modules": ("all",)}
    plain = {**settings, **PLAIN, "micro_batch": args.batch_size}
    plans = {}
    for name in ("one rank", "ranks by layer", "all chosen"):
        path = Path(args.out) / f"{method}-{name.replace(' ', '-')}.json"
        if not path.exists():
            model = make_model(args, train_set.classes, 0)
            if name == "one rank":
                plan = wasi.plan(model, batches, 2**40, ranks=[args.rank], **plain)
            else:
                walked = plain if name == "ranks by layer" else settings
                plan = wasi.plan(model, batches, plans["one rank"].peak_bytes, **walked)
            path.parent.mkdir(parents=True, exist_ok=True)
            plan.save(path)
        plans[name] = Plan.load(path)
    return plans


def run(args, method, name, plan, seed, sets):
    """The result of training by a plan, from its folder where that is done."""
    path = Path(args.out) / f"{method}-{name.replace(' ', '-')}-seed-{seed}"
    if read_result(path) is None:
        loader = make_loader(args, sets["train"], seed, True)
        model = make_model(args, sets["train"].classes, seed)
        plan.apply(model, list(itertools.islice(loader, plan.calibration)))
        loader.set_epoch(0)
        config = TrainConfig(args.epochs, args.lr, "sgd", momentum=0.9, n_warmup=5, checkpoint_every=0, **plan.training)
        folder = RunFolder(path, resume=(path / "config.json").exists())
        folder.write_json("config.json", {"method": method, "plan": name, "seed": seed, **vars(args)})
        train(model, loader, make_loader(args, sets["test"], seed, False), config, folder, progress=False, plan=plan)
    return read_result(path)


def write_table(args, plans, results):
    records = [{"method": method, "plan": name, "seeds": args.seeds[: len(runs)],
                "ranks": sorted(layer.rank for layer in plan.layers), "bits": sorted({layer.bits for layer in plan.layers}),
                "planned_bytes": plan.peak_bytes, "counted_bytes": max(r["counted_peak_bytes"] for r in runs),
                "step": {"micro_batch": plan.micro_batch, "recompute": plan.recompute, "saved_bits": plan.saved_bits,
                         "gradient_bits": plan.gradient_bits, "state_bits": plan.state_bits},
                "error": plan.error, "flops": plan.flops, "top1": [100 * r["val_accuracy"] for r in runs],
                "loss": [r["epochs"][-1]["val_loss"] for r in runs],
                **context(args.threads)}
               for (method, name), runs in results.items() if runs for plan in [plans[method][name]]]

    def step(r):
        s = r["step"]
        words = [f"micro-batch {s['micro_batch']}"] + ["recomputed"] * s["recompute"]
        words += [f"{s['saved_bits']} bits kept"] * bool(s["saved_bits"])
        words += [f"{what} in 16 bits" for what in ("gradient", "state") if s[f"{what}_bits"] == 16]
        return ", ".join(words)

    title = (f"Planned ranks: vit_tiny_patch16_224, {args.img_size} px, {args.limit} images, {args.epochs} epochs: top-1 % on "
             f"{args.limit_test} test images, mean (seed by seed)")
    write_results("planned_ranks", title, records, {
        "method": lambda r: r["method"],
        "plan": lambda r: r["plan"],
        "ranks": lambda r: f"{r['ranks'][0]} to {r['ranks'][-1]}" if r["ranks"][0] < r["ranks"][-1] else r["ranks"][0],
        "residual bits": lambda r: ", ".join(map(str, r["bits"])),
        "step": step,
        "planned MiB": lambda r: mib(r["planned_bytes"]),
        "counted MiB": lambda r: mib(r["counted_bytes"]),
        "planned error": lambda r: f"{r['error']:.3f}",
        "GFLOP a step": lambda r: f"{r['flops'] / 1e9:.1f}",
        "top-1 %": lambda r: f"{statistics.fmean(r['top1']):.1f} ({', '.join(f'{t:.1f}' for t in r['top1'])})",
        "test loss": lambda r: f"{statistics.fmean(r['loss']):.3f}",
    }, folder=args.results)


def main(words=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", required=True)
    add("--weights", required=True)
    add("--out", required=True, help="folder of the runs")
    add("--methods", nargs="+", default=["wsi", "qwasi"])
    add("--rank", type=int, default=48, help="of every layer in the plans of one rank")
    add("--img-size", type=int, default=112)
    add("--epochs", type=int, default=2)
    add("--batch-size", type=int, default=32)
    add("--lr", type=float, default=0.02)
    add("--calibration", type=int, default=2, help="batches to plan on")
    add("--limit", type=int, default=600, help="training images")
    add("--limit-test", type=int, default=1000)
    add("--seeds", type=int, nargs="+", default=[0, 1])
    add("--threads", type=int, default=1)
    add("--results", default=RESULTS, help="folder of the table")
    args = parser.parse_args(words)
    wasi.set_num_threads(args.threads)
    splits = open_splits(args.data)
    sets = {"train": splits["train"].subset(args.limit, 0), "test": splits["test"].subset(args.limit_test, 0)}
    plans = {method: make_plans(args, method, sets["train"]) for method in args.methods}
    results = {(method, name): [] for method in plans for name in plans[method]}
    for seed in args.seeds:
        for (method, name), runs in results.items():
            runs.append(run(args, method, name, plans[method][name], seed, sets))
            print(f"{method}, {name}, seed {seed}: {100 * runs[-1]['val_accuracy']:.1f} %", flush=True)
            write_table(args, plans, results)


if __name__ == "__main__":
    main()
