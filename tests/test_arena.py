import threading

import numpy as np
import pytest

import wasi

MIB = 2**20


def test_arrays_live_in_the_arena_and_go_back_to_it():
    arena = wasi.Arena(64 * MIB)
    with arena:
        a, b = np.zeros(MIB, np.uint8), np.ones((3, 5), np.float32)
    assert arena.stats()["n_blocks"] == 2 and arena.stats()["largest_bytes"] == MIB
    assert a.ctypes.data % 64 == 0 and b.ctypes.data % 64 == 0
    del a
    assert arena.stats()["n_blocks"] == 1
    assert b.sum() == 15  # outlives the `with`
    outside = np.zeros(MIB, np.uint8)
    assert arena.stats()["n_blocks"] == 1
    del b, outside
    assert arena.stats()["current_bytes"] == 0


def test_an_array_keeps_its_memory_after_the_arena_object_is_gone():
    arena = wasi.Arena(MIB)
    with arena:
        a = np.arange(1000)
    del arena
    assert a.sum() == 499500


def test_first_fit_gives_the_same_addresses_to_the_same_requests():
    arena, rounds = wasi.Arena(64 * MIB), []
    for _ in range(3):
        with arena:
            a, b = np.empty(MIB, np.uint8), np.empty(2 * MIB, np.uint8)
            del a
            c = np.empty(MIB // 2, np.uint8)
        rounds.append((b.ctypes.data, c.ctypes.data))
        del b, c
    assert len(set(rounds)) == 1
    assert arena.stats()["extent_bytes"] < 3.01 * MIB


def test_random_allocations_never_overlap_and_coalesce(rng):
    arena, live = wasi.Arena(16 * MIB), {}
    with arena:
        for i in range(3000):
            if live and (rng.random() < 0.5 or len(live) > 60):
                key = list(live)[rng.integers(len(live))]
                array = live.pop(key)
                assert (array == key % 251).all()
                del array
            else:
                live[i] = np.full(int(rng.integers(1, 100_000)), i % 251, np.uint8)
    assert all((a == k % 251).all() for k, a in live.items())
    assert arena.stats()["n_blocks"] == len(live)
    live.clear()
    assert arena.stats()["current_bytes"] == 0
    with arena:
        # Only possible if all free blocks have become one again: beside its header, and the red zone of debug builds.
        whole = np.empty(16 * MIB - 128, np.uint8)
    assert whole.nbytes == 16 * MIB - 128


def test_a_full_arena_raises_memory_error_and_stays_usable():
    arena = wasi.Arena(MIB)
    with arena:
        with pytest.raises(MemoryError):
            np.empty(2 * MIB, np.uint8)
        assert np.ones(10).sum() == 10
        x, W = np.ones((1000, 100), np.float32), np.ones((1000, 100), np.float32)
        with pytest.raises(MemoryError):
            wasi.ops.linear(x, W)
    assert np.empty(2 * MIB, np.uint8).nbytes == 2 * MIB


def test_realloc_keeps_the_content():
    with wasi.Arena(MIB):
        a = np.arange(100)
        a.resize(10_000, refcheck=False)
    assert a[:100].tolist() == list(range(100)) and not a[100:].any()


def test_nested_arenas_and_the_handler_before_them_are_restored():
    outer, inner = wasi.Arena(MIB), wasi.Arena(MIB)
    with outer:
        with inner:
            a = np.zeros(10)
        b = np.zeros(10)
    c = np.zeros(10)
    assert (inner.stats()["n_blocks"], outer.stats()["n_blocks"]) == (1, 1)
    assert len((a, b, c)) == 3
    with pytest.raises(RuntimeError, match="left without having been entered"):
        outer.__exit__(None, None, None)


def test_other_threads_allocate_elsewhere():
    arena, made = wasi.Arena(MIB), []
    with arena:
        thread = threading.Thread(target=lambda: made.append(np.zeros(1000)))
        thread.start()
        thread.join()
    assert arena.stats()["n_blocks"] == 0 and made[0].size == 1000


def test_threads_within_one_arena_get_back_the_handlers_that_each_had():
    outer, shared, entered, leave = wasi.Arena(MIB), wasi.Arena(MIB), threading.Event(), threading.Event()

    def stay():
        with shared:
            entered.set()
            leave.wait()

    thread = threading.Thread(target=stay)
    with outer:
        with shared:
            thread.start()
            entered.wait()
        a = np.empty(1000)
        leave.set()
        thread.join()
    assert a.size and outer.stats()["n_blocks"] == 1 and shared.stats()["n_blocks"] == 0


def test_trim_gives_pages_back():
    from wasi.training.memory import rss_bytes

    arena = wasi.Arena(64 * MIB)
    with arena:
        a = np.ones(32 * MIB, np.uint8)
    full = rss_bytes()
    del a
    arena.trim()
    assert full - rss_bytes() > 28 * MIB


def test_bad_capacity_is_refused():
    with pytest.raises(ValueError, match="capacity_bytes: expected a positive number of bytes, got 0"):
        wasi.Arena(0)
    with pytest.raises(MemoryError, match="capacity_bytes: the system does not reserve"):
        wasi.Arena(2**62)
    with pytest.raises(OverflowError):
        wasi.Arena(-1)
