"""Kills training runs at random moments, lets each go on from its newest checkpoint, and compares what they reach, bit for bit,
with runs that were left alone.

    python tests/stress/kill.py --kills 200                  every method in turn
    python tests/stress/kill.py --kills 200 wasi dense       those alone

A run is a process of its own (a fork of this one, which has made no thread), killed by SIGKILL at a moment drawn uniformly over
the time that it takes to make a few checkpoints: in forward, backward, update, in a log, within a checkpoint that is written.
"""

import argparse
import hashlib
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
from images import image_files, write_folder

import wasi
from wasi.models.methods import METHODS, MethodOptions, apply_method
from wasi.training import loop
from wasi.training.checkpoint import list_checkpoints, newest_checkpoint
from wasi.training.data import Loader, Transform, open_splits
from wasi.training.loop import TrainConfig, train
from wasi.training.runlog import RunFolder, read_csv

TIMES = {"seconds", "peak_rss_mib", "rss_mib", "counted_mib"}  # of the process, not of the run
CONFIG = TrainConfig(epochs=8, lr=0.003, optimizer="adamw", weight_decay=0.05, checkpoint_every=2)


def run(folder, method, images):
    """Trains in this process to the end, from the newest checkpoint if there is one. Fifteen updates an epoch."""
    data = open_splits(images)["train"]
    loader = Loader(data, 4, Transform(16, train=True), shuffle=True, seed=1, drop_last=True)
    held_out = Loader(data, 12, Transform(16, train=False))
    resume = bool(list_checkpoints(folder))
    target = RunFolder(folder, resume)
    if resume:
        checkpoint = newest_checkpoint(folder)
        model = checkpoint.empty_model()
    else:
        checkpoint = None
        model = wasi.create_model("vit_micro_patch8_64", seed=0, img_size=16, embed_dim=32, depth=2, num_heads=2, num_classes=3)
        batches = [next(iter(loader))] if method.startswith("svd-llm") else None
        apply_method(model, method, MethodOptions(("mlp",), rank=8, lora_rank=2), batches, verbose=False)
        target.write_json("config.json", {})
    train(model, loader, held_out, CONFIG, target, progress=False, resume=checkpoint)


def start(folder, method, images):
    process = multiprocessing.get_context("fork").Process(target=_quiet, args=(folder, method, images))
    process.start()
    return process


def _quiet(*args):
    for descriptor in (1, 2):
        os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
    run(*args)


def outcome(folder):
    """What must be equal: the model's bits, and each row of each log but times."""
    logs = {path.name: [{k: v for k, v in row.items() if k not in TIMES} for row in read_csv(path)]
            for path in sorted(folder.glob("*.csv"))}
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest(), logs


def killed_until_done(folder, method, images, rng, span, most):
    """Lets a run come to its end by as many processes as it takes; returns (kills, of them while a checkpoint was written)."""
    kills = writing = 0
    while True:
        process = start(folder, method, images)
        if kills < most:
            process.join(rng.uniform(0, span))
        else:
            process.join()
        if process.exitcode is None:
            os.kill(process.pid, signal.SIGKILL)
            process.join()
            kills += 1
            writing += any((folder / "checkpoints").glob(".*"))
            if folder.exists() and not list_checkpoints(folder):
                shutil.rmtree(folder)  # it ended before its first checkpoint, and starts anew
            continue
        if process.exitcode:
            raise SystemExit(f"{method}: a process ended with {process.exitcode} after {kills} kills, in {folder}")
        return kills, writing


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("methods", nargs="*", default=list(METHODS))
    parser.add_argument("--kills", type=int, default=200, help="at least so many, over all methods")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    wasi.set_num_threads(1)
    loop.plot_curves = lambda *ignored: None  # the drawing of curves takes longer than the run
    rng, total = random.Random(args.seed), 0
    print(f"{'method':<14}{'runs':>6}{'kills':>7}{'while writing':>15}   bits and logs")
    with tempfile.TemporaryDirectory() as work:
        work = Path(work)
        images = write_folder(work / "images", image_files(np.random.default_rng(0), (), ("dark", "grey", "light"), 20))
        for i, method in enumerate(args.methods):
            share = -(-(args.kills - total) // (len(args.methods) - i))
            began = time.monotonic()
            whole = start(work / "whole", method, images)
            whole.join()
            span, want = (time.monotonic() - began) / 3, outcome(work / "whole")
            kills = runs = writing = 0
            while kills < share:
                got = killed_until_done(work / "killed", method, images, rng, span, share - kills)
                runs, kills, writing = runs + 1, kills + got[0], writing + got[1]
                if outcome(work / "killed") != want:
                    raise SystemExit(f"{method}: run {runs} with seed {args.seed} reached something else")
                shutil.rmtree(work / "killed")
            shutil.rmtree(work / "whole")
            total += kills
            print(f"{method:<14}{runs:>6}{kills:>7}{writing:>15}   equal", flush=True)
    print(f"{total} kills")


if __name__ == "__main__":
    main()
