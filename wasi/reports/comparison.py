"""Methods side by side: accuracy, or of language models perplexity, against measured memory and time, mean and spread over seeds,
Pareto front.
"""

import statistics

from wasi.drawing import ink, new_figure, save_png, series_style
from wasi.training.runlog import perplexity

MIB = 2**20

# Column: (its value in a run's result.json, its format). A run has one of the first two.
METRICS = {
    "top-1 %": (lambda r: 100 * r["val_accuracy"], "{:.1f}"),
    "perplexity": (perplexity, "{:.2f}"),
    "peak MiB": (lambda r: r["peak_rss_above_start_bytes"] / MIB, "{:.0f}"),
    "s / step": (lambda r: r["seconds_per_step"], "{:.3f}"),
    "trained MiB": (lambda r: r["counted"]["trained_bytes"] / MIB, "{:.2f}"),
    "frozen MiB": (lambda r: r["counted"]["frozen_bytes"] / MIB, "{:.2f}"),
    "grad. + opt. MiB": (lambda r: (r["counted"]["gradient_bytes"] + r["counted"]["optimizer_bytes"]) / MIB, "{:.2f}"),
    "saved MiB": (lambda r: r["counted"]["saved_bytes"] / MIB, "{:.2f}"),
    "GFLOP / image": (lambda r: r["flops_per_image"] / 1e9, "{:.3f}"),
}
ACCURACY, PERPLEXITY, MEMORY, TIME = "top-1 %", "perplexity", "peak MiB", "s / step"


def metrics_of(language):
    """Those of METRICS that a run has, of a language model or of a classifier."""
    return {name: metric for name, metric in METRICS.items() if name != (ACCURACY if language else PERPLEXITY)}


def pareto_front(points):
    """Indices of the (cost, gain) points that no other point dominates: none costs at most as much and gains at least as much.

    Of equal points all are on the front. In order of cost.

    >>> pareto_front([(3, 5.0), (1, 2.0), (2, 1.0)])
    [1, 0]
    """
    def dominated(i):
        cost, gain = points[i]
        return any(c <= cost and g >= gain and (c, g) != (cost, gain) for c, g in points)

    return sorted((i for i in range(len(points)) if not dominated(i)), key=lambda i: points[i])


def summarise_runs(runs, language=False):
    """Results by method over seeds.

    runs: {method: {seed: content of result.json}}; language: whether they are of language models. Returns a list of dicts, one
    a method in that order: method, seeds, for each of `metrics_of(language)` a dict of mean, std (sample deviation; 0 for one
    seed), min, max and values, and on_front: the names of those of "memory" and "time" whose Pareto front of mean accuracy, or
    perplexity, it is on.
    """
    rows = []
    for method, by_seed in runs.items():
        row = {"method": method, "seeds": list(by_seed), "on_front": []}
        for name, (value_of, _) in metrics_of(language).items():
            values = [value_of(result) for result in by_seed.values()]
            row[name] = {"mean": statistics.fmean(values), "std": statistics.stdev(values) if len(values) > 1 else 0.0,
                         "min": min(values), "max": max(values), "values": values}
        rows.append(row)
    for label, cost in (("memory", MEMORY), ("time", TIME)):
        gains = [-row[PERPLEXITY]["mean"] if language else row[ACCURACY]["mean"] for row in rows]
        for i in pareto_front([(row[cost]["mean"], gain) for row, gain in zip(rows, gains)]):
            rows[i]["on_front"].append(label)
    return rows


def comparison_table(rows):
    """The rows of `summarise_runs` as Markdown: mean +- sample deviation over seeds."""
    metrics = metrics_of(PERPLEXITY in rows[0])
    lines = ["| method | " + " | ".join(metrics) + " | seeds | Pareto front |", "|---" * (len(metrics) + 3) + "|"]
    for row in rows:
        cells = [row["method"]]
        for name, (_, form) in metrics.items():
            cell = form.format(row[name]["mean"])
            if row[name]["max"] > row[name]["min"]:
                cell += " ± " + form.format(row[name]["std"])
            cells.append(cell)
        lines.append("| " + " | ".join([*cells, str(len(row["seeds"])), ", ".join(row["on_front"])]) + " |")
    return "\n".join(lines)


def environments(runs):
    """The different environments of the runs (as `summarise_runs` takes them): one, or figures of them don't compare."""
    found = []
    for result in (r for by_seed in runs.values() for r in by_seed.values()):
        if result["environment"] not in found:
            found.append(result["environment"])
    return found


def environment_text(found):
    """A line for each environment."""
    return "\n".join(f"wasi {e['wasi']}, {e['threads']} threads of {e['cpu']} ({e['isa']}), BLAS {e['blas']}" for e in found)


def draw_accuracy_against(axes, rows, label, series=None):
    """Draws the rows of `summarise_runs`: mean accuracy, or perplexity, against "memory" or "time", bars from least to most over
    the seeds, and the Pareto front as a line through ringed points. series: {method: index of its style} (default: in order)."""
    quality, y_text, title = ((PERPLEXITY, "validation perplexity", "Perplexity") if PERPLEXITY in rows[0] else
                              (ACCURACY, "validation top-1 %", "Accuracy"))
    cost, text = {"memory": (MEMORY, "peak memory above start, MiB"), "time": (TIME, "seconds a step")}[label]
    for i, row in enumerate(rows):
        x, y = row[cost], row[quality]
        bars = [[[v["mean"] - v["min"]], [v["max"] - v["mean"]]] for v in (x, y)]
        axes.errorbar(x["mean"], y["mean"], xerr=bars[0], yerr=bars[1], label=row["method"], capsize=2, elinewidth=0.8,
                      **{**series_style(series[row["method"]] if series else i), "linestyle": "none", "markersize": 6})
    front = sorted((row[cost]["mean"], row[quality]["mean"]) for row in rows if label in row["on_front"])
    axes.plot(*zip(*front), color=ink(), linewidth=0.8, marker="o", markersize=12, fillstyle="none", label="Pareto front")
    axes.margins(x=0.15, y=0.1)
    axes.set(xlabel=text, ylabel=y_text, title=f"{title} against {label}")


def plot_comparison(rows, path):
    """Draws accuracy, or perplexity, against peak memory and against seconds a step into a PNG."""
    with new_figure(11, 4.8, 1, 2, sharey=True) as (figure, ((left, right),)):
        draw_accuracy_against(left, rows, "memory")
        draw_accuracy_against(right, rows, "time")
        right.set_ylabel("")
        front, *methods = zip(*left.get_legend_handles_labels())  # lines come before points with bars
        figure.legend(*zip(*methods, front), loc="outside lower center", ncols=5)
        save_png(figure, path)
