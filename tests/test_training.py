import json
import mmap

import numpy as np
import pytest
from tables import relative_error

import wasi
from wasi.layers import FactoredLinear
from wasi.layers.published import WsiDenseLinear
from wasi.models.methods import MethodOptions, apply_method
from wasi.training.loop import TrainConfig, train
from wasi.training.memory import peak_rss_bytes, release_freed, reset_peak_rss, rss_bytes
from wasi.training.optimizer import Optimizer
from wasi.training.runlog import STEP_FIELDS, CsvLog, RunFolder, read_steps
from wasi.training.schedule import learning_rate
from wasi.training.step import accumulate_gradient, evaluate

SMALL = {"img_size": 16, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 3}


def small_model(seed=0):
    return wasi.create_model("vit_micro_patch8_64", seed=seed, **SMALL)


class Batches:
    """Three classes that differ by brightness: learnt in a few steps."""

    classes = ("dark", "grey", "light")

    def __init__(self, n_batches=8, batch=12, seed=0):
        rng = np.random.default_rng(seed)
        self._batches = []
        for _ in range(n_batches):
            labels = rng.integers(0, 3, batch)
            noise = rng.integers(-40, 40, (batch, 3, 16, 16))
            self._batches.append(((labels[:, None, None, None] * 80 + 48 + noise).astype(np.uint8), labels))

    def __len__(self):
        return len(self._batches)

    def __iter__(self):
        return iter(self._batches)


@pytest.mark.parametrize("kind, options", [("sgd", {}), ("sgd", {"momentum": 0.9, "weight_decay": 0.01}),
                                           ("adamw", {"weight_decay": 0.05})])
def test_dense_training_matches_pytorch(torch, kind, options):
    """Twenty clipped steps of the same model, head included, follow torch.optim."""
    from torch import nn

    model = small_model()
    theirs = nn.ParameterDict({n.replace(".", "/"): nn.Parameter(torch.from_numpy(p.data.copy()))
                               for n, p in model.named_parameters()})
    decayed = {n.replace(".", "/") for n, p in model.named_parameters() if p.decay}
    decay = options.get("weight_decay", 0.0)
    groups = [{"params": [p for n, p in theirs.items() if (n in decayed) == flag], "weight_decay": decay * flag}
              for flag in (True, False)]
    rival = (torch.optim.SGD(groups, lr=0.1, momentum=options.get("momentum", 0.0)) if kind == "sgd"
             else torch.optim.AdamW(groups, lr=0.1))
    optimizer = Optimizer(model, kind, clip_norm=0.5, **options)
    rng = np.random.default_rng(0)
    for _ in range(20):
        for name, p in model.named_parameters():
            g = rng.standard_normal(p.data.shape).astype(np.float32)
            p.grad[:] = g
            theirs[name.replace(".", "/")].grad = torch.from_numpy(g.copy())
        norm = torch.nn.utils.clip_grad_norm_(theirs.values(), 0.5)
        rival.step()
        assert optimizer.step(0.1) == pytest.approx(norm.item(), rel=1e-5)
    for name, p in model.named_parameters():
        assert not p.grad.any()
        assert relative_error(p.data, theirs[name.replace(".", "/")].detach().numpy()) < 1e-5, name


@pytest.mark.parametrize("kind, lr", [("sgd", 0.1), ("adamw", 0.003)])
@pytest.mark.parametrize("factored", [False, True])
def test_training_learns_and_logs(tmp_path, kind, lr, factored):
    model = small_model()
    if factored:
        wasi.factorize(model, rank=8, target_modules=("all",), verbose=False)
    result = train(model, Batches(), Batches(2, seed=1), TrainConfig(epochs=6, lr=lr, optimizer=kind),
                   RunFolder(tmp_path / "run"), progress=False)
    assert result.val_accuracy > 0.9
    assert result.epochs[0]["train_loss"] > result.epochs[-1]["train_loss"]
    assert result.parameters == sum(p.data.size for _, p in model.named_parameters())
    assert result.counted["trained_bytes"] == 4 * result.parameters == result.counted["gradient_bytes"]
    assert result.counted["saved_bytes"] > 12 * 3 * 16 * 16
    assert result.flops_per_image == model.training_flops(12, kind).total / 12
    steps = read_steps(tmp_path / "run" / "steps.csv")
    assert len(steps["loss"]) == 48 and np.isfinite(steps["grad_norm"]).all()
    record = json.loads((tmp_path / "run" / "result.json").read_text())
    assert record["val_accuracy"] == result.val_accuracy and record["environment"]["threads"] == wasi.get_num_threads()
    assert (tmp_path / "run" / "curves.png").read_bytes().startswith(b"\x89PNG")
    again, extra = wasi.load_model(tmp_path / "run" / "model.safetensors")
    assert extra["classes"] == list(Batches.classes)
    assert evaluate(again, Batches(2, seed=1)).accuracy == result.val_accuracy


def test_factored_layers_stay_orthonormal_and_of_their_rank():
    model = wasi.factorize(small_model(), rank=8, target_modules=("all",), verbose=False)
    train(model, Batches(), Batches(1), TrainConfig(epochs=3, lr=0.1), progress=False)
    layers = [m for _, m in model.named_modules() if isinstance(m, FactoredLinear)]
    assert len(layers) == 8
    for layer in layers:
        assert layer.rank == 8
        assert np.abs(layer.L.data.T @ layer.L.data - np.eye(8)).max() < 1e-5


def test_full_rank_wsi_is_dense_sgd():
    """At K = min(O, I) the factors carry the whole weight, and the tangent space is everything."""
    dense, factored = small_model(), small_model()
    wasi.factorize(factored, variance=1.0, target_modules=("all",), verbose=False)
    for model in (dense, factored):
        optimizer = Optimizer(model, "sgd", clip_norm=1.0)
        for images, labels in Batches(4):
            accumulate_gradient(model, images, labels)
            optimizer.step(0.05)
    for name, module in factored.named_modules():
        if isinstance(module, FactoredLinear):
            assert relative_error(module.merged_weight(), dense.get_module(name).weight.data) < 1e-4, name


def test_published_wsi_follows_the_factored_one_at_full_rank():
    published, dense = small_model(), small_model()
    for name in wasi.models.find_targets(published, ("mlp",)):
        layer = published.get_module(name)
        published.set_module(name, WsiDenseLinear(layer.weight.data, layer.bias.data, rank=32))
    for model in (published, dense):
        optimizer = Optimizer(model, "sgd")
        for images, labels in Batches(4):
            accumulate_gradient(model, images, labels)
            optimizer.step(0.05)
    for (name, p), (_, q) in zip(published.named_parameters(), dense.named_parameters()):
        assert relative_error(p.data, q.data) < 1e-4, name


def test_the_same_seed_gives_the_same_bits():
    losses = []
    for _ in range(2):
        model = wasi.factorize(small_model(), rank=8, verbose=False)
        losses.append(train(model, Batches(), Batches(1), TrainConfig(epochs=2), progress=False).epochs)
    assert all(a["train_loss"] == b["train_loss"] and a["val_loss"] == b["val_loss"] for a, b in zip(*losses))


def test_after_the_first_step_no_new_memory_is_touched():
    model = wasi.factorize(small_model(), rank=8, verbose=False)
    optimizer, arena, extents = Optimizer(model, "adamw", clip_norm=1.0), wasi.Arena(), []
    for images, labels in Batches(5):
        with arena:
            accumulate_gradient(model, images, labels)
            optimizer.step(0.01)
        extents.append(arena.stats()["extent_bytes"])
        assert arena.stats()["n_blocks"] == 0
    assert len(set(extents)) == 1


@pytest.mark.parametrize("method", ["dense", "qwasi"])
def test_layerwise_updates_give_the_bits_of_updates_at_the_end_and_hold_no_gradient(method):
    """Without clipping, an update depends on its own layer's gradient alone."""
    weights, norms, held = [], [], []
    for layerwise in (False, True):
        model = apply_method(small_model(), method, MethodOptions(("all",), rank=8), verbose=False)
        optimizer = Optimizer(model, "sgd", momentum=0.9, weight_decay=0.01, layerwise=layerwise)
        for images, labels in Batches(3):
            accumulate_gradient(model, images, labels, after=optimizer.after_backward(0.05))
            held.append(sum(p.gradient_bytes for part in model.blocks for _, p in part.named_parameters()))
            norms.append(optimizer.step(0.05))
        weights.append([p.data for _, p in model.named_parameters()])
    assert all(np.array_equal(a, b) for a, b in zip(*weights, strict=True))
    assert norms[3:] == pytest.approx(norms[:3], rel=1e-12)
    assert min(held[:3]) > 0 and held[3:] == [0, 0, 0]


@pytest.mark.parametrize("method", ["dense", "wsi"])
def test_packed_gradients_are_half_as_large_and_steer_the_same_way(method):
    """Sums in bfloat16 over 8 micro-batches: each weight's update is within 1 % of that of float32 sums."""
    updates, sizes = [], []
    for bits in (32, 16):
        model = apply_method(small_model(), method, MethodOptions(("all",), rank=8), verbose=False)
        before = [p.data.copy() for _, p in model.named_parameters()]
        optimizer = Optimizer(model, "sgd", clip_norm=1.0, gradient_bits=bits)
        images, labels = next(iter(Batches(1)))
        accumulate_gradient(model, images, labels, micro_batch=2, after=optimizer.after_backward(0.05))
        sizes.append(sum(p.gradient_bytes for _, p in model.named_parameters() if p.data.ndim == 2))
        optimizer.step(0.05)
        updates.append([p.data - b for (_, p), b in zip(model.named_parameters(), before)])
    assert sizes[1] == sizes[0] / 2 > 0
    for (name, _), exact, packed in zip(model.named_parameters(), *updates):
        assert relative_error(packed, exact) < 0.01, name


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_packed_momentum_is_half_as_large_and_steers_the_same_way(kind):
    """Rounded after each of ten steps, momentum moves every matrix as in float32, within 1 %; a change of rank takes it along."""
    updates, sizes = [], []
    for bits in (32, 16):
        model = apply_method(small_model(), "wsi", MethodOptions(("mlp",), rank=8), verbose=False)
        before = [(f"{name}", m.merged_weight() if name.endswith(("fc1", "fc2")) else m.weight.data.copy())
                  for name, m in model.named_modules() if name.endswith(("qkv", "proj", "fc1", "fc2"))]
        optimizer = Optimizer(model, kind, momentum=0.9, clip_norm=1.0, state_bits=bits)
        for images, labels in Batches(10):
            accumulate_gradient(model, images, labels)
            optimizer.step(0.01 if kind == "sgd" else 0.001)
        sizes.append(sum(a.nbytes for name, a in optimizer._state_arrays().items()
                         if a.ndim == 2 and name.rpartition(".")[2][0] == "m"))
        updates.append([(model.get_module(name).merged_weight() if name.endswith(("fc1", "fc2"))
                         else model.get_module(name).weight.data) - W for name, W in before])
    assert sizes[1] == sizes[0] / 2 > 0
    for (name, _), exact, packed in zip(before, *updates):
        assert relative_error(packed, exact) < 0.01, name
    name = next(iter(optimizer.factored))
    optimizer.shrink(name, 6)
    optimizer.grow(name, np.eye(128, dtype=np.float32)[:, :1])
    arrays = optimizer.factored[name][1].arrays
    assert {a.dtype for part, a in arrays.items() if part[0] == "m"} == {np.dtype(np.uint16)}
    accumulate_gradient(model, images, labels)
    optimizer.step(0.001)
    assert optimizer.factored[name][0].rank == 7 == len(arrays["mA"])


def test_a_step_that_fails_leaves_packed_momentum_as_it_was():
    model = wasi.factorize(small_model(), rank=4, verbose=False)
    optimizer = Optimizer(model, "sgd", momentum=0.9, state_bits=16)
    for _ in range(2):
        accumulate_gradient(model, *next(iter(Batches())))
        if optimizer.n_steps:
            state = optimizer.factored["blocks.0.mlp.fc1"][1]
            before = {name: a.copy() for name, a in state.arrays.items()}
            model.blocks[0].mlp.fc1.R.data[1] = model.blocks[0].mlp.fc1.R.data[0] * (1 + 1e-7)
            with pytest.raises(ArithmeticError):
                optimizer.step(0.1)
            assert all(np.array_equal(before[name], a) and a.dtype == np.uint16 for name, a in state.arrays.items())
        else:
            optimizer.step(0.1)


def test_whitened_start_loses_less_on_the_layers_outputs(rng):
    """At equal rank the whitened factors reproduce the model's logits better on inputs with a decaying spectrum."""
    images = np.concatenate([b for b, _ in Batches(4, 32)])
    errors = {}
    for name, whiten in (("plain", None), ("whitened", [images])):
        model = small_model(3)
        for _, p in model.named_parameters():
            p.data += 0.2 * np.random.default_rng(5).standard_normal(p.data.shape).astype(np.float32)
        want = model.forward(images)
        wasi.factorize(model, rank=4, whiten=whiten, target_modules=("all",), verbose=False)
        errors[name] = relative_error(model.forward(images), want)
    assert errors["whitened"] < 0.8 * errors["plain"]


def test_divergence_is_an_error_that_names_the_step():
    with pytest.raises(FloatingPointError, match=r"step \d+, lr 1e\+0?[0-9]+: the (loss|gradient) is not finite"):
        train(small_model(), Batches(), Batches(1), TrainConfig(lr=1e30, clip_norm=None, schedule="constant"), progress=False)


def test_a_collapsed_rank_is_an_error_that_names_the_layer():
    model = wasi.factorize(small_model(), rank=4, verbose=False)
    optimizer = Optimizer(model)
    layer = model.blocks[1].mlp.fc1
    layer.R.data[1] = layer.R.data[0]
    accumulate_gradient(model, *next(iter(Batches())))
    with pytest.raises(ArithmeticError, match="blocks.1.mlp.fc1: .*rank"):
        optimizer.step(0.1)


def test_bad_options_are_refused_by_name():
    with pytest.raises(ValueError, match="optimizer: expected one of sgd, adamw, got 'adam'"):
        Optimizer(small_model(), "adam")
    with pytest.raises(ValueError, match="clip_norm: expected a positive norm or None, got 0"):
        Optimizer(small_model(), clip_norm=0)
    with pytest.raises(ValueError, match="gradient_bits: expected 16 or 32, got 8"):
        Optimizer(small_model(), gradient_bits=8)
    with pytest.raises(ValueError, match="state_bits: expected 16 or 32, got 8"):
        Optimizer(small_model(), state_bits=8)
    with pytest.raises(ValueError, match="clip_norm: expected None with layerwise"):
        Optimizer(small_model(), clip_norm=1.0, layerwise=True)
    with pytest.raises(ValueError, match="micro_batch: expected None with layerwise"):
        TrainConfig(layerwise=True, clip_norm=None, micro_batch=8)
    with pytest.raises(ValueError, match="schedule: expected one of constant, cosine, linear, step, got 'exp'"):
        learning_rate(0, 0.1, 10, "exp")


def test_run_folder_refuses_a_second_run_and_an_unwritable_place(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.write_json("config.json", {})
    with pytest.raises(FileExistsError, match="already holds a run"):
        RunFolder(tmp_path / "run")
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="out: expected a folder that can be written to"):
        RunFolder(tmp_path / "file" / "run")


def test_schedules():
    assert [learning_rate(t, 1.0, 4, "linear") for t in range(4)] == [1.0, 0.75, 0.5, 0.25]
    assert [learning_rate(t, 1.0, 6, "constant", 2) for t in range(3)] == [0.5, 1.0, 1.0]
    assert learning_rate(3, 1.0, 4, "cosine") == pytest.approx(0.1464466)


def test_measured_memory_sees_an_allocation():
    if not reset_peak_rss():
        pytest.skip("the system does not let a process reset its peak")
    before = rss_bytes()
    block = mmap.mmap(-1, 32 * 2**20)  # new pages for certain: malloc could hand out ones that are resident already
    np.frombuffer(block, np.uint8)[:] = 1
    assert 30 * 2**20 < peak_rss_bytes() - before < 40 * 2**20


def test_freed_memory_is_given_back():
    blocks = [np.ones(8192) for _ in range(1000)]  # 64 KiB each: from the heap, below malloc's threshold for pages of their own
    pinned = np.ones(8192)  # the heap's end stays in use
    del blocks
    before = rss_bytes()
    if not release_freed():
        pytest.skip("this C library has no malloc_trim")
    assert rss_bytes() < before - 30 * 2**20
    assert pinned[0] == 1


@pytest.mark.parametrize("options", [{}, {"micro_batch": 4, "gradient_bits": 16}, {"ema": 0.9}])
def test_bytes_by_layer_add_up_to_what_is_counted(tmp_path, options):
    model = wasi.factorize(small_model(), rank=8, target_modules=("mlp",), verbose=False, residual_bits=4)
    result = train(model, Batches(), Batches(1), TrainConfig(epochs=1, momentum=0.9, **options), RunFolder(tmp_path / "run"),
                   progress=False)
    record = json.loads((tmp_path / "run" / "layers.json").read_text())
    assert record["step"] == 3
    for kind, n_bytes in result.counted.items():
        assert sum(layer[kind] for layer in record["layers"]) == n_bytes, kind
    by_name = {layer["name"]: layer for layer in record["layers"]}
    fc1 = by_name["blocks.0.mlp.fc1"]
    assert (fc1["kind"], fc1["shape"], fc1["rank"]) == ("FactoredLinear", [128, 32], 8) and fc1["frozen_bytes"] > 0
    assert sum(r["trained"] for r in model.weights_by_module()) == result.parameters
    assert "\nblocks.0.mlp.fc1              FactoredLinear            128 x 32     8" in model.summary()
    steps = read_steps(tmp_path / "run" / "steps.csv")
    assert (steps["counted_mib"] > result.counted["trained_bytes"] / 2**20).all() and (steps["rss_mib"] > 10).all()


def test_a_log_of_another_version_goes_on_with_its_own_columns(tmp_path):
    folder = RunFolder(tmp_path / "run")
    (folder.path / "steps.csv").write_text("step,loss,other\r\n0,2.5,1\r\n")
    with CsvLog(folder, "steps.csv", STEP_FIELDS, n_bytes=26) as log:
        log.write(step=1, loss=2.0, rss_mib=3.0)
    steps = read_steps(folder.path / "steps.csv")
    assert steps["loss"].tolist() == [2.5, 2.0] and np.isnan(steps["rss_mib"]).all()
