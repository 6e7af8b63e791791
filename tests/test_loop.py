"""What a run can be told besides model and data, and what it tells: callbacks, groups, mixtures, evaluation, early stopping."""

import struct
import sys

import numpy as np
import pytest
from tables import relative_error
from test_training import Batches, small_model

import wasi
from wasi.models.methods import MethodOptions, apply_method
from wasi.training import loop
from wasi.training.callbacks import ProgressBar
from wasi.training.checkpoint import Checkpoint, checkpoint_path, list_checkpoints
from wasi.training.config import EarlyStopping, ParamGroup, TrainConfig
from wasi.training.loop import Callback, train
from wasi.training.optimizer import Optimizer
from wasi.training.runlog import RunFolder, read_csv, write_confusion
from wasi.training.schedule import block_depths, learning_rate, optimizer_groups, scheduled_rate
from wasi.training.step import Evaluation, accumulate_gradient, balanced_class_weights, evaluate


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(loop, "plot_curves", lambda *args: None)
    before = wasi.get_num_threads()
    wasi.set_num_threads(1)
    yield
    wasi.set_num_threads(before)


# --- callbacks --------------------------------------------------------------------------------------------------------------


class Recorder(Callback):
    def __init__(self, stop_at=None):
        self.calls, self.stop_at, self.total = [], stop_at, 0.0

    def on_train_begin(self, run):
        self.calls.append(("begin", run.progress.step, run.n_steps))

    def on_step_end(self, run):
        self.calls.append(("step", run.progress.step, run.batch.loss > 0 and run.grad_norm > 0 and run.lr > 0))
        self.total += run.batch.loss
        if run.progress.step == self.stop_at:
            run.stop("enough")

    def on_epoch_end(self, run, record):
        self.calls.append(("epoch", record["epoch"], run.val.confusion.shape))

    def on_train_end(self, run):
        self.calls.append(("end", run.progress.step, None))

    def state_dict(self):
        return {"total": np.array([self.total], np.float32)}, {"n": len(self.calls)}

    def load_state_dict(self, arrays, numbers):
        self.total = arrays["total"][0]
        self.calls = [None] * numbers["n"]


def test_progress_in_a_log_is_whole_lines(capfd, monkeypatch):
    monkeypatch.setattr(ProgressBar, "SECONDS_A_LINE", 0)
    train(small_model(), Batches(3), Batches(1), TrainConfig(epochs=2, lr=0.01), label="dense")
    out, err = capfd.readouterr()
    lines = err.splitlines()
    assert not out and "\r" not in err and len(lines) == 8
    assert lines[0].startswith("dense: step 1 of 6, loss ") and lines[0].endswith(" s left")
    assert lines[3].startswith("dense: epoch 1 of 2: loss ") and ", top-1 " in lines[3] and lines[3].endswith(" left")
    assert lines[7].startswith("dense: epoch 2 of 2: ") and not lines[7].endswith(" left")


def test_callbacks_are_called_in_order_and_may_end_the_run(tmp_path):
    recorder, folder = Recorder(stop_at=5), RunFolder(tmp_path / "run")
    config = TrainConfig(epochs=9, checkpoint_every=2)
    result = train(small_model(), Batches(3), Batches(1), config, folder, progress=False, callbacks=[recorder])
    assert recorder.calls == [("begin", 0, 27), *[("step", s, True) for s in (1, 2, 3)], ("epoch", 1, (3, 3)),
                              *[("step", s, True) for s in (4, 5, 6)], ("epoch", 2, (3, 3)), ("end", 6, None)]
    assert result.stopped == "enough" and len(result.epochs) == 2
    again = Recorder()
    train(small_model(), Batches(3), Batches(1), config, folder, progress=False, callbacks=[again],
          resume=Checkpoint(checkpoint_path(folder.path, 6)))
    assert again.calls[-2:] == [("begin", 6, 27), ("end", 6, None)] and again.calls[0] is None
    assert again.total == np.float32(recorder.total)


def test_an_error_in_a_callback_ends_the_run_and_closes_all(tmp_path):
    class Failing(Callback):
        def on_step_end(self, run):
            raise KeyError("mine")

    recorder = Recorder()
    with pytest.raises(KeyError, match="mine"):
        train(small_model(), Batches(2), Batches(1), TrainConfig(), progress=False, callbacks=[recorder, Failing()])
    assert recorder.calls[-1] == ("end", 1, None)
    with pytest.raises(ValueError, match="callbacks: expected names of their own, got two 'Recorder'"):
        train(small_model(), Batches(2), Batches(1), TrainConfig(), progress=False, callbacks=[recorder, recorder])


def test_a_callback_that_the_checkpoint_does_not_know_begins_anew(tmp_path):
    folder, recorder = RunFolder(tmp_path / "run"), Recorder()
    train(small_model(), Batches(2), Batches(1), TrainConfig(epochs=1), folder, progress=False)
    train(small_model(), Batches(2), Batches(1), TrainConfig(epochs=1), folder, progress=False, callbacks=[recorder],
          resume=Checkpoint(checkpoint_path(folder.path, 2)))
    assert recorder.calls == [("begin", 2, 2), ("end", 2, None)]


# --- learning rates ---------------------------------------------------------------------------------------------------------


def test_step_schedule_and_the_lowest_rate():
    config = TrainConfig(epochs=4, lr=1.0, schedule="step", milestones=(1, 3), gamma=0.1, n_warmup=1)
    assert [scheduled_rate(config, s, 2) for s in range(8)] == pytest.approx([1, 1, 0.1, 0.1, 0.1, 0.1, 0.01, 0.01])
    assert learning_rate(2, 1.0, 4, "linear", min_lr=0.2) == pytest.approx(0.6)
    assert learning_rate(4, 1.0, 4, "cosine", min_lr=0.2) == pytest.approx(0.2)


@pytest.mark.parametrize("name, sizes, depths", [
    ("vit_micro_patch8_64", {}, {"cls_token": 0, "patch_embed.proj.weight": 0, "blocks.0.norm1.weight": 1, "head.bias": 5}),
    ("swin_micro_patch2_window4_32", {}, {"patch_embed.norm.weight": 0, "layers.0.blocks.1.mlp.fc1.weight": 2,
                                          "layers.1.downsample.reduction.weight": 3, "norm.bias": 5}),
    ("llama_micro", {"num_classes": 2}, {"embed.weight": 0, "blocks.1.attn.q_proj.weight": 2}),
])
def test_depths(name, sizes, depths):
    model = wasi.create_model(name, **sizes)
    found = block_depths(model)
    assert found.keys() == dict(model.named_parameters()).keys()
    assert {name: found[name] for name in depths} == depths
    assert max(found.values()) == len(model.blocks) + 1


def test_groups_scale_rates_and_decays_by_name(rng):
    """One step of plain SGD tells each parameter's rate and decay; factors go by their layer's weight."""
    model = apply_method(small_model(), "wsi", MethodOptions(("fc1",), rank=32), verbose=False)
    groups = (ParamGroup("head.*", lr_scale=2.0), ParamGroup("blocks.1.mlp.fc1.weight", lr_scale=3.0, weight_decay=0.0))
    optimizer = Optimizer(model, "sgd", weight_decay=0.1, groups=optimizer_groups(model, 0.5, groups))
    accumulate_gradient(model, *next(iter(Batches(1))))
    before = {n: (p.data.copy(), p.grad.copy()) for n, p in model.named_parameters()}
    layer = model.blocks[1].mlp.fc1
    W, G = layer.merged_weight(), layer.L.grad @ np.linalg.pinv(layer.R.data).T  # at full rank dL = G R'
    optimizer.step(0.1)
    for name, rate, decay in [("head.weight", 0.2, 0.1), ("head.bias", 0.2, 0.0), ("norm.weight", 0.1, 0.0),
                              ("blocks.1.attn.qkv.weight", 0.05, 0.1), ("blocks.0.attn.qkv.weight", 0.025, 0.1),
                              ("pos_embed", 0.0125, 0.0), ("patch_embed.proj.weight", 0.0125, 0.1)]:
        data, grad = before[name]
        moved = dict(model.named_parameters())[name].data - data
        assert relative_error(moved, -rate * (grad + decay * data)) < 1e-4, name
    assert relative_error(layer.merged_weight() - W, -0.1 * 0.5 * 3 * G) < 1e-2
    with pytest.raises(ValueError, match=r"param_groups: haed.\* match no parameter"):
        optimizer_groups(model, 1.0, (ParamGroup("haed.*"),))


# --- the loss: class weights, mixtures --------------------------------------------------------------------------------------


@pytest.mark.parametrize("soft", [False, True])
def test_weighted_gradients_do_not_depend_on_micro_batches(rng, soft):
    images, labels = next(iter(Batches(1)))
    targets = rng.dirichlet(np.ones(3), len(labels)).astype(np.float32) if soft else labels
    gradients = []
    for micro_batch in (None, 5):
        model = small_model()
        result = accumulate_gradient(model, images, targets, micro_batch, 0.1, class_weights=np.float32([0.5, 1, 4]))
        gradients.append(np.concatenate([p.grad.ravel() for _, p in model.named_parameters()]))
        if micro_batch is None:
            want = model.loss(model.forward(images), targets, 0.1, class_weights=np.float32([0.5, 1, 4]))[0]
        assert result.loss == pytest.approx(want, rel=1e-5)
    assert relative_error(gradients[1], gradients[0]) < 1e-5


def test_class_weights_raise_the_rare_class(tmp_path):
    """Of 1 in 10 samples, whose pixels tell nothing, the class is predicted as often as the other with balanced weights."""
    rng = np.random.default_rng(0)
    batches = [(rng.integers(0, 256, (20, 3, 16, 16), np.uint8), np.repeat([0, 1], [18, 2])) for _ in range(6)]
    weights = tuple(balanced_class_weights(np.repeat([0, 1], [18, 2]), 3).tolist())
    assert weights == pytest.approx((20 / 36, 20 / 4, 1.0))
    shares = []
    for class_weights in (None, weights):
        model = small_model()
        train(model, batches, batches[:1], TrainConfig(epochs=4, lr=0.02, class_weights=class_weights), progress=False)
        z = model.forward(batches[0][0]).astype(float)
        shares.append((np.exp(z) / np.exp(z).sum(1, keepdims=True))[:, 1].mean())
    assert shares[0] < 0.25 < 0.4 < shares[1]


@pytest.mark.parametrize("options", [{"mixup": 0.2}, {"cutmix": 1.0}, {"mixup": 0.2, "cutmix": 1.0, "mix_prob": 0.5}])
def test_mixtures_reach_the_model_the_same_by_seed_and_step(monkeypatch, options):
    seen = []
    accumulate = loop.accumulate_gradient

    def recording(model, images, targets, *rest):
        seen.append((images.tobytes(), targets.dtype, targets.tobytes()))
        return accumulate(model, images, targets, *rest)

    monkeypatch.setattr(loop, "accumulate_gradient", recording)
    for seed in (1, 1, 2):
        train(small_model(), Batches(4), Batches(1), TrainConfig(epochs=1, seed=seed, **options), progress=False)
    assert seen[:4] == seen[4:8] != seen[8:]
    kinds = {kind for _, kind, _ in seen}
    assert kinds == ({np.dtype(np.float32)} if "mix_prob" not in options else {np.dtype(np.float32), np.dtype(np.int64)})


def test_options_that_the_model_has_no_use_for_are_refused():
    text = wasi.create_model("llama_micro")
    for model, options, message in [
            (text, {"mixup": 0.2}, "mixup, cutmix: expected 0 for a model of texts"),
            (text, {"class_weights": (1.0,)}, "class_weights: expected none for a language model, got 1"),
            (small_model(), {"class_weights": (1.0,)}, "class_weights: expected 3, got 1")]:
        with pytest.raises(ValueError, match=message):
            train(model, Batches(1), Batches(1), TrainConfig(**options), progress=False)


@pytest.mark.parametrize("options, message", [
    ({"schedule": "exp"}, "schedule: expected one of constant, cosine, linear, step, got 'exp'"),
    ({"schedule": "step"}, "milestones: expected epochs with schedule 'step'"),
    ({"milestones": (1,)}, "milestones: expected epochs with schedule 'step' and none without"),
    ({"schedule": "step", "milestones": (2, 2)}, "milestones: expected increasing epochs from 1"),
    ({"gamma": 0}, "gamma: expected a number above 0"), ({"min_lr": -1}, "min_lr: expected a number from 0"),
    ({"layer_lr_decay": 1.5}, "layer_lr_decay: expected a number above 0, up to 1, got 1.5"),
    ({"mixup": -1}, "mixup: expected a number from 0"), ({"cutmix": float("nan")}, "cutmix: expected a number from 0"),
    ({"mix_prob": 2}, "mix_prob: expected a probability"), ({"ema": 1.0}, "ema: expected a decay between 0 and 1"),
    ({"ema_every": 0}, "ema_every: expected at least 1"), ({"class_weights": (1, 0)}, "class_weights: expected numbers above 0"),
    ({"monitor": "loss"}, "monitor: expected one of val_accuracy, val_loss"), ({"seed": -1}, "seed: expected at least 0"),
    ({"epochs": 0}, "epochs: expected at least 1"), ({"n_warmup": -1}, "n_warmup: expected at least 0"),
])
def test_bad_options_are_refused_by_name(options, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(**options)


def test_bad_parts_of_a_configuration_are_refused_by_name():
    for make, message in [(lambda: EarlyStopping(patience=0), "patience: expected at least 1"),
                          (lambda: EarlyStopping(min_delta=-1), "min_delta: expected a number from 0"),
                          (lambda: ParamGroup("*", lr_scale=0), "lr_scale: expected a number above 0"),
                          (lambda: ParamGroup("*", weight_decay=-1), "weight_decay: expected a number from 0")]:
        with pytest.raises(ValueError, match=message):
            make()


# --- evaluation -------------------------------------------------------------------------------------------------------------


def test_evaluation_counts_classes_and_the_first_five(rng):
    model = wasi.create_model("vit_micro_patch8_64", img_size=16, embed_dim=32, depth=1, num_heads=2, num_classes=9)
    images, labels = rng.integers(0, 256, (40, 3, 16, 16), np.uint8), rng.integers(0, 9, 40)
    val = evaluate(model, [(images[:25], labels[:25]), (images[25:], labels[25:])], micro_batch=10)
    logits = model.forward(images)
    order = np.argsort(-logits, 1)
    assert val.n == 40 and val.n_correct == np.trace(val.confusion) == (order[:, 0] == labels).sum()
    assert val.n_top5 == (order[:, :5] == labels[:, None]).any(1).sum() and val.top5 == val.n_top5 / 40
    assert val.confusion.sum(1).tolist() == np.bincount(labels, minlength=9).tolist()
    assert val.confusion.sum(0).tolist() == np.bincount(order[:, 0], minlength=9).tolist()
    assert evaluate(small_model(), Batches(1)).top5 is None
    some = Evaluation(0.0, 3, 5, confusion=np.array([[2, 1, 0], [0, 1, 1], [0, 0, 0]]))
    assert some.per_class() == [{"samples": 3, "recall": 2 / 3, "precision": 1.0},
                                {"samples": 2, "recall": 0.5, "precision": 0.5}, {"samples": 0, "recall": None, "precision": 0.0}]


# --- the run's end: early stopping, averaged weights ------------------------------------------------------------------------


def made_up(monkeypatch, accuracies):
    """Evaluations of these accuracies, whatever the model."""
    accuracies, real = iter(accuracies), loop.evaluate

    def evaluate(*args):
        val = real(*args)
        val.loss, val.n_correct = 1.0, next(accuracies) * val.n
        return val

    monkeypatch.setattr(loop, "evaluate", evaluate)


@pytest.mark.parametrize("saved", [True, False])
@pytest.mark.parametrize("method, ema", [("wsi", None), ("wsi", 0.9), ("dense", None)])
def test_early_stopping_leaves_the_best(tmp_path, monkeypatch, saved, method, ema):
    """The third epoch is the best, though too little better than the second to count: its model is what is left."""
    config = {"epochs": 9, "lr": 0.05, "momentum": 0.9, "schedule": "constant", "ema": ema}
    models, options = [], MethodOptions(("all",), rank=8)
    for n, stopping in ((2, None), (9, EarlyStopping(patience=2, min_delta=0.05))):
        made_up(monkeypatch, [0.5, 0.9, 0.93, 0.7, 0.8])
        model = apply_method(small_model(), method, options, verbose=False)
        folder = RunFolder(tmp_path / str(n)) if saved else None
        result = train(model, Batches(3), Batches(1), TrainConfig(**{**config, "epochs": n}, early_stopping=stopping), folder,
                       progress=False)
        monkeypatch.undo()
        monkeypatch.setattr(loop, "plot_curves", lambda *args: None)
        models.append(dict(model.named_parameters()))
    assert result.stopped == "val_accuracy has not bettered in 2 epochs" and len(result.epochs) == 4
    assert result.best["epoch"] == 3 and result.val_accuracy == 0.93
    if saved:
        assert sorted(list_checkpoints(folder.path)) == [9, 12]
        left, _ = wasi.load_model(folder.path / "model.safetensors")
        assert all(np.array_equal(p.data, models[1][name].data) for name, p in left.named_parameters())
        if ema is None:
            best, _ = wasi.load_model(checkpoint_path(folder.path, 9))
            assert all(np.array_equal(p.data, models[1][name].data) for name, p in best.named_parameters())
    made_up(monkeypatch, [0.5, 0.9, 0.93])
    model = apply_method(small_model(), method, options, verbose=False)
    train(model, Batches(3), Batches(1), TrainConfig(**{**config, "epochs": 3}), progress=False)
    assert all(np.array_equal(p.data, models[1][name].data) for name, p in model.named_parameters())


def test_a_best_epoch_whose_weights_are_gone_is_not_claimed(tmp_path, monkeypatch):
    config, folder = TrainConfig(epochs=3, early_stopping=EarlyStopping(5)), RunFolder(tmp_path / "run")
    made_up(monkeypatch, [0.9, 0.5, 0.6, 0.6])
    assert train(small_model(), Batches(2), Batches(1), config, folder, progress=False).val_accuracy == 0.9
    result = train(small_model(), Batches(2), Batches(1), config, progress=False,
                   resume=Checkpoint(checkpoint_path(folder.path, 4)))
    assert result.best["epoch"] == 1 and result.val_accuracy == 0.6


def test_averaged_weights_are_evaluated_and_left(tmp_path):
    config = TrainConfig(epochs=3, lr=0.05, ema=0.8, checkpoint_every=1, keep=20)
    folder, model = RunFolder(tmp_path / "run"), apply_method(small_model(), "wsi", MethodOptions(rank=8), verbose=False)
    result = train(model, Batches(3), Batches(1, seed=1), config, folder, progress=False)
    val = evaluate(model, Batches(1, seed=1))
    assert val.loss == result.epochs[-1]["val_loss"] and result.counted["average_bytes"] == result.counted["trained_bytes"]
    left, _ = wasi.load_model(folder.path / "model.safetensors")
    last, _ = wasi.load_model(checkpoint_path(folder.path, 9))
    assert evaluate(left, Batches(1, seed=1)).loss == val.loss != evaluate(last, Batches(1, seed=1)).loss


# --- logs -------------------------------------------------------------------------------------------------------------------


def test_the_confusion_of_the_last_epoch_is_logged(tmp_path):
    folder = RunFolder(tmp_path / "run")
    result = train(small_model(), Batches(3), Batches(2, seed=1), TrainConfig(epochs=2), folder, progress=False)
    confusion = read_csv(folder.path / "confusion.csv")
    assert [row["true"] for row in confusion] == list(Batches.classes)
    assert sum(int(row[row["true"]]) for row in confusion) == round(result.val_accuracy * 24)


def test_what_the_data_have_no_name_for_goes_by_its_number(tmp_path):
    """A model may tell more classes apart than its data have."""
    write_confusion(tmp_path / "c.csv", np.arange(9).reshape(3, 3), ["cat"])
    assert (tmp_path / "c.csv").read_text().splitlines() == ["true,cat,1,2", "cat,0,1,2", "1,3,4,5", "2,6,7,8"]


def events(folder):
    """(step, tag, value) of the scalars in a folder's event files: records of length, checksum, protocol buffer, checksum."""
    event_pb2 = pytest.importorskip("tensorboardX.proto.event_pb2", reason="needs tensorboardX: pip install 'wasi[tensorboard]'")
    for path in sorted(folder.glob("events.*")):
        data = path.read_bytes()
        while data:
            (size,) = struct.unpack("<Q", data[:8])
            event = event_pb2.Event.FromString(data[12 : 12 + size])
            yield from ((event.step, value.tag, value.simple_value) for value in event.summary.value if value.tag.count("/") == 1
                        and "text" not in value.tag)
            data = data[16 + size :]


def test_tensorboard_has_every_step_and_epoch(tmp_path):
    pytest.importorskip("tensorboardX", reason="needs tensorboardX: pip install 'wasi[tensorboard]'")
    folder = RunFolder(tmp_path / "run")
    train(small_model(), Batches(3), Batches(1), TrainConfig(epochs=2, tensorboard=True), folder, progress=False)
    found = list(events(folder.path / "tensorboard"))
    steps = read_csv(folder.path / "steps.csv")
    losses = [(step, value) for step, tag, value in found if tag == "train/loss"]
    assert losses == [(n, pytest.approx(float(row["loss"]), rel=1e-6)) for n, row in enumerate(steps, 1)]
    assert [step for step, tag, _ in found if tag == "val/accuracy"] == [3, 6]
    with pytest.raises(ValueError, match="tensorboard: expected a run folder to write to, got None"):
        train(small_model(), Batches(1), Batches(1), TrainConfig(epochs=1, tensorboard=True), progress=False)


def test_without_tensorboard_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(ImportError, match=r"tensorboard: .*pip install 'wasi\[tensorboard\]'"):
        train(small_model(), Batches(1), Batches(1), TrainConfig(tensorboard=True), RunFolder(tmp_path / "run"), progress=False)
