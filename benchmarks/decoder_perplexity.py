"""Perplexity of a decoder on held-out text before and after its linears are truncated: plain and whitened start.

    python benchmarks/decoder_perplexity.py --weights stories260K.bin --tokenizer tok512.bin --text tinyshakespeare.txt

The last tenth of the text is held out; the whitened start is calibrated on windows of the rest. --epochs fine-tunes the dense
model on the rest first (AdamW, lr 0.001), since the text is not what the published model was trained on.
"""

import argparse

import harness
import numpy as np

import wasi
from wasi.models import perplexity
from wasi.training.loop import TrainConfig, train
from wasi.training.text import TokenLoader, open_windows

COLUMNS = {
    "model": lambda r: r["model"],
    "variance kept": lambda r: r["variance"] or "",
    "start": lambda r: r["start"],
    "mean rank": lambda r: "" if r["rank"] is None else f"{r['rank']:.1f}",
    "parameters of the linears": lambda r: f"{r['parameters']:,}",
    "perplexity": lambda r: f"{r['perplexity']:.2f}",
}


def dense_model(weights, tuned):
    model = wasi.load_llama(weights)
    for name, p in model.named_parameters():
        p.data = tuned[name].copy()
    return model


def held_out_perplexity(model, windows):
    tokens = np.concatenate([w[:-1] for w in windows.tokens] + [windows.tokens[-1][-1:]])
    return perplexity(model, tokens, len(windows.tokens[0]) - 1, batch_size=32)


def rows_of(about, weights, tuned, splits, variances, calibration):
    """Yields a record for the dense model and for each variance and start."""
    model = dense_model(weights, tuned)
    linears = sum(model.get_module(name).weight.data.size for name in wasi.models.find_targets(model, ("all",)))
    where = harness.context(wasi.get_num_threads())
    yield {"model": about, "variance": None, "start": "dense", "rank": None, "parameters": linears,
           "perplexity": held_out_perplexity(model, splits["val"]), **where}
    for variance in variances:
        ranks = None
        for start in ("plain", "whitened", "whitened, ranks of plain"):
            model = dense_model(weights, tuned)
            wasi.factorize(model, variance, rank_pattern=ranks if start.endswith("plain") and ranks else None,
                           whiten=None if start == "plain" else calibration, target_modules=("all",), verbose=False)
            if start == "plain":
                ranks = {layer.name: layer.rank for layer in model.factorization}
            yield {"model": about, "variance": variance, "start": start,
                   "rank": float(np.mean([layer.rank for layer in model.factorization])),
                   "parameters": sum(layer.parameters_after for layer in model.factorization),
                   "perplexity": held_out_perplexity(model, splits["val"]), **where}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", required=True, help="as of wasi generate")
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--text", required=True)
    parser.add_argument("--length", type=int, default=128, help="tokens a window")
    parser.add_argument("--variance", type=float, nargs="+", default=[0.99, 0.95, 0.9])
    parser.add_argument("--calibration", type=int, default=64, help="windows")
    parser.add_argument("--epochs", type=int, default=1, help="of fine-tuning for the second half of the table; 0: none")
    parser.add_argument("--limit-val", type=int, help="windows of the held-out text")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", metavar="NAME", help="write NAME.json and NAME.md to benchmarks/results/")
    args = parser.parse_args()
    wasi.set_num_threads(args.threads)
    splits = open_windows(args.text, wasi.load_tokenizer(args.tokenizer), args.length)
    if args.limit_val:
        splits["val"] = splits["val"].take(range(args.limit_val))
    chosen = splits["train"].subset(args.calibration)
    calibration = [chosen.batch(np.arange(i, min(i + 16, len(chosen)))) for i in range(0, len(chosen), 16)]
    model = wasi.load_llama(args.weights)
    records = list(rows_of("as published", args.weights, {n: p.data for n, p in model.named_parameters()}, splits, args.variance,
                           calibration))
    print(harness.markdown_table(records, COLUMNS), flush=True)
    if args.epochs:
        train(model, TokenLoader(splits["train"], 32, shuffle=True, drop_last=True), TokenLoader(splits["val"], 32),
              TrainConfig(epochs=args.epochs, lr=1e-3, optimizer="adamw", n_warmup=10), progress=False)
        records += rows_of(f"fine-tuned, {args.epochs} epoch(s)", args.weights, {n: p.data for n, p in model.named_parameters()},
                           splits, args.variance, calibration)
    print(harness.markdown_table(records, COLUMNS))
    if args.out:
        harness.write_results(args.out, "Perplexity on held-out text before and after truncation", records, COLUMNS)


if __name__ == "__main__":
    main()
