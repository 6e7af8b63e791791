"""`wasi plot-ranks`: ranks by step and layer, from a run folder."""

from wasi.cli.options import run_csv
from wasi.reports import plot_ranks

DESCRIPTION = "Draws ranks.png in a run folder that `wasi train --adapt-ranks N` wrote: the rank of each layer by step."


def add_arguments(parser):
    parser.add_argument("folder", help="run folder of one method")


def run(args):
    rows, path = run_csv(args.folder, "ranks.csv", "--adapt-ranks"), f"{args.folder}/ranks.png"
    plot_ranks(rows, path)
    print(f"written to {path}")
    return 0
