"""Rules of the house, checked by reading the sources."""

import ast
import re
from pathlib import Path

import pytest

import wasi

ROOT = Path(__file__).resolve().parents[1]
C_SOURCES = sorted((ROOT / "csrc").glob("*/*.[ch]"))
PYTHON_SOURCES = sorted((ROOT / "wasi").rglob("*.py"))

# A package may import those to its right (docs/developing.md).
ORDER = ["torch", "cli", "reports", "training", "planning", "models", "layers", "linalg", "ops", "reference", "_core"]
SIBLINGS = {("training", "planning"), ("planning", "training")}


def test_kernels_and_common_know_nothing_of_python():
    for path in C_SOURCES:
        if path.parent.name != "bindings":
            assert not re.search(r"#include\s*[<\"](Python|numpy)", path.read_text()), path


def test_kernels_do_not_allocate():
    for path in C_SOURCES:
        if path.parent.name == "kernels":
            assert not re.search(r"\b(malloc|calloc|realloc|alloca|posix_memalign|aligned_alloc)\s*\(", path.read_text()), path


def test_only_blas_c_includes_blas():
    for path in C_SOURCES:
        if path.name != "blas.c":
            assert not re.search(r"#include\s*<(cblas|lapacke)", path.read_text()), path


def test_c_includes_point_one_way():
    order = ["bindings", "kernels", "common"]
    for path in C_SOURCES:
        for target in re.findall(r'#include "(\w+)/', path.read_text()):
            assert order.index(target) >= order.index(path.parent.name), f"{path} includes {target}/"


def imports_of(path):
    """Top-level parts of wasi that a source imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "wasi":
            rest = node.module.split(".")[1:]
            yield from [rest[0]] if rest else [a.name for a in node.names]
        elif isinstance(node, ast.Import):
            yield from (a.name.split(".")[1] for a in node.names if a.name.startswith("wasi."))


def test_python_imports_point_one_way():
    for path in PYTHON_SOURCES:
        here = path.relative_to(ROOT / "wasi").with_suffix("").parts[0]
        if here not in ORDER:
            continue
        for target in imports_of(path):
            if target in ORDER and target != here:
                assert ORDER.index(target) > ORDER.index(here) and (here, target) not in SIBLINGS, f"{path} imports {target}"
                assert here != "reference", f"{path}: the twins import nothing of ours"


def test_reports_read_run_folders_alone():
    for path in (ROOT / "wasi" / "reports").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("wasi"):
                allowed = ("wasi.reports", "wasi.training.runlog", "wasi.drawing")
                assert node.module.startswith(allowed), f"{path} imports {node.module}"


def stub_functions():
    tree = ast.parse((ROOT / "wasi" / "_core.pyi").read_text())
    return {node.name: [a.arg for a in node.args.args + node.args.posonlyargs] for node in tree.body
            if isinstance(node, ast.FunctionDef)}


def test_the_stub_lists_what_the_core_has():
    names = {n for n in dir(wasi._core) if not n.startswith("_") and callable(getattr(wasi._core, n)) and n != "Arena"}
    assert names == set(stub_functions())


@pytest.mark.parametrize("name, arguments", sorted(stub_functions().items()))
def test_the_stub_and_the_docstring_agree(name, arguments):
    doc = getattr(wasi._core, name).__doc__
    listed = re.search(rf"{name}\(([^)]*)\)", doc).group(1)
    assert [a.split("=")[0].strip(" /") for a in listed.split(",") if a.strip(" /*")] == arguments


def test_ci_runs_the_command_of_the_readme():
    command = 'python3 -m venv .venv && .venv/bin/pip install -q ".[test]" && .venv/bin/pytest'
    assert command in (ROOT / "README.md").read_text()
    assert command in (ROOT / ".ci" / "run").read_text()


# What runs code that comes as data, by name; `re.compile` and a model's `eval()` are others' methods of the same name.
RUNS_CODE = {"eval", "exec", "compile", "__import__", "execfile", "os.system", "os.popen", "pickle.load", "pickle.loads",
             "marshal.loads", "shelve.open", "torch.load", "joblib.load", "yaml.load", "runpy.run_path"}


def test_nothing_runs_code_that_comes_as_data():
    for path in PYTHON_SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [getattr(node, "module", None), *(a.name for a in node.names)]
                assert not {"pickle", "marshal", "shelve", "dill", "cloudpickle"} & set(names), path
            if not isinstance(node, ast.Call):
                continue
            name, keywords = ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}
            assert name not in RUNS_CODE, f"{path}:{node.lineno}: {name}"
            assert keywords.get("shell", "False") == "False", f"{path}:{node.lineno}: a shell"
            if name in ("np.load", "numpy.load"):
                assert keywords.get("allow_pickle") == "False", f"{path}:{node.lineno}: allow_pickle=False"
