"""Tables and figures, drawn from run folders alone."""

from wasi.reports.comparison import (
    comparison_table,
    environment_text,
    environments,
    pareto_front,
    plot_comparison,
    summarise_runs,
)
from wasi.reports.layers import plot_ranks, plot_subspaces
from wasi.reports.page import report_page
from wasi.reports.runs import find_runs, read_run

__all__ = ["comparison_table", "environment_text", "environments", "find_runs", "pareto_front", "plot_comparison",
           "plot_ranks", "plot_subspaces", "read_run", "report_page", "summarise_runs"]
