"""The stub of the C core and the annotations hold."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
def test_the_stub_is_that_of_the_core(tmp_path):
    """Names, parameters and defaults of wasi._core as mypy's stubtest reads them from the built module."""
    pytest.importorskip("mypy", reason="needs mypy: pip install mypy")
    done = subprocess.run([sys.executable, "-P", "-m", "mypy.stubtest", "wasi._core", "--mypy-config-file",
                           ROOT / "pyproject.toml"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
