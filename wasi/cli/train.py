"""`wasi train`: one method in this process, several each in a process of its own so that memory is measured apart."""

import itertools
import json
import time
from dataclasses import asdict
from pathlib import Path

from wasi.cli import build_parser, options, texts
from wasi.models.methods import apply_method, freeze_parameters
from wasi.models.plan import Plan
from wasi.training.callbacks import Callback
from wasi.training.checkpoint import checkpoint_path, list_checkpoints, newest_checkpoint
from wasi.training.loop import train
from wasi.training.memory import mib, release_freed, rss_bytes
from wasi.training.runlog import (
    RunFolder,
    environment,
    plot_curves,
    reached,
    read_config,
    read_result,
    read_steps,
)

# A run that goes on may have others of these.
_FREE = ("command", "out", "resume", "quiet", "threads", "data", "checkpoint_every", "keep", "tensorboard")


def run(args):
    if args.resume:
        if not args.out:
            raise ValueError("--resume: expected --out to name the folder of the run")
        if (Path(args.out) / "config.json").is_file():
            return resume_one(args, Path(args.out))
    plan = Plan.load(args.plan) if args.plan else None
    methods = options.known_methods((args.method or (plan.method if plan else "dense,wsi")).split(","))
    options.check_options(args, methods)
    if plan is not None and methods != [plan.method]:
        raise ValueError(f"--method: the plan was made for {plan.method}, got {args.method}")
    out = Path(args.out or time.strftime("runs/%Y%m%d-%H%M%S"))
    if args.resume and (len(methods) == 1 or not any((out / method / "config.json").is_file() for method in methods)):
        raise ValueError(f"--resume: {str(out)!r} holds no run of {', '.join(methods)}")
    if len(methods) == 1:
        if train_one(args, methods[0], out, plan).interrupted:
            return stopped(out)
    else:
        options.check_runs([(args, method) for method in methods])
        for method in methods:
            if args.resume and read_result(out / method) is not None:
                continue
            changes = {**options.own_options(args, method), "resume": args.resume and (out / method / "config.json").is_file()}
            status = options.run_in_child(options.words_of(args, method=method, out=out / method, **changes))
            if status:
                return status
    print(summarise(out, methods, args.task))
    return 0


def stopped(out):
    """Says how to go on with an interrupted run; returns the exit status."""
    print(f"stopped; to go on: wasi train --resume --out {out}" if list_checkpoints(out) else "stopped without a checkpoint")
    return 130


def resume_one(args, out):
    """Goes on with the run in a folder, by the options that it was started with; returns the exit status."""
    config = read_config(out)
    started, defaults = config["arguments"], vars(build_parser(["train"]).parse_args(["train"]))
    given = {k: v for k, v in vars(args).items() if v != defaults[k]}
    other = [f"--{k.replace('_', '-')} {started.get(k, defaults[k])}, not {v}" for k, v in given.items()
             if k not in _FREE and v != started.get(k, defaults[k])]
    if other:
        raise ValueError(f"--resume: the run in {str(out)!r} was started with {'; '.join(other)}")
    for name, value in {**defaults, **started, **{k: v for k, v in given.items() if k in _FREE}, "out": str(out)}.items():
        setattr(args, name, value)
    if read_result(out) is None and train_one(args, config["method"], out, resume=True).interrupted:
        return stopped(out)
    print(summarise(out, [config["method"]], args.task))
    return 0


def train_one(args, method, out, plan=None, resume=False):
    """Trains by one method, or as a plan of it says, in this process and writes the run folder; returns the TrainResult.

    resume: goes on from the newest checkpoint there, plan and all.
    """
    arguments = dict(vars(args))
    folder = RunFolder(out, resume)
    checkpoint = newest_checkpoint(out) if resume else None
    if checkpoint and checkpoint.state.get("plan"):
        plan = Plan.of_record(checkpoint.state["plan"])
    if plan is not None:
        options.follow_plan(args, plan)
    options.set_machine(args)
    start_rss = rss_bytes()
    train_set, val_set = options.open_data(args)
    config = options.train_config(args, method, train_set)
    print(options.describe_data(args, train_set, val_set), flush=True)
    n_problems = options.tell_problems(train_set)
    release_freed()
    data_rss = rss_bytes()
    model = checkpoint.empty_model() if checkpoint else options.make_model(args, train_set, val_set)
    train_loader, val_loader = options.make_loaders(args, train_set, val_set, model)
    begins = ()
    if not checkpoint:
        ready(args, method, model, plan, train_loader, out)
        if model.architecture == "llama":
            inputs = {"length": args.length, "tokenizer": texts.keep_tokenizer(args.tokenizer, args.weights, out)}
        else:
            inputs = {"img_size": model.config.img_size}
        begins = (Begins({"method": method, "model": options.model_name(args), **inputs, "classes": list(train_set.classes),
                          "n_train": len(train_set), "n_val": len(val_set), "arguments": arguments, "environment": environment(),
                          "start_rss_bytes": start_rss, "data_rss_bytes": data_rss, **asdict(config)}),)
    result = train(model, train_loader, val_loader, config, folder, start_rss, progress=not args.quiet, label=method, plan=plan,
                   data_rss_bytes=data_rss, resume=checkpoint, callbacks=begins)
    options.tell_problems(train_set, n_problems)
    return result


def ready(args, method, model, plan, train_loader, out):
    """Gives a new model the layers that the method, or the plan, trains."""
    if plan is not None:
        freeze_parameters(model, options.frozen(args, method))
        plan.apply(model, list(itertools.islice(train_loader, plan.calibration)))
        print(plan)
        plan.save(out / "plan.json")
    else:
        apply_method(model, method, options.method_options(args, method, model),
                     options.calibration_batches(args, method, train_loader))
        options.set_policy(args, model)


class Begins(Callback):
    """Writes config.json, by which a folder holds a run, when all that the run needs is there: an error before leaves it free."""

    def __init__(self, settings):
        self._settings = settings

    def on_train_begin(self, run):
        run.folder.write_json("config.json", self._settings)


def summarise(out, methods, task):
    """Reads the runs' results, writes summary.md and (for several) curves.png, and returns the table."""
    language = task == "lm"
    folders = {m: out / m if len(methods) > 1 else out for m in methods}
    lines = [f"| method | parameters | {'perplexity' if language else 'top-1'} | seconds a step | peak memory above start | "
             "of it in steps |", "|---|---|---|---|---|---|"]
    curves, better = {}, []
    for method, folder in folders.items():
        r = json.loads((folder / "result.json").read_text())
        value = reached(r, language).partition(" ")[2]
        lines.append(f"| {method} | {r['parameters']:,} | {value} | {r['seconds_per_step']:.3f} | "
                     f"{mib(r['peak_rss_above_start_bytes']):.0f} MiB | {mib(r['step_peak_bytes']):.0f} MiB |")
        better += better_epoch(method, folder, r, language)
        curves[method] = (read_steps(folder / "steps.csv"), r["epochs"])
    table = "\n".join(lines)
    (out / "summary.md").write_text(table + "\n")
    if len(methods) > 1:
        plot_curves(curves, out / "curves.png", language)
    return "\n".join([table, *better, f"written to {out}"])


def better_epoch(method, folder, result, language=False):
    """A line for people, in a list, where an earlier epoch was better than the model that a run left."""
    best = result.get("best")
    file = checkpoint_path(folder, best["step"]) if best else None
    if file is None or best["val_loss"] == result.get("val_loss") or result["config"].get("ema") or not file.is_file():
        return []  # of averaged weights a checkpoint is not the model that was validated
    return [f"{method} was best in epoch {best['epoch']}, {reached(best, language)}, loss {best['val_loss']:.3f}: "
            f"{file} (--early-stopping leaves that model)"]
