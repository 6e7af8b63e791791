"""wasi's training step and inference against PyTorch's, each in a process of its own, timed in alternation.

    python benchmarks/step.py --model vit_tiny_patch16_224 vit_base_patch32_224 --batch 32 --out step_b32
"""

import argparse

import harness
import numpy as np

import wasi
from wasi.layers import ActivationPolicy
from wasi.models.methods import METHODS, MethodOptions, apply_method, default_freeze
from wasi.training.optimizer import Optimizer
from wasi.training.step import accumulate_gradient


def decaying_spectrum(weight, rng):
    """A matrix of weight's shape and norm with random singular vectors and singular values proportional to (i + 1)^-0.5."""
    U, V = (wasi.linalg.orthonormalize(rng.standard_normal((n, min(weight.shape))).astype(np.float32)) for n in weight.shape)
    s = np.arange(1, min(weight.shape) + 1, dtype=np.float32) ** -0.5
    return (U * (s * (np.linalg.norm(weight) / np.linalg.norm(s)))) @ V.T


def build(model_name, img_size, method, rank=None):
    """The model of a method over all linears, 10 classes; other than dense ones start from weights with a decaying spectrum.

    "wsi" and "wasi" keep 0.8 of the spectrum's energy unless a rank is given; "qwasi" has rank 64 over a 4-bit residual, and
    leaves stem and batch norms as they are.
    """
    model = wasi.create_model(model_name, num_classes=10, img_size=img_size)
    if method != "dense":
        rng = np.random.default_rng(0)
        for name in wasi.models.find_targets(model, ("all",)):
            weight = model.get_module(name).weight
            weight.data = np.ascontiguousarray(decaying_spectrum(weight.data, rng))
        rank = rank or (64 if method == "qwasi" else None)
        freeze = default_freeze(method, pretrained=True)
        apply_method(model, method, MethodOptions(("all",), variance=0.8, rank=rank, freeze=freeze), verbose=False)
    return model


def wasi_step(model_name, img_size, batch, method="dense", rank=None, micro_batch=None, recompute=False, gradient_bits=32,
              saved_bits=None, precision="float32"):
    """Set-up of a training step (SGD, clipping at norm 1); the step returns its loss, norm and arena figures."""
    wasi.set_matmul_precision(precision)
    model = build(model_name, img_size, method, rank)
    if recompute or saved_bits:
        model.set_policy(ActivationPolicy(recompute=recompute, saved_bits=saved_bits))
    rng = np.random.default_rng(0)
    S = model.config.img_size
    images = rng.integers(0, 256, (batch, 3, S, S), np.uint8)  # as a loader gives them
    labels = rng.integers(0, 10, batch)
    optimizer = Optimizer(model, "sgd", clip_norm=1.0, gradient_bits=gradient_bits)
    arena = wasi.Arena()
    flops = model.training_flops(batch, optimizer.rule, micro_batch).total

    def step():
        with arena:
            loss = accumulate_gradient(model, images, labels, micro_batch, after=optimizer.after_backward(0.01)).loss
            norm = optimizer.step(0.01)
        stats = arena.stats()
        return {"loss": loss, "norm": norm, "flops": flops, "step_peak_bytes": stats["peak_bytes"],
                "extent_bytes": stats["extent_bytes"]}

    return step


def wasi_inference(model_name, batch, img_size=None, method="dense", rank=None, precision="float32"):
    """Set-up of a forward pass."""
    wasi.set_matmul_precision(precision)
    model = build(model_name, img_size, method, rank)
    S = model.config.img_size
    images = np.random.default_rng(0).integers(0, 256, (batch, 3, S, S), np.uint8)
    arena, flops = wasi.Arena(), model.training_flops(batch).forward

    def step():
        with arena:
            return {"mean_logit": float(model.forward(images).mean()), "flops": flops}

    return step


COLUMNS = {
    "model": lambda r: r["model"],
    "batch": lambda r: r["batch"],
    "what": lambda r: r["what"],
    "who": lambda r: r["who"],
    "seconds": lambda r: harness.seconds(r["seconds"]["median"]),
    "time / PyTorch's, median (quartiles)": lambda r: "" if r["ratio"] is None else
        f"{r['ratio']['median']:.2f} ({r['ratio']['low']:.2f} to {r['ratio']['high']:.2f})",
    "CPU seconds": lambda r: harness.seconds(r["cpu_seconds"]["median"]),
    "peak MiB above import": lambda r: harness.mib(r["peak_bytes"]),
}


def compare(model_name, batch, what, candidates, rounds, threads):
    """Times candidates, {who: (function, args)}, in alternation; the first is PyTorch's."""
    processes = {who: harness.Isolated(function, args, threads) for who, (function, args) in candidates.items()}
    try:
        timing = harness.interleave(processes, rounds)
        rival = next(iter(candidates))
        for who, process in processes.items():
            ratio = timing["ratios"].get(f"{rival} / {who}")
            inverse = ratio and {"median": 1 / ratio["median"], "low": 1 / ratio["high"], "high": 1 / ratio["low"]}
            yield {"model": model_name, "batch": batch, "what": what, "who": who, "ratio": inverse, **process.record()}
    finally:
        for process in processes.values():
            process.close()


def main():
    import rivals

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", default=["vit_tiny_patch16_224"])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--img-size", type=int)
    parser.add_argument("--methods", nargs="+", default=["dense"], choices=METHODS)
    parser.add_argument("--rank", type=int, help="(default: 0.8 of the energy, qwasi 64)")
    parser.add_argument("--micro-batch", type=int)
    parser.add_argument("--gradient-bits", type=int, choices=(16, 32), default=32, help="of sums over micro-batches")
    parser.add_argument("--recompute", action="store_true", help="keep block inputs alone")
    parser.add_argument("--rivals", nargs="+", default=["plain"], help="PyTorch's variants (rivals.py); the first is the measure")
    parser.add_argument("--no-inference", action="store_true")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", metavar="NAME", help="write NAME.json and NAME.md to benchmarks/results/")
    args = parser.parse_args()
    records = []
    for model in args.model:
        shape = {"model_name": model, "img_size": args.img_size, "batch": args.batch}
        steps = {f"PyTorch {v}": (rivals.torch_step, {**shape, "variant": v}) for v in args.rivals}
        forwards = {"PyTorch": (rivals.torch_inference, shape)}
        ours = {"rank": args.rank, "micro_batch": args.micro_batch, "recompute": args.recompute,
                "gradient_bits": args.gradient_bits}
        for method in args.methods:
            steps[f"wasi {method}"] = (wasi_step, {**shape, **ours, "method": method})
            forwards[f"wasi {method}"] = (wasi_inference, {**shape, "rank": args.rank, "method": method})
        records += compare(model, args.batch, "training step", steps, args.rounds, args.threads)
        if not args.no_inference:
            records += compare(model, args.batch, "inference", forwards, args.rounds, args.threads)
    print(harness.markdown_table(records, COLUMNS))
    if args.out:
        harness.write_results(args.out, f"One step, batch {args.batch}: wasi and PyTorch", records, COLUMNS)


if __name__ == "__main__":
    main()
