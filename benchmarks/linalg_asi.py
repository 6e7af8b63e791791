"""One warm step of activation subspace iteration (ASI): wasi beside TensorLy and PyTorch.

Every method starts from the same factors, which fit an earlier batch of the same kind, and returns new factors and the
core. The rivals run the step as published, U_n = orth(A_(n) A_(n)' U_n) on the whole array for every mode, written with
TensorLy's functions on NumPy and on PyTorch and with PyTorch's einsum and QR; "TensorLy HOOI" is one sweep of
tensorly.decomposition.partial_tucker from the same start, which takes exact singular vectors. "error" is
|A - core x U| / |A|. "of sgemm" compares wasi's time with that of its products at the rate of a large sgemm timed in the
same rounds: where a mode is cut to a few columns, memory and not arithmetic sets the pace (the last array is read twice and
partly written). wasi's scratch comes from an arena, as in training. Writes benchmarks/results/linalg_asi.{md,json}.

    OPENBLAS_NUM_THREADS=2 OPENBLAS_THREAD_TIMEOUT=10 OMP_WAIT_POLICY=PASSIVE python benchmarks/linalg_asi.py
"""

import argparse
from itertools import permutations

import numpy as np
import tensorly
import torch
from harness import interleave, timed, write_results
from tensorly.decomposition import partial_tucker

import wasi
from wasi import linalg, ops

CASES = {  # shape: ranks, about a quarter of each mode
    (128, 50, 768): (32, 13, 192),
    (128, 197, 768): (32, 49, 192),
    (128, 14, 14, 384): (32, 4, 4, 96),
}
SGEMM = 1536


def batches(shape, rng):
    """Two float32 batches with common correlations along every mode (amplitudes fall as i^-0.6) and 10 % of noise."""
    turns = [np.linalg.qr(rng.standard_normal((d, d)))[0] * np.arange(1, d + 1) ** -0.6 for d in shape]
    result = []
    for _ in range(2):
        A = rng.standard_normal(shape)
        for n, turn in enumerate(turns):
            A = np.moveaxis(np.tensordot(turn, A, (1, n)), 0, n)
        A /= np.sqrt(np.mean(A**2))
        result.append(np.ascontiguousarray(A + 0.1 * rng.standard_normal(shape), np.float32))
    return result


def torch_step(A, factors):
    modes = "abcd"[: A.ndim]
    new = []
    for n, U in enumerate(factors):
        ranked = modes.replace(modes[n], "z")
        V = torch.einsum(f"{modes},{modes[n]}z->{ranked}", A, U)
        new.append(torch.linalg.qr(torch.einsum(f"{modes},{ranked}->{modes[n]}z", A, V))[0])
    core = A
    for n, U in enumerate(new):
        core = torch.einsum(f"{modes},{modes[n]}z->{modes.replace(modes[n], 'z')}", core, U)
    return core, new


def tensorly_step(backend, A, factors):
    tensorly.set_backend(backend)
    new = []
    for n, U in enumerate(factors):
        unfolded = tensorly.unfold(A, n)
        new.append(tensorly.qr(tensorly.dot(unfolded, tensorly.dot(tensorly.transpose(unfolded), U)))[0])
    return tensorly.tenalg.multi_mode_dot(A, new, transpose=True), new


def tensorly_hooi(A, factors):
    tensorly.set_backend("numpy")
    core = tensorly.tenalg.multi_mode_dot(A, factors, transpose=True)
    (core, new), _ = partial_tucker(A, core.shape, modes=list(range(A.ndim)), init=(core, list(factors)), n_iter_max=1)
    return core, new


def gemm_flops(shape, ranks):
    """FLOPs of wasi's products in the cheapest order of modes: three an element and mode, on the array as the modes before
    it have left it, and the two that make the d x K result orthonormal (Gram matrix, division by its factor: K^2 d each)."""

    def flops(order):
        size, total = float(np.prod(shape)), 0.0
        for n in order:
            total += 6 * size * ranks[n] + 2 * shape[n] * ranks[n] ** 2
            size *= ranks[n] / shape[n]
        return total

    return min(flops(order) for order in permutations(range(len(shape))))


def measure(shape, ranks, rounds):
    before, A = batches(shape, np.random.default_rng(0))
    start = linalg.asi_factors(shape, ranks)
    for _ in range(4):
        linalg.asi_step(before, start)
    tensor, start_torch = torch.from_numpy(A), [torch.from_numpy(U) for U in start]
    square = np.random.default_rng(1).standard_normal((SGEMM, SGEMM), dtype=np.float32)

    arena = wasi.Arena()

    def wasi_step():
        with arena:
            factors = [U.copy() for U in start]
            return linalg.asi_step(A, factors), factors

    candidates = {
        "wasi": wasi_step,
        "PyTorch, einsum and QR": lambda: torch_step(tensor, start_torch),
        "TensorLy on PyTorch": lambda: tensorly_step("pytorch", tensor, start_torch),
        "TensorLy on NumPy": lambda: tensorly_step("numpy", A, start),
    }
    record = interleave({**candidates, "sgemm": lambda: ops.linear(square, square)}, rounds)
    rate = 2 * SGEMM**3 / record["seconds"]["sgemm"]["median"]
    hooi_seconds, _ = timed(lambda: tensorly_hooi(A, start))
    candidates["TensorLy HOOI, once"] = lambda: tensorly_hooi(A, start)
    rows, own = [], record["seconds"]["wasi"]["median"]
    for name, function in candidates.items():
        core, factors = function()
        core, factors = np.ascontiguousarray(core), [np.ascontiguousarray(U) for U in factors]
        seconds = hooi_seconds if "HOOI" in name else record["seconds"][name]["median"]
        ratio = record["ratios"].get(f"wasi / {name}")
        rows.append({**record, "threads": wasi.get_num_threads(), "shape": shape, "ranks": ranks, "method": name,
                     "step_seconds": seconds,
                     "slower": 1 / ratio["median"] if ratio else seconds / own,
                     "error": linalg.tucker_error(A, core, factors) / float(np.linalg.norm(A)),
                     "of_sgemm": own * rate / gemm_flops(shape, ranks) if name == "wasi" else None})
        print(rows[-1]["method"], rows[-1]["step_seconds"], rows[-1]["slower"], rows[-1]["error"], rows[-1]["of_sgemm"])
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", default="linalg_asi")
    args = parser.parse_args()
    wasi.set_num_threads(args.threads)
    torch.set_num_threads(args.threads)
    records = []
    for shape, ranks in CASES.items():
        records += measure(shape, ranks, args.rounds)
        write_results(args.out, "One warm step of activation subspace iteration", records, {
            "array": lambda r: " x ".join(map(str, r["shape"])),
            "ranks": lambda r: " x ".join(map(str, r["ranks"])),
            "method": lambda r: r["method"],
            "ms": lambda r: f"{1e3 * r['step_seconds']:.1f}",
            "time / wasi": lambda r: f"{r['slower']:.1f}",
            "error": lambda r: f"{r['error']:.4f}",
            "time / its products at sgemm's rate": lambda r: f"{r['of_sgemm']:.2f}" if r["of_sgemm"] else "",
        })


if __name__ == "__main__":
    main()
