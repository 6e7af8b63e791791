"""Warm tracking of a drifting 3072 x 768 matrix over 200 steps, beside the exact truncated SVD of each step.

The matrix is a decaying spectrum plus a drift: at each step its leading singular vectors turn a little and a random
update of rank 4 is added. "excess" is |A - U S V'| over the best of that rank, minus 1, the largest of all steps. Writes
benchmarks/results/linalg_tracking.{md,json}.

    OPENBLAS_NUM_THREADS=2 OPENBLAS_THREAD_TIMEOUT=10 OMP_WAIT_POLICY=PASSIVE python benchmarks/linalg_tracking.py
"""

import argparse

import numpy as np
from harness import interleave, spread, timed, write_results

import wasi
from wasi import linalg


def drifting(m, n, n_steps, rng):
    """Yields the matrix of each step."""
    r = min(m, n)
    U, V = (np.linalg.qr(rng.standard_normal((side, r)))[0].astype(np.float32) for side in (m, n))
    A = (U * np.arange(1, r + 1, dtype=np.float32) ** -1) @ V.T
    turn = rng.standard_normal((m, 4)).astype(np.float32) / np.sqrt(m)
    for _ in range(n_steps):
        A += 0.01 * turn @ (turn.T @ A)  # directions that grow by 1 % a step
        A += 1e-4 * rng.standard_normal((m, 4)).astype(np.float32) @ rng.standard_normal((4, n)).astype(np.float32)
        yield A


def best_errors(A, ranks):
    values = np.linalg.eigvalsh(A.T.astype(np.float64) @ A)
    return {rank: float(np.sqrt(values[: len(values) - rank].sum())) for rank in ranks}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--ranks", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", default="linalg_tracking")
    args = parser.parse_args()
    wasi.set_num_threads(args.threads)
    trackers = {rank: linalg.SubspaceTracker(rank) for rank in args.ranks}
    excess = {rank: [] for rank in args.ranks}
    seconds = {rank: [] for rank in args.ranks}
    for step, A in enumerate(drifting(3072, 768, args.steps, np.random.default_rng(0))):
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
        records.append({**record, "rank": rank, "steps": args.steps, "excess": excess[rank],
                        "step_seconds": spread(seconds[rank])})
        print(rank, max(excess[rank]), record["seconds"])
    ratio = "{:.0f}"
    write_results(args.out, "Tracking a drifting 3072 x 768 matrix", records, {
        "rank": lambda r: r["rank"],
        "steps": lambda r: r["steps"],
        "largest excess": lambda r: f"{max(r['excess']):.1e}",
        "ms a step": lambda r: f"{1e3 * r['seconds']['tracker']['median']:.1f}",
        "exact SVD / step": lambda r: ratio.format(1 / r["ratios"]["tracker / exact"]["median"]),
        "numpy.linalg.svd / step": lambda r: ratio.format(1 / r["ratios"]["tracker / numpy"]["median"]),
        "randomized_svd / step": lambda r: f"{1 / r['ratios']['tracker / randomized']['median']:.1f}",
    })


if __name__ == "__main__":
    main()
