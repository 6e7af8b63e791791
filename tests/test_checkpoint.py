"""A run that was stopped, by whatever, and goes on from its checkpoint gives the bits of one that was never stopped."""

import csv
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from images import image_files, write_folder
from test_training import Batches, small_model

import wasi
from wasi.cli import main
from wasi.layers import ActivationPolicy
from wasi.models.methods import METHODS, MethodOptions, apply_method
from wasi.training import checkpoint, loop
from wasi.training.checkpoint import (
    Checkpoint,
    CheckpointError,
    checkpoint_path,
    list_checkpoints,
    newest_checkpoint,
)
from wasi.training.config import EarlyStopping, ParamGroup, TrainConfig
from wasi.training.loop import train
from wasi.training.ranks import RankAdaptation
from wasi.training.runlog import RunFolder, read_csv

FIXTURES = Path(__file__).parent / "fixtures"
TIMES = {"seconds", "peak_rss_mib", "rss_mib", "counted_mib"}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Neither waits for the disk, for curves nor for threads; the processes that are killed do."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    monkeypatch.setattr(loop, "plot_curves", lambda *args: None)
    before = wasi.get_num_threads()
    wasi.set_num_threads(1)
    yield
    wasi.set_num_threads(before)


def model_by(method, seed=0, **options):
    calibration = list(Batches(1)) if method.startswith("svd-llm") else None
    return apply_method(small_model(seed), method, MethodOptions(("all",), rank=8, lora_rank=2, **options), calibration,
                        verbose=False)


def run_whole(tmp_path, make, config, n_batches=4):
    folder = RunFolder(tmp_path / "whole")
    folder.write_json("config.json", {})
    model = make()
    result = train(model, Batches(n_batches), Batches(2, seed=1), config, folder, progress=False)
    return folder, model, result


def resume_from(tmp_path, step, config, n_batches=4, model=None, val_seed=1):
    """Goes on in a copy of the whole run's folder as it was at that step, though with later rows in its logs."""
    copy = tmp_path / f"from-{step}"
    shutil.copytree(tmp_path / "whole", copy)
    for later, path in list_checkpoints(copy).items():
        if later > step:
            path.unlink()
    folder, model = RunFolder(copy, resume=True), model or small_model(seed=9)
    result = train(model, Batches(n_batches), Batches(2, seed=val_seed), config, folder, progress=False,
                   resume=newest_checkpoint(copy))
    return folder, model, result


def logged(folder):
    return {path.name: [{k: v for k, v in row.items() if k not in TIMES} for row in read_csv(path)]
            for path in sorted(folder.path.glob("*.csv"))}


def assert_same(whole, resumed):
    (folder, model, result), (other_folder, other, other_result) = whole, resumed
    ours, theirs = dict(model.named_parameters()), dict(other.named_parameters())
    assert ours.keys() == theirs.keys()
    for name, p in ours.items():
        assert np.array_equal(p.data, theirs[name].data), name
    assert logged(folder) == logged(other_folder)
    for a, b in zip(result.epochs, other_result.epochs, strict=True):
        assert {**a, "seconds": 0} == {**b, "seconds": 0}
    assert result.ranks == other_result.ranks and result.best == other_result.best
    for name in ("saved_bytes", "trained_bytes", "optimizer_bytes"):
        assert result.counted[name] == other_result.counted[name]


SGD, ADAMW = {"lr": 0.05, "momentum": 0.9}, {"lr": 0.003, "optimizer": "adamw", "weight_decay": 0.05}


def check_resumption(tmp_path, make, config, steps=(3, 4, 7)):
    """Of two epochs of four batches each: in the middle of the first, at its end, before the last step."""
    whole = run_whole(tmp_path, make, config)
    for step in steps:
        assert_same(whole, resume_from(tmp_path, step, config))


@pytest.mark.parametrize("options", [SGD, ADAMW], ids=["momentum", "adamw"])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_goes_on_bit_for_bit(tmp_path, method, options):
    check_resumption(tmp_path, lambda: model_by(method), TrainConfig(epochs=2, checkpoint_every=1, keep=20, **options))


@pytest.mark.parametrize("method, options, training", [
    ("wsi", {}, {"adapt_ranks": RankAdaptation(every=1, grow=0.99999, shrink=0.999995, patience=1, max_bytes=10**7)}),
    ("wsi", {}, {"adapt_ranks": RankAdaptation(every=2, grow=0.5, shrink=0.9), "track_subspaces": 3}),
    ("qwasi", {"activation_ranks": (0.5, 0.5, 8)}, {}),
    ("qwasi", {"bits": 8}, {"track_subspaces": 1}),
    ("asi", {}, {"micro_batch": 5}),
    ("wasi", {}, {"gradient_bits": 16, "state_bits": 16, "micro_batch": 4}),
    ("dense", {}, {"layerwise": True, "clip_norm": None}),
    ("wsi-dense", {"activation_ranks": (0.5, 1.0, 8)}, {"track_subspaces": 2}),
    ("wasi", {}, {"ema": 0.9, "ema_every": 3, "adapt_ranks": RankAdaptation(every=2, grow=0.5, shrink=0.9)}),
    ("svd", {}, {"ema": 0.5, "early_stopping": EarlyStopping(1), "monitor": "val_loss"}),
    ("qwasi", {}, {"mixup": 0.2, "cutmix": 1.0, "mix_prob": 0.7, "label_smoothing": 0.1, "class_weights": (1.0, 2.0, 3.0)}),
    ("wsi", {}, {"schedule": "step", "milestones": (1,), "layer_lr_decay": 0.8,
                 "param_groups": (ParamGroup("blocks.0.*", 2.0, 0.5),)}),
], ids=["growth", "shrinkage", "qwasi-asi", "eight-bits", "micro-batch", "packed", "layerwise", "published", "average",
        "patience", "mixtures", "groups"])
@pytest.mark.parametrize("rule", [SGD, ADAMW], ids=["momentum", "adamw"])
def test_every_option_goes_on_bit_for_bit(tmp_path, method, options, training, rule):
    config = TrainConfig(epochs=2, checkpoint_every=1, keep=20, **{**rule, **training})
    check_resumption(tmp_path, lambda: model_by(method, **options), config)
    if "adapt_ranks" in training:
        assert len(read_csv(tmp_path / "whole" / "ranks.csv")) > 8


def test_other_architectures_go_on_bit_for_bit(tmp_path, rng):
    swin = {"img_size": 56, "num_classes": 3, "embed_dim": 12, "depths": (2, 2), "num_heads": (2, 2)}
    images = [(rng.integers(0, 256, (4, 3, 56, 56), np.uint8), rng.integers(0, 3, 4)) for _ in range(3)]
    tokens = [(rng.integers(0, 512, (4, 8)), rng.integers(0, 512, (4, 8))) for _ in range(3)]
    for name, sizes, batches in (("swin_tiny_patch4_window7_224", swin, images), ("llama_micro", {}, tokens)):
        folder, config = RunFolder(tmp_path / name), TrainConfig(epochs=2, checkpoint_every=1, keep=9, **ADAMW)
        whole, resumed = (wasi.create_model(name, seed=seed, **sizes) for seed in (0, 9))
        if name == "llama_micro":
            whole.train_last(2)
        apply_method(whole, "wasi", MethodOptions(("mlp",), rank=4, activation_ranks=(0.5, 0.5, 4)), verbose=False)
        train(whole, batches, batches[:1], config, folder, progress=False)
        train(resumed, batches, batches[:1], config, folder, progress=False, resume=Checkpoint(checkpoint_path(folder.path, 4)))
        for (name, p), (_, q) in zip(whole.named_parameters(), resumed.named_parameters(), strict=True):
            assert np.array_equal(p.data, q.data), name


@pytest.mark.parametrize("interrupted", [False, True])
def test_running_statistics_go_on_bit_for_bit(tmp_path, rng, monkeypatch, interrupted):
    """Of a residual network with averaged weights, after a checkpoint and after a step that Ctrl-C ended in its middle."""
    def make(seed):
        model = wasi.create_model("resnet_micro_32", seed=seed, num_classes=3, img_size=16)
        return apply_method(model, "wsi", MethodOptions(("all",), rank=4), verbose=False) if seed == 0 else model

    batches = [(rng.integers(0, 256, (4, 3, 16, 16), np.uint8), rng.integers(0, 3, 4)) for _ in range(3)]
    config = TrainConfig(epochs=2, checkpoint_every=1, keep=9, ema=0.8, early_stopping=EarlyStopping(5), **SGD)
    whole, folder = make(0), RunFolder(tmp_path / "whole")
    train(whole, batches, batches[:1], config, folder, progress=False)
    if interrupted:
        stopped, folder, forward = make(0), RunFolder(tmp_path / "stopped"), []
        real = stopped.blocks[-1].forward

        def interrupting(*args):
            forward.append(real(*args))
            if len(forward) == 6:  # of the fifth step, after the first epoch's evaluation
                signal.raise_signal(signal.SIGINT)
            return forward[-1]

        monkeypatch.setattr(stopped.blocks[-1], "forward", interrupting)
        assert train(stopped, batches, batches[:1], config, folder, progress=False).interrupted
        assert max(list_checkpoints(folder.path)) == 4
    resumed = make(9)
    train(resumed, batches, batches[:1], config, folder, progress=False, resume=Checkpoint(checkpoint_path(folder.path, 4)))
    for (name, p), (_, q) in zip(whole.named_parameters(), resumed.named_parameters(), strict=True):
        assert np.array_equal(p.data, q.data), name


def test_policies_and_frozen_weights_come_back(tmp_path):
    def make():
        model = model_by("wasi")
        model.set_policy(ActivationPolicy(recompute=True, gelu_bits=4))
        model.blocks[0].attn.qkv.bias.trainable = False
        return model

    config = TrainConfig(epochs=2, checkpoint_every=1, keep=20, **SGD)
    check_resumption(tmp_path, make, config, [3])
    model = small_model()
    newest_checkpoint(tmp_path / "whole").restore_model(model)
    assert model.blocks[1].policy == ActivationPolicy(recompute=True, gelu_bits=4)
    assert [n for n, p in model.named_parameters() if not p.trainable] == ["blocks.0.attn.qkv.bias"]


def test_by_default_the_last_two_and_the_best_are_kept(tmp_path, monkeypatch):
    accuracies = iter([0.5, 0.9, 0.9, 0.7, 0.8])
    evaluate = loop.evaluate

    def made_up(*args):
        val = evaluate(*args)
        val.loss, val.n_correct = 1.0, next(accuracies) * val.n
        return val

    monkeypatch.setattr(loop, "evaluate", made_up)
    _, _, result = run_whole(tmp_path, small_model, TrainConfig(epochs=5, **SGD))
    assert list(list_checkpoints(tmp_path / "whole")) == [8, 16, 20]
    assert result.best == {"epoch": 2, "step": 8, "val_accuracy": 0.9, "val_loss": 1.0}
    assert json.loads((tmp_path / "whole" / "result.json").read_text())["best"] == result.best


def test_a_checkpoint_is_a_model_too_and_none_is_written_where_none_is_wanted(tmp_path):
    folder, model, _ = run_whole(tmp_path, lambda: model_by("qwasi"), TrainConfig(epochs=1, **SGD))
    again, _ = wasi.load_model(checkpoint_path(folder.path, 4))
    images, _ = next(iter(Batches(1)))
    assert np.array_equal(again.forward(images), model.forward(images))
    other = RunFolder(tmp_path / "none")
    train(small_model(), Batches(2), Batches(1), TrainConfig(epochs=1, checkpoint_every=0), other, progress=False)
    assert not list_checkpoints(other.path)


# --- stopped by the user ----------------------------------------------------------------------------------------------------


class Interrupting(Batches):
    """Batches during which Ctrl-C comes: before batch number `at` over all epochs is handed out."""

    def __init__(self, *args, at, **options):
        super().__init__(*args, **options)
        self.left = at

    def __iter__(self):
        for batch in super().__iter__():
            if self.left == 0:
                signal.raise_signal(signal.SIGINT)
            self.left -= 1
            yield batch


@pytest.mark.parametrize("where", ["data 0", "data 2", "data 4", "forward", "backward", "update", "layerwise", "evaluation"])
def test_ctrl_c_saves_and_the_run_goes_on_bit_for_bit(tmp_path, monkeypatch, where):
    options = {"layerwise": True, "clip_norm": None} if where == "layerwise" else {}
    config = TrainConfig(epochs=2, **SGD, **options)
    whole = run_whole(tmp_path, lambda: model_by("wasi"), config)
    model, calls = model_by("wasi"), []

    def interrupt_at(owner, name, call):
        function = getattr(owner, name)

        def interrupting(*args, **kwargs):
            result = function(*args, **kwargs)
            calls.append(name)
            if len(calls) == call:
                signal.raise_signal(signal.SIGINT)
            return result

        monkeypatch.setattr(owner, name, interrupting)

    if where in ("forward", "backward", "layerwise"):
        interrupt_at(model.blocks[1], "forward" if where == "forward" else "backward", 3)
    elif where == "update":
        interrupt_at(model.blocks[1], "after_step", 3)
    train_set, val_set = Batches(4), Batches(2, seed=1)
    if where.startswith("data"):
        train_set = Interrupting(4, at=int(where[5:]))
    elif where == "evaluation":
        val_set = Interrupting(2, seed=1, at=1)
    folder = RunFolder(tmp_path / "stopped")
    result = train(model, train_set, val_set, config, folder, progress=False)
    monkeypatch.undo()
    steps = {"data 0": 0, "data 2": 2, "evaluation": 4, "data 4": 4, "update": 3, "layerwise": 3}.get(where, 2)
    assert result.interrupted and max(list_checkpoints(folder.path)) == steps == len(read_csv(folder.path / "steps.csv"))
    assert not any(m._saved for _, m in model.named_modules())
    again = small_model(9)
    resumed = train(again, Batches(4), Batches(2, seed=1), config, folder, progress=False, resume=newest_checkpoint(folder.path))
    assert_same(whole, (folder, again, resumed))


OPTIONS = ["--model", "vit_micro_patch8_64", "--img-size", "16", "--batch-size", "8", "--rank", "16", "--quiet", "--threads", "1",
           "--method", "wasi", "--momentum", "0.9"]


@pytest.fixture
def images(tmp_path, rng):
    return write_folder(tmp_path / "images", image_files(rng, (), ("dark", "light"), 12))


def start(*words):
    return subprocess.Popen([sys.executable, "-P", "-m", "wasi", "train", *words], stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True)


def wait_for_checkpoint(run, process, after=0):
    """Until the run has a later one, or has ended."""
    until = time.monotonic() + 60
    while max(list_checkpoints(run), default=0) <= after and process.poll() is None:
        assert time.monotonic() < until
        time.sleep(0.002)


def steps_of(run):
    with open(run / "steps.csv", newline="") as file:
        return [{k: v for k, v in row.items() if k not in TIMES} for row in csv.DictReader(file)]


def test_killed_at_random_moments_and_resumed_by_the_command(images, tmp_path, capfd):
    words = ["--data", str(images), *OPTIONS, "--epochs", "40"]
    assert main(["train", *words, "--out", str(tmp_path / "whole")]) == 0
    run, resumptions = tmp_path / "killed", 0
    words += ["--checkpoint-every", "3", "--out", str(run)]
    rng = random.Random(0)
    process = start(*words)
    wait_for_checkpoint(run, process)
    for _ in range(3):
        time.sleep(rng.uniform(0, 0.1))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        if (run / "result.json").exists():
            break
        before = max(list_checkpoints(run))
        process = start("--resume", "--out", str(run))
        wait_for_checkpoint(run, process, before)
        resumptions += 1
    process.communicate(timeout=60)
    assert resumptions >= 2
    assert main(["train", "--resume", "--out", str(run)]) == 0
    assert steps_of(run) == steps_of(tmp_path / "whole") and len(steps_of(run)) == 80
    ours, theirs = (wasi.load_model(d / "model.safetensors")[0] for d in (run, tmp_path / "whole"))
    for (name, p), (_, q) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        assert np.array_equal(p.data, q.data), name
    assert not list((run / "checkpoints").glob(".*")) and len(list_checkpoints(run)) <= 3


def test_ctrl_c_leaves_within_a_second_by_status_130(images, tmp_path, capfd):
    run = tmp_path / "run"
    words = ["--data", str(images), *OPTIONS, "--epochs", "1000", "--out", str(run)]
    process = start(*words)
    wait_for_checkpoint(run, process)
    asked = time.monotonic()
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=30)
    assert time.monotonic() - asked < 1 and process.returncode == 130, errors
    assert f"wasi train --resume --out {run}" in output
    assert max(list_checkpoints(run)) == len(steps_of(run))
    assert json.loads((run / "result.json").read_text())["interrupted"]


# --- what may be wrong ------------------------------------------------------------------------------------------------------


def test_a_checkpoint_cut_at_every_kilobyte_is_named_and_the_one_before_is_used(tmp_path):
    folder, _, _ = run_whole(tmp_path, lambda: model_by("wasi"), TrainConfig(epochs=2, checkpoint_every=4, **SGD))
    last = checkpoint_path(folder.path, 8)
    whole = last.read_bytes()
    for size in [*range(0, len(whole), 1024), len(whole) - 1]:
        last.write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match="checkpoint step-00000008.safetensors: .*truncated or not one"):
            Checkpoint(last)
    found = newest_checkpoint(folder.path)
    assert found.progress.step == 4 and "step-00000008.safetensors" in found.summary()


def test_a_changed_byte_anywhere_is_an_error_and_never_a_crash(tmp_path, rng):
    folder, _, _ = run_whole(tmp_path, lambda: model_by("wasi"), TrainConfig(epochs=1, **ADAMW))
    last = checkpoint_path(folder.path, 4)
    whole = last.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    places = [*rng.integers(0, 8, 4), *rng.integers(8, header, 150), *rng.integers(header, len(whole), 50)]
    for place in places:
        last.write_bytes(whole[:place] + bytes([whole[place] ^ (1 << rng.integers(8))]) + whole[place + 1 :])
        model = small_model()
        try:
            found = Checkpoint(last)
            train(model, Batches(4), Batches(2, seed=1), TrainConfig(epochs=1, **ADAMW), progress=False, resume=found)
        except (CheckpointError, ArithmeticError):
            continue
        assert place < header


def edit(path, change):
    """Changes the JSON of a checkpoint."""
    from safetensors import safe_open
    from safetensors.numpy import load_file, save_file

    with safe_open(path, framework="numpy") as file:
        metadata = file.metadata()
    state = json.loads(metadata["checkpoint"])
    change(state)
    metadata["checkpoint"] = json.dumps(state)
    checksums = {**json.loads(metadata["crc32"]), "metadata": checkpoint._metadata_checksum(metadata)}
    save_file(load_file(path), path, {**metadata, "crc32": json.dumps(checksums)})


@pytest.mark.parametrize("change, message", [
    (lambda s: s.update(format_version=99), "format version 99; this package reads up to 2"),
    (lambda s: s.pop("progress"), "KeyError: 'progress'"),
    (lambda s: s["progress"].update(extra=1), "extra"),
    (lambda s: s["progress"].update(step="4"), "progress: step: expected a whole number from 0, got '4'"),
])
def test_what_cannot_be_read_is_named(tmp_path, change, message):
    folder, _, _ = run_whole(tmp_path, small_model, TrainConfig(epochs=1, **SGD))
    edit(checkpoint_path(folder.path, 4), change)
    with pytest.raises(CheckpointError, match=message):
        Checkpoint(checkpoint_path(folder.path, 4))
    with pytest.raises(CheckpointError, match="none of the checkpoints in .* can be used: .*step-00000004"):
        newest_checkpoint(folder.path)


@pytest.mark.parametrize("change, message", [
    (lambda s: s["model"]["policies"].pop(), "ValueError"),
    (lambda s: s["model"].update(compression={"blocks.9": {"ranks": [1, 1, 1], "method": "asi"}}), "blocks.9"),
    (lambda s: s["parts"]["optimizer"].update(factored={}), "optimizer: expected steps of"),
    (lambda s: s["parts"].clear(), "KeyError: 'optimizer'"),
])
def test_what_does_not_fit_together_is_named(tmp_path, change, message):
    config = TrainConfig(epochs=1, **SGD)
    folder, _, _ = run_whole(tmp_path, lambda: model_by("wasi"), config)
    edit(checkpoint_path(folder.path, 4), change)
    with pytest.raises(CheckpointError, match="checkpoint step-00000004.safetensors: .*" + message):
        resume_from(tmp_path, 4, config)


def test_another_model_data_set_or_configuration_is_refused_by_name(tmp_path):
    config = TrainConfig(epochs=1, **SGD)
    run_whole(tmp_path, small_model, config)
    other = wasi.create_model("vit_micro_patch8_64", img_size=16, embed_dim=32, depth=3, num_heads=2, num_classes=5)
    for i, (change, message) in enumerate([
            ({"model": other}, "of another model: depth 2, not 3; num_classes 3, not 5"),
            ({"model": wasi.create_model("llama_micro")}, "architecture 'vit', not 'llama'"),
            ({"n_batches": 5}, "another number of batches"),
            ({"config": TrainConfig(epochs=3, lr=0.1)}, "epochs 1, not 3; lr 0.05, not 0.1; momentum 0.9, not 0.0")]):
        (tmp_path / str(i)).mkdir()
        shutil.copytree(tmp_path / "whole", tmp_path / str(i) / "whole")
        with pytest.raises(CheckpointError, match=message):
            resume_from(tmp_path / str(i), 4, **{"config": config, **change})


def test_a_model_file_and_an_empty_run_are_no_checkpoints(tmp_path):
    folder, _, _ = run_whole(tmp_path, small_model, TrainConfig(epochs=1, checkpoint_every=0))
    with pytest.raises(CheckpointError, match="model.safetensors: it holds a model alone"):
        Checkpoint(folder.path / "model.safetensors")
    with pytest.raises(CheckpointError, match="holds no checkpoint: the run ended before its first"):
        newest_checkpoint(folder.path)
    with pytest.raises(FileNotFoundError, match="config.json is missing"):
        RunFolder(tmp_path, resume=True)


def test_a_log_that_was_cut_is_refused(tmp_path):
    config = TrainConfig(epochs=1, **SGD)
    folder, _, _ = run_whole(tmp_path, small_model, config)
    (folder.path / "steps.csv").write_text("step\n")
    with pytest.raises(ValueError, match=r"resume: steps.csv: expected the \d+ bytes that it had at the checkpoint, got 5"):
        resume_from(tmp_path, 4, config)


def test_a_run_folder_in_use_is_refused(tmp_path):
    child = subprocess.Popen([sys.executable, "-P", "-c", "import sys, wasi.training.runlog as r; f = r.RunFolder(sys.argv[1]);"
                              "f.write_json('config.json', {}); print('ready', flush=True); input()", str(tmp_path / "run")],
                             stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "ready\n"
    with pytest.raises(BlockingIOError, match=f"run' is in use by process {child.pid}"):
        RunFolder(tmp_path / "run", resume=True)
    child.kill()
    child.communicate()
    RunFolder(tmp_path / "run", resume=True)


def go_on_after_a_failed_write(tmp_path, config, folder, model):
    """The last good checkpoint is usable and gives what an uninterrupted run gives."""
    assert not list((folder.path / "checkpoints").glob(".*"))
    shutil.copytree(folder.path, tmp_path / "copy")
    again, copy = small_model(9), RunFolder(tmp_path / "copy", resume=True)
    result = train(again, Batches(4), Batches(2, seed=1), config, copy, progress=False, resume=newest_checkpoint(copy.path))
    assert_same(run_whole(tmp_path, lambda: model_by("wasi"), config), (copy, again, result))


def test_files_may_not_grow_beyond_a_limit(tmp_path, monkeypatch):
    """The full disk where none can be mounted: the second checkpoint fails in the middle of its tensors."""
    config, folder, model = TrainConfig(epochs=2, **ADAMW), RunFolder(tmp_path / "run"), model_by("wasi")
    folder.write_json("config.json", {})
    save, before = loop.save_checkpoint, resource.getrlimit(resource.RLIMIT_FSIZE)

    def limited(path, *args):
        if path.name == "step-00000008.safetensors":
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
        try:
            save(path, *args)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    monkeypatch.setattr(loop, "save_checkpoint", limited)
    with pytest.raises(OSError, match="checkpoint: .*step-00000008.safetensors cannot be written .File too large.; those before"):
        train(model, Batches(4), Batches(2, seed=1), config, folder, progress=False)
    monkeypatch.undo()
    assert list(list_checkpoints(folder.path)) == [4]
    go_on_after_a_failed_write(tmp_path, config, folder, model)


@pytest.fixture
def small_disk(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("needs the right to mount a file system")
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)


def test_a_full_disk(tmp_path, small_disk):
    config, folder, model = TrainConfig(epochs=2, **ADAMW), RunFolder(small_disk / "run"), model_by("wasi")
    folder.write_json("config.json", {})
    size = 0

    def filling(*args):  # after the first epoch nearly all room is taken
        nonlocal size
        if list_checkpoints(folder.path) and not size:
            size = os.statvfs(small_disk).f_bavail * 4096 - 100_000
            (small_disk / "other").write_bytes(bytes(size))
        return Batches.__iter__(*args)

    filling_batches = type("Filling", (Batches,), {"__iter__": filling})
    with pytest.raises(OSError, match="checkpoint: .* cannot be written .No space left on device.; those before it are whole"):
        train(model, filling_batches(4), Batches(2, seed=1), config, folder, progress=False)
    assert list(list_checkpoints(folder.path)) == [4] and size
    go_on_after_a_failed_write(tmp_path, config, folder, model)


def test_a_read_only_disk(small_disk):
    RunFolder(small_disk / "run").write_json("config.json", {})
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with pytest.raises(OSError, match="out: expected a folder that can be written to, got .* .Read-only file system."):
        RunFolder(small_disk / "run", resume=True)


def test_the_command_goes_on_with_several_methods_and_refuses_other_options(images, tmp_path, capfd):
    run = tmp_path / "run"
    words = ["train", "--data", str(images), *OPTIONS[:-4], "--epochs", "2", "--method", "dense,wsi"]
    assert main(["train", "--resume"]) == 2
    assert main([*words, "--resume", "--out", str(run)]) == 2
    errors = capfd.readouterr().err
    assert "--resume: expected --out to name the folder of the run" in errors and "holds no run of dense, wsi" in errors
    assert main([*words, "--out", str(run)]) == 0
    (run / "wsi" / "result.json").unlink()  # as if killed at the end of the second
    list_checkpoints(run / "wsi")[4].unlink()
    dense = (run / "dense" / "result.json").stat().st_mtime_ns
    before = (run / "wsi" / "steps.csv").read_text().splitlines()
    capfd.readouterr()
    assert main([*words, "--resume", "--out", str(run)]) == 0
    assert "goes on after step 2, in epoch 2, from step-00000002.safetensors" in "".join(capfd.readouterr())
    assert (run / "dense" / "result.json").stat().st_mtime_ns == dense
    assert [line.split(",")[:6] for line in (run / "wsi" / "steps.csv").read_text().splitlines()] == [
        line.split(",")[:6] for line in before]
    assert main(["train", "--resume", "--out", str(run / "wsi"), "--epochs", "3", "--lr", "1"]) == 2
    assert "was started with --epochs 2, not 3; --lr None, not 1.0" in capfd.readouterr().err
    shutil.rmtree(run / "wsi" / "checkpoints")
    (run / "wsi" / "result.json").unlink()
    assert main(["train", "--resume", "--out", str(run / "wsi")]) == 2
    assert "holds no checkpoint: the run ended before its first; remove the folder and start it anew" in capfd.readouterr().err


def test_another_data_set_is_refused_by_the_command(images, tmp_path, capfd):
    run = tmp_path / "run"
    assert main(["train", "--data", str(images), *OPTIONS, "--epochs", "1", "--out", str(run)]) == 0
    (run / "result.json").unlink()
    (images / "dark" / "00.png").write_bytes((images / "light" / "00.png").read_bytes())
    (images / "dark" / "11.png").rename(images / "light" / "99.png")
    capfd.readouterr()
    assert main(["train", "--resume", "--out", str(run)]) == 2
    assert "step-00000002.safetensors: of a run with another training data" in capfd.readouterr().err


# --- files of other versions ------------------------------------------------------------------------------------------------


def old_run():
    """The run of which the files in fixtures/ are; do not change it."""
    model = wasi.create_model("vit_micro_patch8_64", img_size=8, embed_dim=8, depth=1, num_heads=1, num_classes=3)
    return apply_method(model, "wasi", MethodOptions(("all",), rank=4, activation_ranks=(0.5, 1.0, 4)), verbose=False)


class OldBatches(Batches):
    def __init__(self, *args):
        super().__init__(*args)
        self._batches = [(np.ascontiguousarray(images[:, :, :8, :8]), labels) for images, labels in self._batches]


OLD_CONFIG = TrainConfig(epochs=2, lr=0.003, optimizer="adamw", weight_decay=0.05, label_smoothing=0.1, n_warmup=2)


@pytest.mark.parametrize("file", sorted(FIXTURES.glob("checkpoint-*.safetensors")), ids=lambda path: path.stem)
def test_a_file_of_every_version_so_far_goes_on(file):
    whole, resumed = old_run(), old_run()
    train(whole, OldBatches(3), OldBatches(1), OLD_CONFIG, progress=False)
    for _, p in resumed.named_parameters():
        p.data[:] = 0
    train(resumed, OldBatches(3), OldBatches(1), OLD_CONFIG, progress=False, resume=Checkpoint(file))
    for (name, p), (_, q) in zip(whole.named_parameters(), resumed.named_parameters(), strict=True):
        np.testing.assert_allclose(q.data, p.data, atol=1e-3, err_msg=name)  # another machine rounds otherwise
