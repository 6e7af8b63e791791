"""Figures with a line a layer: ranks, and angles between subspaces, by step."""

import numpy as np

# Up to so many layers are named in a legend.
NAMED = 12


def _figure(n_rows, n_columns, size):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(n_rows, n_columns, squeeze=False, sharex=True)


def _draw_lines(figure, axes, lines, **style):
    """lines: {layer: (steps, values)}. Colours run from the first layer to the last."""
    from matplotlib import colormaps

    for color, (layer, (x, y)) in zip(colormaps["viridis"](np.linspace(0, 0.9, len(lines))), lines.items()):
        axes.plot(x, y, color=color, label=layer, linewidth=1, **style)
    axes.grid(alpha=0.3)
    if len(lines) <= NAMED and not figure.legends:
        figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper", fontsize=8)
    elif not figure.legends and not figure.texts:
        figure.text(0.99, 0.01, f"{len(lines)} layers, the first dark, the last light", ha="right", fontsize=8)


def plot_subspaces(rows, path):
    """Draws the rows of subspaces.csv into a PNG: mean and largest principal angle of each layer's basis, against its start and
    against the record before."""
    figure, grid = _figure(2, 2, (12, 7))
    for column, against in enumerate(("start", "previous")):
        for axes, value in zip(grid[:, column], ("mean", "largest")):
            lines = {}
            for row in rows:
                if row["against"] == against:
                    x, y = lines.setdefault(row["layer"], ([], []))
                    x.append(int(row["step"]))
                    y.append(float(row[f"{value}_degrees"]))
            _draw_lines(figure, axes, lines)
            axes.set_ylim(0, None)
            axes.set_ylabel(f"{value} angle, degrees")
        grid[0, column].set_title("Angle to the subspace at the start" if against == "start" else "Angle to the record before")
        grid[1, column].set_xlabel("step")
    figure.savefig(path, dpi=120)


def plot_ranks(rows, path):
    """Draws the rows of ranks.csv into a PNG: each layer's rank, and the sum of all, by step."""
    figure, grid = _figure(1, 2, (12, 4.5))
    last, lines, total, ranks = max(int(r["step"]) for r in rows), {}, ([], []), {}
    for row in rows:
        x, y = lines.setdefault(row["layer"], ([], []))
        x.append(int(row["step"]))
        y.append(int(row["rank"]))
        ranks[row["layer"]] = int(row["rank"])
        total[0].append(int(row["step"]))
        total[1].append(sum(ranks.values()))
    for x, y in lines.values():
        x.append(last)
        y.append(y[-1])
    _draw_lines(figure, grid[0, 0], lines, drawstyle="steps-post")
    grid[0, 0].set(xlabel="step", ylabel="rank", title="Rank of each layer")
    start = len(lines) - 1  # the first rows are the ranks at the start, a row a layer
    grid[0, 1].plot(total[0][start:], total[1][start:], drawstyle="steps-post", color="black")
    grid[0, 1].set(xlabel="step", ylabel="sum of ranks", title="All layers")
    grid[0, 1].grid(alpha=0.3)
    figure.savefig(path, dpi=120)
