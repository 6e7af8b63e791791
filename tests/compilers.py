"""What the tests that run a C compiler themselves share."""

import ast
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def isa_flags(machine):
    """The instruction sets and compiler flags that setup.py builds for a machine, read without running it."""
    for node in ast.parse((ROOT / "setup.py").read_text()).body:
        if isinstance(node, ast.Assign) and node.targets[0].id == "ISA_FLAGS":
            return ast.literal_eval(node.value)[machine]
    raise AssertionError("setup.py: no ISA_FLAGS")


def need_tools(*names):
    """Skips the test where a program is missing."""
    for name in names:
        if shutil.which(name) is None:
            pytest.skip(f"needs {name} (apt-get install gcc-aarch64-linux-gnu qemu-user)")
