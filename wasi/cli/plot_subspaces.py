"""`wasi plot-subspaces`: principal angles by step and layer, from a run folder."""

from wasi.cli.options import run_csv
from wasi.reports import plot_subspaces


def run(args):
    rows, path = run_csv(args.folder, "subspaces.csv", "--track-subspaces"), f"{args.folder}/subspaces.png"
    plot_subspaces(rows, path)
    print(f"written to {path}")
    return 0
