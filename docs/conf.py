"""Sphinx: `python -m sphinx -W -b html docs build/docs`. Docstrings are plain text, and are shown as they are meant."""

import re

import wasi

project, author, release = "wasi", "the authors of wasi", wasi.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc"]
html_theme = "furo"
html_title = f"wasi {release}"
autodoc_typehints = "none"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "show-inheritance": False}
myst_heading_anchors = 3
exclude_patterns = ["_build"]
# Guides link to files beside docs/, which a checkout shows; tests/test_docs.py finds the links that lead nowhere.
suppress_warnings = ["myst.xref_missing"]


def as_rst(lines):
    """The lines of one of our docstrings as reStructuredText: paragraphs, indented formulas, NumPy's headings, examples."""
    out = []
    for block in re.split(r"\n[ \t]*\n", "\n".join(lines).strip("\n")):
        rows = block.strip("\n").split("\n")
        if rows[0].lstrip().startswith(">>>"):
            out += rows
        elif all(row.startswith("    ") for row in rows):
            out += ["::", "", *rows]
        elif len(rows) > 1 and re.fullmatch(r"-+", rows[1].strip()):
            out += [f"**{rows[0].strip()}**", "", *items(rows[2:])]
        else:
            out.append(escaped(" ".join(row.strip() for row in rows)))
        out.append("")
    return out


def items(rows):
    """A list item for each line that is not indented, with those that follow it."""
    out = []
    for row in rows:
        out.append(("  " if row.startswith(" ") else "* ") + escaped(row.strip()))
    return out


def escaped(text):
    """Text without markup; what stands in backticks is code."""
    parts = text.replace("``", "`").split("`")
    return "".join(f"``{part.strip()}``" if i % 2 and part.strip() else re.sub(r"([\\*|_<>])", r"\\\1", part)
                   for i, part in enumerate(parts))


def setup(app):
    def process(app, what, name, obj, options, lines):
        lines[:] = as_rst(lines)

    app.connect("autodoc-process-docstring", process)
