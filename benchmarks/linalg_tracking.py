"""Warm tracking of a drifting 3072 x 768 matrix over 200 steps, beside the exact truncated SVD of each step.

The matrix starts with the spectrum 1 / i. At each step four directions grow by 1 % and a random update of rank 4 is added
whose norm is `--drift` times that of the matrix. "excess" is |A - U S V'| over the best of that rank, minus 1, the largest
of all steps. One warm iteration a step keeps it below 1 % up to a drift of about 1 % at rank 64 and 0.3 % at rank 256: a
larger change moves more than one iteration brings back. Writes benchmarks/results/linalg_tracking.{md,json}.

    OPENBLAS_NUM_THREADS=2 OPENBLAS_THREAD_TIMEOUT=10 OMP_WAIT_POLICY=PASSIVE python benchmarks/linalg_tracking.py
"""

import argparse

import numpy as np
from harness import interleave, spread, timed, write_results

import wasi
from wasi import linalg


def drifting(m, n, n_steps, drift, rng):
    """Yields the matrix of each step."""
    r = min(m, n)
    U, V = (np.linalg.qr(rng.standard_normal((side, r)))[0].astype(np.float32) for side in (m, n))
    A = (U * np.arange(1, r + 1, dtype=np.float32) ** -1) @ V.T
    turn = rng.standard_normal((m, 4)).astype(np.float32) / np.sqrt(m)
    for _ in range(n_steps):
        A += 0.01 * turn @ (turn.T @ A)  # directions that grow by 1 % a step
        D = rng.standard_normal((m, 4), dtype=np.float32) @ rng.standard_normal((4, n), dtype=np.float32)
        A += np.float32(drift * np.linalg.norm(A) / np.linalg.norm(D)) * D
        yield A


def best_errors(A, ranks):
    values = np.linalg.eigvalsh(A.T.astype(np.float64) @ A)
    return {rank: float(np.sqrt(values[: len(values) - rank].sum())) for rank in ranks}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--drift", type=float, default=0.003, help="norm of each step's random update, relative to A's")
    parser.add_argument("--ranks", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", default="linalg_tracking")
    args = parser.parse_args()
    wasi.set_num_threads(args.threads)
    trackers = {rank: linalg.SubspaceTracker(rank) for rank in args.ranks}
    excess = {rank: [] for rank in args.ranks}
    seconds = {rank: [] for rank in args.ranks}
    for step, A in enumerate(drifting(3072, 768, args.steps, args.drift, np.random.default_rng(0))):
        best = best_errors(A, args.ranks)
        for rank, tracker in trackers.items():
            taken, (U, S, Vt) = timed(lambda follow=tracker.step if step else tracker.init, now=A: follow(now))
            excess[rank].append(linalg.diff_norm(A, np.ascontiguousarray(U), S, Vt) / best[rank] - 1)
            if step > 0:
                seconds[rank].append(taken)
    records = []
    for rank, tracker in trackers.items():
        record = interleave({
            "tracker": lambda t=tracker: t.step(A),
            "exact": lambda r=rank: linalg.truncated_svd(A, r),
            "numpy": lambda: np.linalg.svd(A, full_matrices=False),
            "randomized": lambda r=rank: linalg.randomized_svd(A, r),
        }, args.rounds)
        records.append({**record, "threads": args.threads, "rank": rank, "steps": args.steps, "drift": args.drift,
                        "excess": excess[rank],
                        "step_seconds": spread(seconds[rank])})
        print(rank, max(excess[rank]), record["seconds"])
    ratio = "{:.0f}"
    write_results(args.out, "Tracking a drifting 3072 x 768 matrix", records, {
        "rank": lambda r: r["rank"],
        "steps": lambda r: r["steps"],
        "drift a step": lambda r: f"{100 * r['drift']:.1f} %",
        "largest excess": lambda r: f"{max(r['excess']):.1e}",
        "ms a step": lambda r: f"{1e3 * r['seconds']['tracker']['median']:.1f}",
        "exact SVD / step": lambda r: ratio.format(1 / r["ratios"]["tracker / exact"]["median"]),
        "numpy.linalg.svd / step": lambda r: ratio.format(1 / r["ratios"]["tracker / numpy"]["median"]),
        "randomized_svd / step": lambda r: f"{1 / r['ratios']['tracker / randomized']['median']:.1f}",
    })


if __name__ == "__main__":
    main()
