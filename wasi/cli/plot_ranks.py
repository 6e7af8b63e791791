"""`wasi plot-ranks`: ranks by step and layer, from a run folder."""

from wasi.cli.options import run_csv
from wasi.reports import plot_ranks


def run(args):
    rows, path = run_csv(args.folder, "ranks.csv", "--adapt-ranks"), f"{args.folder}/ranks.png"
    plot_ranks(rows, path)
    print(f"written to {path}")
    return 0
