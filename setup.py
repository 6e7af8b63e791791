"""Builds ``wasi._core``. Everything that is not about the C extension is in pyproject.toml.

Environment variables read here:

``WASI_BLAS``      ``wheel`` (default: OpenBLAS and LAPACKE of the scipy-openblas32 wheel) or ``system`` (pkg-config).
``WASI_SANITIZE``  a value for ``-fsanitize=``, such as ``address,undefined``; builds with debug information.
``WASI_DEBUG``     ``1`` keeps assertions and debug information.
"""

import glob
import os
import platform
import shlex
import subprocess
import sysconfig
from concurrent.futures import ThreadPoolExecutor

import numpy
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

# A source named *_simd.c is compiled once for each of these; csrc/common/isa.h picks one at run time.
ISA_FLAGS = {
    "x86_64": {
        "plain": [],
        "avx2": ["-mavx2", "-mfma", "-mf16c"],
        "avx512": ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512vnni", "-mfma", "-mf16c",
                   "-mprefer-vector-width=512"],
    },
    "aarch64": {"plain": [], "dotprod": ["-march=armv8.2-a+dotprod+fp16"]},
}


def target_machine():
    """The machine compiled for: a cross build says so through the host platform that sysconfig reports."""
    name = (os.environ.get("_PYTHON_HOST_PLATFORM") or sysconfig.get_platform()).rsplit("-", 1)[-1]
    name = {"amd64": "x86_64", "arm64": "aarch64"}.get(name, name)
    return name if name in ISA_FLAGS else platform.machine()


def pkg_config(package):
    """Compiler and linker words for a system package, or None where pkg-config does not know it."""
    try:
        words = subprocess.run(["pkg-config", "--cflags", "--libs", package], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return shlex.split(words.stdout)


def blas_settings():
    """Extension keywords that reach OpenBLAS and LAPACKE."""
    choice = os.environ.get("WASI_BLAS", "wheel")
    if choice == "wheel":
        import importlib.util

        folder = importlib.util.find_spec("scipy_openblas32").submodule_search_locations[0]
        return {
            "include_dirs": [os.path.join(folder, "include")],
            "library_dirs": [os.path.join(folder, "lib")],
            "libraries": ["scipy_openblas"],
            "define_macros": [("WASI_BLAS_WHEEL", "1")],
            # Beside us in site-packages; from an editable install wasi/__init__.py loads it by path first.
            "runtime_library_dirs": ["$ORIGIN/../scipy_openblas32/lib"],
        }
    if choice == "system":
        for package in ("openblas", "openblas-pthread", "openblas-serial"):
            words = pkg_config(package)
            if words is not None:
                return {
                    "extra_compile_args": [w for w in words if not w.startswith(("-l", "-L", "-Wl,"))],
                    "extra_link_args": [w for w in words if w.startswith(("-l", "-L", "-Wl,"))] + ["-llapacke"],
                }
        raise SystemExit("WASI_BLAS=system: pkg-config finds no 'openblas'; install OpenBLAS and LAPACKE with headers, "
                         "or unset WASI_BLAS to use the scipy-openblas32 wheel")
    raise SystemExit(f"WASI_BLAS={choice!r}: expected 'wheel' or 'system'")


class BuildExt(build_ext):
    """build_ext that compiles each ``*_simd.c`` once per instruction set, files side by side, and links all of the objects."""

    def build_extensions(self):
        one_by_one = self.compiler.compile

        def compile_all(sources, **words):
            with ThreadPoolExecutor(os.process_cpu_count() if hasattr(os, "process_cpu_count") else os.cpu_count()) as pool:
                return [o for objects in pool.map(lambda source: one_by_one([source], **words), sources) for o in objects]

        self.compiler.compile = compile_all
        super().build_extensions()

    def build_extension(self, ext):
        ext.extra_objects = list(ext.extra_objects)
        for isa, flags in ISA_FLAGS.get(target_machine(), {"plain": []}).items():
            ext.extra_objects += self.compiler.compile(
                sorted(glob.glob("csrc/kernels/*_simd.c")),
                output_dir=os.path.join(self.build_temp, isa),
                macros=[*ext.define_macros, ("WASI_ISA", isa), (f"WASI_ISA_{isa.upper()}", "1")],
                include_dirs=ext.include_dirs,
                debug=self.debug,
                extra_postargs=[*ext.extra_compile_args, *flags],
                depends=ext.depends,
            )
        super().build_extension(ext)


def extension():
    settings = blas_settings()
    compile_args = ["-std=gnu11", "-O3", "-fno-math-errno", "-fno-trapping-math", "-fopenmp-simd", "-fvisibility=hidden",
                    "-Wall", "-Wextra", "-Wno-unused-parameter", "-Wno-missing-field-initializers", "-Wno-unknown-pragmas"]
    link_args = ["-pthread"]
    macros = [("NPY_NO_DEPRECATED_API", "NPY_2_0_API_VERSION"), ("NPY_TARGET_VERSION", "NPY_2_0_API_VERSION")]
    sanitize = os.environ.get("WASI_SANITIZE")
    if sanitize:
        compile_args += [f"-fsanitize={sanitize}", "-fno-omit-frame-pointer", "-fno-sanitize-recover=all",
                         "-fno-wrapv", "-g", "-O1"]
        link_args += [f"-fsanitize={sanitize}"]
    if sanitize or os.environ.get("WASI_DEBUG") == "1":
        compile_args += ["-UNDEBUG", "-g"]
        macros += [("WASI_DEBUG", "1")]
    else:
        link_args += ["-Wl,--strip-debug"]  # what Python's own -g leaves names the folders of the build: no two would be equal
    sources = sorted(glob.glob("csrc/*/*.c"))
    return Extension(
        "wasi._core",
        sources=[s for s in sources if not s.endswith("_simd.c")],
        depends=sorted([*glob.glob("csrc/*/*.h"), *(s for s in sources if s.endswith("_simd.c"))]),
        include_dirs=["csrc", numpy.get_include(), *settings.pop("include_dirs", [])],
        define_macros=macros + settings.pop("define_macros", []),
        extra_compile_args=compile_args + settings.pop("extra_compile_args", []),
        extra_link_args=link_args + settings.pop("extra_link_args", []),
        **settings,
    )


setup(ext_modules=[extension()], cmdclass={"build_ext": BuildExt})
