"""The planner: errors against their definitions, bytes against measured arenas, choices against brute force, strange files."""

import itertools
import json
import re
from pathlib import Path

import numpy as np
import pytest
from tables import relative_error

import wasi
from wasi import linalg, ops
from wasi.cli import main
from wasi.layers import ActivationPolicy, FactoredLinear
from wasi.models.factorize import gradient_factors
from wasi.models.methods import freeze_parameters
from wasi.models.plan import Plan, PlanError, parse_bytes
from wasi.planning import InfeasibleError
from wasi.planning.cost import Way
from wasi.planning.measure import activation_errors, kept_errors, weight_errors
from wasi.training.ema import WeightAverage
from wasi.training.loop import TrainConfig, train
from wasi.training.memory import count_bytes
from wasi.training.optimizer import Optimizer
from wasi.training.step import accumulate_gradient

SMALL = {"img_size": 32, "embed_dim": 48, "depth": 2, "num_heads": 2, "num_classes": 5}


def small_model(seed=0, **changes):
    """Weights with a falling spectrum, as trained ones have."""
    model = wasi.create_model("vit_micro_patch8_64", seed=seed, **{**SMALL, **changes})
    rng = np.random.default_rng(seed)
    for _, p in model.named_parameters():
        if p.data.ndim == 2:
            U, s, Vt = np.linalg.svd(rng.standard_normal(p.data.shape), full_matrices=False)
            p.data[:] = 0.3 * (U * np.exp(-4 * np.arange(len(s)) / len(s))) @ Vt
    return model


def batch_of(n, size=32, classes=5, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 255, (n, 3, size, size)).astype(np.uint8), rng.integers(0, classes, n)


def counted_after_steps(model, plan, batch, n_steps=2):
    """Bytes of everything that real training steps held at once, as planned."""
    kind = "adamw" if plan.optimizer == "adamw" else "sgd"
    optimizer = Optimizer(model, kind, momentum=0.9 * (plan.optimizer == "momentum"), clip_norm=None if plan.layerwise else 1.0,
                          gradient_bits=plan.gradient_bits, state_bits=plan.state_bits, layerwise=plan.layerwise)
    average = WeightAverage(model, plan.ema) if plan.ema else None
    inputs, targets = batch
    arena = wasi.Arena()
    for _ in range(n_steps):
        with arena:
            accumulate_gradient(model, inputs, targets, plan.micro_batch, after=optimizer.after_backward(0.01))
            optimizer.step(0.01)
        if average:
            average.update(arena)
    held = count_bytes(model, optimizer, average)
    assert held["gradient_bytes"] == plan.gradient_bytes and held["optimizer_bytes"] == plan.optimizer_bytes
    assert held["average_bytes"] == plan.average_bytes
    assert held["trained_bytes"] + held["frozen_bytes"] == plan.weight_bytes
    return sum(held.values()) - held["saved_bytes"] + plan.input_bytes + arena.stats()["peak_bytes"]


TINY = {"depth": 1, "img_size": 64, "num_classes": 5}
DECODER = {"vocab_size": 96, "embed_dim": 48, "hidden_dim": 128, "depth": 3, "num_heads": 4, "num_kv_heads": 2, "max_length": 24}


def make(shape):
    """A model, and how batches for it are made: (n, seed) -> (inputs, targets)."""
    if shape == "micro":
        return small_model(), lambda n, seed=0: batch_of(n, seed=seed)
    if shape == "half-frozen":
        model = small_model(depth=3)
        freeze_parameters(model, ("patch_embed", "pos_embed", "cls_token", "blocks.0"))
        return model, lambda n, seed=0: batch_of(n, seed=seed)
    if shape == "tiny":
        return wasi.create_model("vit_tiny_patch16_224", **TINY), lambda n, seed=0: batch_of(n, 64, seed=seed)
    if shape == "resnet":
        return wasi.create_model("resnet_micro_32", num_classes=5), lambda n, seed=0: batch_of(n, seed=seed)
    if shape == "swin":
        return wasi.create_model("swin_micro_patch2_window4_32", num_classes=5), lambda n, seed=0: batch_of(n, seed=seed)

    def texts(n, seed=0):
        rng = np.random.default_rng(seed)
        tokens = rng.integers(0, 96, (n, 25))
        tokens[1::2, 20:] = -1 if shape == "text-classifier" else tokens[1::2, 20:]
        return np.ascontiguousarray(tokens[:, :-1]), (rng.integers(0, 2, n) if shape == "text-classifier" else
                                                      np.ascontiguousarray(tokens[:, 1:]))

    model = wasi.create_model("llama_micro", num_classes=2 if shape == "text-classifier" else None, **DECODER)
    if shape == "text-classifier":
        model.train_last(2)
    return model, texts


@pytest.mark.parametrize("shape, method, options", [
    ("tiny", "dense", {}), ("micro", "dense", {"recompute": True, "micro_batch": 3}), ("micro", "wsi", {"optimizer": "adamw"}),
    ("tiny", "wsi", {"recompute": True}), ("micro", "wasi", {"recompute": False, "micro_batch": 24}),
    ("tiny", "wasi", {"recompute": False, "micro_batch": 24}), ("tiny", "asi", {"recompute": False, "momentum": 0.0}),
    ("tiny", "qwasi", {"mode": "exact", "start": "whitened"}), ("micro", "qwasi", {"recompute": False, "micro_batch": 11}),
    ("micro", "wsi", {"clip_norm": None, "layerwise": True, "optimizer": "adamw"}), ("tiny", "qwasi", {"clip_norm": None}),
    ("micro", "qwasi", {"saved_bits": 8, "gradient_bits": 16, "state_bits": 16, "micro_batch": 8}),
    ("swin", "wasi", {"micro_batch": 12}), ("swin", "qwasi", {}), ("decoder", "wsi", {}),
    ("decoder", "qwasi", {"saved_bits": 16, "micro_batch": 24}), ("text-classifier", "wasi", {"clip_norm": None}),
    ("half-frozen", "qwasi", {"micro_batch": 12}), ("micro", "wasi", {"ema": 0.9}), ("resnet", "wsi", {"ema": 0.9}),
])
def test_planned_and_measured_peak_agree(shape, method, options):
    model, batches = make(shape)
    batch = batches(8)
    settings = {"method": method, "batch_size": 24, "target_modules": ("all",), **options}
    least = least_of(model, batch, settings)
    for budget in (least, int(1.3 * least)):
        plan = wasi.plan(model, [batch], budget, **settings)
        counted = counted_after_steps(plan.apply(make(shape)[0], [batch]), plan, batches(24, seed=1))
        assert plan.peak_bytes <= budget
        assert abs(counted - plan.peak_bytes) < 0.1 * counted
        # The step by itself, without the weights that are known exactly.
        step = counted - plan.peak_bytes + plan.saved_bytes + plan.scratch_bytes
        assert abs(counted - plan.peak_bytes) < 0.1 * step


def least_of(model, batch, settings):
    """The minimum that the error for an impossible budget names."""
    with pytest.raises(InfeasibleError, match=r"budget_bytes: 1.0 KiB is too little: the least .* is \S+ .iB") as caught:
        wasi.plan(model, [batch], "1KiB", **settings)
    return int(re.search(r"\((\d+) bytes\)", str(caught.value)).group(1))


@pytest.mark.parametrize("budget_share", [0.0, 0.3, 0.7, 1.0])
def test_ranks_are_those_of_brute_force(budget_share):
    """Every combination of three ranks in four layers, with the very prediction of each combination's peak."""
    from wasi.planning import planner

    model, batch, found = small_model(), batch_of(4), {}

    class Everything(planner.Probe):
        def step(self, *arguments):
            found["probe"] = self
            return super().step(*arguments)

    original, planner.Probe = planner.Probe, Everything
    try:
        settings = {"method": "wsi", "batch_size": 8, "micro_batch": 8, "recompute": False, "saved_bits": None,
                    "gradient_bits": 32, "state_bits": 32, "ranks": [2, 8, 20]}
        plans = {r: wasi.plan(model, [batch], 2**40, **{**settings, "ranks": [r]}) for r in settings["ranks"]}
        by_layer = [{r: plans[r].layers[i] for r in plans} for i in range(4)]
        rows = []
        for ranks in itertools.product(settings["ranks"], repeat=4):
            layers = [by_layer[i][r] for i, r in enumerate(ranks)]
            choices = {layer.name: planner.Choice(layer.rank, 0, None, None) for layer in layers}
            step = Everything.step(found["probe"], choices, Way(8)).peak
            held = sum(layer.weight_bytes + layer.gradient_bytes + layer.optimizer_bytes for layer in layers)
            rows.append((sum(layer.error**2 for layer in layers), held + step, ranks))
        others = plans[2].peak_bytes - rows[0][1]  # embedding, attention, head, images: the same in all
        peaks = sorted(row[1] + others for row in rows)
        budget = int(peaks[0] + budget_share * (peaks[-1] - peaks[0])) + 1
        best = min(error for error, held, _ in rows if held + others <= budget)
        plan = wasi.plan(model, [batch], budget, **settings)
        assert plan.peak_bytes <= budget
        assert sum(layer.error**2 for layer in plan.layers) <= best * 1.02 + 1e-12
    finally:
        planner.Probe = original


@pytest.mark.parametrize("shape", [(24, 16), (16, 24), (20, 20)])
@pytest.mark.parametrize("start", ["svd", "whitened"])
def test_weight_errors_are_their_definition(shape, start, rng):
    O, I = shape
    W = rng.standard_normal((O, I)).astype(np.float32)
    X = (rng.standard_normal((60, I)) * np.linspace(0.2, 2, I)).astype(np.float32)
    D = rng.standard_normal((60, O)).astype(np.float32)
    G = (rng.standard_normal((O, I)) * 3).astype(np.float32)
    gram = (X.T.astype(float) @ X) / 60
    smallest = min(O, I)
    found = weight_errors(W, G, X, D, start, lambda spectrum: [1, 5, 8, smallest], (0, 8), gram)
    L = linalg.truncated_svd(W)[0] if start == "svd" else linalg.whitened_svd(W, gram)[0]
    for K in (1, 5, 8, smallest):
        near = (L[:, :K] @ (L[:, :K].T @ W)).astype(float)
        Q = np.linalg.qr(near.T)[0][:, :K] if K < smallest else np.linalg.svd(near)[2][:K].T
        out = np.eye(O) - L[:, :K].astype(float) @ L[:, :K].T
        tangent = relative(out @ G @ (np.eye(I) - Q @ Q.T), G)
        want = (relative(X @ (W - near).T, X @ W.T) + relative(D @ (W - near), D @ W) + tangent) / 3
        assert found[K, 0] == pytest.approx(want, rel=1e-3, abs=1e-5)
        if K == 8:  # the middle one, where the residual is really quantised
            rest = (W - near).astype(np.float32)
            error = rest - ops.dequantize_residual(ops.quantize_residual(rest, 8))
            want = (relative(X @ error.T, X @ W.T) + relative(D @ error, D @ W) + tangent) / 3
            assert found[K, 8] == pytest.approx(want, rel=1e-2)
        assert found[K, 8] <= found[K, 0] + 1e-6


def relative(part, whole):
    return (np.asarray(part, float) ** 2).sum() / (np.asarray(whole, float) ** 2).sum()


def test_quantisation_errors_at_other_ranks_follow_the_middle_one(rng):
    W = (rng.standard_normal((64, 96)) * np.exp(-np.arange(96) / 30)).astype(np.float32)
    X, D = rng.standard_normal((200, 96)).astype(np.float32), rng.standard_normal((200, 64)).astype(np.float32)
    G = np.zeros((64, 96), np.float32)
    ranks = [4, 16, 32]
    for start, source in (("svd", None), ("gradient", rng.standard_normal((64, 96)).astype(np.float32))):
        found = weight_errors(W, G, X, D, start, lambda spectrum: ranks, (4,), source)
        for K in ranks:
            alone = weight_errors(W, G, X, D, start, lambda spectrum, K=K: [K], (4,), source)
            assert found[K, 4] == pytest.approx(alone[K, 4], rel=0.5)


def test_the_gradient_start_is_judged_by_another_gradient(rng):
    W, A, B = (rng.standard_normal((20, 30)).astype(np.float32) for _ in range(3))
    G = A + 0.3 * B
    X, D = rng.standard_normal((40, 30)).astype(np.float32), rng.standard_normal((40, 20)).astype(np.float32)
    found = weight_errors(W, G, X, D, "gradient", lambda spectrum: [3, 8], (8,), A)
    for K in (3, 8):
        U, s, Vt = np.linalg.svd(A.astype(float), full_matrices=False)
        tangent = relative((np.eye(20) - U[:, :K] @ U[:, :K].T) @ G @ (np.eye(30) - Vt[:K].T @ Vt[:K]), G)
        L, R, _ = gradient_factors(W, A, rank=K)
        rest = W - L @ R
        error = rest - ops.dequantize_residual(ops.quantize_residual(rest, 8))
        want = (relative(X @ error.T, X @ W.T) + relative(D @ error, D @ W) + tangent) / 3
        assert found[K, 8] == pytest.approx(want, rel=0.02)


@pytest.mark.parametrize("shape", [(4, 6, 10), (1, 5, 8), (4, 3, 2, 8), (2, 2, 2)])
def test_activation_errors_are_their_definition(shape, rng):
    x = rng.standard_normal(shape).astype(np.float32)
    x[..., : shape[-1] // 2] *= 5
    dy = rng.standard_normal((*shape[:-1], 7)).astype(np.float32)
    norm2, found = activation_errors(x, dy)
    exact = dy.reshape(-1, 7).T.astype(float) @ x.reshape(-1, shape[-1])
    assert norm2 == pytest.approx((exact**2).sum(), rel=1e-5)
    for (batch, tokens, channels), error in found.items():
        ranks = [max(1, round(s * d)) for s, d in zip([batch, *[tokens] * (len(shape) - 2)], shape)] + [channels]
        core, factors = linalg.tucker(x, ranks=ranks, method="hosvd")
        near = linalg.tucker_to_tensor(core, factors).reshape(-1, shape[-1])
        want = ((exact - dy.reshape(-1, 7).T.astype(float) @ near) ** 2).sum()
        assert error == pytest.approx(want, rel=1e-3, abs=1e-5 * norm2)


@pytest.mark.parametrize("window", [ops.Window(3, 1, 1), ops.Window(3, 2, 1)])
def test_activation_errors_of_convolutions_are_their_definition(window, rng):
    x = rng.standard_normal((4, 6, 5, 8)).astype(np.float32)
    x[..., :4] *= 5
    dy = rng.standard_normal((4, *window.grid(6, 5), 7)).astype(np.float32)

    def gradient(x):
        G = np.zeros((7, window.taps * 8), np.float32)
        ops.conv_backward(dy, np.ascontiguousarray(x), G, window, G, need_dx=False)
        return G.astype(float)

    norm2, found = activation_errors(x, dy, window)
    exact = gradient(x)
    assert norm2 == pytest.approx((exact**2).sum(), rel=1e-5)
    for (batch, tokens, channels), error in found.items():
        ranks = [max(1, round(s * d)) for s, d in zip((batch, tokens, tokens), x.shape)] + [channels]
        core, factors = linalg.tucker(x, ranks=ranks, method="hosvd")
        want = ((exact - gradient(linalg.tucker_to_tensor(core, factors))) ** 2).sum()
        assert error == pytest.approx(want, rel=1e-3, abs=1e-5 * norm2)


def test_planning_leaves_the_model_as_it_was():
    model = small_model()
    before = {name: (p.data.copy(), p.trainable) for name, p in model.named_parameters()}
    modules = dict(model.named_modules())
    wasi.plan(model, [batch_of(6)], 2**30, method="qwasi", batch_size=16)
    with pytest.raises(ValueError):
        wasi.plan(model, [batch_of(6)], 1, method="wasi")
    assert dict(model.named_modules()) == modules
    for name, p in model.named_parameters():
        assert (p.data == before[name][0]).all() and p.trainable == before[name][1] and p.grad is None
    assert all(module._saved is None for module in modules.values())


def test_the_same_call_gives_the_same_plan():
    plans = [wasi.plan(small_model(), [batch_of(8)], target_error=0.8, method="qwasi", batch_size=8) for _ in range(2)]
    assert plans[0] == plans[1]


def test_target_error_is_reached_with_fewer_bytes_the_larger_it_is():
    model, batches = small_model(), [batch_of(8), batch_of(8, seed=1)]
    least = wasi.plan(model, batches, 2**40, method="wasi", batch_size=16).error
    targets = [least * 1.05, least * 1.15, least * 1.3]
    plans = [wasi.plan(model, batches, target_error=e, method="wasi", batch_size=16) for e in targets]
    for plan, target in zip(plans, targets):
        assert plan.error <= target and (plan.micro_batch, plan.recompute) == (16, False)
    held = [sum(layer.bytes for layer in plan.layers) for plan in plans]
    assert held[0] > held[1] > held[2]
    both = wasi.plan(model, batches, plans[1].peak_bytes, target_error=targets[1], method="wasi", batch_size=16)
    assert both.error <= targets[1] and both.peak_bytes <= plans[1].peak_bytes
    with pytest.raises(InfeasibleError, match=r"target_error: 1e-06 is out of reach: the least error is 0\.\d+"):
        wasi.plan(model, batches, target_error=1e-6, method="wsi", batch_size=16, ranks=[1, 4])
    with pytest.raises(InfeasibleError, match=r"target_error: 0.001 is out of reach within .*iB"):
        wasi.plan(model, batches, plans[2].peak_bytes, target_error=0.001, method="wsi", batch_size=16)


def test_a_smaller_budget_costs_time_before_accuracy():
    """Micro-batches come first, recomputation later; the error never falls."""
    model, batch = small_model(), batch_of(8)
    settings = {"method": "wsi", "batch_size": 64}
    least = least_of(model, batch, settings)
    plans = [wasi.plan(model, [batch], int(least * f), **settings) for f in (50, 4, 2, 1.2, 1)]
    assert (plans[0].micro_batch, plans[0].recompute) == (64, False)
    assert [p.error for p in plans] == sorted(p.error for p in plans)
    assert plans[-1].micro_batch < 64


def test_exact_mode_compresses_nothing():
    model, batch = small_model(), batch_of(8)
    settings = {"method": "wasi", "batch_size": 32, "micro_batch": 32, "recompute": False}
    least = least_of(model, batch, settings)
    with pytest.raises(InfeasibleError):
        wasi.plan(model, [batch], least, mode="exact", **settings)
    assert any(layer.activation_ranks for layer in wasi.plan(model, [batch], least, **settings).layers)
    exact = wasi.plan(model, [batch], 2 * least, mode="exact", **settings)
    assert not any(layer.activation_ranks or layer.gelu_bits for layer in exact.layers)


def test_exact_mode_gives_exact_gradients():
    """In a plan whose budget is as small as can be, dense so that nothing else differs."""
    model, batch = small_model(), batch_of(8)
    settings = {"method": "dense", "batch_size": 8}
    plans = {mode: wasi.plan(model, [batch], least_of(model, batch, {"mode": mode, **settings}), mode=mode, **settings)
             for mode in ("exact", "approximate")}
    exact, approximate = plans["exact"], plans["approximate"]
    assert (exact.saved_bits, exact.gradient_bits, exact.state_bits) == (None, 32, 32) and exact.recompute
    assert approximate.peak_bytes < exact.peak_bytes and (approximate.gradient_bits, approximate.state_bits) == (16, 16)
    errors = {}
    for mode, plan in plans.items():
        gradients = []
        for planned in (plan, None):
            model = small_model() if planned is None else planned.apply(small_model())
            optimizer = Optimizer(model, gradient_bits=plan.gradient_bits if planned else 32)
            accumulate_gradient(model, *batch, planned and planned.micro_batch, after=optimizer.after_backward(0.1))
            gradients.append(np.concatenate([p.full_gradient().ravel() for _, p in model.named_parameters()]))
        errors[mode] = relative_error(*gradients)
    assert errors["exact"] < 1e-5 < errors["approximate"] < 0.05


def test_updates_layer_by_layer_are_planned_where_no_norm_is_asked_for():
    model, batch = small_model(), batch_of(8)
    settings = {"method": "wsi", "batch_size": 8, "micro_batch": 8, "mode": "exact"}
    budget = least_of(model, batch, {"clip_norm": None, **settings})
    plan = wasi.plan(model, [batch], budget, clip_norm=None, **settings)
    assert plan.layerwise and plan.gradient_bytes == 0 and all(layer.gradient_bytes == 0 for layer in plan.layers)
    assert plan.training == {"micro_batch": None, "gradient_bits": 32, "state_bits": 32, "layerwise": True, "ema": None}
    with pytest.raises(InfeasibleError):
        wasi.plan(model, [batch], budget, **settings)


def test_errors_of_keeping_few_bits_are_those_of_the_gradient():
    model, batch = small_model(), batch_of(8)
    names = ["blocks.0.attn.qkv", "blocks.1.mlp.fc1"]
    found = kept_errors(model, names, batch, {8, 16})
    assert all(block.policy == ActivationPolicy() for block in model.blocks)
    gradients = {}
    for bits in (None, 8, 16):
        model.zero_grad()
        model.set_policy(ActivationPolicy(saved_bits=bits))
        accumulate_gradient(model, *batch)
        gradients[bits] = {name: model.get_module(name).weight.grad.copy() for name in names}
    for bits in (8, 16):
        for name in names:
            want = relative_error(gradients[bits][name], gradients[None][name]) ** 2 / 3
            assert found[bits][name] == pytest.approx(want, rel=1e-3)
    assert 1e-8 < found[16][names[0]] < found[8][names[0]] < 1e-2


class Batches:
    """Twelve images a batch, and a last one of five."""

    classes = tuple("abcde")

    def __len__(self):
        return 4

    def __iter__(self):
        return iter([batch_of(12, seed=i) for i in range(3)] + [batch_of(5, seed=9)])


@pytest.mark.parametrize("ema", [None, 0.9])
def test_training_as_planned_prints_both_peaks_and_takes_a_smaller_last_batch(capsys, ema):
    model, batch = small_model(), batch_of(8)
    settings = {"method": "wasi", "batch_size": 12, "micro_batch": 12, "recompute": False, "ema": ema}
    plan = wasi.plan(model, [batch], least_of(model, batch, settings), **settings)
    assert any(layer.activation_ranks and layer.activation_ranks[0] < 1 for layer in plan.layers)
    plan.apply(model, [batch])
    result = train(model, Batches(), [batch_of(3)], TrainConfig(epochs=1, momentum=0.9, **plan.training),
                   progress=False, plan=plan)
    assert np.isfinite(result.epochs[0]["train_loss"]) and result.planned_peak_bytes == plan.peak_bytes
    images = 12 * 3 * 32 * 32
    assert (plan.average_bytes > 0) == (ema is not None)
    assert result.counted_peak_bytes - images == pytest.approx(plan.peak_bytes - plan.input_bytes, rel=0.1)
    assert re.search(r"after 3 steps: planned [\d.]+ MiB, measured [\d.]+ MiB in arrays \([+-][\d.]+ %\)",
                     capsys.readouterr().out)


def test_a_step_that_takes_far_more_than_planned_ends_with_an_error():
    model, batch = small_model(), batch_of(8)
    plan = wasi.plan(model, [batch], 2**30, method="wsi", batch_size=4, micro_batch=1)
    large = [batch_of(512, seed=1)]
    with pytest.raises(MemoryError):
        train(plan.apply(model, [batch]), large, large, TrainConfig(epochs=1), progress=False, plan=plan)


@pytest.mark.parametrize("change, error, message", [
    ({"budget_bytes": "64"}, ValueError, "budget_bytes: expected a number with a unit out of B, kB"),
    ({"budget_bytes": "64mip"}, ValueError, "such as '64MiB', got '64mip'"),
    ({"budget_bytes": "-1 MiB"}, ValueError, "budget_bytes"),
    ({"budget_bytes": 0}, ValueError, "budget_bytes: expected a positive whole number of bytes"),
    ({"budget_bytes": 64.5}, ValueError, "budget_bytes"),
    ({"budget_bytes": None}, ValueError, "budget_bytes, target_error: expected at least one"),
    ({"target_error": 0}, ValueError, "target_error: expected a number above 0, got 0"),
    ({"target_error": float("nan")}, ValueError, "target_error"),
    ({"method": "lora"}, ValueError, "method: expected one of dense, asi, wsi, wasi, qwasi, got 'lora'"),
    ({"mode": "fast"}, ValueError, "mode: expected one of approximate, exact, got 'fast'"),
    ({"optimizer": "adam"}, ValueError, "optimizer: expected one of sgd, adamw"),
    ({"batch_size": 0}, ValueError, "batch_size: expected a whole number from 1, got 0"),
    ({"micro_batch": 9}, ValueError, "micro_batch: expected 'auto' or 1 to batch_size 8, got 9"),
    ({"start": "gradient"}, ValueError, "start: expected one of None, svd, whitened, got 'gradient'"),
    ({"recompute": "yes"}, ValueError, "recompute: expected one of True, False, auto"),
    ({"target_modules": ("mpl",)}, ValueError, r"target_modules: \['mpl'\] match none"),
    ({"ranks": [4, 49]}, ValueError, r"ranks: expected whole numbers from 1 to 48 for blocks.0.mlp.fc1, got \[49\]"),
    ({"ranks": []}, ValueError, "ranks: expected"),
    ({"saved_bits": 4}, ValueError, "saved_bits: expected one of None, 16, 8, auto, got 4"),
    ({"gradient_bits": 8}, ValueError, "gradient_bits: expected one of 32, 16, auto, got 8"),
    ({"state_bits": 16, "mode": "exact"}, ValueError, "state_bits: expected 32 in mode 'exact', got 16"),
    ({"saved_bits": 8, "mode": "exact"}, ValueError, "saved_bits: expected None in mode 'exact', got 8"),
    ({"clip_norm": 0}, ValueError, "clip_norm: expected a positive norm or None, got 0"),
    ({"layerwise": True}, ValueError, "layerwise: expected clip_norm None, whole batches.*got clip_norm 1.0"),
    ({"layerwise": True, "clip_norm": None, "micro_batch": 4}, ValueError, "layerwise: .* micro_batch 4"),
    ({"batches": []}, ValueError, "batches: expected at least one calibration batch"),
    ({"batches": [batch_of(4)[0]]}, ValueError, r"batches\[0\]: expected \(images, labels\)"),
    ({"batches": [(batch_of(4)[0], [0, 1, 9, 0])]}, ValueError, "targets: expected classes 0 to 4"),
    ({"batches": [(np.full((2, 3, 32, 32), np.nan, np.float32), [0, 1])]}, ArithmeticError, "loss on the calibration batches"),
])
def test_bad_arguments_are_refused_by_name(change, error, message):
    arguments = {"batches": [batch_of(4)], "budget_bytes": "1GiB", "method": "wsi", "batch_size": 8, **change}
    with pytest.raises(error, match=message):
        wasi.plan(small_model(), **arguments)


def test_sizes_in_words():
    assert [parse_bytes(t) for t in ("64MiB", " 1.5 GiB", "2kB", "7 B", 12)] == [2**26, 3 * 2**29, 2000, 7, 12]


@pytest.fixture(scope="module")
def plan():
    return wasi.plan(small_model(), [batch_of(8)], "4MiB", method="qwasi", batch_size=16, target_modules=("all",))


def test_a_plan_survives_its_file(plan, tmp_path):
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == plan
    assert [p.name for p in tmp_path.iterdir()] == ["plan.json"]
    record = json.loads((tmp_path / "plan.json").read_text())
    assert record["layers"][0]["name"] == "blocks.0.attn.qkv" and record["peak_bytes"] == plan.peak_bytes


@pytest.mark.parametrize("version", [1, 2])
def test_plans_of_older_formats_are_read(tmp_path, version):
    plan = Plan.load(Path(__file__).parent / "fixtures" / f"plan-{version}.json")
    assert (plan.saved_bits, plan.gradient_bits, plan.state_bits, plan.layerwise, plan.ema) == (None, 32, 32, False, None)
    plan.apply(small_model(), [batch_of(8)])
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == plan


def test_table_and_figure_have_every_layer(plan, tmp_path):
    text = str(plan)
    assert all(layer.name in text for layer in plan.layers) and "peak" in text and "budget 4.0 MiB" in text
    plan.plot(tmp_path / "plan.png")
    assert (tmp_path / "plan.png").read_bytes().startswith(b"\x89PNG")


def test_planned_bytes_of_layers_are_those_of_the_layers(plan):
    model = plan.apply(small_model(), [batch_of(8)])
    for layer in plan.layers:
        module = model.get_module(layer.name)
        assert isinstance(module, FactoredLinear) and module.rank == layer.rank
        assert layer.weight_bytes == module.L.data.nbytes + module.R.data.nbytes + module.fixed_bytes
        assert (module.residual.bits if module.residual else 0) == layer.bits
    assert relative_error(model.training_flops(16, plan.optimizer, plan.micro_batch).total, plan.flops) < 1e-12


@pytest.mark.parametrize("change, message", [
    (lambda r: r.update(extra=1), "the plan: unknown keys 'extra'"),
    (lambda r: r.pop("method"), "the plan: missing keys 'method'"),
    (lambda r: r.update(method="magic"), "method: expected one of 'dense'"),
    (lambda r: r.update(format_version=4), "format_version 4 is newer than this package reads"),
    (lambda r: r.update(batch_size="16"), "batch_size: expected a whole number from 1 to 2147483647, got '16'"),
    (lambda r: r.update(batch_size=True), "batch_size"),
    (lambda r: r.update(batch_size=10**30), "batch_size"),
    (lambda r: r.update(micro_batch=17), "micro_batch: expected at most the batch of 16, got 17"),
    (lambda r: r.update(recompute=1), "recompute: expected one of False, True, got 1"),
    (lambda r: r.update(saved_bits=4), "saved_bits: expected one of None, 8, 16, got 4"),
    (lambda r: r.update(layerwise=True, micro_batch=4), "micro_batch: expected the batch of 16 where layers are updated one by"),
    (lambda r: r.update(start="cold"), "start: expected one of 'svd', 'whitened', 'gradient', got 'cold'"),
    (lambda r: r.update(method="wsi"), "start: expected 'svd' or 'whitened' for a method without residuals"),
    (lambda r: r.update(error=[1] * 1000), "error: expected a number from 0"),
    (lambda r: r.update(peak_bytes=1), "peak_bytes: expected the sum of its parts"),
    (lambda r: r.update(layers={}), "layers: expected a list"),
    (lambda r: r.update(layers=[3]), r"layers\[0\]: expected an object, got 3"),
    (lambda r: r["layers"][1].update(rang=3), r"layers\[1\]: unknown keys 'rang'"),
    (lambda r: r["layers"][1].update(rank=0), r"layers\[1\]: rank: expected a whole number from 1"),
    (lambda r: r["layers"][1].update(bits=5), r"layers\[1\]: bits: expected one of 0, 4, 8"),
    (lambda r: r["layers"][1].update(rank=None, bits=4), r"layers\[1\]: bits: expected 0 for a dense layer"),
    (lambda r: r["layers"][1].update(activation_ranks=[1, 2]), "three shares"),
    (lambda r: r["layers"][1].update(activation_ranks=[0.0, 1, 2]), "three shares"),
    (lambda r: r["layers"][1].update(gelu_bits=4), "gelu_bits: expected null"),
    (lambda r: r["layers"][1].update(name="x" * 300), "name: expected a name"),
])
def test_damaged_plans_are_refused_by_key(plan, tmp_path, change, message):
    path = tmp_path / "plan.json"
    plan.save(path)
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))
    with pytest.raises(PlanError, match=message) as caught:
        Plan.load(path)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("text, message", [
    ("", "is not JSON"), ("[" * 100000, "is not JSON"), ('{"error": NaN}', "NaN is not a number"), ("\xff\x00", "is not JSON"),
    ("3", "expected an object, got 3"), ('{"format_version": ' + "9" * 5000 + "}", "is not JSON"), (" " * (2**23 + 1), "at most"),
])
def test_files_that_are_no_plans_are_refused(tmp_path, text, message):
    (tmp_path / "plan.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(PlanError, match=message):
        Plan.load(tmp_path / "plan.json")
    with pytest.raises(FileNotFoundError, match="plan: expected a JSON file"):
        Plan.load(tmp_path / "none.json")


@pytest.mark.parametrize("change, message", [
    ({"depth": 3}, "another model: depth 2 where this one has 3"),
    ({"num_classes": 7, "img_size": 64}, "img_size 32 where this one has 64, num_classes 5 where this one has 7"),
])
def test_a_plan_for_another_model_is_refused(plan, change, message):
    other = small_model(**change)
    modules = dict(other.named_modules())
    with pytest.raises(PlanError, match=message):
        plan.apply(other)
    assert dict(other.named_modules()) == modules


def test_a_start_that_needs_batches_says_so(plan):
    assert plan.start == "gradient" and plan.calibration == 1
    with pytest.raises(PlanError, match="calibration: expected labelled batches for the start 'gradient', got none"):
        plan.apply(small_model())


@pytest.mark.parametrize("change, message", [
    (lambda layer: layer.update(name="blocks.7.mlp.fc1"), r"blocks.7.mlp.fc1.*match none"),
    (lambda layer: layer.update(name="fc1"), "expected each layer once"),
    (lambda layer: layer.update(out_features=9), "made for 9 x 48, this model's is 144 x 48"),
    (lambda layer: layer.update(rank=2**31 - 1), "rank: expected 1 to 48, got 2147483647"),
])
def test_layers_that_do_not_fit_the_model_are_refused(plan, tmp_path, change, message):
    plan.save(tmp_path / "plan.json")
    record = json.loads((tmp_path / "plan.json").read_text())
    change(record["layers"][0])
    (tmp_path / "plan.json").write_text(json.dumps(record))
    with pytest.raises(PlanError, match=message):
        Plan.load(tmp_path / "plan.json").apply(small_model())


WORDS = ["--model", "vit_micro_patch8_64", "--img-size", "16", "--limit", "64", "--limit-val", "16"]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The folder of the command's plan of a small budget for few of the shipped images."""
    folder = tmp_path_factory.mktemp("plan")
    assert main(["plan", "--budget", "24MiB", "--method", "wasi", "--batch-size", "16", "--plot", str(folder / "plan.png"),
                 "--out", str(folder / "plan.json"), *WORDS]) == 0
    return folder


@pytest.fixture
def planned(written, tmp_path, monkeypatch):
    """Runs a test where `plan.json` and `plan.png` are."""
    monkeypatch.chdir(tmp_path)
    for path in written.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return WORDS


def test_the_command_plans_and_trains_as_planned(planned, tmp_path, capfd):
    assert (tmp_path / "plan.png").stat().st_size > 1000
    assert main(["train", "--plan", "plan.json", "--epochs", "1", "--quiet", "--out", "run", *planned]) == 0
    text = capfd.readouterr().out
    line = re.search(r"after 3 steps: planned ([\d.]+) MiB, measured ([\d.]+) MiB", text)
    assert float(line.group(2)) == pytest.approx(float(line.group(1)), rel=0.1)
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["planned_peak_bytes"] == Plan.load("plan.json").peak_bytes
    assert Plan.load(tmp_path / "run" / "plan.json") == Plan.load("plan.json")


@pytest.mark.parametrize("words, message", [
    (["--start", "svd"], "--start: the plan decides this"),
    (["--calibration", "0"], "--calibration: the plan decides this"),
    (["--rank", "4"], "--rank: the plan decides this; give --plan or this option, not both"),
    (["--variance", "0.5"], "--variance: the plan decides this"),
    (["--targets", "all"], "--targets: the plan decides this"),
    (["--batch-size", "32"], "--batch-size: the plan was made for 16, got 32"),
    (["--optimizer", "sgd"], "--optimizer: the plan was made for adamw, got sgd"),
    (["--ema", "0.9"], "--ema: the plan was made for None, got 0.9"),
    (["--freeze", "pos_embed"], "plan: made for another model: n_frozen 0 where this one has 640"),
    (["--layerwise"], "--layerwise: the plan was made for False, got True"),
    (["--saved-bits", "8"], "--saved-bits: the plan decides this"),
    (["--method", "wsi"], "--method: the plan was made for wasi, got wsi"),
    (["--img-size", "24"], "plan: made for another model: img_size 16 where this one has 24"),
    (["--plan", "none.json"], "plan: expected a JSON file, got 'none.json'"),
])
def test_options_that_contradict_the_plan_are_refused(planned, words, message, capfd):
    assert main(["train", "--plan", "plan.json", "--out", "run", *planned, *words]) == 2
    error = capfd.readouterr().err
    assert message in error and error.count("\n") == 1


@pytest.mark.parametrize("words", [
    ["--task", "lm", "--data", "text.txt", "--clip", "0"],
    ["--task", "text-classification", "--data", "sentences", "--last-layers", "2"],
], ids=["lm", "text-classification"])
def test_the_command_plans_and_trains_decoders(tmp_path, monkeypatch, capfd, words):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    lines = ["".join(rng.choice(list("abcde "), rng.integers(4, 24))) + "x" for _ in range(200)]
    Path("text.txt").write_text("\n".join(lines))
    Path("sentences").mkdir()
    for split, part in (("train", lines[:150]), ("dev", lines[150:])):
        Path("sentences", f"{split}.tsv").write_text("".join(f"{line}\t{'ab'[len(line) % 2]}\n" for line in part))
    common = ["--length", "24", "--limit", "32", "--limit-val", "8", *words]
    plan = ["--method", "wsi", "--targets", "all", "--batch-size", "8", "--calibration", "1"]
    assert main(["plan", "--target-error", "2", *plan, *common]) == 0  # what is planned for where bytes are plenty
    assert main(["plan", "--budget", f"{round(0.8 * Plan.load('plan.json').peak_bytes)} B", *plan, *common]) == 0
    capfd.readouterr()
    clip = ["--clip", "0"] if "--clip" in words else []
    trained = [w for w in common if w not in clip]
    assert main(["train", "--plan", "plan.json", "--epochs", "1", "--quiet", "--out", "run", *trained]) == 0
    line = re.search(r"after 3 steps: planned ([\d.]+) MiB, measured ([\d.]+) MiB", capfd.readouterr().out)
    assert float(line.group(2)) == pytest.approx(float(line.group(1)), rel=0.1)
    config = json.loads(Path("run/config.json").read_text())
    assert {k: config[k] for k in Plan.load("plan.json").training} == Plan.load("plan.json").training


def test_the_command_names_the_minimum(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    assert main(["plan", "--budget", "100kB", "--model", "vit_micro_patch8_64", "--img-size", "16", "--limit", "32"]) == 2
    assert "the least for this model, method and batch is" in capfd.readouterr().err
    assert not (tmp_path / "plan.json").exists()


@pytest.mark.parametrize("words, message", [
    ([], "--budget, --target-error: expected at least one of them"),
    (["--budget", "much"], "--budget: expected a number with a unit"),
    (["--budget", "1GiB", "--out", "no/plan.json"], "--out: expected a file in a folder that exists, got 'no/plan.json'"),
    (["--budget", "1GiB", "--plot", "no/plan.png"], "--plot: expected a file in a folder that exists, got 'no/plan.png'"),
])
def test_the_commands_options_are_checked_before_anything_is_opened(tmp_path, monkeypatch, capfd, words, message):
    monkeypatch.chdir(tmp_path)
    assert main(["plan", "--data", "nowhere", *words]) == 2
    assert capfd.readouterr().err.startswith(f"wasi plan: {message}")
