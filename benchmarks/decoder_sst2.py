"""Accuracy, memory and time of fine-tuning a small decoder on SST-2: dense, LoRA, WASI and their quantised forms.

Trains what the folder of runs does not hold yet and writes the table from it, so an interrupted command goes on where it was:

    python benchmarks/decoder_sst2.py --data SST2 --weights stories260K.bin --tokenizer tok512.bin --runs runs --out decoder_sst2

AdamW, batches of 32 sentences of about one length, all linears of all blocks; factors start whitened, those of qwasi in the
gradient's leading directions; qwasi leaves the embedding as it is. A seed fixes head, order and LoRA's start. 1,000 of the
training sentences are held out: each method takes of its learning rates the one that is most accurate on these with the first
seed. The table's accuracy is that of the last epoch on the sentences of dev.tsv and test.tsv, which nothing was chosen by.
Differences are between runs of one seed on the same sentences; beside their deviation over seeds stands what the choice of
sentences adds, the standard error of their mean.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import harness
import numpy as np
from accuracy import difference

import wasi
from wasi.models.methods import MethodOptions, apply_method
from wasi.training.callbacks import Callback
from wasi.training.loop import TrainConfig, train
from wasi.training.runlog import write_json
from wasi.training.text import TokenLoader, TokenSet, open_sentences

# Method, learning rates to choose from, what apply_method is told; the update's or factors' rank where it is fixed.
RUNS = {
    "dense": ("dense", (2e-4, 5e-4, 1.5e-3), {}),
    "lora, rank 8": ("lora", (1.5e-3, 5e-3), {"rank": 8}),
    "qlora, rank 8 over 4 bits": ("qlora", (1.5e-3, 5e-3), {"rank": 8}),
    "wsi, 0.95": ("wsi", (5e-4, 1.5e-3), {"variance": 0.95}),
    "wasi, 0.95": ("wasi", (5e-4, 1.5e-3), {"variance": 0.95}),
    "qwasi, rank 8 over 4 bits": ("qwasi", (5e-4, 1.5e-3, 4e-3), {"rank": 8, "freeze": ("stem",)}),
    "qwasi, start scale 0.01": ("qwasi", (1.5e-3, 4e-3), {"rank": 8, "freeze": ("stem",), "start_scale": 0.01}),
}
HELD_OUT = 1000


def open_sets(data, weights_tokenizer, limit=None):
    """{"train", "chosen by", "test": TokenSet}."""
    splits = open_sentences(data, wasi.load_tokenizer(weights_tokenizer), 128)
    held_out, rest = splits["train"].split(HELD_OUT / len(splits["train"]), seed=0)
    dev, test = splits["val"], splits["test"]
    test = TokenSet(dev.tokens + test.tokens, np.concatenate([dev.labels, test.labels]), dev.classes)
    return {"train": rest.subset(limit) if limit else rest, "chosen by": held_out, "test": test}


class StepClock(Callback):
    """CPU seconds of the process from one step's end to the next's."""

    def __init__(self):
        self.ends = []

    def on_step_end(self, run):
        self.ends.append(time.process_time())

    def seconds(self):
        return float(np.median(np.diff(self.ends)))


def hits(model, sentences):
    """Whether each was classified right, as text of 0 and 1."""
    right = [model.forward(tokens).argmax(1) == labels for tokens, labels in TokenLoader(sentences, 32)]
    return "".join("01"[int(r)] for r in np.concatenate(right))


def fine_tune(data, tokenizer, weights, run, lr, epochs, seed, limit):
    """Set-up of a whole run, which is the one step."""
    sets = open_sets(data, tokenizer, limit)
    method, _, options = RUNS[run]
    model = wasi.load_llama(weights, num_classes=2, seed=seed)
    loader = TokenLoader(sets["train"], 32, shuffle=True, seed=seed, drop_last=True, group_by_length=True)
    calibration = [batch for batch, _ in zip(loader, range(4))] if method in ("wsi", "wasi", "qwasi") else None
    apply_method(model, method, MethodOptions(("all",), seed=seed, **options), calibration, verbose=False)
    loader.set_epoch(0)
    config = TrainConfig(epochs=epochs, lr=lr, optimizer="adamw", n_warmup=50)

    def step():
        clock = StepClock()
        result = train(model, loader, TokenLoader(sets["chosen by"], 32), config, progress=False, callbacks=[clock])
        if result.interrupted:
            raise KeyboardInterrupt
        return {"accuracy held out": result.val_accuracy, "loss held out": result.val_loss, "hits": hits(model, sets["test"]),
                "cpu_seconds_per_step": clock.seconds(), "flops": result.flops_per_image,
                "step_peak_bytes": result.step_peak_bytes, **result.counted}

    return step


def trained(args, run, lr, seed):
    """The record of one run, made unless its file holds it; None where it does not and args.finished forbids to make it."""
    path = Path(args.runs) / f"{run.replace(', ', '-').replace(' ', '-')}_lr-{lr:g}_seed-{seed}.json"
    words = {"data": args.data, "tokenizer": args.tokenizer, "weights": args.weights, "run": run, "lr": lr, "epochs": args.epochs,
             "seed": seed, "limit": args.limit}
    if not path.exists():
        if args.finished:
            return None
        record = harness.run_isolated(fine_tune, words, steps=1, warmup=0, threads=args.threads)
        Path(args.runs).mkdir(parents=True, exist_ok=True)
        write_json(path, record)
        right = record["values"]["hits"]
        print(f"{path.stem}: held out {record['values']['accuracy held out']:.1%}, test {right.count('1') / len(right):.2%}, "
              f"{record['values']['cpu_seconds_per_step']:.3f} CPU s a step", flush=True)
    record = json.loads(path.read_text())
    if record["args"] != harness.scrub(words):
        raise ValueError(f"runs: {path.name} is of a run with other settings; name another folder")
    return record


def row(run, records):
    """A line of the table from a method's records, one a seed."""
    right = [np.array([c == "1" for c in r["values"]["hits"]]) for r in records]
    values = {k: v for k, v in records[0]["values"].items() if k != "hits"}
    return {**records[0], "values": values, "run": run, "lr": records[0]["args"]["lr"],
            "seeds": [r["args"]["seed"] for r in records],
            "runs": [{"test": {"hits": h}} for h in right], "accuracy": [100 * float(h.mean()) for h in right],
            "cpu_seconds_per_step": [r["values"]["cpu_seconds_per_step"] for r in records]}


def over_seeds(values):
    return f"{statistics.fmean(values):.1f}" + (f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else "")


def lead(r):
    if not r["lead"]:
        return ""
    return f"{over_seeds(r['lead']['seeds'])} ({r['lead']['standard_error']:.1f})"


def kib(key):
    return lambda r: f"{r['values'][key] / 1024:,.0f}"


COLUMNS = {
    "method": lambda r: r["run"],
    "lr": lambda r: f"{r['lr']:g}",
    "seeds": lambda r: len(r["seeds"]),
    "accuracy %": lambda r: over_seeds(r["accuracy"]),
    "less that of dense": lead,
    "weights trained KiB": kib("trained_bytes"),
    "frozen KiB": kib("frozen_bytes"),
    "gradients KiB": kib("gradient_bytes"),
    "optimiser KiB": kib("optimizer_bytes"),
    "saved for backward KiB": kib("saved_bytes"),
    "peak of a step's arrays KiB": kib("step_peak_bytes"),
    "MFLOP a sample": lambda r: f"{r['values']['flops'] / 1e6:.0f}",
    "CPU seconds a step": lambda r: harness.seconds(statistics.median(r["cpu_seconds_per_step"])),
}


def write_table(args, results):
    rows = [row(run, records) for run, records in results.items()]
    for r in rows:
        n = min(len(r["runs"]), len(rows[0]["runs"]))
        r["lead"] = None if r is rows[0] else difference(r["runs"][:n], rows[0]["runs"][:n])
    n_test = len(rows[0]["runs"][0]["test"]["hits"])
    for r in rows:
        del r["runs"]
    print(harness.markdown_table(rows, COLUMNS))
    if args.out:
        used = f"{args.limit:,}" if args.limit else f"all but {HELD_OUT:,}"
        harness.write_results(args.out, f"SST-2, {used} training sentences, {args.epochs} epochs: accuracy on {n_test:,} others, "
                              "mean ± deviation of seeds (standard error from the choice of sentences)", rows, COLUMNS)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder with train.tsv, dev.tsv and test.tsv")
    parser.add_argument("--weights", required=True, help="as of wasi generate")
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--runs", required=True, help="folder of the runs")
    parser.add_argument("--methods", nargs="+", default=list(RUNS), choices=RUNS, help="dense first")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--limit", type=int, help="training sentences (default: all but those held out)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--finished", action="store_true", help="train nothing: the table of the runs that are there")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", metavar="NAME", help="write NAME.json and NAME.md to benchmarks/results/, anew after every run")
    args = parser.parse_args()
    results = {}
    for seed in args.seeds:
        for run in args.methods:
            before = results.setdefault(run, [])
            rates = [before[0]["args"]["lr"]] if before else RUNS[run][1]
            tried = [record for lr in rates if (record := trained(args, run, lr, seed))]
            if tried:
                before.append(max(tried, key=lambda r: r["values"]["accuracy held out"]))
        write_table(args, {run: records for run, records in results.items() if records})


if __name__ == "__main__":
    main()
