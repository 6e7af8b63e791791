"""Figures of one run by step: memory, and single columns of steps.csv."""

import numpy as np

from wasi.drawing import ink, series_style, whole_ticks

MIB = 2**20
MOST_POINTS = 800  # of a line; longer runs are drawn every so many steps


def thinned(values):
    """At most MOST_POINTS of the values, evenly spaced, the last among them."""
    stride = -(-len(values) // MOST_POINTS)
    return values[::-1][::stride][::-1]


def memory_lines(run):
    """[(label, steps, MiB)] of what is known of a Run's memory by step: counted arrays, the process above its start.

    Where the start is not known, the process's lines are of the whole process and say so.
    """
    start = run.start_rss_bytes
    above = "above its start" if start is not None else "as a whole"
    lines = []
    for label, column, less in (("counted: arrays, highest so far", "counted_mib", 0),
                                (f"measured: process {above}, highest so far", "peak_rss_mib", (start or 0) / MIB),
                                (f"measured: process {above}, after the step", "rss_mib", (start or 0) / MIB)):
        values = np.array(run.column(column))
        if np.isfinite(values).any():
            lines.append((label, thinned(run.column("step")), thinned(values - less)))
    return lines


def draw_memory(axes, run, planned_bytes=None):
    """Draws `memory_lines`, and the peak that was planned as a level."""
    for i, (label, steps, values) in enumerate(memory_lines(run)):
        axes.plot(steps, values, label=label, **{**series_style(i), "marker": "", "linestyle": ":" if "after" in label else "-"})
    if planned_bytes is not None:
        axes.axhline(planned_bytes / MIB, color=ink(), linestyle="--", linewidth=1, label="planned: arrays")
    axes.set_ylim(0, None)
    whole_ticks(axes)
    axes.set(xlabel="step", ylabel="MiB", title="Memory")
    axes.figure.legend(*axes.get_legend_handles_labels(), loc="outside lower left")


def draw_column(axes, run, column, title, unit=""):
    """Draws one column of steps.csv by step."""
    axes.plot(thinned(run.column("step")), thinned(run.column(column)), **{**series_style(0), "marker": ""})
    axes.set_ylim(0, None)
    whole_ticks(axes)
    axes.set(xlabel="step", ylabel=unit, title=title)
