"""The average of weights in factors is the average of the weights, to what truncation drops."""

import importlib

import numpy as np
import pytest
from tables import relative_error
from test_training import Batches, small_model

import wasi
from wasi import linalg
from wasi.models.methods import METHODS, MethodOptions, apply_method
from wasi.training.ema import Snapshot, WeightAverage
from wasi.training.optimizer import Optimizer
from wasi.training.step import accumulate_gradient

wsi_mean_module = importlib.import_module("wasi.linalg.wsi_mean")


def factors(rng, O, I, K, dtype):
    return rng.standard_normal((O, K)).astype(dtype), rng.standard_normal((K, I)).astype(dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("O, I, K0, K", [(30, 20, 4, 4), (20, 30, 4, 7), (9, 40, 6, 6), (40, 9, 6, 2), (1, 1, 1, 1),
                                         (8, 8, 8, 8)])
def test_wsi_mean_is_the_best_approximation(rng, O, I, K0, K, dtype):
    old, new = factors(rng, O, I, K0, dtype), factors(rng, O, I, K, dtype)
    copies = [a.copy() for a in (*old, *new)]
    L, R, dropped = linalg.wsi_mean(*old, *new, 0.7)
    want = 0.7 * old[0].astype(float) @ old[1] + 0.3 * new[0].astype(float) @ new[1]
    U, s, Vt = np.linalg.svd(want)
    best = (U[:, : len(s)] * np.where(np.arange(len(s)) < K, s, 0)) @ Vt[: len(s)]
    assert L.shape == (O, K) and R.shape == (K, I) and L.dtype == R.dtype == dtype and L.flags.c_contiguous
    assert relative_error(L.astype(float) @ R, best) < (1e-6 if dtype == np.float32 else 1e-12)
    assert np.abs(L.T @ L - np.eye(K)).max() < 1e-5
    assert dropped == pytest.approx(np.sqrt((s[K:] ** 2).sum()), abs=1e-6)
    assert all(np.array_equal(a, b) for a, b in zip((*old, *new), copies))


def test_wsi_mean_of_equal_weights_and_of_zeros(rng):
    L, R = factors(rng, 12, 10, 3, np.float32)
    mean_L, mean_R, dropped = linalg.wsi_mean(L, R, 2 * L, R / 2, 0.9)  # another gauge of the same weight
    assert relative_error(mean_L @ mean_R, L @ R) < 1e-6 and dropped < 1e-4
    mean_L, mean_R, _ = linalg.wsi_mean(L, 0 * R, L, 0 * R, 0.9)
    assert not (mean_L @ mean_R).any() and np.abs(mean_L.T @ mean_L - np.eye(3)).max() < 1e-5


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_one_iteration_is_as_good_as_the_best_where_the_weight_moved_little(rng, monkeypatch, dtype):
    """Five hundred updates of a weight that walks: within the bound of the exact mean, which is near the truncation's error."""
    monkeypatch.setattr(wsi_mean_module, "_truncate", None)  # it must not be needed
    L, R = linalg.orthonormalize(rng.standard_normal((30, 4)).astype(dtype)), rng.standard_normal((4, 25)).astype(dtype)
    mean_L, mean_R, exact, bound = L, R, L.astype(float) @ R, 0.0
    for _ in range(500):
        L = linalg.orthonormalize(np.ascontiguousarray(L + 3e-3 * rng.standard_normal(L.shape), dtype))
        R = (R + 3e-3 * rng.standard_normal(R.shape)).astype(dtype)
        mean_L, mean_R, dropped = linalg.wsi_mean(mean_L, mean_R, L, R, 0.98)
        exact, bound = 0.98 * exact + 0.02 * L.astype(float) @ R, 0.98 * bound + dropped
    error = np.linalg.norm(mean_L.astype(float) @ mean_R - exact)
    tail = np.linalg.svd(exact)[1][4:]
    assert error <= bound + 1e-5 and np.linalg.norm(tail) <= error < 2 * np.linalg.norm(tail)
    assert np.abs(mean_L.T @ mean_L - np.eye(4)).max() < 1e-6


def merged(model):
    """{name: every trained weight as the dense weight that it stands for}"""
    layers = {n: m.merged_weight().astype(float) for n, m in model.named_modules() if hasattr(m, "merged_weight")}
    return {**layers, **{n: p.data.astype(float) for n, p in model.named_parameters()
                         if p.trainable and n.rpartition(".")[0] not in layers}}


@pytest.mark.parametrize("method", [m for m in METHODS if m not in ("asi", "amc", "wasi", "svd-llm-lora")])
def test_the_average_is_that_of_the_merged_weights(method):
    """Thirty steps. Of svd-llm-lora each factor is averaged as a weight of its own, so the product is not the product's mean."""
    calibration = list(Batches(1)) if method == "svd-llm" else None
    model = apply_method(small_model(), method, MethodOptions(("all",), rank=8), calibration, verbose=False)
    optimizer, average, exact = Optimizer(model, "sgd", momentum=0.9, clip_norm=1.0), WeightAverage(model, 0.9), merged(model)
    for n, (images, labels) in enumerate(Batches(30)):
        accumulate_gradient(model, images, labels)
        optimizer.step(0.05)
        average.update()
        d = min(0.9, (1 + n) / (10 + n))
        exact = {name: d * mean + (1 - d) * now for (name, mean), now in zip(exact.items(), merged(model).values(), strict=True)}
    last, held = merged(model), [p.data for _, p in model.named_parameters()]
    with average.applied():
        got = merged(model)
    assert all(p.data is data for (_, p), data in zip(model.named_parameters(), held))
    moved = 0
    for name, want in exact.items():
        error = np.linalg.norm(got[name] - want)
        assert error <= average.bounds.get(name, 0) + 1e-5 * np.linalg.norm(want), name
        moved = max(moved, np.linalg.norm(last[name] - want) / max(1e-9, error))
    assert moved > 20  # how much nearer the average is to the exact one than the last weight, in a layer


def test_the_average_follows_ranks_and_comes_back(rng):
    model = apply_method(small_model(), "wsi", MethodOptions(("mlp",), rank=8), verbose=False)
    optimizer, average = Optimizer(model, "sgd"), WeightAverage(model, 0.99)
    name = "blocks.0.mlp.fc1"
    optimizer.shrink(name, 5)
    assert average.state_dict()[0][f"L.{name}"].shape == (128, 8)
    other = WeightAverage(small_model(), 0.99)
    with pytest.raises(ValueError, match=f"ema: .*L.{name}: unknown"):
        other.load_state_dict(*average.state_dict())
    average.update()
    assert average.state_dict()[0][f"L.{name}"].shape == (128, 5)
    again = WeightAverage(model, 0.99)
    again.load_state_dict(*average.state_dict())
    assert again.n_updates == 1 and again.bounds == average.bounds and again.nbytes == average.nbytes
    with average.applied(), pytest.raises(RuntimeError, match="within"):
        raise RuntimeError("within")
    assert model.get_module(name).rank == 5


def test_only_scratch_lies_in_the_arena():
    model, arena = apply_method(small_model(), "wsi", MethodOptions(("mlp",), rank=8), verbose=False), wasi.Arena()
    optimizer, average = Optimizer(model, "sgd"), WeightAverage(model, 0.99)
    average.update(arena)
    assert arena.stats()["n_blocks"] == 0 and arena.stats()["peak_bytes"] > 8 * 8 * (128 + 64)  # factors in float64
    optimizer.shrink("blocks.0.mlp.fc1", 5)
    average.update(arena)
    assert arena.stats()["n_blocks"] == 0 and average.state_dict()[0]["L.blocks.0.mlp.fc1"].shape == (128, 5)


def test_a_snapshot_gives_the_weights_back():
    model = apply_method(small_model(), "wsi-dense", MethodOptions(("mlp",), rank=8), verbose=False)
    images, labels = next(iter(Batches(1)))
    before, optimizer, snapshot = model.forward(images), Optimizer(model), Snapshot(model)
    accumulate_gradient(model, images, labels)
    optimizer.step(0.1)
    assert not np.array_equal(model.forward(images), before)
    snapshot.restore(model)
    assert np.array_equal(model.forward(images), before)
