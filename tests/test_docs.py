"""The documentation builds without a warning, and what it names is there."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from wasi.cli import build_parser

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.slow
def test_sphinx_builds_it_without_a_warning(tmp_path):
    for name in ("sphinx", "myst_parser", "furo"):
        pytest.importorskip(name, reason="needs Sphinx: pip install '.[docs]'")
    done = subprocess.run([sys.executable, "-P", "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html",
                           "-d", tmp_path / "trees", ROOT / "docs", tmp_path / "html"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "html" / "api" / "models.html").read_text()
    assert "create_model" in page and "factorize" in page


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_within_the_project_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        assert "://" in target or (page.parent / target).exists(), f"{page.name}: {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_have_the_options_that_they_are_shown_with(page):
    text = re.sub(r" \\\n\s*", " ", page.read_text())
    for line in re.findall(r"^    (wasi [a-z][^#\n]*)", text, re.M):
        command = line.split()[1]
        known = build_parser([command])._subparsers._group_actions[0].choices[command]._option_string_actions
        for flag in re.findall(r" (--[a-z][a-z-]*)", line):
            assert flag in known, f"{page.name}: {line}"
