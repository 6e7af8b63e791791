"""Runs `wasi train` to its end, and again with SIGKILL at random moments, each time resumed: are the two the same, bit for bit?

Compared are all arrays of the last checkpoint (weights, optimiser, subspaces, averages) and of the model, every row of the CSV
logs but for times and resident memory, and the records of the epochs.
"""

import argparse
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import harness
import numpy as np
from safetensors.numpy import load_file

from wasi.names import METHODS
from wasi.training.checkpoint import FOLDER, list_checkpoints
from wasi.training.runlog import read_csv

RUN = ["--model", "vit_micro_patch8_64", "--img-size", "32", "--limit", "80", "--limit-val", "40", "--batch-size", "8",
       "--rank", "12", "--targets", "all", "--epochs", "8", "--checkpoint-every", "3", "--quiet", "--threads", "1", "--seed", "1"]
# Row of the table: options beside those above.
ROWS = {
    **{method: ["--method", method] for method in METHODS},
    "wsi, SGD with momentum": ["--method", "wsi", "--optimizer", "sgd"],
    "wsi, ranks that grow": ["--method", "wsi", "--adapt-ranks", "5", "--grow", "0.99999", "--shrink", "1",
                             "--max-factor-bytes", "10000000"],
    "qwasi, averaged weights": ["--method", "qwasi", "--ema", "0.95"],
    "wasi, averaged weights, ranks that shrink": ["--method", "wasi", "--ema", "0.95", "--ema-every", "2", "--adapt-ranks", "4",
                                                  "--grow", "0.5", "--shrink", "0.97"],
    "wsi, mixup, cutmix, RandAugment, class weights": ["--method", "wsi", "--mixup", "0.2", "--cutmix", "1", "--randaugment",
                                                       "--class-weights", "balanced"],
    "dense, step schedule, groups, early stopping": ["--method", "dense", "--schedule", "step", "--milestones", "2,5",
                                                     "--layer-lr-decay", "0.8", "--param-groups", "head.*:lr=2", "--ema", "0.9",
                                                     "--early-stopping", "6", "--monitor", "val_loss"],
    "wasi, everything in 16 or 8 bits, subspaces logged": ["--method", "wasi", "--gradient-bits", "16", "--state-bits", "16",
                                                           "--saved-bits", "8", "--micro-batch", "4", "--track-subspaces", "7"],
    "qwasi, layerwise, recomputed": ["--method", "qwasi", "--layerwise", "--clip", "0", "--recompute"],
}
TIMES = {"seconds", "peak_rss_mib", "rss_mib", "counted_mib"}
COLUMNS = {
    "run": lambda r: r["row"],
    "killed after step": lambda r: ", ".join(map(str, r["killed"])),
    "went on after step": lambda r: ", ".join(map(str, r["resumed"])),
    "of steps": lambda r: r["steps"],
    "half-written files left": lambda r: r["partial"],
    "arrays compared": lambda r: r["arrays"],
    "arrays, logs, results": lambda r: "equal, bit for bit" if not r["differ"] else "DIFFER: " + ", ".join(r["differ"][:3]),
}


def start(*words):
    # -P: the installed package, not the folder of this script.
    return subprocess.Popen([sys.executable, "-P", "-m", "wasi", "train", *words], stdout=subprocess.DEVNULL,
                            stderr=subprocess.PIPE, text=True)


def finish(process):
    _, errors = process.communicate()
    if process.returncode:
        raise RuntimeError(f"wasi train ended with status {process.returncode}: {errors}")


def n_rows(run):
    """Steps that a run has logged."""
    try:
        return (run / "steps.csv").read_bytes().count(b"\n") - 1
    except FileNotFoundError:
        return 0


def run_with_kills(run, options, moments, rng):
    """Kills the run once it has logged each of these numbers of steps, and lets it go on.

    Returns steps at the kills, steps that it went on from, half-written checkpoints found.
    """
    killed, resumed, partial = [], [], 0
    process = start(*RUN, *options, "--out", str(run))
    for moment in moments:
        while n_rows(run) < moment and process.poll() is None:
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.03))  # some moment of the step, or of writing
        process.send_signal(signal.SIGKILL)
        process.communicate()
        if (run / "result.json").exists():
            return killed, resumed, partial
        killed.append(n_rows(run))
        partial += len(list((run / FOLDER).glob(".*")))
        there = list_checkpoints(run)
        resumed.append(max(there, default=0))
        if there:
            process = start("--resume", "--out", str(run))
        else:
            shutil.rmtree(run)
            process = start(*RUN, *options, "--out", str(run))
    finish(process)
    return killed, resumed, partial


def differences(whole, other):
    """(names of what differs between two run folders, arrays compared)"""
    differ, n = [], 0
    last = [list(list_checkpoints(run).values())[-1] for run in (whole, other)]
    for a, b in (last, [run / "model.safetensors" for run in (whole, other)]):
        ours, theirs = load_file(a), load_file(b)
        differ += sorted(ours.keys() ^ theirs.keys())
        differ += [name for name in ours.keys() & theirs.keys() if not np.array_equal(ours[name].view(np.uint8),
                                                                                      theirs[name].view(np.uint8))]
        n += len(ours)
    for path in sorted(whole.glob("*.csv")):
        rows = [[{k: v for k, v in row.items() if k not in TIMES} for row in read_csv(run / path.name)] for run in (whole, other)]
        differ += [path.name] if rows[0] != rows[1] else []
    records = [[{**e, "seconds": 0} for e in json.loads((run / "epochs.json").read_text())] for run in (whole, other)]
    return differ + (["epochs.json"] if records[0] != records[1] else []), n


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=3, help="in each run")
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=ROWS, metavar="ROW")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--out", metavar="NAME")
    args = parser.parse_args()
    rng, records = random.Random(args.seed), []
    for row in args.rows:
        with tempfile.TemporaryDirectory() as folder:
            whole, other = Path(folder) / "whole", Path(folder) / "killed"
            finish(start(*RUN, *ROWS[row], "--out", str(whole)))
            steps = n_rows(whole)
            moments = sorted(rng.sample(range(1, steps), args.kills))
            killed, resumed, partial = run_with_kills(other, ROWS[row], moments, rng)
            differ, arrays = differences(whole, other)
        records.append({"row": row, "options": ROWS[row], "killed": killed, "resumed": resumed, "steps": steps,
                        "partial": partial, "arrays": arrays, "differ": differ, **harness.context(1)})
        print(harness.markdown_table(records[-1:], COLUMNS).splitlines()[-1], flush=True)
        if args.out:
            harness.write_results(args.out, "Runs that were killed and went on, beside uninterrupted ones", records, COLUMNS)
    return 1 if any(r["differ"] for r in records) else 0


if __name__ == "__main__":
    sys.exit(main())
