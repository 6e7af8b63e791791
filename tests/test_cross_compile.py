"""Every C source but the bindings compiles for 64-bit ARM without a warning, for each of its instruction sets."""

import importlib.util
import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from compilers import ROOT, isa_flags, need_tools

COMPILER = "aarch64-linux-gnu-gcc"
SOURCES = sorted(path for folder in ("common", "kernels") for path in (ROOT / "csrc" / folder).glob("*.c"))


def variants(source):
    """(name, compiler words) of each object that setup.py makes of a source."""
    if not source.stem.endswith("_simd"):
        return [(source.name, [])]
    return [(f"{source.name} ({isa})", [f"-DWASI_ISA={isa}", f"-DWASI_ISA_{isa.upper()}", *flags])
            for isa, flags in isa_flags("aarch64").items()]


def test_sources_compile_for_aarch64():
    need_tools(COMPILER)
    blas = importlib.util.find_spec("scipy_openblas32").submodule_search_locations[0]
    common = [COMPILER, "-std=gnu11", "-O2", "-fno-math-errno", "-fno-trapping-math", "-fopenmp-simd", "-Wall", "-Wextra",
              "-Werror", "-Wno-unused-parameter", "-Wno-missing-field-initializers", "-Wno-unknown-pragmas",
              "-DWASI_BLAS_WHEEL=1", "-I", ROOT / "csrc", "-I", Path(blas) / "include", "-S", "-o", os.devnull]

    def compiled(job):
        name, words, source = job
        run = subprocess.run([*common, *words, source], capture_output=True, text=True, check=False)
        return "" if run.returncode == 0 else f"{name}:\n{run.stderr}"

    jobs = [(name, words, source) for source in SOURCES for name, words in variants(source)]
    assert len(jobs) > len(SOURCES) > 20
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        errors = "".join(pool.map(compiled, jobs))
    assert not errors, errors
