"""A NumPy memory handler (NEP 49) whose k-th allocation fails, and which knows what is still allocated. Needs a C compiler."""

import ctypes
import functools
import subprocess
import tempfile
from pathlib import Path

import numpy as np

SOURCE = Path(__file__).parents[1] / "native" / "failing_allocator.c"


class _Handler(ctypes.Structure):
    """PyDataMem_Handler."""

    _fields_ = [("name", ctypes.c_char * 127), ("version", ctypes.c_uint8), ("ctx", ctypes.c_void_p), ("malloc", ctypes.c_void_p),
                ("calloc", ctypes.c_void_p), ("realloc", ctypes.c_void_p), ("free", ctypes.c_void_p)]


@functools.cache
def _library():
    """(the compiled functions, a capsule of the handler). They stay for good, as arrays may outlive whoever made them."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "failing.so"
        subprocess.run(["cc", "-O1", "-shared", "-fPIC", "-o", path, SOURCE], check=True)
        library = ctypes.CDLL(str(path))
    functions = [ctypes.cast(getattr(library, f"failing_{name}"), ctypes.c_void_p)
                 for name in ("malloc", "calloc", "realloc", "free")]
    handler = _Handler(b"failing", 1, None, *functions)
    new = ctypes.pythonapi.PyCapsule_New
    new.restype, new.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
    return library, new(ctypes.addressof(handler), b"mem_handler", None), handler


def _set_handler(capsule):
    """PyDataMem_SetHandler, number 304 of NumPy's C API; returns the capsule that was set before."""
    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.restype, pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    table = ctypes.cast(pointer(np._core._multiarray_umath._ARRAY_API, None), ctypes.POINTER(ctypes.c_void_p))
    return ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.py_object)(table[304])(capsule)


class Allocations:
    """`with Allocations(k) as made:` lets allocation number k (from 0) of NumPy arrays fail, and all after it succeed.

    made.n: allocations asked for; made.live: blocks allocated since, that still are. k None: none fails. Not to be nested.
    """

    def __init__(self, fails=None):
        self._library, self._capsule, _ = _library()
        self._fails = -1 if fails is None else fails

    def _number(self, name):
        return ctypes.c_long.in_dll(self._library, name)

    @property
    def n(self):
        return self._number("asked").value

    @property
    def live(self):
        return self._number("live").value - self._live_before

    def __enter__(self):
        self._live_before = self._number("live").value
        self._number("asked").value, self._number("fails").value = 0, self._fails
        self._before = _set_handler(self._capsule)
        return self

    def __exit__(self, *error):
        _set_handler(self._before)
        self._number("fails").value = -1
