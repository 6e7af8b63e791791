"""`wasi plot-subspaces`: principal angles by step and layer, from a run folder."""

from wasi.cli.options import draw_log
from wasi.reports import plot_subspaces


def run(args):
    return draw_log(args.folder, "subspaces", "--track-subspaces", plot_subspaces)
