"""Every function of the C core, called well and badly, with and without memory: no crash, no leak, no reference lost.

`stress/bindings.py` does the same 50,000 times a function; a build with sanitizers (docs/developing.md) looks on at either.
"""

import bindings
import pytest
from compilers import need_tools

import wasi


@pytest.fixture(autouse=True)
def one_thread():
    before = wasi.get_num_threads()
    yield
    bindings.restore()
    wasi.set_num_threads(before)


def test_every_function_has_a_row():
    assert set(bindings.names()) == set(bindings.CALLS)


@pytest.mark.parametrize("name", bindings.CALLS)
def test_bad_arguments_are_refused_or_harmless(name):
    for arguments, keywords in bindings.bad_calls(name):
        bindings.run_bad(name, arguments, keywords)


@pytest.mark.parametrize("name", bindings.CALLS)
def test_good_and_failing_calls_leave_nothing_behind(name):
    grown, references, blocks = bindings.soak(name, 600)
    assert references == 0 and abs(blocks) <= 50 and grown < 2**20


@pytest.mark.parametrize("name", bindings.CALLS)
def test_each_allocation_may_fail(name):
    need_tools("cc")
    bindings.fail_each_allocation(name)
