"""One training step of wasi against everything that PyTorch users do about memory: time, measured peak, rate.

    OMP_WAIT_POLICY=PASSIVE python benchmarks/against_torch.py --model vit_base_patch32_224 --batch 128 --out vit_b32_b128

Each row is a process of its own, one after the other: no other row's memory or threads are there. SGD, gradients clipped to
norm 1. Rows of PyTorch are the variants of rivals.py; rows of wasi factor all linears of every block. Their weights have random
singular vectors and singular values proportional to (i + 1)^-0.5; "wsi" and "wasi" keep 0.8 of the energy, "qwasi" has rank 64
over a 4-bit residual, and leaves stem and batch norms as they are; "wasi" compresses the inputs of linears besides, to half of
each mode and 64 channels. "exact" rows walk the batch in micro-batches and run blocks again in backward: the same gradient, less
memory. "least" rows walk it in smaller ones, keep what blocks keep in 8 bits and sum gradients in bfloat16 (kept.py has the
error). ", bf16" rows round the factors of products to bfloat16, as PyTorch's autocast does. Of a residual network's batch norms
micro-batches would change the statistics, but for "qwasi", "lora" and "qlora", where they are frozen: "recomputed" and "8 bits
kept" rows walk the batch whole.

GFLOP are those of the products that a row does (for PyTorch: of dense training without recomputation); their rate is given
beside that of a large sgemm of wasi's on as many threads, taken before the rows. Integer products count as if in float32.
"""

import argparse
import time

import harness
import numpy as np
import rivals
import step

import wasi

FORMS = {
    "whole batch": {},
    "recomputed": {"recompute": True},
    "8 bits kept": {"saved_bits": 8},
    "exact": {"micro_batch": 8, "recompute": True},
    "least": {"micro_batch": 4, "saved_bits": 8, "gradient_bits": 16},
}
OURS = {f"wasi {method}, {form}": {"method": method, **options}
        for method in ("dense", "wsi", "wasi", "qwasi", "lora", "qlora") for form, options in FORMS.items()}
INFERENCE = {f"wasi {method}, inference": {"method": method} for method in ("dense", "wsi", "qwasi")}
for table in (OURS, INFERENCE):
    table.update({f"{name}, bf16": {**options, "precision": "bfloat16"} for name, options in table.items()})
DEFAULT = [name for name in (*OURS, *INFERENCE) if name.split()[1].strip(",") in ("dense", "wsi", "qwasi")
           and "recomputed" not in name and "kept" not in name and "dense, least" not in name]


def sgemm_gflops(threads, n=2048, rounds=3):
    """GFLOP/s of wasi's float32 product of n x n matrices, the best of some rounds."""
    before = wasi.get_num_threads()
    wasi.set_num_threads(threads)
    A = np.random.default_rng(0).standard_normal((n, n), np.float32)
    best = min(harness.timed(lambda: wasi.ops.linear(A, A))[0] for _ in range(rounds + 1))
    wasi.set_num_threads(before)
    return 2 * n**3 / best / 1e9


def rows(args):
    """(name, function, its arguments, GFLOP of a step or None) of every row."""
    shape = {"model_name": args.model, "img_size": args.img_size, "batch": args.batch}
    dense = wasi.create_model(args.model, num_classes=10, img_size=args.img_size).training_flops(args.batch)
    for variant in args.rivals:
        if variant == "inference":
            yield "PyTorch inference", rivals.torch_inference, shape, dense.forward / 1e9
        else:
            yield f"PyTorch {variant}", rivals.torch_step, {**shape, "variant": variant}, dense.total / 1e9
    for name in args.ours:
        if name in OURS:
            micro = {"micro_batch": args.micro_batch} if args.micro_batch and "micro_batch" in OURS[name] else {}
            yield name, step.wasi_step, {**shape, **OURS[name], **micro}, None
        else:
            yield name, step.wasi_inference, {**shape, **INFERENCE[name]}, None


COLUMNS = {
    "": lambda r: r["row"],
    "peak MiB above import": lambda r: harness.mib(r["peak_bytes"]),
    "seconds a step": lambda r: harness.seconds(r["seconds"]["median"]),
    "time / first row": lambda r: f"{r['time_ratio']:.2f}",
    "CPU seconds": lambda r: harness.seconds(r["cpu_seconds"]["median"]),
    "images/s": lambda r: f"{r['images_per_second']:.1f}",
    "GFLOP/s": lambda r: f"{r['gflops']:.0f}" if r["gflops"] else "",
    "of sgemm": lambda r: f"{r['gflops'] / r['sgemm_gflops']:.0%}" if r["gflops"] else "",
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vit_base_patch32_224")
    parser.add_argument("--img-size", type=int)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rivals", nargs="+", choices=rivals.VARIANTS, default=list(rivals.VARIANTS))
    parser.add_argument("--ours", nargs="+", choices=[*OURS, *INFERENCE], default=DEFAULT, metavar="ROW")
    parser.add_argument("--micro-batch", type=int, help="of the rows with micro-batches (default: 8, of those of least memory 4)")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", metavar="NAME", help="write NAME.json and NAME.md to benchmarks/results/, anew after every row")
    args = parser.parse_args()
    sgemm, records = sgemm_gflops(args.threads), []
    for name, function, arguments, gflop in rows(args):
        started = time.perf_counter()
        record = {"row": name, **harness.run_isolated(function, arguments, args.steps, threads=args.threads)}
        seconds = record["seconds"]["median"]
        gflop = record["values"].get("flops", 0) / 1e9 or gflop
        record.update(sgemm_gflops=sgemm, images_per_second=args.batch / seconds, gflops=gflop and gflop / seconds,
                      time_ratio=seconds / (records[0] if records else record)["seconds"]["median"])
        records.append(record)
        print(harness.markdown_table([record], COLUMNS).splitlines()[2], f"({time.perf_counter() - started:.0f} s)", flush=True)
        if args.out:
            harness.write_results(args.out, f"{args.model}, batch {args.batch}: one training step, wasi and PyTorch", records,
                                  COLUMNS)


if __name__ == "__main__":
    main()
