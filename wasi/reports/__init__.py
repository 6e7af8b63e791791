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

__all__ = ["comparison_table", "environment_text", "environments", "pareto_front", "plot_comparison", "plot_ranks",
           "plot_subspaces", "summarise_runs"]
