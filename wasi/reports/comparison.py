"""Methods side by side: accuracy against measured memory and time, mean and spread over seeds, Pareto front."""

import statistics

MIB = 2**20

# Column: (its value in a run's result.json, its format).
METRICS = {
    "top-1 %": (lambda r: 100 * r["val_accuracy"], "{:.1f}"),
    "peak MiB": (lambda r: r["peak_rss_above_start_bytes"] / MIB, "{:.0f}"),
    "s / step": (lambda r: r["seconds_per_step"], "{:.3f}"),
    "trained MiB": (lambda r: r["counted"]["trained_bytes"] / MIB, "{:.2f}"),
    "frozen MiB": (lambda r: r["counted"]["frozen_bytes"] / MIB, "{:.2f}"),
    "grad. + opt. MiB": (lambda r: (r["counted"]["gradient_bytes"] + r["counted"]["optimizer_bytes"]) / MIB, "{:.2f}"),
    "saved MiB": (lambda r: r["counted"]["saved_bytes"] / MIB, "{:.2f}"),
    "GFLOP / image": (lambda r: r["flops_per_image"] / 1e9, "{:.3f}"),
}
ACCURACY, MEMORY, TIME = "top-1 %", "peak MiB", "s / step"


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


def summarise_runs(runs):
    """Results by method over seeds.

    runs: {method: {seed: content of result.json}}. Returns a list of dicts, one a method in that order: method, seeds, for each
    of METRICS a dict of mean, std (sample deviation; 0 for one seed), min, max and values, and on_front: the names of those of
    "memory" and "time" whose Pareto front of mean accuracy it is on.
    """
    rows = []
    for method, by_seed in runs.items():
        row = {"method": method, "seeds": list(by_seed), "on_front": []}
        for name, (value_of, _) in METRICS.items():
            values = [value_of(result) for result in by_seed.values()]
            row[name] = {"mean": statistics.fmean(values), "std": statistics.stdev(values) if len(values) > 1 else 0.0,
                         "min": min(values), "max": max(values), "values": values}
        rows.append(row)
    for label, cost in (("memory", MEMORY), ("time", TIME)):
        for i in pareto_front([(row[cost]["mean"], row[ACCURACY]["mean"]) for row in rows]):
            rows[i]["on_front"].append(label)
    return rows


def comparison_table(rows):
    """The rows of `summarise_runs` as Markdown: mean +- sample deviation over seeds."""
    lines = ["| method | " + " | ".join(METRICS) + " | seeds | Pareto front |", "|---" * (len(METRICS) + 3) + "|"]
    for row in rows:
        cells = [row["method"]]
        for name, (_, form) in METRICS.items():
            cell = form.format(row[name]["mean"])
            if row[name]["max"] > row[name]["min"]:
                cell += " ± " + form.format(row[name]["std"])
            cells.append(cell)
        lines.append("| " + " | ".join([*cells, str(len(row["seeds"])), ", ".join(row["on_front"])]) + " |")
    return "\n".join(lines)


def environments(runs):
    """The different environments of the runs (as `summarise_runs` takes them): one, or figures of them don't compare."""
    found = []
    for by_seed in runs.values():
        found += [r["environment"] for r in by_seed.values() if r["environment"] not in found]
    return found


def environment_text(found):
    """A line for each environment."""
    return "\n".join(f"wasi {e['wasi']}, {e['threads']} threads of {e['cpu']} ({e['isa']}), BLAS {e['blas']}" for e in found)


def plot_comparison(rows, path):
    """Draws accuracy against peak memory and against seconds a step into a PNG: means, bars from least to most over the seeds,
    and the Pareto fronts as lines through ringed points."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, label, cost, text in zip(figure.subplots(1, 2, sharey=True), ("memory", "time"), (MEMORY, TIME),
                                       ("peak memory above start, MiB", "seconds a step")):
        for row in rows:
            x, y = row[cost], row[ACCURACY]
            bars = [[[v["mean"] - v["min"]], [v["max"] - v["mean"]]] for v in (x, y)]
            axes.errorbar(x["mean"], y["mean"], xerr=bars[0], yerr=bars[1], marker="o", capsize=3, linestyle="none")
            axes.annotate(row["method"], (x["mean"], y["mean"]), xytext=(6, 6), textcoords="offset points", fontsize=8)
        front = sorted((row[cost]["mean"], row[ACCURACY]["mean"]) for row in rows if label in row["on_front"])
        axes.plot(*zip(*front), color="black", linewidth=0.8, marker="o", markersize=12, fillstyle="none", label="Pareto front")
        axes.set(xlabel=text, title=f"Accuracy against {label}")
        axes.grid(alpha=0.3)
        axes.margins(x=0.15, y=0.1)
        axes.legend(loc="best")
    figure.axes[0].set_ylabel("validation top-1 %, last epoch")
    figure.savefig(path, dpi=120)
