"""`wasi plot-subspaces`: principal angles by step and layer, from a run folder."""

from wasi.cli.options import run_csv
from wasi.reports import plot_subspaces

DESCRIPTION = ("Draws subspaces.png in a run folder that `wasi train --track-subspaces N` wrote: how far each factored layer's "
               "subspace turns from its start, and from one record to the next.")


def add_arguments(parser):
    parser.add_argument("folder", help="run folder of one method")


def run(args):
    rows, path = run_csv(args.folder, "subspaces.csv", "--track-subspaces"), f"{args.folder}/subspaces.png"
    plot_subspaces(rows, path)
    print(f"written to {path}")
    return 0
