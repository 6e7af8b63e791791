"""wasi: fine-tune, train and run transformers on a CPU, with weights and activations kept in subspaces."""

import ctypes as _ctypes
import importlib as _importlib
import importlib.util as _util
from pathlib import Path as _Path
from typing import TYPE_CHECKING


def _load_blas():
    """Loads the OpenBLAS of the scipy-openblas32 wheel privately.

    Importing that package would load it with RTLD_GLOBAL and so hand our single-threaded copy to SciPy as well.
    """
    spec = _util.find_spec("scipy_openblas32")
    if spec is not None:
        for path in sorted((_Path(spec.submodule_search_locations[0]) / "lib").glob("libscipy_openblas.*")):
            _ctypes.CDLL(str(path), mode=_ctypes.RTLD_LOCAL)


_load_blas()

if _util.find_spec("wasi._core") is None:
    raise ImportError(f"the C core of wasi is not built in {_Path(__file__).parent}: run Python from another folder to use "
                      "the installed package, or build in place by 'pip install -e .'")

if TYPE_CHECKING:
    from wasi import linalg, ops
    from wasi._core import Arena, get_num_threads, set_num_threads
    from wasi.models import (
        create_model,
        export,
        generate,
        list_models,
        load_llama,
        load_model,
        load_tokenizer,
        load_weights,
        merge,
        optimize_for_inference,
        save_model,
    )
    from wasi.models.factorize import factorize
    from wasi.models.plan import Plan
    from wasi.ops import get_matmul_precision, set_matmul_precision
    from wasi.planning import plan
    from wasi.training.classifier import WasiClassifier

__version__ = "0.1.0"
__all__ = ["Arena", "Plan", "WasiClassifier", "create_model", "export", "factorize", "generate", "get_matmul_precision",
           "get_num_threads", "linalg", "list_models", "load_llama", "load_model", "load_tokenizer", "load_weights", "merge",
           "ops", "optimize_for_inference", "plan", "save_model", "set_matmul_precision", "set_num_threads"]

# Where the public names are. Each is imported when it is first asked for, so that `wasi --help` is quick.
_HOMES = {"Arena": "_core", "get_num_threads": "_core", "set_num_threads": "_core", "get_matmul_precision": "ops",
          "set_matmul_precision": "ops", "Plan": "models.plan", "plan": "planning",
          "factorize": "models.factorize", "WasiClassifier": "training.classifier"}
_MODULES = ("layers", "linalg", "models", "ops", "planning", "reports", "training")


def __getattr__(name):
    if name in (*_MODULES, "_core", "torch"):  # dir() does not list what is private or needs PyTorch
        return _importlib.import_module("wasi." + name)
    if name not in __all__:
        raise AttributeError(f"module 'wasi' has no attribute {name!r}")
    value = getattr(_importlib.import_module("wasi." + _HOMES.get(name, "models")), name)
    globals()[name] = value
    return value


def __dir__():
    return sorted({*__all__, *_MODULES, *(name for name in globals() if name.startswith("__"))})
