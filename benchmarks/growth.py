"""How seconds and memory of a training step grow with batch, image size, depth and rank: slopes in log-log, and a plot.

    python benchmarks/growth.py --out growth

Each point is a step of `--method` (factors on all linears, ViT of width 192, rank 48 unless the rank grows) in one process on
random images: CPU seconds of the fastest of `--rounds` (CPU time, so that other work on the machine counts less), and the peak of
what the step allocates. "slope" is that of a line through the logarithms: 1 is linear growth. Tokens grow as the square of the
image's side, and attention's products as their square. Writes benchmarks/results/growth.{json,md,png}.
"""

import argparse
import time

import harness
import numpy as np

import wasi
from wasi.models.methods import METHODS, MethodOptions, apply_method
from wasi.training.optimizer import Optimizer
from wasi.training.step import accumulate_gradient

BASE = {"batch": 8, "img_size": 112, "depth": 6, "rank": 48}
GROWTH = {"batch": (4, 8, 16, 32), "img_size": (64, 112, 160, 224), "depth": (3, 6, 12, 24), "rank": (12, 24, 48, 96)}


def measure(method, rounds, batch, img_size, depth, rank):
    """(CPU seconds, peak bytes in activations and scratch) of a step."""
    model = wasi.create_model("vit_tiny_patch16_224", num_classes=10, img_size=img_size, depth=depth)
    apply_method(model, method, MethodOptions(("all",), rank=rank), verbose=False)
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (batch, 3, img_size, img_size), np.uint8), rng.integers(0, 10, batch)
    optimizer, arena, seconds = Optimizer(model, clip_norm=1.0), wasi.Arena(), []
    for _ in range(rounds + 1):
        start = time.process_time()
        with arena:
            accumulate_gradient(model, images, labels)
            optimizer.step(1e-3)
        seconds.append(time.process_time() - start)
    return min(seconds[1:]), arena.stats()["peak_bytes"]


def slope(x, y):
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def plot(records, path):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(records), figsize=(4 * len(records), 3.4), layout="constrained")
    for axis, r in zip(axes, records):
        axis.loglog(r["values"], r["seconds_each"], "o-", label=f"seconds, slope {r['time_slope']:.2f}")
        axis.loglog(r["values"], np.array(r["bytes_each"]) / harness.MIB, "s--", label=f"MiB, slope {r['memory_slope']:.2f}")
        axis.set_xlabel(r["what"])
        axis.set_xticks(r["values"], [str(v) for v in r["values"]])
        axis.minorticks_off()
        axis.legend()
    figure.savefig(path, dpi=110)
    plt.close(figure)


COLUMNS = {
    "what grows": lambda r: r["what"],
    "over": lambda r: ", ".join(map(str, r["values"])),
    "CPU seconds a step": lambda r: ", ".join(harness.seconds(s) for s in r["seconds_each"]),
    "slope": lambda r: f"{r['time_slope']:.2f}",
    "MiB in activations and scratch": lambda r: ", ".join(harness.mib(b) for b in r["bytes_each"]),
    "slope ": lambda r: f"{r['memory_slope']:.2f}",
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", choices=METHODS, default="wsi")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", metavar="NAME")
    args = parser.parse_args()
    wasi.set_num_threads(args.threads)
    records = []
    for what, values in GROWTH.items():
        seconds, peaks = zip(*(measure(args.method, args.rounds, **{**BASE, what: value}) for value in values))
        records.append({"what": what, "method": args.method, "values": values, "seconds_each": seconds, "bytes_each": peaks,
                        "time_slope": slope(values, seconds), "memory_slope": slope(values, peaks),
                        **harness.context(args.threads)})
    print(harness.markdown_table(records, COLUMNS))
    if args.out:
        harness.write_results(args.out, f"Growth of a training step ({args.method}, ViT of width 192)", records, COLUMNS)
        plot(records, harness.RESULTS / f"{args.out}.png")


if __name__ == "__main__":
    main()
