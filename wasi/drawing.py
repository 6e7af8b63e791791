"""Figures, made without a display: saved as PNG, or as SVG for a page whose style sheet chooses the colours.

All text in them is drawn as it is: no mathematics is looked for in names that come from files.
"""

import contextlib
import io
import re
from html import escape

# Name: (colour on white, colour on dark). PNGs have the first; an SVG has var(--name), for `STYLE` to define.
THEME = {
    "ink": ("#20242a", "#e4e7eb"),
    "grid": ("#d3d8de", "#3b424b"),
    "c0": ("#2f6fb3", "#6cb0f5"),
    "c1": ("#c8641a", "#f2a154"),
    "c2": ("#2b8a4b", "#63c98a"),
    "c3": ("#7d4fb5", "#bd97ee"),
    "c4": ("#c13a42", "#f27d82"),
    "c5": ("#1b8a99", "#55c6d3"),
    "c6": ("#8a7a12", "#cfc04a"),
    "c7": ("#b8478e", "#ee8fc6"),
    # From the first layer of a model to the last.
    "l0": ("#42086a", "#fde24c"),
    "l1": ("#443285", "#c3dd3a"),
    "l2": ("#3a538b", "#8ad04e"),
    "l3": ("#2f708e", "#55c068"),
    "l4": ("#268b8e", "#35ab80"),
    "l5": ("#229a80", "#2f9a93"),
    "l6": ("#3aa86b", "#468ea8"),
    "l7": ("#6fae3d", "#5f83bd"),
    "l8": ("#98a329", "#7b78c8"),
}
STYLE = (":root{color-scheme:light dark;" + "".join(f"--{name}:{light};" for name, (light, _) in THEME.items()) + "}"
         "@media(prefers-color-scheme:dark){:root{" + "".join(f"--{name}:{dark};" for name, (_, dark) in THEME.items()) + "}}")

_LIGHT = {name: light for name, (light, _) in THEME.items()}
_MARKERS, _DASHES, _N_COLORS, _N_STEPS = "osD^vPX*", ("-", "--", "-.", ":"), 8, 9


def series_style(index):
    """Keywords of `plot` for the index-th of several series: colour, marker, and dashes once all colours were used."""
    return {"color": _LIGHT[f"c{index % _N_COLORS}"], "marker": _MARKERS[index % len(_MARKERS)],
            "linestyle": _DASHES[index // _N_COLORS % len(_DASHES)]}


def layer_color(index, n):
    """The colour of the index-th of n layers."""
    return _LIGHT[f"l{index * (_N_STEPS - 1) // max(1, n - 1)}"]


def whole_ticks(axes):
    """Ticks of the horizontal axis at whole numbers only: steps, epochs."""
    axes.xaxis.get_major_locator().set_params(integer=True)
    low, high = axes.get_xlim()
    if high - low < 1:
        axes.set_xlim(low - 0.5, high + 0.5)


def name_bars(axes, names):
    """Names the bars 0, 1, ... below the axes, in letters that fit between their neighbours while they can be read."""
    size = 58 * axes.figure.get_figwidth() / max(1, len(names))  # points: 0.8 of a bar's share of the width
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=min(7, max(4, size)))
    axes.set_xlim(-0.6, len(names) - 0.4)
    axes.grid(False, axis="x")


def stacked_bars(axes, names, parts):
    """Draws a bar a name, made of parts {label: a height a bar}; a part that is nothing in all of them is left out."""
    base = [0.0] * len(names)
    for i, (label, heights) in enumerate(parts.items()):
        if any(heights):
            axes.bar(range(len(names)), heights, bottom=base, label=label, color=series_style(i)["color"], width=0.8)
        base = [b + h for b, h in zip(base, heights)]
    name_bars(axes, names)


def ink():
    """The colour of text and axes."""
    return _LIGHT["ink"]


@contextlib.contextmanager
def new_figure(width, height, rows=1, columns=1, **keywords):
    """A context that gives (figure, grid of axes (rows, columns)) in the common style; sizes in inches. Save it within."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with rc_context({"text.parse_math": False, "svg.fonttype": "none", "svg.hashsalt": "wasi", "font.size": 9,
                     "axes.titlesize": 10, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
                     "axes.axisbelow": True, "grid.color": _LIGHT["grid"], "grid.linewidth": 0.6, "legend.frameon": False,
                     "legend.fontsize": 8, "lines.linewidth": 1.3, "lines.markersize": 4,
                     **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "axes.titlecolor", "xtick.color",
                                      "ytick.color"), ink())}):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        yield figure, figure.subplots(rows, columns, squeeze=False, **keywords)


def save_png(figure, path):
    figure.savefig(path, dpi=120, facecolor="white")


def to_svg(figure, prefix, label):
    """The figure as an <svg> element for a page with `STYLE`.

    prefix: put before its ids, to be unique on the page. label: what a screen reader says.
    """
    text = io.StringIO()
    figure.savefig(text, format="svg", transparent=True, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.S)
    # What follows is within tags only: text and comments have no < or " unescaped.
    svg = re.sub(r"<!--.*?-->\s*", "", svg, flags=re.S)
    width, height = figure.get_size_inches() * 72
    svg = re.sub(r"<svg[^>]*>", f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(label)}">', svg, count=1)
    colors = {light: f"var(--{name})" for name, light in _LIGHT.items()}

    def in_tag(tag):
        tag = re.sub(r"#[0-9a-f]{6}\b", lambda color: colors.get(color[0], color[0]), tag[0])
        tag = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", tag)
        tag = re.sub(r"(\bid=\"|url\(#)", rf"\g<1>{prefix}-", tag)
        return re.sub(r"xlink:href=\"#", f'href="#{prefix}-', tag)

    return re.sub(r"<[a-z][^>]*>", in_tag, svg)
