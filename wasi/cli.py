"""The `wasi` command."""

import argparse
import itertools
import json
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path


def build_parser():
    from wasi.models.methods import METHODS

    parser = argparse.ArgumentParser(prog="wasi", description="Fine-tune, train and run transformers on a CPU in little memory.")
    commands = parser.add_subparsers(dest="command", required=True)
    train = commands.add_parser(
        "train", formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        help="train or fine-tune a model; without arguments: the shipped sign-language digits, dense and wsi",
        description="Trains a model by each method on the same batches and prints accuracy, seconds a step and measured "
                    "peak memory. Without --data it uses the shipped sign-language digits.")
    add = train.add_argument
    add("--data", help="image folder, tar, tar.gz or npz (default: the shipped sign-language digits)")
    add("--weights", help="safetensors file with timm or torchvision names to start from (default: random)")
    add("--model", help="architecture (default: vit_tiny_patch16_224 with --weights, else vit_micro_patch4_32)")
    add("--method", default="dense,wsi", help=f"one or more of {', '.join(METHODS)}, separated by commas")
    add("--variance", type=float, help="share of the squared singular values that wsi keeps (default: 0.9 with --weights)")
    add("--rank", type=int, help="one rank for every factored layer instead (default without --weights: a quarter of the width, "
                                 "since random weights have no spectrum to choose by)")
    add("--whiten", type=int, default=0, metavar="N", help="choose the factors on N calibration batches; 0: plain SVD")
    add("--bits", type=int, choices=(4, 8), default=4, help="of the frozen residual of qwasi and the frozen weights of qlora")
    add("--alpha", type=float, default=16.0, help="lora's scale times its rank")
    add("--activation-ranks", help="compress the targets' saved inputs: batch,tokens,channels as shares or numbers, such as "
                                   "0.5,0.5,64 (the default of asi, wasi and amc)")
    add("--targets", default="mlp", help="layers to factor: mlp, attn, all, or tails of names, separated by commas")
    add("--epochs", type=int, help="passes over the training images (default: 2 with --weights, else 30)")
    add("--batch-size", type=int, default=32)
    add("--micro-batch", type=int, help="samples in flight at once; the gradient stays the batch's")
    add("--optimizer", choices=("sgd", "adamw"), help="(default: sgd with --weights, else adamw)")
    add("--lr", type=float, help="(default: 0.02 for sgd, 0.003 for adamw)")
    add("--momentum", type=float, default=0.9, help="of sgd")
    add("--weight-decay", type=float, help="(default: 0 for sgd, 0.05 for adamw)")
    add("--clip", type=float, default=1.0, help="largest gradient norm; 0: no clipping")
    add("--label-smoothing", type=float, help="(default: 0 with --weights, else 0.1)")
    add("--schedule", choices=("constant", "cosine", "linear"), default="cosine")
    add("--warmup", type=int, help="steps of linear warm-up (default: 10 with --weights, else 100)")
    add("--img-size", type=int, help="pixels a side (default: the architecture's)")
    add("--limit", type=int, help="use at most this many training images, evenly over the classes")
    add("--limit-val", type=int, help="the same for validation images")
    add("--seed", type=int, default=0)
    add("--threads", type=int, help="(default: all cores of this process)")
    add("--out", help="run folder (default: runs/<time>)")
    add("--quiet", action="store_true", help="no progress bar")
    return parser


def train_command(args):
    """`wasi train`: one method here, several each in a process of its own so that memory is measured apart."""
    methods = args.method.split(",")
    from wasi.models.methods import METHODS

    unknown = [m for m in methods if m not in METHODS]
    if unknown:
        raise ValueError(f"--method: expected names out of {', '.join(METHODS)}, got {', '.join(unknown)}")
    out = Path(args.out or time.strftime("runs/%Y%m%d-%H%M%S"))
    if len(methods) == 1:
        train_one(args, methods[0], out)
    else:
        for method in methods:
            # -P: started in a checkout, the child too must import the installed package, not the sources.
            status = subprocess.call([sys.executable, "-P", "-m", "wasi", *_words_for(args, method, out / method)])
            if status:
                return status
    print(summarise(out, methods))
    return 0


def _words_for(args, method, out):
    """The command line that repeats this one for a single method."""
    words = ["train"]
    for name, value in vars(args).items():
        if name in ("command", "method", "out") or value is None or value is False:
            continue
        flag = "--" + name.replace("_", "-")
        words += [flag] if value is True else [flag, str(value)]
    return [*words, "--method", method, "--out", str(out)]


def train_one(args, method, out):
    """Trains by one method in this process and writes the run folder."""
    import wasi
    from wasi.models.methods import MethodOptions, apply_method
    from wasi.training.data import Loader, Transform, open_splits, sign_digits
    from wasi.training.loop import TrainConfig, train
    from wasi.training.memory import rss_bytes
    from wasi.training.runlog import RunFolder

    if args.threads:
        wasi.set_num_threads(args.threads)
    folder = RunFolder(out)
    start_rss = rss_bytes()
    splits = open_splits(args.data) if args.data else sign_digits()
    train_set = splits["train"]
    val_set = splits.get("val") or splits.get("test")
    if val_set is None:
        train_set, val_set = train_set.split(0.8, args.seed)
    train_set = train_set.subset(args.limit, args.seed) if args.limit else train_set
    val_set = val_set.subset(args.limit_val, args.seed) if args.limit_val else val_set

    name = args.model or ("vit_tiny_patch16_224" if args.weights else "vit_micro_patch4_32")
    model = wasi.create_model(name, num_classes=len(train_set.classes), img_size=args.img_size, weights=args.weights,
                              seed=args.seed)
    size = model.config.img_size
    train_loader = Loader(train_set, args.batch_size, Transform(size, train=True), shuffle=True, seed=args.seed, drop_last=True)
    val_loader = Loader(val_set, min(args.batch_size, len(val_set)), Transform(size, train=False))
    rank = args.rank
    if rank is None and args.variance is None and not args.weights:
        rank = model.config.embed_dim // 4
    ranks = args.activation_ranks and tuple(float(r) if "." in r else int(r) for r in args.activation_ranks.split(","))
    options = MethodOptions(tuple(args.targets.split(",")), args.variance or 0.9, rank, args.bits, args.alpha, args.seed, ranks)
    calibration = [images for images, _ in itertools.islice(train_loader, args.whiten)]
    apply_method(model, method, options, calibration or None)
    optimizer = args.optimizer or ("sgd" if args.weights else "adamw")
    config = TrainConfig(
        epochs=args.epochs or (2 if args.weights else 30),
        lr=args.lr or {"sgd": 0.02, "adamw": 0.003}[optimizer],
        optimizer=optimizer,
        momentum=args.momentum,
        weight_decay={"sgd": 0.0, "adamw": 0.05}[optimizer] if args.weight_decay is None else args.weight_decay,
        clip_norm=args.clip or None,
        schedule=args.schedule,
        n_warmup=(10 if args.weights else 100) if args.warmup is None else args.warmup,
        label_smoothing=(0.0 if args.weights else 0.1) if args.label_smoothing is None else args.label_smoothing,
        micro_batch=args.micro_batch,
    )
    folder.write_json("config.json", {"method": method, "model": name, "img_size": size, "classes": list(train_set.classes),
                                      "n_train": len(train_set), "n_val": len(val_set), **vars(args), **asdict(config)})
    train(model, train_loader, val_loader, config, folder, start_rss, progress=not args.quiet, label=method)
    for problem in train_set.problems:
        print(f"not used: {problem.name}: {problem.reason}", file=sys.stderr)


def summarise(out, methods):
    """Reads the runs' results, writes summary.md and (for several) curves.png, and returns the table."""
    from wasi.training.memory import mib
    from wasi.training.runlog import plot_curves, read_steps

    folders = {m: out / m if len(methods) > 1 else out for m in methods}
    lines = ["| method | parameters | top-1 | seconds a step | peak memory above start | of it in steps |",
             "|---|---|---|---|---|---|"]
    curves = {}
    for method, folder in folders.items():
        r = json.loads((folder / "result.json").read_text())
        lines.append(f"| {method} | {r['parameters']:,} | {100 * r['val_accuracy']:.1f} % | {r['seconds_per_step']:.3f} | "
                     f"{mib(r['peak_rss_above_start_bytes']):.0f} MiB | {mib(r['step_peak_bytes']):.0f} MiB |")
        curves[method] = (read_steps(folder / "steps.csv"), r["epochs"])
    table = "\n".join(lines)
    (out / "summary.md").write_text(table + "\n")
    if len(methods) > 1:
        plot_curves(curves, out / "curves.png")
    return f"{table}\nwritten to {out}"


def main(argv=None):
    """Runs the command; returns its exit status. Errors in what the user gave are one line on stderr and status 2."""
    args = build_parser().parse_args(argv)
    try:
        return train_command(args)
    except (ValueError, OSError, ArithmeticError) as error:
        print(f"wasi {args.command}: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
