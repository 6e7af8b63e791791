"""`wasi compare`: several methods over several seeds, each run in a process of its own, and what they reach side by side."""

import shutil
import time
from pathlib import Path

from wasi.cli import build_parser, options
from wasi.models.methods import METHODS
from wasi.reports import comparison_table, environment_text, environments, plot_comparison, summarise_runs
from wasi.training.checkpoint import list_checkpoints
from wasi.training.runlog import reached, read_config, read_record, read_result, write_json

# Differences in these do not make another run.
_FREE = ("command", "out", "quiet", "resume", "checkpoint_every", "keep", "tensorboard")
# What all runs have in common.
_SHARED = ("command", "methods", "seeds", "out", "plot_only", "task")


def run(args):
    if args.plot_only:
        if not args.out:
            raise ValueError("--plot-only: expected --out to name the folder of the runs")
        return report(Path(args.out))
    methods, seeds = split_methods(args.methods), options.numbers_of("--seeds", args.seeds)
    out = Path(args.out or time.strftime("runs/%Y%m%d-%H%M%S"))
    planned = []  # method, seed, folder, command line; seeds outside: each has run once before any runs again
    for seed in seeds:
        for method in methods:
            folder = run_folder(out, method, seed)
            planned.append((method, seed, folder, words_of_run(args, method, seed, folder)))
    for _, _, folder, words in planned:
        check_settings(folder, words)
    options.check_runs([(_parsed(words), method.split(":")[0]) for method, _, _, words in planned])
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "compare.json", {"methods": methods, "seeds": seeds, "arguments": vars(args)})
    failed = 0
    for number, (method, seed, folder, words) in enumerate(planned, 1):
        if read_result(folder) is not None:
            continue
        label = f"run {number} of {len(planned)}: {method}, seed {seed}"
        if list_checkpoints(folder):
            words = [*words, "--resume"]
        elif (folder / "config.json").exists():
            shutil.rmtree(folder)  # began and did not come to a checkpoint
        status = options.run_in_child(words, silent=True)
        result = read_result(folder)
        if status == 2:  # an error, which the run has told: the others may do better
            print(f"{label}: failed", flush=True)
            failed = status
            continue
        if status or result is None:
            print(f"{label}: stopped; the same command goes on from here")
            return status or 1
        print(f"{label}: {reached(result, args.task == 'lm')}, {result['seconds_per_step']:.3f} s a step", flush=True)
    return report(out) or failed


def split_methods(text):
    """The methods of a list such as "dense,wsi:targets=attn,fc1:rank=8": a comma ends one where a method's name follows."""
    methods = []
    for piece in text.split(","):
        if piece.split(":")[0] not in METHODS and methods and ":" in methods[-1]:
            methods[-1] += "," + piece
        else:
            methods.append(piece)
    options.known_methods([m.split(":")[0] for m in methods])
    repeated = {m for m in methods if methods.count(m) > 1}
    if repeated:
        raise ValueError(f"--methods: {', '.join(sorted(repeated))} is named twice")
    return methods


def run_folder(out, method, seed):
    return out / method.replace(":", "_") / f"seed-{seed}"


def words_of_run(args, method, seed, folder):
    """The `wasi train` command line of one run, checked."""
    name, *own = method.split(":")
    changes = options.own_options(args, name)
    for setting in own:
        key, equals, value = setting.partition("=")
        key = key.replace("-", "_")
        is_flag = isinstance(getattr(args, key, None), bool)
        if not hasattr(args, key) or key in _SHARED or bool(equals) == is_flag:
            raise ValueError(f"--methods: {method}: expected option=value with an option of wasi train, or a flag of its, got "
                             f"{setting!r}")
        changes[key] = is_flag or value
    words = options.words_of(args, methods=None, seeds=None, plot_only=None, **changes, method=name, seed=seed, out=folder)
    options.check_options(_parsed(words), [name])  # argparse ends here at a bad value
    return words


def _parsed(words):
    return build_parser(words).parse_args(words)


def check_settings(folder, words):
    """Raises ValueError where the folder has a run with other settings."""
    if not (folder / "config.json").exists():
        return
    there = read_config(folder)["arguments"]
    asked = vars(_parsed(words))
    other = [f"{k} {there.get(k)!r}, not {v!r}" for k, v in asked.items() if k not in _FREE and there.get(k) != v]
    if other:
        raise ValueError(f"out: {folder} holds a run with other options ({'; '.join(other)}); name another folder")


def report(out):
    """Reads the runs, writes table, figure and results, and prints the table."""
    try:
        plan = read_record(out / "compare.json", {"methods": list, "seeds": list, "arguments": dict}, "wasi compare")
    except FileNotFoundError:
        raise FileNotFoundError(f"out: {str(out)!r} holds no comparison (compare.json is missing)") from None
    runs, missing = {}, []
    for method in plan["methods"]:
        for seed in plan["seeds"]:
            result = read_result(run_folder(out, method, seed))
            if result is None:
                missing.append(f"{method} seed {seed}")
            else:
                runs.setdefault(method, {})[seed] = result
    if not runs:
        raise ValueError(f"out: {str(out)!r} has no finished run")
    rows, machines = summarise_runs(runs, plan["arguments"].get("task") == "lm"), environments(runs)
    table = comparison_table(rows) + "\n\n" + environment_text(machines)
    (out / "comparison.md").write_text(table + "\n")
    write_json(out / "results.json", {"arguments": plan["arguments"], "environments": machines, "methods": rows})
    plot_comparison(rows, out / "comparison.png")
    print(table)
    if len(machines) > 1:
        print("the runs were made in different environments: their times and memory do not compare")
    if missing:
        print(f"not finished: {', '.join(missing)}")
    print(f"written to {out}")
    return 0
