"""Tables and figures, drawn from run folders alone."""

from wasi.reports.comparison import comparison_table, pareto_front, plot_comparison, summarise_runs

__all__ = ["comparison_table", "pareto_front", "plot_comparison", "summarise_runs"]
