"""Importing wasi leaves the other libraries of the process alone."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import wasi


def run_python(code):
    """What a fresh Python prints, as JSON."""
    run = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


BLAS_THREADS = """
import json, threadpoolctl, numpy
try:
    import scipy.linalg
except ImportError:
    pass
def threads():
    return {lib["filepath"]: lib["num_threads"] for lib in threadpoolctl.threadpool_info() if lib["user_api"] == "blas"}
threadpoolctl.threadpool_limits(3)
before = threads()
import wasi
imported = threads()
wasi.set_num_threads(2)
wasi.ops.linear(numpy.ones((512, 512), numpy.float32), numpy.ones((512, 512), numpy.float32))
print(json.dumps([before, imported, threads()]))
"""


def test_blas_threads_of_others_stay():
    pytest.importorskip("threadpoolctl", reason="needs threadpoolctl: pip install threadpoolctl")
    before, imported, used = run_python(BLAS_THREADS)
    assert before and set(before.values()) == {3}
    assert {path: used[path] for path in before} == {path: imported[path] for path in before} == before
    assert all(used[path] == 1 for path in set(used) - set(before))  # ours works on the calling thread


def test_blas_is_not_loaded_for_everyone():
    code = """
import ctypes, json, wasi
print(json.dumps([hasattr(ctypes.CDLL(None), name) for name in ("scipy_openblas_set_num_threads", "scipy_cblas_sgemm")]))
"""
    assert run_python(code) == [False, False]


def test_source_folder_without_the_core_says_so(tmp_path):
    (tmp_path / "wasi").mkdir()
    (tmp_path / "wasi" / "__init__.py").write_text(Path(wasi.__file__).read_text())
    run = subprocess.run([sys.executable, "-S", "-c", "import wasi"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert re.search("ImportError: the C core of wasi is not built in .*pip install -e", run.stderr)
