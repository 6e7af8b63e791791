"""What a training step keeps for backward, and how it multiplies: memory, time and the gradient's error of each choice.

    python benchmarks/kept.py --out kept

ViT-B/32 with wsi's factors on all linears (0.8 of a decaying spectrum's energy, see step.py), 16 images in micro-batches of 8.
CPU seconds of gradient accumulation in alternation, as a ratio to exact float32; the peak of what the step allocates; the
relative error of the whole gradient. Writes benchmarks/results/kept.{json,md}.
"""

import argparse
import statistics
import time

import harness
import numpy as np
import step

import wasi
from wasi.layers import ActivationPolicy
from wasi.training.step import accumulate_gradient

POLICIES = {
    "float32": {},
    "bfloat16": {"saved_bits": 16},
    "8 bits": {"saved_bits": 8},
    "recomputed from the block's input": {"recompute": True},
    "recomputed from the input in 8 bits": {"recompute": True, "saved_bits": 8},
    "float32, products in bfloat16": {"precision": "bfloat16"},
    "8 bits, products in bfloat16": {"saved_bits": 8, "precision": "bfloat16"},
}

COLUMNS = {
    "kept": lambda r: r["policy"],
    "peak MiB of activations and scratch": lambda r: harness.mib(r["peak_bytes"]),
    "CPU time / float32's": lambda r: f"{r['ratio']:.2f}",
    "gradient's relative error": lambda r: f"{r['error']:.1e}" if r["error"] else "0",
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vit_base_patch32_224")
    parser.add_argument("--method", default="wsi")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", metavar="NAME")
    args = parser.parse_args()
    wasi.set_num_threads(args.threads)
    model, rng = step.build(args.model, None, args.method), np.random.default_rng(0)
    S = model.config.img_size
    images, labels = rng.integers(0, 256, (16, 3, S, S), np.uint8), rng.integers(0, 10, 16)
    parameters = [p for _, p in model.named_parameters() if p.trainable]
    for p in parameters:
        p.grad_buffer()
    exact, records = None, {name: {"policy": name, "cpu_seconds_all": []} for name in POLICIES}
    for round_ in range(args.rounds + 1):
        for name, policy in POLICIES.items():
            policy = dict(policy)
            wasi.set_matmul_precision(policy.pop("precision", "float32"))
            model.set_policy(ActivationPolicy(**policy))
            model.zero_grad()
            arena, started = wasi.Arena(), time.process_time()
            with arena:
                accumulate_gradient(model, images, labels, micro_batch=8)
            seconds, record = time.process_time() - started, records[name]
            if round_:
                record["cpu_seconds_all"].append(seconds)
                continue
            gradient = [p.grad.copy() for p in parameters]
            exact = exact or gradient
            norm = sum(np.sum(g.astype(float) ** 2) for g in exact)
            record["peak_bytes"] = arena.stats()["peak_bytes"]
            record["error"] = (sum(np.sum((g - e).astype(float) ** 2) for g, e in zip(gradient, exact)) / norm) ** 0.5
    for record in records.values():
        pairs = zip(record["cpu_seconds_all"], records["float32"]["cpu_seconds_all"])
        record.update(ratio=statistics.median(a / b for a, b in pairs), **harness.context(args.threads))
    records = list(records.values())
    print(harness.markdown_table(records, COLUMNS))
    if args.out:
        harness.write_results(args.out, f"What a step keeps ({args.model}, {args.method})", records, COLUMNS)


if __name__ == "__main__":
    main()
