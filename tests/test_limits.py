"""What surrounds a process: address space, files that change under it, clocks, state that is others'."""

import copy
import os
import pickle
import random
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from safetensors.numpy import save_file
from test_training import Batches, small_model

import wasi
from wasi.models.methods import MethodOptions, apply_method
from wasi.training.loop import TrainConfig, train


def in_child(code, *words, limit_bytes=None):
    """Runs a program, in a limited address space where that is given."""
    def limit():
        if limit_bytes:
            resource.setrlimit(resource.RLIMIT_AS, (limit_bytes, limit_bytes))

    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, "-P", "-c", code, *map(str, words)], capture_output=True, text=True, timeout=120,
                          preexec_fn=limit, env=environment)


TRAIN = """
import sys
import numpy as np
import wasi
from wasi.models.methods import MethodOptions, apply_method
from wasi.models.plan import Plan
from wasi.training.loop import TrainConfig, train
wasi.set_num_threads(1)
rng = np.random.default_rng(0)
batches = [(rng.integers(0, 256, (8, 3, 32, 32), np.uint8), rng.integers(0, 10, 8)) for _ in range(3)]
model = wasi.create_model("vit_micro_patch4_32")
"""


def test_one_gibibyte_of_address_space_is_enough_to_train():
    """The arena asks for as much as the machine has, and takes what the limit leaves."""
    child = in_child(TRAIN + "train(model, batches, batches, TrainConfig(epochs=1), progress=False); print('done')",
                     limit_bytes=2**30)
    assert child.stdout.endswith("done\n"), child.stderr[-500:]


def test_a_plan_beyond_the_limit_is_refused_before_the_first_step():
    child = in_child(TRAIN + """
plan = wasi.plan(model, batches[:1], "64MiB", method="wsi", batch_size=8)
plan.apply(model, batches[:1])
import dataclasses
large = dataclasses.replace(plan, scratch_bytes=2**31)
try:
    train(model, batches, batches, TrainConfig(epochs=1), progress=False, plan=large)
except MemoryError as error:
    print("refused:", error)
train(model, batches, batches, TrainConfig(epochs=1), progress=False, plan=plan)
print("done")
""", limit_bytes=2**30)
    assert "refused: capacity_bytes: the system does not reserve 32" in child.stdout, child.stderr[-500:]
    assert child.stdout.endswith("done\n"), child.stderr[-500:]


def test_too_little_memory_is_a_line_and_not_a_traceback(tmp_path):
    child = in_child("import sys; from wasi.cli import main; sys.exit(main(sys.argv[1:]))", "train", "--method", "wsi",
                     "--threads", 1, "--quiet", "--out", tmp_path / "run", "--model", "vit_tiny_patch16_224",
                     limit_bytes=400 * 2**20)
    assert child.returncode == 2 and "Traceback" not in child.stderr and "wasi train: out of memory" in child.stderr


# ---- files that change -----------------------------------------------------------------------------------------------------


def frozen_decoder(folder):
    """A published decoder all of whose matrices but the last block's stay in its file."""
    wasi.models.save_hugging_face(wasi.create_model("llama_micro", vocab_size=64, embed_dim=32, hidden_dim=64, depth=3), folder)
    return wasi.load_llama(folder, last_layers=1), folder / "model.safetensors"


def test_a_mapped_file_may_be_replaced_or_deleted(tmp_path):
    model, path = frozen_decoder(tmp_path)
    tokens = np.array([[1, 2, 3]])
    want = model.forward(tokens)
    other = tmp_path / "other"
    save_file({"x": np.zeros(3, np.float32)}, other)
    os.replace(other, path)
    assert np.array_equal(model.forward(tokens), want)
    path.unlink()
    assert np.array_equal(model.forward(tokens), want)


def test_a_mapped_file_that_is_cut_ends_the_process_as_documented(tmp_path):
    """By SIGBUS: docs/trust.md tells to replace files, never to write into them."""
    model, path = frozen_decoder(tmp_path)
    child = in_child("import sys, os, numpy as np, wasi; m = wasi.load_llama(sys.argv[1], last_layers=1); "
                     "os.truncate(sys.argv[1] + '/model.safetensors', 100); m.forward(np.array([[1, 2, 3]]))", tmp_path)
    assert child.returncode == -signal.SIGBUS


def test_a_weights_file_that_shrinks_between_opening_and_reading_is_an_error(tmp_path):
    from wasi.models.weights import TensorFile

    path = tmp_path / "a.safetensors"
    save_file({"a": np.ones(3000, np.float32)}, path)
    file = TensorFile(path)
    shutil.copy(path, tmp_path / "b")
    path.unlink()
    assert np.array_equal(file.read("a"), np.ones(3000))  # what is opened stays


# ---- clocks ----------------------------------------------------------------------------------------------------------------


def test_a_clock_that_jumps_changes_no_result(monkeypatch):
    want = trained()
    real, jumps = time.time, random.Random(0)
    monkeypatch.setattr(time, "time", lambda: real() + jumps.uniform(-1e9, 1e9))
    assert trained() == want


def trained():
    model = apply_method(small_model(), "wsi", MethodOptions(rank=8), verbose=False)
    train(model, Batches(3), Batches(1), TrainConfig(epochs=1, lr=0.05), progress=False)
    return {name: p.data.tobytes() for name, p in model.named_parameters()}


# ---- what is others' -------------------------------------------------------------------------------------------------------


def test_no_global_state_of_others_is_changed():
    import locale
    import warnings

    from threadpoolctl import threadpool_info

    def state():
        others = [(i["filepath"], i["num_threads"]) for i in threadpool_info() if "numpy" in i["filepath"]]
        return (random.getstate(), [str(part) for part in np.random.get_state()], np.geterr(), np.get_printoptions(), others,
                np._core.multiarray.get_handler_name(np.empty(1)), locale.setlocale(locale.LC_ALL), os.getcwd(), os.umask(0o22),
                signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM), len(warnings.filters), sys.getrecursionlimit(),
                threading.active_count(), dict(os.environ))

    os.umask(0o22)
    trained()  # whatever is imported late
    before = state()
    trained()
    wasi.plan(small_model(), list(Batches(1)), "32MiB", method="wasi", batch_size=12)
    wasi.optimize_for_inference(apply_method(small_model(), "wsi", MethodOptions(rank=4), verbose=False),
                                np.zeros((1, 3, 16, 16), np.uint8), verbose=False)
    assert state() == before


# ---- company ---------------------------------------------------------------------------------------------------------------


class Products:
    """A data set whose items are made by threaded products, in whatever process asks."""

    def __len__(self):
        return 8

    def __getitem__(self, i):
        x = np.full((300, 300), i + 1, np.float32)
        return wasi.ops.linear(x, x)[:2, :2].copy()


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_inside_pytorchs_loaders_after_a_threaded_product(torch, start):
    before = wasi.get_num_threads()
    wasi.set_num_threads(2)
    try:
        want = [Products()[i] for i in range(8)]
        loader = torch.utils.data.DataLoader(Products(), batch_size=2, num_workers=2, multiprocessing_context=start, timeout=60)
        got = [row.numpy() for batch in loader for row in batch]
        assert all(np.array_equal(a, b) for a, b in zip(got, want, strict=True))
    finally:
        wasi.set_num_threads(before)


def product_and_model(i):
    """What a worker of joblib makes: a threaded product and a trained model."""
    wasi.set_num_threads(2)
    return Products()[i].tobytes(), trained()


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
@pytest.mark.parametrize("backend", ["loky", "threading", "multiprocessing"])
def test_inside_joblib_after_a_threaded_product(backend):
    joblib = pytest.importorskip("joblib", reason="needs joblib: pip install joblib")
    before = wasi.get_num_threads()
    try:
        want = [product_and_model(i) for i in range(4)]
        workers = joblib.Parallel(n_jobs=2, backend=backend, timeout=60)
        assert workers(joblib.delayed(product_and_model)(i) for i in range(4)) == want
    finally:
        wasi.set_num_threads(before)


@pytest.mark.parametrize("method", ["dense", "wasi", "qwasi", "lora", "wsi-dense"])
def test_a_model_is_copied_pickled_and_asked_by_several_threads(method):
    model = apply_method(small_model(), method, MethodOptions(rank=4), verbose=False)
    images = np.random.default_rng(0).integers(0, 256, (4, 3, 16, 16), np.uint8)
    want, got = model.forward(images), []
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert np.array_equal(other.forward(images), want)
    threads = [threading.Thread(target=lambda: got.extend(np.array_equal(model.forward(images), want) for _ in range(5)))
               for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == 15 * [True]


def test_an_arena_is_not_copied():
    for way in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="cannot pickle 'wasi.Arena' object"):
            way(wasi.Arena(2**20))


def test_a_process_that_ends_while_a_thread_trains():
    child = in_child(TRAIN.replace("set_num_threads(1)", "set_num_threads(2)") + """
import threading
stepped = threading.Event()
class Step:
    def __len__(self):
        return 10**6
    def __iter__(self):
        for i in range(10**6):
            yield batches[0]
            stepped.set()
threading.Thread(target=lambda: train(model, Step(), batches, TrainConfig(epochs=1), progress=False), daemon=True).start()
stepped.wait(60)
""")
    assert child.returncode == 0 and not child.stderr


def test_a_sub_interpreter_is_refused():
    code = ("import {0} as s\nname = s.create()\ntry:\n    r = s.{1}(name, 'import wasi; wasi.set_num_threads(1)')\n"
            "except BaseException as e:\n    r = e\nprint('refused' if r is not None else 'taken', getattr(r, 'msg', r))")
    module, run = ("_interpreters", "exec") if sys.version_info >= (3, 13) else ("_xxsubinterpreters", "run_string")
    child = in_child(code.format(module, run))
    assert child.stdout.startswith("refused") and "sub-interpreter" in child.stdout.replace("subinterpreter", "sub-interpreter")
