"""Accuracy, memory and time of fine-tuning a small decoder on SST-2: dense, LoRA, WASI and their quantised forms.

    python benchmarks/decoder_sst2.py --data SST2 --weights stories260K.bin --tokenizer tok512.bin --out decoder_sst2

Each run has a process of its own; all of them see the same batches (AdamW, batch 32, all linears of all blocks; factors start
whitened, those of qwasi in the gradient's leading directions).
"""

import argparse
import tempfile
from pathlib import Path

import harness
import numpy as np

import wasi
from wasi.models.methods import MethodOptions, apply_method
from wasi.training.loop import TrainConfig, train
from wasi.training.text import TokenLoader, TokenSet, open_sentences

# Method, its learning rate, what apply_method is told; the update's or factors' rank where it is fixed.
RUNS = {
    "dense": ("dense", 1e-3, {}),
    "lora, rank 8": ("lora", 3e-3, {"rank": 8}),
    "qlora, rank 8 over 4 bits": ("qlora", 3e-3, {"rank": 8}),
    "wsi, 0.95": ("wsi", 1e-3, {"variance": 0.95}),
    "wasi, 0.95": ("wasi", 1e-3, {"variance": 0.95}),
    "qwasi, rank 8 over 4 bits": ("qwasi", 1e-3, {"rank": 8}),
}


def pack(splits, path):
    """Writes TokenSets as flat arrays, so that texts are encoded once."""
    arrays = {}
    for split, s in splits.items():
        arrays |= {f"{split}_ids": np.concatenate(s.tokens), f"{split}_lengths": [len(t) for t in s.tokens],
                   f"{split}_labels": s.labels}
    np.savez(path, **arrays)


def unpack(path):
    with np.load(path) as file:
        return {split: TokenSet(np.split(file[f"{split}_ids"], np.cumsum(file[f"{split}_lengths"])[:-1]), file[f"{split}_labels"],
                                ("negative", "positive")) for split in ("train", "val")}


def fine_tune(data, weights, run, epochs, seed):
    """Set-up of a whole run, which is the one step."""
    splits = unpack(data)
    method, lr, options = RUNS[run]
    model = wasi.load_llama(weights, num_classes=2, seed=seed)
    loader = TokenLoader(splits["train"], 32, shuffle=True, seed=seed, drop_last=True)
    calibration = [batch for batch, _ in zip(loader, range(4))] if method in ("wsi", "wasi", "qwasi") else None
    apply_method(model, method, MethodOptions(("all",), seed=seed, **options), calibration, verbose=False)
    loader.set_epoch(0)
    config = TrainConfig(epochs=epochs, lr=lr, optimizer="adamw", n_warmup=10)

    def step():
        result = train(model, loader, TokenLoader(splits["val"], 32), config, progress=False)
        return {"accuracy": result.val_accuracy, "seconds_per_step": result.seconds_per_step, "flops": result.flops_per_image,
                "step_peak_bytes": result.step_peak_bytes, **result.counted}

    return step


def kib(key):
    return lambda r: f"{r['values'][key] / 1024:,.0f}"


COLUMNS = {
    "method": lambda r: r["args"]["run"],
    "accuracy on dev": lambda r: f"{100 * r['values']['accuracy']:.1f} %",
    "weights trained KiB": kib("trained_bytes"),
    "frozen KiB": kib("frozen_bytes"),
    "gradients KiB": kib("gradient_bytes"),
    "optimiser KiB": kib("optimizer_bytes"),
    "saved for backward KiB": kib("saved_bytes"),
    "peak of a step's arrays KiB": kib("step_peak_bytes"),
    "MFLOP a sample": lambda r: f"{r['values']['flops'] / 1e6:.0f}",
    "seconds a step": lambda r: harness.seconds(r["values"]["seconds_per_step"]),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder with train.tsv and dev.tsv")
    parser.add_argument("--weights", required=True, help="as of wasi generate")
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--runs", nargs="+", default=list(RUNS), choices=RUNS)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--limit", type=int, help="training sentences")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", metavar="NAME", help="write NAME.json and NAME.md to benchmarks/results/")
    args = parser.parse_args()
    splits = open_sentences(args.data, wasi.load_tokenizer(args.tokenizer), 128)
    if args.limit:
        splits["train"] = splits["train"].subset(args.limit)
    records = []
    with tempfile.TemporaryDirectory() as folder:
        data = str(Path(folder) / "sst2.npz")
        pack({split: splits[split] for split in ("train", "val")}, data)
        for run in args.runs:
            words = {"data": data, "weights": args.weights, "run": run, "epochs": args.epochs, "seed": args.seed}
            records.append(harness.run_isolated(fine_tune, words, steps=1, warmup=0, threads=args.threads))
            print("; ".join(f"{title}: {cell(records[-1])}" for title, cell in COLUMNS.items()), flush=True)
    print(harness.markdown_table(records, COLUMNS))
    if args.out:
        title = f"SST-2, {len(splits['train'])} sentences, {args.epochs} epochs, seed {args.seed}"
        harness.write_results(args.out, title, records, COLUMNS)


if __name__ == "__main__":
    main()
