"""Randomised SVD: wasi beside scikit-learn, PyTorch, fbpca and SciPy's svds, at the ranks and shapes of real layers.

Every method runs with its defaults (10 oversamples where it takes any); wasi also with two iterations, as PyTorch and
fbpca have: its error is below theirs then on the decaying spectrum and on noise, and about 1e-4 above on a stepped
one. Times are taken in alternation in one process, "time / wasi" is the median of the ratios within a round; svds is
timed once. The peak memory beside A comes from a fresh process for each method, after one unmeasured call. The noise,
whose exact values take minutes, is left out for the two large matrices. On a machine that does other work `--threads
1` is the fairer comparison: libraries whose threads wait for each other at every step lose most when one of them is
interrupted.

"error" is |A - U S V'|_F over that of the best approximation, minus 1; below 1e-6 it is rounding. wasi's is held against
those of scikit-learn, PyTorch and fbpca, which stop early as it does, and is to be smaller, or rounding where theirs is.
svds iterates until it has converged; "equal" beside it means within 1 % of |A - U S V'|, an error of 0.01 here.
Writes benchmarks/results/linalg_svd.{md,json}.

On a machine that does other work, waiting threads must not spin, for the rivals' sake:

    OPENBLAS_NUM_THREADS=2 OPENBLAS_THREAD_TIMEOUT=10 OMP_WAIT_POLICY=PASSIVE python benchmarks/linalg_svd.py
"""

import argparse
import json

import fbpca
import numpy as np
import scipy.sparse.linalg
import sklearn.utils.extmath
import torch
from harness import RESULTS, interleave, run_isolated, timed, write_results

import wasi
from wasi import linalg

CASES = [(768, 3072, 64), (768, 3072, 256), (3072, 768, 64), (3072, 768, 256), (4096, 4096, 128), (100_000, 512, 64)]
LARGE = 10_000_000
SPECTRA = ("decaying", "stepped", "flat", "noise")


def matrix(m, n, rank, kind, seed=0):
    """A float32 matrix and its singular values: 1 / i, three steps (the cut inside the second), all equal, or noise."""
    rng = np.random.default_rng(seed)
    if kind == "noise":
        A = rng.standard_normal((m, n), dtype=np.float32)
        gram = A.astype(np.float64) @ A.T if m < n else A.T.astype(np.float64) @ A
        return A, np.sqrt(np.linalg.eigvalsh(gram)[::-1])
    r, i = min(m, n), np.arange(1, min(m, n) + 1)
    S = {"decaying": 1 / i, "flat": np.ones(r),
         "stepped": np.where(i <= rank // 2, 1, np.where(i <= 2 * rank, 0.1, 0.01))}[kind]
    U, V = (linalg.orthonormalize(rng.standard_normal((side, r), dtype=np.float32)) for side in (m, n))
    return (U * S.astype(np.float32)) @ V.T, S


def methods(A, rank):
    """Name -> function that returns U, S, Vt."""
    tensor = torch.from_numpy(A)

    def torch_lowrank():
        U, S, V = torch.svd_lowrank(tensor, q=rank + 10)
        return U[:, :rank].numpy(), S[:rank].numpy(), V[:, :rank].T.numpy()

    def svds():
        try:
            return scipy.sparse.linalg.svds(A, rank)
        except scipy.sparse.linalg.ArpackError:  # in float32 it gives up on some spectra with many equal values
            return None

    return {
        "wasi": lambda: linalg.randomized_svd(A, rank),
        "wasi, n_iter=2": lambda: linalg.randomized_svd(A, rank, n_iter=2),
        "scikit-learn": lambda: sklearn.utils.extmath.randomized_svd(A, rank, random_state=0),
        "torch.svd_lowrank": torch_lowrank,
        "fbpca": lambda: fbpca.pca(A, rank, raw=True),
        "scipy svds": svds,
    }


def peak(m, n, rank, kind, method):
    """For run_isolated: one call has been made before the peak is reset."""
    A, _ = matrix(m, n, rank, kind)
    function = methods(A, rank)[method]
    function()
    return lambda: None if function() is None else None


def error(A, S_true, U, S, Vt):
    best = np.linalg.norm(S_true[len(S):])
    return float(linalg.diff_norm(A, *(np.ascontiguousarray(a, np.float32) for a in (U, S, Vt))) / best - 1)


def measure(m, n, rank, kind, args):
    A, S_true = matrix(m, n, rank, kind)
    candidates = methods(A, rank)
    slow = {name: candidates.pop(name) for name in args.slow}
    record = interleave(candidates, rounds=args.rounds if m * n < LARGE else args.rounds_large)
    times = dict(record["seconds"])
    for name, function in slow.items():
        seconds, _ = timed(function)
        times[name] = {"median": seconds, "low": seconds, "high": seconds}
    rows = []
    for name, function in {**candidates, **slow}.items():
        result = function()
        ratio = record["ratios"].get(f"wasi / {name}")
        row = {"m": m, "n": n, "rank": rank, "spectrum": kind, "method": name, "seconds": times[name]["median"],
               "speedup": 1 / ratio["median"] if ratio else times[name]["median"] / times["wasi"]["median"],
               "error": error(A, S_true, *result) if result else None, "extra_bytes": None}
        if kind == args.memory:
            memory = run_isolated(peak, {"m": m, "n": n, "rank": rank, "kind": kind, "method": name}, steps=1, warmup=0,
                                  threads=args.threads)
            row["extra_bytes"] = memory["peak_bytes"] - memory["setup_bytes"]
        print(row, flush=True)
        rows.append({**record, "threads": args.threads, **row})
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--rounds-large", type=int, default=3, help="for matrices of over ten million numbers")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cases", type=int, nargs="+", default=list(range(len(CASES))))
    parser.add_argument("--spectra", nargs="+", default=list(SPECTRA), choices=SPECTRA)
    parser.add_argument("--slow", nargs="*", default=["scipy svds"], help="methods that are timed once")
    parser.add_argument("--memory", default="decaying", help="the spectrum whose runs are repeated for their memory")
    parser.add_argument("--resume", action="store_true", help="keep the records of other cases")
    parser.add_argument("--out", default="linalg_svd")
    args = parser.parse_args()
    wasi.set_num_threads(args.threads)
    torch.set_num_threads(args.threads)
    earlier = RESULTS / f"{args.out}.json"
    records = json.loads(earlier.read_text()) if args.resume and earlier.exists() else []
    records = [r for r in records if (r["m"], r["n"], r["rank"]) not in {CASES[case] for case in args.cases}]
    for case in args.cases:
        for kind in args.spectra:
            if kind == "noise" and CASES[case][0] * CASES[case][1] > LARGE:
                continue
            records += measure(*CASES[case], kind, args)
            write_results(args.out, "Randomised SVD", records, {
                "matrix": lambda r: f"{r['m']} x {r['n']}",
                "rank": lambda r: r["rank"],
                "spectrum": lambda r: r["spectrum"],
                "method": lambda r: r["method"],
                "ms": lambda r: f"{1e3 * r['seconds']:.1f}",
                "time / wasi": lambda r: f"{r['speedup']:.2f}",
                "error": lambda r: "not converged" if r["error"] is None else f"{r['error']:.1e}",
                "extra MiB": lambda r: "" if r["extra_bytes"] is None else f"{r['extra_bytes'] / 2**20:.1f}",
            })


if __name__ == "__main__":
    main()
