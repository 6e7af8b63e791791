"""Integer products with a frozen 4-bit weight against BLAS in float32: y = x W' and dx = dy W.

Each figure of the integer path includes quantising the activations and expanding the weights. "cores" is the
processor time of the whole measurement over its wall-clock time: less than the threads where other work took the rest.
"""

import argparse
import time

import harness
import numpy as np

import wasi
from wasi import ops

SIZES = [(768, 768), (2304, 768), (3072, 768), (768, 3072)]
COLUMNS = {
    "tokens": lambda r: r["tokens"],
    "weight": lambda r: f"{r['shape'][0]} x {r['shape'][1]}",
    "sgemm y": lambda r: rate(r, "sgemm y"),
    "4-bit y": lambda r: rate(r, "4-bit y"),
    "exact y": lambda r: rate(r, "exact y"),
    "sgemm dx": lambda r: rate(r, "sgemm dx"),
    "4-bit dx": lambda r: rate(r, "4-bit dx"),
    "cores": lambda r: f"{r['cores_had']:.1f}",
    "times faster, y": lambda r: faster(r, "y"),
    "times faster, dx": lambda r: faster(r, "dx"),
}


def rate(record, name):
    """Billions of multiplications and additions a second, at the lower quartile of the times."""
    operations = 2 * record["tokens"] * record["shape"][0] * record["shape"][1]
    return f"{operations / record['seconds'][name]['low'] / 1e9:.0f}"


def faster(record, result):
    ratio = record["ratios"][f"sgemm {result} / 4-bit {result}"]
    return f"{ratio['median']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})"


def measure(tokens, O, I, rounds, seconds):
    """One record; calls are repeated until a measurement of the integer path takes about `seconds`."""
    rng = np.random.default_rng(0)
    W = rng.standard_normal((O, I), dtype=np.float32)
    x, dy = (rng.standard_normal((tokens, n), dtype=np.float32) for n in (I, O))
    y, dx = np.empty_like(dy), np.empty_like(x)
    Q = ops.quantize_residual(W)
    calls = {
        "sgemm y": lambda: ops.linear(x, W, out=y),
        "4-bit y": lambda: ops.quant_linear(x, Q, out=y),
        "exact y": lambda: ops.quant_linear(x, Q, out=y, exact=True),
        "sgemm dx": lambda: ops.linear_backward(dy, None, W, out=dx),
        "4-bit dx": lambda: ops.quant_linear_backward(dy, Q, out=dx),
    }
    repeat = max(1, int(seconds / harness.timed(calls["4-bit y"])[0]))

    def repeated(call):
        return lambda: [call() for _ in range(repeat)] and None

    wall, processor = time.perf_counter(), time.process_time()
    record = harness.interleave({name: repeated(call) for name, call in calls.items()}, rounds)
    cores_had = (time.process_time() - processor) / (time.perf_counter() - wall)
    for spread in record["seconds"].values():
        spread.update({key: value / repeat for key, value in spread.items()})
    context = harness.context(wasi.get_num_threads())
    return {"tokens": tokens, "shape": [O, I], "repeat": repeat, "cores_had": cores_had,
            **record, **context}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, nargs="+", default=[6400, 1600, 400, 16, 1])
    parser.add_argument("--threads", type=int, default=harness.cpu_count())
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=0.01, help="of one measurement, at least")
    parser.add_argument("--out", default="qgemm", help="name under benchmarks/results/")
    arguments = parser.parse_args()
    wasi.set_num_threads(arguments.threads)
    records = []
    for tokens in arguments.tokens:
        for O, I in SIZES:
            records.append(measure(tokens, O, I, arguments.rounds, arguments.seconds))
            print(harness.markdown_table(records[-1:], COLUMNS).splitlines()[-1], flush=True)
    title = ("Products with a frozen 4-bit weight: GOP/s at the lower quartile of the times, and how many "
             "times faster than sgemm (median and quartiles of pairs timed in alternation)")
    harness.write_results(arguments.out, title, records, COLUMNS)


if __name__ == "__main__":
    main()
