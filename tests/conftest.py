import os
from pathlib import Path

import numpy as np
import pytest

import wasi

# Real data and pretrained weights: beside the checkout, or where the environment says.
DATA = Path(os.environ.get("WASI_TEST_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def shared_data():
    """shared_data(name) gives the path of a real data file, or skips the test where it is absent."""

    def find(name):
        path = DATA / name
        if not path.exists():
            pytest.skip(f"needs {name}, which is not in {DATA.name}/ (set WASI_TEST_DATA to the folder that has it)")
        return path

    return find


@pytest.fixture
def torch():
    return pytest.importorskip("torch", reason="needs PyTorch, the oracle: pip install torch==2.13.0")


@pytest.fixture(params=[1, 2])
def n_threads(request):
    """Runs a test with one and with two threads, and restores the setting."""
    before = wasi.get_num_threads()
    wasi.set_num_threads(request.param)
    yield request.param
    wasi.set_num_threads(before)


def available_isas():
    names = []
    before = wasi._core.get_isa()
    for name in ("plain", "avx2", "avx512", "dotprod"):
        try:
            wasi._core.set_isa(name)
        except ValueError:
            continue
        names.append(name)
    wasi._core.set_isa(before)
    return names


@pytest.fixture(params=available_isas())
def isa(request):
    """Runs a test under each instruction set that this machine and build have."""
    before = wasi._core.get_isa()
    wasi._core.set_isa(request.param)
    yield request.param
    wasi._core.set_isa(before)
