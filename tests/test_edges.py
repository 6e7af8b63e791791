"""What numbers can do to a run: NaN and Inf anywhere, spectra without gaps, steps that are too large. An error of a known
type, or the right result; never a hang, never a wrong number in silence."""

import time

import numpy as np
import pytest
from test_training import Batches, small_model

import wasi
from wasi import linalg, ops
from wasi.models.methods import METHODS, MethodOptions, apply_method
from wasi.training.checkpoint import list_checkpoints
from wasi.training.loop import TrainConfig, train
from wasi.training.optimizer import Optimizer
from wasi.training.runlog import RunFolder, read_csv
from wasi.training.step import accumulate_gradient

BAD = (np.nan, np.inf, -np.inf)


def model_by(method):
    calibration = list(Batches(1)) if method.startswith("svd-llm") else None
    return apply_method(small_model(), method, MethodOptions(("all",), rank=8, lora_rank=2), calibration, verbose=False)


# ---- NaN and Inf -----------------------------------------------------------------------------------------------------------

DECOMPOSITIONS = {
    "truncated_svd": lambda A: linalg.truncated_svd(A, rank=2),
    "randomized_svd": lambda A: linalg.randomized_svd(A, rank=2),
    "adaptive_svd": lambda A: linalg.adaptive_svd(A, variance=0.9),
    "subspace_svd": lambda A: linalg.subspace_svd(A, 2),
    "orthonormalize": lambda A: linalg.orthonormalize(A),
    "tucker": lambda A: linalg.tucker(A, ranks=(2, 2)),
    "asi_step": lambda A: linalg.asi_step(A, linalg.asi_factors(A.shape, (2, 2), A.dtype)),
    "whitened_svd": lambda A: linalg.whitened_svd(A, np.eye(A.shape[1]), rank=2),
    "wsi_rank": lambda A: linalg.truncated_svd(A, variance=0.9),
}


@pytest.mark.parametrize("name", DECOMPOSITIONS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(3, 3), (40, 7), (130, 100)])
def test_decompositions_refuse_nan_and_inf_at_once(rng, name, dtype, shape):
    for bad in BAD:
        A = rng.standard_normal(shape).astype(dtype)
        A[tuple(rng.integers(0, shape))] = bad
        began = time.thread_time()
        with pytest.raises(ArithmeticError, match="NaN or Inf"):
            DECOMPOSITIONS[name](A)
        assert time.thread_time() - began < 1


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("bad", BAD)
def test_a_bad_number_in_weights_or_images_ends_the_step_by_its_name(rng, method, bad):
    """Whatever the method, wherever the number: ArithmeticError, and the weights are not touched by what it made."""
    images, labels = next(iter(Batches(1)))
    images = rng.standard_normal(images.shape, dtype=np.float32)
    for place in ("images", "weight", "head"):
        model = model_by(method)
        optimizer, x = Optimizer(model, "adamw"), images.copy()
        if place == "images":
            x[1, 1, 3, 4] = bad
        elif place == "head":
            model.head.weight.data[0, 0] = bad
        else:
            next(p for name, p in model.named_parameters() if "blocks.0.mlp.fc1" in name and p.data.ndim == 2).data[0, 0] = bad
        before = {name: p.data.copy() for name, p in model.named_parameters()}
        with pytest.raises(ArithmeticError):
            accumulate_gradient(model, x, labels)
            optimizer.step(0.01)
        if place != "weight" or method not in ("wsi-dense", "svd"):  # which read that weight after the update alone
            for name, p in model.named_parameters():
                assert np.array_equal(p.data, before[name], equal_nan=True), name
        model.drop_saved()
        model.zero_grad()


@pytest.mark.parametrize("method", ["dense", "wsi", "wasi", "qwasi"])
def test_a_bad_gradient_ends_the_step_before_anything_is_updated(method):
    model = model_by(method)
    optimizer = Optimizer(model, "adamw")
    names = [name for name, p in model.named_parameters() if p.trainable]
    for bad_name in names[:: max(1, len(names) // 6)]:
        accumulate_gradient(model, *next(iter(Batches(1))))
        parameter = dict(model.named_parameters())[bad_name]
        parameter.grad.reshape(-1)[0] = np.nan
        before = {name: p.data.copy() for name, p in model.named_parameters()}
        with pytest.raises(ArithmeticError):
            optimizer.step(0.01)
        assert all(np.array_equal(p.data, before[name]) for name, p in model.named_parameters()), bad_name
        model.zero_grad()
    accumulate_gradient(model, *next(iter(Batches(1))))
    assert np.isfinite(optimizer.step(0.01))


# ---- spectra ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["zero", "identity", "repeated", "rank one", "denormal", "huge", "graded"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_spectra_without_gaps(rng, name, dtype):
    Q, _ = np.linalg.qr(rng.standard_normal((30, 30)))
    P, _ = np.linalg.qr(rng.standard_normal((20, 20)))
    s = {"zero": np.zeros(20), "identity": np.ones(20), "repeated": np.repeat([3.0, 2, 1, 0], 5), "rank one": np.eye(20)[0],
         "denormal": np.full(20, 1e-38), "huge": np.full(20, 1e18), "graded": 10.0 ** -np.arange(20)}[name]
    A = np.ascontiguousarray((Q[:, :20] * s) @ P.T, dtype)
    for U, S, Vt in (linalg.truncated_svd(A, rank=7), linalg.randomized_svd(A, rank=7), linalg.subspace_svd(A, 7, n_iter=4)):
        assert all(np.isfinite(a).all() for a in (U, S, Vt)) and (np.diff(S) <= 0).all() and (S >= 0).all()
        assert np.abs(U.T.astype(float) @ U - np.eye(7)).max() < (1e-5 if dtype == np.float32 else 1e-12)
        error, best = np.linalg.norm(A.astype(float) - (U.astype(float) * S) @ Vt), np.linalg.norm(s[7:])
        assert error <= 1.1 * best + (1e-5 if dtype == np.float32 else 1e-12) * np.linalg.norm(s)


def test_all_of_the_variance_is_the_full_rank(rng):
    model = small_model()
    images = rng.integers(0, 256, (4, 3, 16, 16), np.uint8)
    want = model.forward(images)
    apply_method(model, "wsi", MethodOptions(("mlp",), variance=1.0), verbose=False)
    assert [layer.rank for name, layer in model.named_modules() if name.endswith("fc1")] == [32, 32]
    assert np.abs(model.forward(images) - want).max() < 1e-4
    train(model, Batches(2), Batches(1), TrainConfig(epochs=1, lr=0.01), progress=False)


def test_a_weight_of_zeros_or_of_rank_one_is_factored_and_named_where_it_cannot_be_trained():
    for fill in (0.0, 0.01):
        model = small_model()
        model.blocks[0].mlp.fc1.weight.data[:] = fill
        try:
            apply_method(model, "wsi", MethodOptions(("mlp",), rank=4), verbose=False)
            train(model, Batches(2), Batches(1), TrainConfig(epochs=1, lr=0.01), progress=False)
        except ArithmeticError as error:
            assert "blocks.0.mlp.fc1" in str(error)
            continue
        assert all(np.isfinite(p.data).all() for _, p in model.named_parameters())


# ---- runs that go wrong ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("lr", [1e4, 1e38])
def test_a_step_far_too_large_ends_by_its_name_with_the_checkpoint_before_it_whole(tmp_path, method, lr):
    """SGD without clipping: the loss overflows, or a rank collapses; the log has the steps before."""
    folder = RunFolder(tmp_path / "run")
    folder.write_json("config.json", {})
    config = TrainConfig(epochs=6, lr=lr, clip_norm=None, momentum=0.9, checkpoint_every=1, schedule="constant")
    try:
        result = train(model_by(method), Batches(4), Batches(1), config, folder, progress=False)
    except ArithmeticError as error:
        assert "step " in str(error) and "lr " in str(error)
        rows = read_csv(folder.path / "steps.csv")
        assert all(np.isfinite(float(row["loss"])) for row in rows) and set(list_checkpoints(folder.path)) <= {*range(25)}
    else:  # a network that has saturated may have a finite loss
        assert all(np.isfinite(epoch["train_loss"]) for epoch in result.epochs)


def test_logits_at_the_end_of_float32_have_the_right_loss():
    logits = np.array([[3e38, -3e38, 0], [-3e38, -3e38, -3e38], [1e38, 1e38, 1e38]], np.float32)
    loss, dlogits, _ = ops.cross_entropy(logits, np.array([0, 1, 2]))
    assert np.isclose(loss, 2 * np.log(3) / 3) and np.isfinite(dlogits).all()


# ---- ten thousand steps ----------------------------------------------------------------------------------------------------


def test_ten_thousand_steps_keep_every_basis_orthonormal_and_follow_float64(rng):
    """WSI's L and ASI's U_n stay orthonormal to 2e-6; float32 and its float64 twin end within 1e-3 of each other."""
    O, I, K = 24, 20, 4
    target = rng.standard_normal((O, 3)) @ rng.standard_normal((3, I)) + 0.1 * rng.standard_normal((O, I))
    A = rng.standard_normal((8, 6, 10))
    worst, losses = {}, {}
    for dtype in (np.float32, np.float64):
        U, S, Vt = np.linalg.svd(np.random.default_rng(1).standard_normal((O, I)))
        L, R = np.ascontiguousarray(U[:, :K], dtype), np.ascontiguousarray(S[:K, None] * Vt[:K], dtype)
        state = linalg.WsiState(O, I, K, "momentum", dtype)
        factors, tensor, noise = linalg.asi_factors(A.shape, (3, 2, 4), dtype), A.astype(dtype), np.random.default_rng(2)
        worst[dtype] = 0.0
        for step in range(10_000):
            G = L @ R - target.astype(dtype)
            linalg.wsi_step(L, R, G @ R.T, L.T @ G, 0.002, state=state)
            if step % 10 == 0:
                tensor += (0.01 * noise.standard_normal(A.shape)).astype(dtype)
                linalg.asi_step(tensor, factors)
                for basis in (L, *factors):
                    gram = basis.T.astype(np.float64) @ basis
                    worst[dtype] = max(worst[dtype], np.abs(gram - np.eye(len(gram))).max())
        losses[dtype] = np.linalg.norm(L @ R - target)
    assert worst[np.float32] < 2e-6 and worst[np.float64] < 1e-13
    assert abs(losses[np.float32] / losses[np.float64] - 1) < 1e-3
    best = np.linalg.norm(np.linalg.svd(target)[1][K:])
    assert losses[np.float64] < 1.01 * best


def test_float32_training_follows_its_float64_twin():
    """Two hundred updates of a two-layer network with a factored first layer, by the core's arithmetic in both types."""
    def run(dtype):
        rng = np.random.default_rng(0)
        x, y = rng.standard_normal((64, 12)).astype(dtype), rng.standard_normal((64, 3)).astype(dtype)
        W1, W2 = (rng.standard_normal(s) / 4 for s in ((16, 12), (3, 16)))
        U, S, Vt = np.linalg.svd(W1)
        L, R, W2 = np.ascontiguousarray(U[:, :6], dtype), np.ascontiguousarray(S[:6, None] * Vt[:6], dtype), W2.astype(dtype)
        state, losses = linalg.WsiState(16, 12, 6, "adamw", dtype), []
        for _ in range(200):
            z = x @ R.T
            h = np.maximum(z @ L.T, 0)
            error = (h @ W2.T - y) / dtype(len(x))
            losses.append(float((error**2).sum()) * len(x))
            gh = (error @ W2) * (h > 0)
            W2 = W2 - dtype(0.1) * (error.T @ h)
            linalg.wsi_step(L, R, np.ascontiguousarray(gh.T @ z), np.ascontiguousarray((gh @ L).T @ x), 0.003, state=state)
        return np.array(losses)

    narrow, wide = run(np.float32), run(np.float64)
    assert np.abs(narrow / wide - 1).max() < 1e-3 and narrow[-1] < 0.9 * narrow[0]


def test_model_that_was_saved_before_a_failure_is_what_it_was(tmp_path):
    model = model_by("wasi")
    wasi.save_model(model, tmp_path / "a.safetensors")
    dict(model.named_parameters())["head.weight"].data[0, 0] = np.nan
    wasi.save_model(model, tmp_path / "b.safetensors")
    wasi.load_model(tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="head.weight.*NaN or Inf"):
        wasi.load_model(tmp_path / "b.safetensors")
