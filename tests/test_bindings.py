"""Every function of the C core, called well and badly, with and without memory: no crash, no leak, no reference lost.

`stress/bindings.py` does the same 50,000 times a function; a build with sanitizers (docs/developing.md) looks on at either.
"""

import threading

import bindings
import numpy as np
import pytest
from compilers import need_tools

import wasi
from wasi import _core


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
def test_sizes_of_none_one_and_many(name):
    for arguments, keywords in bindings.resized_calls(name):
        bindings.run_bad(name, arguments, keywords)


@pytest.mark.parametrize("name", bindings.CALLS)
def test_good_and_failing_calls_leave_nothing_behind(name):
    grown, references, blocks = bindings.soak(name, 600)
    assert references == 0 and abs(blocks) <= bindings.MOST_BLOCKS and grown < bindings.MOST_BYTES


@pytest.mark.parametrize("name", bindings.CALLS)
def test_each_allocation_may_fail(name):
    need_tools("cc")
    bindings.fail_each_allocation(name)


class Resizing:
    """A number that frees an array's memory when it is asked for its value."""

    def __init__(self, array, value):
        self._array, self._value = array, value

    def __index__(self):
        self._array.resize((0,) * self._array.ndim, refcheck=False)
        return int(self._value)

    def __float__(self):
        return float(self.__index__())


@pytest.mark.parametrize("name", bindings.CALLS)
def test_numbers_that_run_code_come_before_arrays(name):
    """An array is looked at after all numbers are: the build with AddressSanitizer sees it where one is not."""
    for row in bindings.CALLS[name]:
        given = bindings.split(row)[0]
        numbers = [i for i, v in enumerate(given) if v is None or isinstance(v, int | float)]
        arrays = [i for i, v in enumerate(given) if isinstance(v, np.ndarray)]
        for number in numbers:
            for array in arrays:
                arguments, keywords = bindings.split(row)
                value = 1 if arguments[number] is None else arguments[number]
                arguments[number] = Resizing(arguments[array], value)
                bindings.run_bad(name, arguments, keywords)


def test_sequences_that_change_while_they_are_read():
    class Clearing:
        def __float__(self):
            numbers.clear()
            return 0.5

    numbers = [0.5, 0.5, 0.5]
    images = np.zeros((2, 3, 8, 8), np.uint8)
    want = _core.extract_patches(images, 4, list(numbers))
    numbers[0] = Clearing()
    np.testing.assert_array_equal(_core.extract_patches(images, 4, numbers), want)


def test_a_list_of_factors_that_another_thread_empties():
    """The kernel runs without the interpreter's lock, on arrays that nobody else holds by then."""
    cube, done = bindings.f32(40, 40, 40), threading.Event()
    want = _core.asi_step(cube, [bindings.orthonormal(40, 8) for _ in range(3)], 7)

    def empty():
        while not done.is_set():
            factors.clear()

    factors = []
    thread = threading.Thread(target=empty)
    thread.start()
    try:
        for _ in range(20):
            factors[:] = [np.empty((40, 8), np.float32) for _ in range(3)]
            try:
                got = _core.asi_step(cube, factors, 7)
            except ValueError:  # emptied before the call
                continue
            np.testing.assert_array_equal(got, want)
    finally:
        done.set()
        thread.join()


@pytest.mark.parametrize("name", bindings.CALLS)
def test_memory_that_arguments_share(name):
    """Refused by both names, or harmless: the results are those without sharing."""
    for sharing in bindings.sharing_calls(name):
        bindings.run_sharing(name, *sharing)
