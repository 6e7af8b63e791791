"""wasi in a process with threads and forks of its own."""

import contextlib
import multiprocessing
import threading
import time

import numpy as np
import pytest

import wasi
from wasi import linalg, ops
from wasi.training.optimizer import Optimizer
from wasi.training.step import accumulate_gradient


@pytest.fixture(autouse=True)
def two_threads():
    """As many as it takes to use the pool, also on a machine with one processor."""
    before = wasi.get_num_threads()
    wasi.set_num_threads(2)
    yield
    wasi.set_num_threads(before)


def normal(*shape):
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)


def trained(seed, arena=False):
    """The parameters of a small factored model after a few steps."""
    rng = np.random.default_rng(seed)
    model = wasi.create_model("vit_micro_patch8_64", seed=seed, img_size=32, num_classes=5)
    wasi.factorize(model, rank=16, target_modules=("mlp",), verbose=False)
    optimizer = Optimizer(model, "sgd", momentum=0.9)
    images, labels = rng.standard_normal((8, 3, 32, 32), dtype=np.float32), rng.integers(0, 5, 8)
    for _ in range(4):
        with wasi.Arena() if arena else contextlib.nullcontext():
            accumulate_gradient(model, images, labels)
            optimizer.step(0.1)
    return {name: p.data.tobytes() for name, p in model.named_parameters()}


@pytest.mark.parametrize("arena", [False, True])
def test_models_trained_at_once_have_the_bits_of_models_trained_in_turn(arena):
    want, got = [trained(seed, arena) for seed in (1, 2)], [None, None]
    start = threading.Barrier(2)

    def run(i):
        start.wait()
        got[i] = trained(i + 1, arena)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == want


def product():
    x = normal(512, 512)
    return ops.linear(x, x)


def in_forked_child(work):
    """Runs work() in a fork and expects it to come back."""
    child = multiprocessing.get_context("fork").Process(target=work)
    child.start()
    child.join(30)
    hung = child.is_alive()
    child.kill()
    child.join()
    assert not hung and child.exitcode == 0


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_fork_computes_too():
    want, model = product(), trained(1)  # starts the pool's threads, which the child has not

    def work():
        assert np.array_equal(product(), want) and trained(1) == model

    in_forked_child(work)
    assert np.array_equal(product(), want)


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_fork_while_another_thread_computes():
    want, done = product(), threading.Event()
    qkv = normal(8, 256, 3 * 64)

    def compute():
        while not done.is_set():
            ops.attention(qkv, n_heads=4)

    def work():
        assert np.array_equal(product(), want)

    thread = threading.Thread(target=compute)
    thread.start()
    try:
        for _ in range(5):
            in_forked_child(work)
    finally:
        done.set()
        thread.join()


LONG = {
    "linear": (lambda x: ops.linear(x, x), (2500, 2500)),
    "attention": (lambda x: ops.attention(x, n_heads=4), (8, 2000, 3 * 128)),
    "truncated_svd": (lambda x: linalg.truncated_svd(x, rank=8), (900, 900)),
}


@pytest.mark.parametrize("name", LONG)
def test_kernels_release_the_gil(name):
    """Another Python thread goes on while a kernel runs."""
    call, shape = LONG[name]
    x, ticks, done = normal(*shape), [], threading.Event()

    def tick():
        while not done.wait(0.001):
            ticks.append(time.perf_counter())

    thread = threading.Thread(target=tick)
    thread.start()
    try:
        started = time.perf_counter()
        call(x)
        ended = time.perf_counter()
    finally:
        done.set()
        thread.join()
    inside = sum(started + 0.01 < t < ended - 0.01 for t in ticks)  # Python may switch threads right before and after
    assert inside >= 3, f"{inside} ticks in {ended - started:.3f} s"
