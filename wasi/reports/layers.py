"""Figures with a line or a bar a layer: ranks, angles between subspaces, bytes."""

from wasi.drawing import ink, layer_color, name_bars, new_figure, save_png, stacked_bars, whole_ticks

# Up to so many layers are named in a legend.
NAMED = 12
BYTES = {"trained_bytes": "trained weights", "frozen_bytes": "frozen weights", "gradient_bytes": "gradients",
         "optimizer_bytes": "optimiser", "average_bytes": "averaged weights", "saved_bytes": "saved for backward"}
AGAINST = {"start": "the subspace at the start", "previous": "the record before"}


def draw_lines(axes, lines, **style):
    """Draws {layer: (steps, values)}, coloured from the first layer to the last."""
    for i, (layer, (x, y)) in enumerate(lines.items()):
        axes.plot(x, y, color=layer_color(i, len(lines)), label=layer, **{"linewidth": 1, **style})


def _explain_lines(figure, axes):
    """One legend for the lines that all axes have in common, or a line of text where they are many."""
    handles, labels = axes.get_legend_handles_labels()
    if len(labels) <= NAMED:
        figure.legend(handles, labels, loc="outside right upper")
    else:
        figure.text(0.99, 0.01, f"{len(labels)} layers; colours run from the first to the last", ha="right", fontsize=8)


def draw_angles(axes, rows, against, value):
    """Draws one number of the rows of subspaces.csv by step, a line a layer.

    against: "start" or "previous". value: "mean" or "largest".
    """
    lines = {}
    for row in rows:
        if row["against"] == against:
            x, y = lines.setdefault(row["layer"], ([], []))
            x.append(int(row["step"]))
            y.append(float(row[f"{value}_degrees"]))
    draw_lines(axes, lines, marker="." if all(len(x) == 1 for x, _ in lines.values()) else "")
    axes.set_ylim(0, None)
    whole_ticks(axes)
    axes.set(xlabel="step", ylabel=f"{value} angle, degrees", title=f"{value.capitalize()} angle to {AGAINST[against]}")


def plot_subspaces(rows, path):
    """Draws the rows of subspaces.csv into a PNG: mean and largest principal angle of each layer's basis, against its start and
    against the record before."""
    with new_figure(12, 7, 2, 2, sharex=True) as (figure, grid):
        for column, against in zip(grid.T, AGAINST):
            for axes, value in zip(column, ("mean", "largest")):
                draw_angles(axes, rows, against, value)
        _explain_lines(figure, grid[0, 0])
        save_png(figure, path)


def draw_ranks(axes, rows, last_step=0):
    """Draws the rows of ranks.csv: each layer's rank by step, up to last_step or the last row's."""
    last, lines = max(last_step, *(int(r["step"]) for r in rows)), {}
    for row in rows:
        x, y = lines.setdefault(row["layer"], ([], []))
        x.append(int(row["step"]))
        y.append(int(row["rank"]))
    for x, y in lines.values():
        x.append(last)
        y.append(y[-1])
    draw_lines(axes, lines, drawstyle="steps-post", marker="" if last else ".")
    whole_ticks(axes)
    axes.set(xlabel="step", ylabel="rank", title="Rank of each layer")


def draw_total_rank(axes, rows, last_step=0):
    """Draws the rows of ranks.csv: the sum of all layers' ranks by step, up to last_step or the last row's."""
    ranks, total = {}, {}
    for row in rows:
        ranks[row["layer"]] = int(row["rank"])
        total[int(row["step"])] = sum(ranks.values())
    total.setdefault(max(last_step, *total), sum(ranks.values()))
    axes.plot(list(total), list(total.values()), drawstyle="steps-post", color=ink(), marker="" if len(total) > 1 else ".")
    whole_ticks(axes)
    axes.set(xlabel="step", ylabel="sum of ranks", title="All layers")


def plot_ranks(rows, path):
    """Draws the rows of ranks.csv into a PNG: each layer's rank, and the sum of all, by step."""
    with new_figure(12, 4.5, 1, 2) as (figure, ((left, right),)):
        draw_ranks(left, rows)
        draw_total_rank(right, rows)
        _explain_lines(figure, left)
        save_png(figure, path)


def draw_bytes(axes, names, rows):
    """Draws bytes by kind as stacked bars. names: of the bars; rows: a dict each, with the keys of BYTES."""
    stacked_bars(axes, names, {label: [row[key] / 2**20 for row in rows] for key, label in BYTES.items()})
    axes.set(ylabel="MiB", title="Where the bytes are")
    axes.figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3)


def draw_rank_bars(axes, ranks):
    """Draws ranks that stay: (layer, rank) pairs, a bar each."""
    n = len(ranks)
    axes.bar(range(n), [rank for _, rank in ranks], color=[layer_color(i, n) for i in range(n)], width=0.8)
    name_bars(axes, [name for name, _ in ranks])
    axes.set(ylabel="rank", title="Rank of each layer")
