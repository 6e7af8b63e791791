"""`wasi train`: one method in this process, several each in a process of its own so that memory is measured apart."""

import itertools
import json
import math
import sys
import time
from dataclasses import asdict
from pathlib import Path

import wasi
from wasi.cli import options
from wasi.models.methods import METHODS, apply_method
from wasi.models.plan import Plan
from wasi.training.loop import train
from wasi.training.memory import mib, release_freed, rss_bytes
from wasi.training.runlog import RunFolder, plot_curves, read_steps

DESCRIPTION = ("Trains a model by each method on the same batches and prints accuracy, seconds a step and measured "
               "peak memory. Without --data it uses the shipped sign-language digits.")


def add_arguments(parser):
    parser.add_argument("--method", help=f"one or more of {', '.join(METHODS)}, separated by commas (default: dense,wsi; with "
                        "--plan the plan's)")
    options.add_training_options(parser)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", help="run folder (default: runs/<time>)")


def run(args):
    plan = Plan.load(args.plan) if args.plan else None
    methods = options.known_methods((args.method or (plan.method if plan else "dense,wsi")).split(","))
    options.check_options(args, methods)
    if plan is not None and methods != [plan.method]:
        raise ValueError(f"--method: the plan was made for {plan.method}, got {args.method}")
    out = Path(args.out or time.strftime("runs/%Y%m%d-%H%M%S"))
    if len(methods) == 1:
        train_one(args, methods[0], out, plan)
    else:
        for method in methods:
            changes = options.own_options(args, method)
            status = options.run_in_child(options.words_of(args, method=method, out=out / method, **changes))
            if status:
                return status
    print(summarise(out, methods, args.task))
    return 0


def train_one(args, method, out, plan=None):
    """Trains by one method, or as a plan of it says, in this process and writes the run folder."""
    arguments = dict(vars(args))
    if plan is not None:
        options.follow_plan(args, plan)
    if args.threads:
        wasi.set_num_threads(args.threads)
    folder = RunFolder(out)
    start_rss = rss_bytes()
    train_set, val_set = options.open_data(args)
    release_freed()
    data_rss = rss_bytes()
    name = options.model_name(args)
    model = options.make_model(args, train_set.classes)
    size = {"length": args.length} if model.architecture == "llama" else {"img_size": model.config.img_size}
    train_loader, val_loader = options.make_loaders(args, train_set, val_set, model)
    if plan is not None:
        plan.apply(model, list(itertools.islice(train_loader, plan.calibration)))
        print(plan)
        plan.save(out / "plan.json")
    else:
        apply_method(model, method, options.method_options(args, model), options.calibration_batches(args, method, train_loader))
        options.set_policy(args, model)
    config = options.train_config(args, method)
    folder.write_json("config.json", {"method": method, "model": name, **size, "classes": list(train_set.classes),
                                      "n_train": len(train_set), "n_val": len(val_set), "arguments": arguments,
                                      **asdict(config)})
    train(model, train_loader, val_loader, config, folder, start_rss, progress=not args.quiet, label=method, plan=plan,
          data_rss_bytes=data_rss)
    for problem in train_set.problems:
        print(f"not used: {problem.name}: {problem.reason}", file=sys.stderr)


def summarise(out, methods, task):
    """Reads the runs' results, writes summary.md and (for several) curves.png, and returns the table."""
    language = task == "lm"
    folders = {m: out / m if len(methods) > 1 else out for m in methods}
    lines = [f"| method | parameters | {'perplexity' if language else 'top-1'} | seconds a step | peak memory above start | "
             "of it in steps |", "|---|---|---|---|---|---|"]
    curves = {}
    for method, folder in folders.items():
        r = json.loads((folder / "result.json").read_text())
        losses = [epoch["val_loss"] for epoch in r["epochs"]]
        reached = f"{math.exp(losses[-1]):.2f}" if language and losses else f"{100 * r['val_accuracy']:.1f} %"
        lines.append(f"| {method} | {r['parameters']:,} | {reached} | {r['seconds_per_step']:.3f} | "
                     f"{mib(r['peak_rss_above_start_bytes']):.0f} MiB | {mib(r['step_peak_bytes']):.0f} MiB |")
        curves[method] = (read_steps(folder / "steps.csv"), r["epochs"])
    table = "\n".join(lines)
    (out / "summary.md").write_text(table + "\n")
    if len(methods) > 1:
        plot_curves(curves, out / "curves.png")
    return f"{table}\nwritten to {out}"
