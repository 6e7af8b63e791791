"""One HTML page of one or several runs: no script, no font and nothing else from outside, readable in light and dark.

All text of a run goes through `_text`, all numbers through `_data`, which keeps the exact value beside the shown one.
"""

import math
import re
import unicodedata
from html import escape

import numpy as np

from wasi.drawing import STYLE, new_figure, to_svg
from wasi.reports import comparison, curves, layers
from wasi.reports.runs import number, text
from wasi.training.runlog import draw_accuracy, draw_loss, draw_perplexity, per_class, perplexity

MIB = 2**20
OPEN_RUNS = 2  # more runs than this are folded away
LONGEST_TEXT = 2000  # characters of a piece of text from a run folder
LONGEST_TABLE = 2000  # rows
MOST_CLASSES = 30  # of a confusion matrix that is shown whole
MOST_PAIRS = 30  # of classes that are told of larger ones

_CSS = STYLE + """
:root{--paper:#fff;--soft:#f4f6f8;--dim:#5b6470}
@media(prefers-color-scheme:dark){:root{--paper:#14181d;--soft:#1d232a;--dim:#9aa4b0}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:72rem;padding:1rem 1.25rem 4rem;background:var(--paper);color:var(--ink);
font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}
h1{font-size:1.6rem;margin:.5rem 0}h2{font-size:1.25rem;margin:2rem 0 .5rem;overflow-wrap:anywhere}
h3{font-size:1.02rem;margin:1.5rem 0 .4rem}p{margin:.4rem 0}.dim,figcaption{color:var(--dim);font-size:.88rem}
dl.tiles{display:grid;grid-template-columns:repeat(auto-fill,minmax(9.5rem,1fr));gap:.6rem;margin:.8rem 0}
dl.tiles div{background:var(--soft);border-radius:6px;padding:.5rem .7rem}
dl.tiles dt{color:var(--dim);font-size:.8rem}dl.tiles dd{margin:0;font-size:1.2rem;font-variant-numeric:tabular-nums}
.figures{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,24rem),1fr));gap:1rem}
figure{margin:0;min-width:0}figure.wide{grid-column:1/-1;overflow-x:auto}
figure.wide svg{min-width:40rem}svg{display:block;width:100%;height:auto}
svg text{font-family:system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}
.scroll{overflow-x:auto;max-width:100%}table{border-collapse:collapse;font-size:.88rem;margin:.4rem 0}
th,td{padding:.25rem .7rem;text-align:right;border-bottom:1px solid var(--grid);font-variant-numeric:tabular-nums}
th{font-weight:600}td:first-child,th:first-child,td.text{text-align:left}td{white-space:nowrap}
.cell{display:block;margin:-.25rem -.7rem;padding:.25rem .7rem;
background:color-mix(in srgb,var(--c0) calc(var(--part)*55%),transparent)}
td.long{white-space:normal;overflow-wrap:anywhere;text-align:left}
pre{background:var(--soft);border-radius:6px;padding:.7rem;white-space:pre-wrap;overflow-wrap:anywhere;font-size:.88rem}
.absent{border-left:4px solid var(--c1);background:var(--soft);padding:.5rem .9rem;margin:.8rem 0;border-radius:0 6px 6px 0}
.absent ul{margin:.2rem 0;padding-left:1.2rem}details{margin:.6rem 0}summary{cursor:pointer;overflow-wrap:anywhere}
details.run>summary{font-size:1.15rem;font-weight:600;padding:.5rem 0;border-top:1px solid var(--grid)}
@media(max-width:32rem){body{padding:.6rem .8rem 3rem}th,td{padding:.25rem .4rem}}
@media print{body{max-width:none}.scroll{overflow:visible}}
"""
# Nothing is fetched or run, whatever a browser might find in the page.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def report_page(runs, commands=None):
    """The page of these Runs (`wasi.reports.read_run`) as text. commands: {label: command line} of those where it is known."""
    figures = _Figures()
    title = "wasi: " + (runs[0].label if len(runs) == 1 else f"{len(runs)} runs")
    body = [f"<h1>{_text(title)}</h1>"]
    if len(runs) > 1:
        body += _compared(runs, figures)
    for run in runs:
        content = _section(run, (commands or {}).get(run.label), figures)
        if len(runs) > OPEN_RUNS:
            content = f'<details class="run"><summary>{_text(run.label)}</summary>{content}</details>'
        elif len(runs) > 1:
            content = f"<section><h2>{_text(run.label)}</h2>{content}</section>"
        body.append(content)
    return ('<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f"<title>{_text(title)}</title>\n<style>{_CSS}</style>\n</head>\n<body>\n<main>\n" + "\n".join(body)
            + "\n</main>\n</body>\n</html>\n")


class _Figures:
    """Draws figures with ids of their own."""

    def __init__(self):
        self.count = 0

    def __call__(self, label, draw, *args, size=(4.7, 3.3), wide=False):
        """A <figure> of what draw(axes, *args) draws."""
        self.count += 1
        with new_figure(*size) as (figure, grid):
            draw(grid[0, 0], *args)
            grid[0, 0].set_title("")  # the caption says it
            svg = to_svg(figure, f"f{self.count}", _clean(label))
        kind = ' class="wide"' if wide else ""
        return f"<figure{kind}><figcaption>{_text(label)}</figcaption>{svg}</figure>"


def _clean(value):
    """Text to be shown: of bounded length, without control characters (those that turn the direction of text, too)."""
    shown = "".join(c if c == "\n" or unicodedata.category(c) not in ("Cc", "Cf", "Cs") else "\ufffd" for c in str(value))
    return shown if len(shown) <= LONGEST_TEXT else shown[:LONGEST_TEXT] + " ..."


def _text(value):
    return escape(_clean(value))


def _data(value, form="{:,}"):
    """A number as it is shown, with its exact value; a dash for None."""
    return "–" if value is None else f'<data value="{value!r}">{escape(form.format(value))}</data>'


def _mib(n_bytes):
    return "–" if n_bytes is None else f'<data value="{n_bytes!r}">{n_bytes / MIB:,.1f} MiB</data>'


def _table(head, rows, long=False):
    """head: texts. rows: lists of HTML cells."""
    kind = ' class="long"' if long else ""
    lines = ["<tr>" + "".join(f"<td{kind}>{cell}</td>" for cell in row) + "</tr>" for row in rows[:LONGEST_TABLE]]
    more = f'<p class="dim">{len(rows) - LONGEST_TABLE:,} more rows are not shown.</p>' if len(rows) > LONGEST_TABLE else ""
    return ('<div class="scroll"><table><thead><tr>' + "".join(f'<th scope="col">{_text(h)}</th>' for h in head)
            + "</tr></thead><tbody>" + "".join(lines) + f"</tbody></table></div>{more}")


def _folded(title, content):
    return f"<details><summary>{_text(title)}</summary>{content}</details>"


def _grid(figures):
    return f'<div class="figures">{"".join(figures)}</div>'


# ---- several runs -----------------------------------------------------------------------------------------------------------


def _method_and_seed(run):
    """What a run is compared as: folders seed-N in one folder are the seeds of a method that has its name."""
    of_seed = re.fullmatch(r"(.*)/seed-(\d+)", run.label)
    return (_clean(of_seed[1].rpartition("/")[2]), int(of_seed[2])) if of_seed else (_clean(run.label), 0)


def _by_method(runs, language):
    """{method: {seed: result}} of the runs whose results are whole, as `summarise_runs` takes them; and the others' labels."""
    found, left = {}, []
    for run in runs:
        name, seed = _method_and_seed(run)
        try:
            whole = all(math.isfinite(value_of(run.result)) for value_of, _ in comparison.metrics_of(language).values())
        except (LookupError, TypeError, OverflowError):
            whole = False
        if whole and run.result.get("interrupted") is not True and seed not in found.get(name, {}):
            found.setdefault(name, {})[seed] = run.result
        else:
            left.append(run.label)
    return found, left


def _compared(runs, figures):
    """The parts of the page that set runs side by side: classifiers, and language models."""
    kinds = {False: [run for run in runs if not run.of_language_model], True: [run for run in runs if run.of_language_model]}
    return ["<h2>Side by side</h2>",
            *(part for language, some in kinds.items() if some for part in _compared_alike(some, language, figures))]


def _compared_alike(runs, language, figures):
    """The same of runs that are judged alike."""
    parts = []
    methods, left = _by_method(runs, language)
    if methods:
        rows = comparison.summarise_runs(methods, language)
        cells = []
        for row in rows:
            line = [_text(row["method"])]
            for name, (_, form) in comparison.metrics_of(language).items():
                value = row[name]
                spread = f" ± {form.format(value['std'])}" if value["max"] > value["min"] else ""
                line.append(f'<data value="{value["mean"]!r}">{escape(form.format(value["mean"]) + spread)}</data>')
            cells.append([*line, str(len(row["seeds"])), _text(", ".join(row["on_front"]))])
        parts.append(_table(["method", *comparison.metrics_of(language), "seeds", "Pareto front"], cells))
        parts.append('<p class="dim">Mean ± deviation over seeds. The peak is the process\'s above its start; what is trained, '
                     "frozen, gradient, optimiser and saved is counted.</p>")
        if len({repr(run.environment) for run in runs}) > 1:
            parts.append('<p class="absent">The runs were made in different environments: times and memory do not compare.</p>')
    if left:
        parts.append('<div class="absent">Not compared, since their results are not whole: ' + _text(", ".join(left)) + "</div>")
    drawn = []
    series = list(dict.fromkeys(_method_and_seed(run)[0] for run in runs))
    if methods:
        for label in ("memory", "time"):
            title = f"{'Perplexity' if language else 'Accuracy'} against {label}; the line is the Pareto front"
            drawn.append(figures(title, _against, rows, label, series))
    for title, draw, shown in (("Training loss, smoothed", draw_loss, [run for run in runs if run.steps]),
                               (*_quality(language), [run for run in runs if run.epochs])):
        if shown:
            title += ", a line a seed" if len(series) < len(runs) else ""
            drawn.append(figures(title, _drawn_by_method, draw, shown, series))
    return [*parts, _grid(drawn)]


def _against(axes, rows, label, series):
    comparison.draw_accuracy_against(axes, rows, label, {method: i for i, method in enumerate(series)})
    axes.figure.legend(*axes.get_legend_handles_labels(), loc="outside lower left", ncols=2)


def _drawn_by_method(axes, draw, runs, series):
    """Runs of one method in one style, named once."""
    methods = {run.label: _method_and_seed(run)[0] for run in runs}
    draw(axes, {run.label: (_columns(run), run.epochs) for run in runs}, {k: series.index(m) for k, m in methods.items()})
    named = dict(zip(methods.values(), axes.get_lines()))
    axes.figure.legend(list(named.values()), list(named), loc="outside lower left", ncols=2 if len(named) > 3 else 1)


def _quality(language):
    """(title, function that draws it by epoch) of what runs are judged by."""
    return ("Validation perplexity", draw_perplexity) if language else ("Validation accuracy", draw_accuracy)


def _columns(run):
    return {name: np.array(run.column(name)) for name in ("step", "loss")}


# ---- one run ----------------------------------------------------------------------------------------------------------------


def _section(run, command, figures):
    config, drawn = run.config, []
    what = [run.method, text(config, "model"), f"{config['img_size']} px" if number(config, "img_size") else None]
    n_train, n_val = number(config, "n_train"), number(config, "n_val")
    if n_train is not None and n_val is not None:
        what.append(f"{n_train:,} samples to train on, {n_val:,} to validate")
    parts = [f'<p class="dim">{_text(", ".join(w for w in what if w))}</p>']
    if run.absent:
        parts.append('<div class="absent">What this folder does not tell:<ul>'
                     + "".join(f"<li>{_text(line)}</li>" for line in run.absent) + "</ul></div>")
    parts.append(_tiles(run))
    if run.steps:
        one = {_clean(run.label): (_columns(run), run.epochs)}
        drawn.append(figures("Training loss, smoothed", draw_loss, one))
        if run.epochs:
            drawn.append(figures(*_quality(run.of_language_model), one))
        for column, title, unit in (("lr", "Learning rate", ""), ("grad_norm", "Gradient norm before clipping", ""),
                                    ("seconds", "Seconds a step", "s")):
            if any(map(math.isfinite, run.column(column))):
                drawn.append(figures(title, curves.draw_column, run, column, title, unit))
    if drawn:
        parts += ["<h3>Training</h3>", _grid(drawn)]
    if run.epochs:
        forms = {"epoch": "{:,}", "train_loss": "{:.4f}", "train_accuracy": "{:.2%}", "val_loss": "{:.4f}",
                 "val_accuracy": "{:.2%}", "seconds": "{:.1f}"}
        parts.append(_folded("Epochs", _table([k.replace("_", " ") for k in forms],
                                              [[_data(e[k], form) for k, form in forms.items()] for e in run.epochs])))
    parts += _confusion(run) + _memory(run, figures) + _layers(run, figures) + _ranks(run, figures) + _angles(run, figures)
    parts += _environment(run, command)
    return "\n".join(parts)


def _tiles(run):
    """The figures that one looks for first, of those that are known."""
    result, last = run.result, run.epochs[-1] if run.epochs else {}
    accuracy, loss = number(last, "val_accuracy"), number(last, "val_loss")
    if run.of_language_model:
        first = ("validation perplexity", None if loss is None else _data(perplexity(last), "{:.2f}"))
    else:
        first = ("validation top-1", None if accuracy is None else _data(accuracy, "{:.1%}"))
    flops, seconds = number(result, "flops_per_image"), number(result, "seconds_per_step")
    tiles = [first, ("validation loss", None if loss is None else _data(loss, "{:.4f}")),
             ("epochs", _data(len(run.epochs))), ("steps", _data(len(run.steps))),
             ("seconds a step, median", None if seconds is None else _data(seconds, "{:.3f}")),
             ("trained parameters", None if number(result, "parameters") is None else _data(result["parameters"])),
             *((f"peak, {how}", None if n_bytes is None else _mib(n_bytes)) for how, n_bytes in (
                 ("planned", number(run.plan, "peak_bytes")), ("counted", run.counted_peak_bytes),
                 ("measured", run.measured_peak_bytes))),
             ("GFLOP a sample and step", None if flops is None else _data(flops / 1e9, "{:.3f}"))]
    return ('<dl class="tiles">' + "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in tiles if value)
            + "</dl>")


def _confusion(run):
    """What was taken for what: the whole matrix, or of many classes the pairs that were confused most."""
    names, counts = [_text(name) for name in run.classes], run.confusion
    if not names:
        return []
    parts = ["<h3>Confusion</h3>",
             '<p class="dim">Validation samples by what they are and what they were taken for, in the last epoch, or in the best '
             "one where its model was restored.</p>"]
    by_class = per_class(np.array(counts, object))  # Python's numbers: a damaged file's sums may be beyond int64
    if len(names) > MOST_CLASSES:
        pairs = sorted(((n, i, j) for i, row in enumerate(counts) for j, n in enumerate(row) if n and i != j),
                       key=lambda pair: -pair[0])
        rows = [[names[i], names[j], _data(n), _data(n / by_class[i]["samples"], "{:.1%}")] for n, i, j in pairs[:MOST_PAIRS]]
        return [*parts, _table(["true class", "taken for", "samples", "of the class"], rows)]
    rows = []
    for name, row, of_class in zip(names, counts, by_class):
        shades = (f'<span class="cell" style="--part:{n / max(of_class["samples"], 1):.3f}">{_data(n)}</span>' for n in row)
        rows.append([name, *shades, _data(of_class["recall"], "{:.1%}")])
    rows.append(["<strong>precision</strong>", *(_data(of_class["precision"], "{:.1%}") for of_class in by_class), ""])
    return [*parts, _table(["true class", *run.classes, "recall"], rows)]


def _memory(run, figures):
    """Planned, counted and measured side by side, and over time."""
    plan, counted = run.plan, run.result.get("counted")
    planned = number(plan, "peak_bytes")
    if not isinstance(counted, dict):
        counted = {key: sum(layer[key] for layer in run.layers) for key in layers.BYTES} if run.layers else {}
    trained, frozen = number(counted, "trained_bytes"), number(counted, "frozen_bytes")
    rows = [("weights", number(plan, "weight_bytes"), None if None in (trained, frozen) else trained + frozen),
            ("gradients", number(plan, "gradient_bytes"), number(counted, "gradient_bytes")),
            ("optimiser", number(plan, "optimizer_bytes"), number(counted, "optimizer_bytes")),
            ("averaged weights", number(plan, "average_bytes") or None, number(counted, "average_bytes") or None),
            ("kept for backward", number(plan, "saved_bytes"), number(counted, "saved_bytes")),
            ("images", number(plan, "input_bytes"), None), ("scratch", number(plan, "scratch_bytes"), None)]
    cells = [[name, _mib(a), _mib(b), "–"] for name, a, b in rows if (a, b) != (None, None)]
    opened, start = number(run.config, "data_rss_bytes"), number(run.config, "start_rss_bytes")
    if None not in (opened, start):
        cells.append(["data set, opened", "–", "–", _mib(opened - start)])
    total, measured = run.counted_peak_bytes, run.measured_peak_bytes
    if (planned, total, measured) != (None, None, None):
        cells.append(["<strong>peak</strong>", _mib(planned), _mib(total), _mib(measured)])
    if not cells and not curves.memory_lines(run):
        return []
    parts = ["<h3>Memory</h3>"]
    if cells:
        head = ["", "planned", "counted", "measured"]
        if not plan:
            head, cells = ["", *head[2:]], [[row[0], *row[2:]] for row in cells]
        parts.append(_table(head, cells))
        parts.append('<p class="dim">Counted: arrays, at their highest. Measured: the process\'s resident memory above what it '
                     "was at its start, so it has the share of data, libraries and allocator too."
                     + ("" if plan else " The run had no plan (wasi plan).") + "</p>")
    if curves.memory_lines(run):
        parts.append(_grid([figures("Memory by step", curves.draw_memory, run, planned, size=(4.7, 3.8))]))
    return parts


def _group(name):
    """The part of a model that a layer counts with: a block, or the first part of its name."""
    block = re.match(r"(.*?blocks\.\d+)(\.|$)", name)
    return block[1] if block else name.split(".")[0] or "(model)"


def _layers(run, figures):
    if not run.layers:
        return []
    groups = {}
    for layer in run.layers:
        sums = groups.setdefault(_clean(_group(layer["name"])), dict.fromkeys(layers.BYTES, 0))
        for key in layers.BYTES:
            sums[key] += layer[key]
    rows = []
    for layer in run.layers:
        shape = " x ".join(str(n) for n in layer["shape"])
        rows.append([_text(layer["name"] or "(model)"), _text(layer["kind"]), _text(shape), _data(layer["rank"]),
                     _data(layer["trained"]), *(_data(layer[key]) for key in layers.BYTES)])
    rows.append(["<strong>total</strong>", "", "", "", _data(sum(r["trained"] for r in run.layers)),
                 *(_data(sum(r[key] for r in run.layers)) for key in layers.BYTES)])
    step = "" if run.layers_step is None else f" after step {run.layers_step:,}"
    figure = figures(f"Counted{step}; arrays that layers share count once", layers.draw_bytes, list(groups),
                     list(groups.values()), size=(9.6, 3.8), wide=True)
    head = ["layer", "kind", "shape", "rank", "trained numbers", *layers.BYTES.values()]
    return ["<h3>Bytes by layer</h3>", _grid([figure]), _folded("Layer by layer, in bytes", _table(head, rows))]


def _ranks(run, figures):
    changes = [{**row, "layer": _clean(row["layer"])} for row in run.ranks]
    if changes:
        last = {row["layer"]: row for row in changes}
        first = {row["layer"]: row for row in reversed(changes)}
        table = _table(["layer", "rank at the start", "at the end"],
                       [[_text(name), _data(int(first[name]["rank"])), _data(int(last[name]["rank"]))] for name in first])
        return ["<h3>Ranks</h3>", _grid([figures("Rank of each layer by step", layers.draw_ranks, changes, len(run.steps)),
                                         figures("Sum of all ranks by step", layers.draw_total_rank, changes, len(run.steps))]),
                _folded("Ranks in numbers", table)]
    named = [(layer["name"], layer["rank"]) for layer in run.layers if layer["rank"] is not None]
    if not named:
        return []
    return ["<h3>Ranks</h3>", '<p class="dim">They stayed as they were chosen (--adapt-ranks lets them follow the factors).</p>',
            _grid([figures("Rank of each layer", layers.draw_rank_bars, [(_clean(n), r) for n, r in named], size=(9.6, 3.2),
                           wide=True)])]


def _angles(run, figures):
    rows = [{**row, "layer": _clean(row["layer"])} for row in run.subspaces]
    drawn = [figures(f"{value.capitalize()} principal angle to {words}, a line a layer", layers.draw_angles, rows, against, value)
             for against, words in layers.AGAINST.items() if any(row["against"] == against for row in rows)
             for value in ("mean", "largest")]
    if not drawn:
        return []
    last = {}
    for row in rows:
        if row["against"] == "start":
            last[row["layer"]] = row
    table = _table(["layer", "step", "mean angle to the start, degrees", "largest"],
                   [[_text(name), _data(int(r["step"])), *(_data(r[k], "{:.3f}") for k in ("mean_degrees", "largest_degrees"))]
                    for name, r in last.items()])
    return ["<h3>Subspaces</h3>", _grid(drawn), _folded("Angles in numbers", table)]


def _environment(run, command):
    parts = ["<h3>Environment and command</h3>"]
    parts.append(f"<pre><code>{_text(command)}</code></pre>" if command else
                 '<p class="dim">No command is recorded: the run was started from Python, or by another version.</p>')
    if run.environment:
        parts.append(_table(["environment", ""], [[_text(k), _text(v)] for k, v in run.environment.items()], long=True))
    else:
        parts.append('<p class="dim">No environment is recorded.</p>')
    if run.config:
        rows = [[_text(k), _text(v)] for k, v in run.config.items() if k not in ("arguments", "environment")]
        parts.append(_folded("Settings", _table(["setting", ""], rows, long=True)))
    return parts
