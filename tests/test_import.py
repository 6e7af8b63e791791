"""Importing wasi leaves the other libraries of the process alone."""

import ast
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


@pytest.mark.parametrize("words", [["--help"], ["train", "--help"], ["compare", "--help"], ["train", "--optimizer", "sdg"]])
def test_help_and_mistyped_options_import_nothing_heavy(words):
    code = f"""
import contextlib, io, json, sys
from wasi.cli import main
with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()), contextlib.suppress(SystemExit):
    main({words})
print(json.dumps(sorted({{"numpy", "PIL", "wasi._core", "wasi.models"}} & set(sys.modules))))
"""
    assert run_python(code) == []


def test_public_names_are_imported_when_asked_for():
    code = """
import json, wasi
listed = dir(wasi)
print(json.dumps([name for name in wasi.__all__ if name not in listed or getattr(wasi, name) is not vars(wasi)[name]]))
"""
    assert run_python(code) == []
    public = [name for name in dir(wasi) if not name.startswith("__")]
    assert public == sorted({*wasi.__all__, *wasi._MODULES}) and not [name for name in public if name.startswith("_")]
    assert run_python("import json, wasi; print(json.dumps(wasi.models.methods.apply_method is wasi.models.apply_method))")
    with pytest.raises(AttributeError, match="module 'wasi' has no attribute 'plam'"):
        wasi.plam  # noqa: B018


def test_what_type_checkers_see_is_what_is_public():
    conditions = [node for node in ast.parse(Path(wasi.__file__).read_text()).body if isinstance(node, ast.If)]
    block = next(node for node in conditions if ast.unparse(node.test) == "TYPE_CHECKING")
    seen = {(node.module, alias.name) for node in block.body for alias in node.names}
    assert seen == {("wasi." + wasi._HOMES.get(n, "models") if n not in wasi._MODULES else "wasi", n) for n in wasi.__all__}
