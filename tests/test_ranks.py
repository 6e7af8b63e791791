"""Changes of rank between steps, and the policy that asks for them."""

import numpy as np
import pytest
from tables import relative_error
from test_training import Batches, small_model

import wasi
from wasi import linalg
from wasi.layers import FactoredLinear
from wasi.models.methods import MethodOptions, apply_method
from wasi.reference import wsi as ref
from wasi.training.loop import TrainConfig, train
from wasi.training.optimizer import Optimizer
from wasi.training.ranks import RankAdaptation, RankController, _Votes, explained_variance
from wasi.training.runlog import RunFolder, read_csv
from wasi.training.step import accumulate_gradient

O, I, K = 30, 44, 8
OPTIMIZERS = ["sgd", "momentum", "adamw"]


def factors(rng, dtype=np.float64, condition=20.0):
    L = ref.orth(rng.standard_normal((O, K)))
    return L.astype(dtype), (np.geomspace(1, 1 / condition, K)[:, None] * rng.standard_normal((K, I))).astype(dtype)


def thin(L, R, G):
    return np.ascontiguousarray(G @ R.T), np.ascontiguousarray(L.T @ G)


def warm(rng, optimizer, dtype=np.float64):
    """Factors and a state that a few steps have filled."""
    L, R = factors(rng, dtype)
    state = linalg.WsiState(O, I, K, optimizer, dtype)
    for _ in range(3):
        linalg.wsi_step(L, R, *thin(L, R, rng.standard_normal((O, I)).astype(dtype)), 0.01, state=state)
    return L, R, state


def tangent(L, R, state):
    """The first moment as a dense tangent vector."""
    return L @ state.arrays["mA"] + state.arrays["mB"] @ ref.row_basis(R)


@pytest.mark.parametrize("dtype, tolerance", [(np.float32, 2e-6), (np.float64, 1e-12)])
@pytest.mark.parametrize("rank", [1, 5, K])
def test_truncation_is_the_best_approximation(rng, dtype, tolerance, rank):
    L, R = factors(rng, dtype)
    new_L, new_R = linalg.wsi_truncate(L, R, rank)
    U, s, Vt = np.linalg.svd(L.astype(float) @ R, full_matrices=False)
    assert relative_error(new_L.astype(float) @ new_R, (U[:, :rank] * s[:rank]) @ Vt[:rank]) < tolerance
    assert np.abs(new_L.T @ new_L - np.eye(rank)).max() < tolerance and new_L.dtype == new_R.dtype == dtype


@pytest.mark.parametrize("optimizer", ["momentum", "adamw"])
def test_truncation_projects_the_first_moment(rng, optimizer):
    L, R, state = warm(rng, optimizer)
    before = tangent(L, R, state)
    new_L, new_R = linalg.wsi_truncate(L, R, 5, state)
    assert relative_error(tangent(new_L, new_R, state), ref.project(new_L, ref.row_basis(new_R), before)) < 1e-12
    assert np.abs(new_L.T @ state.arrays["mB"]).max() < 1e-12
    assert {n: a.shape for n, a in state.arrays.items()} == linalg.wsi_state_shapes(O, I, 5, optimizer)
    if optimizer == "adamw":
        assert all((state.arrays[name] >= 0).all() for name in ("vA", "vB"))
    linalg.wsi_step(new_L, new_R, *thin(new_L, new_R, before), 0.01, state=state)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_growth_leaves_the_weight_and_the_moments_alone(rng, optimizer):
    L, R, state = warm(rng, optimizer)
    W, moments = L @ R, {n: a.copy() for n, a in state.arrays.items()}
    new_L, new_R = linalg.wsi_extend(L, R, rng.standard_normal((O, 3)), state)
    assert np.array_equal(new_L[:, :K], L) and np.array_equal(new_R[:K], R) and not new_R[K:].any()
    assert relative_error(new_L @ new_R, W) < 1e-15
    assert np.abs(new_L.T @ new_L - np.eye(K + 3)).max() < 1e-12
    for name, old in moments.items():
        new = state.arrays[name] if name.endswith("A") else state.arrays[name].T
        old = old if name.endswith("A") else old.T
        assert np.array_equal(new[:K], old)
        assert np.allclose(new[K:], old.mean(0) if name.startswith("v") else 0)
    assert {n: a.shape for n, a in state.arrays.items()} == linalg.wsi_state_shapes(O, I, K + 3, optimizer)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_first_step_after_growth_against_the_dense_form(rng, optimizer):
    L, R, state = warm(rng, optimizer)
    moment = tangent(L, R, state) if state.arrays else None
    L, R = linalg.wsi_extend(L, R, rng.standard_normal((O, 2)), state)
    l, r, u = L[:, :K].copy(), R[:K].copy(), L[:, K:].copy()
    G = rng.standard_normal((O, I))
    dL, dR = thin(L, R, G)
    norm2, T = linalg.wsi_extended_norm2(L, R, dL, dR, 2)
    Q = ref.row_basis(r)
    own = u.T @ G - u.T @ G @ Q.T @ Q
    tangent_gradient = ref.project(l, Q, G) + u @ own
    assert norm2 == pytest.approx(np.linalg.norm(tangent_gradient) ** 2)
    old_arrays = {n: a.copy() for n, a in state.arrays.items()}
    linalg.wsi_step_extended(L, R, dL, dR, 0.01, 0.5, 0.1, state, T=T)
    g = 0.5 * own
    if optimizer == "adamw":
        cut = tuple(old_arrays[n][:K] if n.endswith("A") else old_arrays[n][:, :K] for n in ("mA", "mB", "vA", "vB"))
        l1, r1, _ = ref.step_adamw(l, r, G, cut, 4, 0.01, 0.5, 0.1)
        m, v = 0.1 * g, 0.999 * old_arrays["vA"][K:] + 0.001 * g**2
        step = m / (1 - 0.9**4) / (np.sqrt(v / (1 - 0.999**4)) + 1e-8)
    else:
        l1, r1, moment = ref.step(l, r, G, 0.01, 0.5, 0.1, moment)
        m = step = g
    u1 = ref.orth(np.hstack([l1, u]))[:, K:]
    u1 *= np.sign((u1 * L[:, K:]).sum(0))
    assert relative_error(L @ R, l1 @ r1 - 0.01 * u1 @ step) < 1e-10
    assert np.abs(L.T @ L - np.eye(K + 2)).max() < 1e-12
    assert state.n_new == 0 and state.n_steps == 4
    if optimizer == "momentum":
        want = ref.project(L, ref.row_basis(R), moment) + u1 @ m
        assert relative_error(tangent(L, R, state), want) < 1e-10
        assert np.abs(L.T @ state.arrays["mB"]).max() < 1e-12
    linalg.wsi_step(L, R, *thin(L, R, G), 0.01, state=state)  # and on it goes


def test_new_directions_turn_to_the_gradient(rng):
    """W = 0 in the new directions, a gradient of rank two outside L: a few steps find it from random directions."""
    L, R = factors(rng, np.float32, condition=2.0)
    outside = ref.orth(np.hstack([L.astype(float), rng.standard_normal((O, 2))]))[:, K:]
    target = L @ R + (outside @ rng.standard_normal((2, I))).astype(np.float32)
    state = linalg.WsiState(O, I, K)
    L, R = linalg.wsi_extend(L, R, rng.standard_normal((O, 2)), state)
    for _ in range(40):
        dL, dR = thin(L, R, L @ R - target)
        (linalg.wsi_step_extended if state.n_new else linalg.wsi_step)(L, R, dL, dR, 0.3, state=state)
    assert relative_error(L @ R, target) < 1e-3


def test_directions_without_a_gradient_stay_zero(rng):
    L, R, state = warm(rng, "momentum")
    L, R = linalg.wsi_extend(L, R, rng.standard_normal((O, 2)), state)
    linalg.wsi_step_extended(L, R, *thin(L, R, np.zeros((O, I))), 0.01, state=state)
    assert state.n_new == 2 and not R[K:].any() and np.abs(L.T @ L - np.eye(K + 2)).max() < 1e-12
    linalg.wsi_step_extended(L, R, *thin(L, R, rng.standard_normal((O, I))), 0.01, state=state)
    assert state.n_new == 0 and R[K:].any()


def test_bad_ranks_are_refused(rng):
    L, R = factors(rng)
    with pytest.raises(ValueError, match="rank: expected 1 to 8, got 9"):
        linalg.wsi_truncate(L, R, 9)
    with pytest.raises(ValueError, match="directions: expected at most 22 beside rank 8 of 30 x 44, got 23"):
        linalg.wsi_extend(L, R, np.ones((O, 23)))
    for options in ({"every": 0}, {"grow": 0.9, "shrink": 0.9}, {"shrink": 1.1}):
        with pytest.raises(ValueError, match="expected"):
            RankAdaptation(**options)
    with pytest.raises(ValueError, match="adapt_ranks: the model has no factored layer"):
        RankController(RankAdaptation(), Optimizer(small_model()))
    model = wasi.factorize(small_model(), rank=4, verbose=False)
    with pytest.raises(ValueError, match=r"max_bytes: expected at least 20480, .* got 20479"):  # 4 layers, rank 4, 2 arrays
        RankController(RankAdaptation(max_bytes=20479), Optimizer(model))


def model_with_spectra(spectra):
    """A model whose MLP factors have the given singular values, and its plain SGD."""
    model = wasi.factorize(small_model(), rank=len(spectra[0]), verbose=False)
    layers = [m for _, m in model.named_modules() if isinstance(m, FactoredLinear)]
    for layer, spectrum in zip(layers, spectra):
        layer.R.data[:] = np.array(spectrum)[:, None] * linalg.orthonormalize(layer.R.data.T.copy()).T
    return model, layers, Optimizer(model, "sgd", momentum=0.9)


def test_the_policy_shrinks_and_grows_within_the_bytes():
    flat, decayed, middle = [1.0] * 4, [1.0, 0.8, 1e-4, 1e-5], [1.0, 0.5, 0.2, 0.05]
    model, layers, optimizer = model_with_spectra([flat, decayed, middle, [1, 1, 1, 0.5]])
    controller = RankController(RankAdaptation(patience=1, n_new=3, grow=0.99, shrink=0.9999), optimizer)
    before = controller.factor_bytes
    assert before == 4 * 4 * (32 + 128) * 4 * 3  # 4 layers, rank 4, float32, factors with gradients and momentum
    y = model.forward(np.zeros((2, 3, 16, 16), np.uint8))
    changed = controller.update()
    assert [layer.rank for layer in layers] == [6, 2, 4, 4]  # the flattest gets what the decayed one frees, the last waits
    assert sorted(changed.values()) == [2, 6] and controller.factor_bytes == before
    assert relative_error(model.forward(np.zeros((2, 3, 16, 16), np.uint8)), y) < 1e-4
    for images, labels in Batches(2):
        accumulate_gradient(model, images, labels)
        optimizer.step(0.05)
        controller.update()
        assert controller.factor_bytes <= before
    assert all(np.abs(m.L.data.T @ m.L.data - np.eye(m.rank)).max() < 1e-5 for m in layers)
    plain = sum(p.data.nbytes for p, _ in optimizer._plain.values())
    assert optimizer.state_bytes == sum(4 * m.rank * 160 for m in layers) + plain


def test_patience_and_turns_keep_ranks_from_flipping(rng):
    votes = _Votes()
    for _ in range(2000):  # votes as a coin falls
        if votes.count(int(rng.integers(-1, 2)), patience=2):
            votes.change()
    assert votes.turns <= 3
    votes, seen = _Votes(), []
    for _ in range(60):  # a layer that wants back whatever it does
        if votes.count(-votes.changed or 1, patience=2):
            votes.change()
            seen.append(votes.changed)
    assert seen == [1, -1, 1, -1]  # after 2, 4, 8 and 16 votes more


def test_noise_in_the_factors_between_the_thresholds_changes_nothing(rng):
    model, layers, optimizer = model_with_spectra([[1.0, 0.5, 0.2, 0.05]] * 4)
    controller = RankController(RankAdaptation(patience=1, max_bytes=10**9), optimizer)
    start = [layer.R.data.copy() for layer in layers]
    for _ in range(20):
        for layer, R in zip(layers, start):
            layer.R.data[:] = R + 0.002 * rng.standard_normal(layer.R.data.shape).astype(np.float32)
        assert controller.update() == {}


def test_explained_variance_is_that_of_the_product(rng):
    L, R = factors(rng)
    s2 = np.linalg.svd(L @ R, compute_uv=False)[:K] ** 2
    assert np.allclose(explained_variance(R), np.cumsum(s2) / s2.sum())


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("method", ["wsi", "wasi", "qwasi"])
def test_training_with_changing_ranks_learns_within_the_bytes(tmp_path, method, optimizer):
    model = small_model()
    apply_method(model, method, MethodOptions(("all",), rank=6), verbose=False)
    adaptation = RankAdaptation(every=3, grow=0.99, shrink=0.999, patience=1, max_bytes=300_000)
    config = TrainConfig(epochs=6, lr=0.1 if optimizer == "sgd" else 0.003, optimizer=optimizer, momentum=0.5,
                         adapt_ranks=adaptation, track_subspaces=4)
    result = train(model, Batches(), Batches(2, seed=1), config, RunFolder(tmp_path / "run"), progress=False)
    assert result.val_accuracy > 0.8
    rows = read_csv(tmp_path / "run" / "ranks.csv")
    ranks = {row["layer"]: int(row["rank"]) for row in rows}
    assert ranks == result.ranks and len(rows) > len(ranks) and max(ranks.values()) > 6
    per_rank = {n: 4 * (m.out_features + m.in_features) * (3 if optimizer == "sgd" else 4) for n, m in model.named_modules()
                if n in ranks}
    now = {}
    for row in rows:
        now[row["layer"]] = int(row["rank"]) * per_rank[row["layer"]]
        assert sum(now.values()) <= 300_000
    angles = read_csv(tmp_path / "run" / "subspaces.csv")
    assert len(angles) == 12 * 8 * 2 and all(0 <= float(r["mean_degrees"]) <= float(r["largest_degrees"]) <= 90 for r in angles)


def test_fixed_ranks_are_the_default_and_their_bits_do_not_depend_on_what_is_logged(tmp_path):
    losses = []
    for track in (0, 2):
        model = wasi.factorize(small_model(), rank=6, verbose=False)
        config = TrainConfig(epochs=2, track_subspaces=track)
        result = train(model, Batches(), Batches(1), config, RunFolder(tmp_path / str(track)), progress=False)
        losses.append([e["train_loss"] for e in result.epochs])
        assert set(result.ranks.values()) == {6} and not (tmp_path / str(track) / "ranks.csv").exists()
    assert losses[0] == losses[1]


def test_principal_angles_by_hand_and_small_ones_accurately(rng):
    A = ref.orth(rng.standard_normal((O, K)))
    outside = ref.orth(np.hstack([A, rng.standard_normal((O, K))]))[:, K:]
    angles = np.array([1e-6, 1e-4, 0.01, 0.3, 0.8, 1.2, 1.5, 1.57])
    turn, mix = ref.orth(rng.standard_normal((K, K))), ref.orth(rng.standard_normal((K, K)))
    B = (A @ turn * np.cos(angles) + outside * np.sin(angles)) @ mix
    assert np.allclose(linalg.principal_angles(A, B), angles, rtol=1e-6, atol=1e-13)
    assert np.allclose(linalg.principal_angles(B[:, :3], A), linalg.principal_angles(A, B[:, :3]))
    single = linalg.principal_angles(A.astype(np.float32), A.astype(np.float32))
    assert single.max() < 1e-6


def test_subspaces_of_the_published_form_are_tracked_and_others_refused(tmp_path):
    model = small_model()
    with pytest.raises(ValueError, match="track_subspaces: the model has no factored layers"):
        train(model, Batches(), Batches(1), TrainConfig(track_subspaces=1), progress=False)
    for method in ("wsi-dense", "svd"):
        model = apply_method(small_model(), method, MethodOptions(rank=4), verbose=False)
        config = TrainConfig(epochs=1, track_subspaces=1)
        train(model, Batches(2), Batches(1), config, RunFolder(tmp_path / method), progress=False)
        rows = read_csv(tmp_path / method / "subspaces.csv")
        assert len(rows) == 2 * 4 * 2 and float(rows[-1]["mean_degrees"]) > 0
