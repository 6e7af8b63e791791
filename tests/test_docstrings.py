"""The examples of the docstrings are true."""

import doctest
import importlib
import pkgutil

import pytest

import wasi

# wasi.__main__ runs the command when it is imported.
MODULES = sorted(m.name for m in pkgutil.walk_packages(wasi.__path__, "wasi.") if not m.name.endswith(("__main__", "._core")))


@pytest.mark.parametrize("name", ["wasi", *MODULES])
def test_examples(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # examples may write files
    if name.startswith("wasi.torch"):
        pytest.importorskip("torch", reason="needs PyTorch: pip install torch==2.13.0")
    results = doctest.testmod(importlib.import_module(name), optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    assert results.failed == 0
