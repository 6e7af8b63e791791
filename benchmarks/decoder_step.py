"""One training step on the last layers of a decoder of TinyLlama's shape (1.1 B parameters): memory and time beside PyTorch's.

    python benchmarks/decoder_step.py --out tinyllama_step

Random weights in a bfloat16 safetensors file of Hugging Face's names (2.2 GB in the folder for temporary files). Language
modelling on random tokens: forward through all layers and the head, backward through the last ones, SGD with clipping. wasi
keeps what is frozen mapped from the file in bfloat16 and computes in float32, or, ",bf16", rounds the factors of products to
bfloat16. PyTorch's variants: "float32", everything in float32, as one writes it first; "bf16", weights and arithmetic in
bfloat16 as the file has them, mapped where frozen.
"""

import argparse
import tempfile
from pathlib import Path

import harness
import numpy as np

import wasi
from wasi.layers import ActivationCompression, FactoredLinear
from wasi.models import find_targets
from wasi.models.llama import LLAMA_CONFIGS
from wasi.models.methods import MethodOptions, apply_method
from wasi.training.memory import peak_rss_bytes
from wasi.training.optimizer import Optimizer
from wasi.training.step import accumulate_gradient

METHODS = [m + precision for m in ("wsi", "wasi", "qwasi", "lora", "qlora", "dense") for precision in ("", ",bf16")]
LORA_RANK = 8


def random_batch(config, batch, length):
    return np.random.default_rng(0).integers(0, config.vocab_size, (2, batch, length))


def build(folder, method, last_layers, rank):
    """The model of a method over all linears of the last layers. Factors come from a randomised SVD: the weights are random."""
    model = wasi.load_llama(folder, last_layers=last_layers)
    if method in ("lora", "qlora"):
        return apply_method(model, method, MethodOptions(("all",), rank=LORA_RANK), verbose=False)
    for name in find_targets(model, ("all",)) if method != "dense" else ():
        W = model.get_module(name).weight.data
        U, s, Vt = wasi.linalg.randomized_svd(W, min(rank, *W.shape), n_iter=0)
        R = s[:, None] * Vt
        layer = FactoredLinear(U, R, residual=wasi.ops.quantize_residual(W - U @ R) if method == "qwasi" else None)
        if method == "wasi":
            layer.compression = ActivationCompression((0.5, 0.5, 64))
        model.set_module(name, layer)
    return model


def wasi_step(folder, method, last_layers, batch, length, rank):
    """Set-up of a training step; the step returns its loss and the highest memory of the process, set-up included."""
    method, _, bf16 = method.partition(",")
    wasi.set_matmul_precision("bfloat16" if bf16 else "float32")
    model = build(folder, method, last_layers, rank)
    setup_peak = peak_rss_bytes()
    tokens, targets = random_batch(model.config, batch, length)
    optimizer, arena = Optimizer(model, "sgd", clip_norm=1.0), wasi.Arena()

    def step():
        with arena:
            loss = accumulate_gradient(model, tokens, targets).loss
            optimizer.step(0.01)
        return {"loss": loss, "whole_peak_bytes": max(setup_peak, peak_rss_bytes())}

    return step


COLUMNS = {
    "who": lambda r: r["who"],
    "peak MiB of the process, set-up included": lambda r: harness.mib(r["values"]["whole_peak_bytes"]),
    "peak MiB of the steps above import": lambda r: harness.mib(r["peak_bytes"]),
    "of it mapped files": lambda r: harness.mib(r["file_bytes"]),
    "seconds a step": lambda r: harness.seconds(r["seconds"]["median"]),
    "time / that of the last of PyTorch's, in alternation": lambda r: "" if r["ratio"] is None else
        f"{r['ratio']['median']:.2f} ({r['ratio']['low']:.2f} to {r['ratio']['high']:.2f})",
    "loss": lambda r: f"{r['values']['loss']:.3f}",
}


def time_ratio(candidate, rival, rounds, threads):
    """Spread of candidate's seconds over the rival's, (function, args) each, in alternation: both processes live meanwhile."""
    with harness.Isolated(*candidate, threads) as ours, harness.Isolated(*rival, threads) as theirs:
        return harness.interleave({"ours": ours, "theirs": theirs}, rounds)["ratios"]["ours / theirs"]


def main():
    from decoder_rival import (  # here, so that wasi's processes do not load PyTorch
        RIVALS,
        torch_step,
        write_model,
    )

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tinyllama_1.1b", choices=LLAMA_CONFIGS)
    parser.add_argument("--last-layers", type=int, default=5)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--rank", type=int, default=256)
    parser.add_argument("--methods", nargs="+", default=["wasi", "wasi,bf16", "qwasi", "qwasi,bf16", "qlora", "qlora,bf16"],
                        choices=METHODS)
    parser.add_argument("--rivals", nargs="*", default=list(RIVALS), choices=RIVALS)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--warmup", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3,
                        help="of each of the first two methods and the last of PyTorch's in alternation")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", metavar="NAME", help="write NAME.json and NAME.md to benchmarks/results/")
    args = parser.parse_args()
    records = []
    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder), LLAMA_CONFIGS[args.model])
        shape = {"folder": folder, "last_layers": args.last_layers, "batch": args.batch, "length": args.length}
        runs = {f"PyTorch {v}, dense": (torch_step, {**shape, "variant": v}) for v in args.rivals}
        runs |= {f"wasi {m}": (wasi_step, {**shape, "method": m, "rank": args.rank}) for m in args.methods}
        for who, (function, words) in runs.items():
            record = harness.run_isolated(function, words, args.steps, args.warmup, args.threads)
            records.append({"who": who, "ratio": None, **record})
            print(who, *(f"{title}: {cell(records[-1])}" for title, cell in list(COLUMNS.items())[1:]), sep="; ", flush=True)
        for method in args.methods[:2] if args.rounds and args.rivals else ():
            ours, theirs = f"wasi {method}", f"PyTorch {args.rivals[-1]}, dense"
            ratio = time_ratio(runs[ours], runs[theirs], args.rounds, args.threads)
            next(r for r in records if r["who"] == ours)["ratio"] = ratio
    print(harness.markdown_table(records, COLUMNS))
    if args.out:
        title = (f"{args.model}: a step on the last {args.last_layers} layers, batch {args.batch}, length {args.length}, "
                 f"rank {args.rank}")
        harness.write_results(args.out, title, records, COLUMNS)


if __name__ == "__main__":
    main()
