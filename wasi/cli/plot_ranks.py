"""`wasi plot-ranks`: ranks by step and layer, from a run folder."""

from wasi.cli.options import draw_log
from wasi.reports import plot_ranks


def run(args):
    return draw_log(args.folder, "ranks", "--adapt-ranks", plot_ranks)
