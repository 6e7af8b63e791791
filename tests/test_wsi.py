"""The WSI step in factor space against the dense float64 twin."""

import numpy as np
import pytest
from tables import relative_error

import wasi
from wasi import linalg
from wasi.reference import wsi as ref

SHAPES = [(40, 56, 9), (56, 40, 9), (33, 17, 16), (20, 20, 1), (5, 90, 5), (90, 5, 5)]  # O, I, K
OPTIMIZERS = ["sgd", "momentum", "adamw"]
DRIFT = {np.float32: 1e-5, np.float64: 1e-12}


def factors(rng, O, I, K, dtype=np.float32, condition=20):
    L = ref.orth(rng.standard_normal((O, K))).astype(dtype)
    R = (np.geomspace(1, 1 / condition, K)[:, None] * rng.standard_normal((K, I))).astype(dtype)
    return L, R


def thin(L, R, G):
    """(dL, dR) that a backward pass yields for the dense gradient G."""
    return (G @ R.T.astype(np.float64)).astype(L.dtype), (L.T.astype(np.float64) @ G).astype(R.dtype)


def product(L, R):
    return L.astype(np.float64) @ R.astype(np.float64)


def orthogonality(L):
    L = L.astype(np.float64)
    return np.linalg.norm(L.T @ L - np.eye(L.shape[1]), 2)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("O, I, K", SHAPES)
def test_fifty_steps_follow_the_dense_twin(rng, n_threads, dtype, optimizer, O, I, K):
    L, R = factors(rng, O, I, K, dtype)
    l, r = L.astype(np.float64), R.astype(np.float64)
    state = linalg.WsiState(O, I, K, optimizer, dtype)
    buffer = np.zeros((O, I)) if optimizer == "momentum" else None
    moments = (np.zeros((K, I)), np.zeros((O, K))) * 2
    target = rng.standard_normal((O, I))
    for step in range(1, 51):
        G = l @ r - target  # both walk along the twin's gradient, so differences cannot feed back through it
        dL, dR = thin(l.astype(dtype), r.astype(dtype), G)
        T = linalg.wsi_gradient_norm2(L, R, dL, dR)[1] if step % 2 else None
        linalg.wsi_step(L, R, dL, dR, 0.02, grad_scale=0.9, weight_decay=0.1, state=state, T=T)
        if optimizer == "adamw":
            l, r, moments = ref.step_adamw(l, r, G, moments, step, 0.02, 0.9, 0.1)
        else:
            l, r, buffer = ref.step(l, r, G, 0.02, 0.9, 0.1, buffer)
    assert relative_error(product(L, R), l @ r) < DRIFT[dtype]
    assert orthogonality(L) < 1e-6
    # Where K = O nothing lies off L: Adam's mB is then rounding noise on both sides.
    if optimizer == "momentum":
        Q = ref.row_basis(R.astype(np.float64))
        mA, mB = state.arrays["mA"], state.arrays["mB"]
        assert relative_error(product(L, mA) + product(mB, Q), buffer) < 10 * DRIFT[dtype]
        assert np.abs(L.T @ mB).max() < 1e-5


def test_each_instruction_set(rng, isa):
    L, R = factors(rng, 30, 50, 7)
    l, r = L.astype(np.float64), R.astype(np.float64)
    G = rng.standard_normal((30, 50))
    state = linalg.WsiState(30, 50, 7, "adamw")
    linalg.wsi_step(L, R, *thin(L, R, G), 0.01, state=state)
    moments = (np.zeros((7, 50)), np.zeros((30, 7))) * 2
    l, r, _ = ref.step_adamw(l, r, G, moments, 1, 0.01)
    assert relative_error(product(L, R), l @ r) < 1e-5


@pytest.mark.parametrize("O, I, K", SHAPES)
def test_small_steps_follow_the_projected_gradient(rng, O, I, K):
    L, R = factors(rng, O, I, K, np.float64)
    W, G = L @ R, rng.standard_normal((O, I))
    want = ref.project(L, ref.row_basis(R), G)
    norm2, _ = linalg.wsi_gradient_norm2(L, R, *thin(L, R, G))
    assert norm2 == pytest.approx(np.linalg.norm(want) ** 2, rel=1e-10)
    dL, dR = thin(L, R, G)
    linalg.wsi_step(L, R, dL, dR, 1e-7)
    assert relative_error((W - L @ R) / 1e-7, want) < 1e-4


@pytest.mark.parametrize("O, I", [(12, 20), (20, 12), (16, 16)])
def test_full_rank_is_dense_sgd(rng, O, I):
    W, G = rng.standard_normal((O, I)), rng.standard_normal((O, I))
    U, S, Vt = linalg.truncated_svd(W)
    L, R = U, S[:, None] * Vt
    linalg.wsi_step(L, R, *thin(L, R, G), 0.05, weight_decay=0.3)
    assert relative_error(L @ R, W - 0.05 * (G + 0.3 * W)) < 1e-12


def test_truncation_is_the_best_fit_in_the_new_span(rng):
    """R_new pairs with L_new: no R fits W1 better, and flipping the signs of L changes nothing."""
    O, I, K = 30, 25, 4
    L, R = factors(rng, O, I, K, np.float64)
    G, lr = rng.standard_normal((O, I)), 0.3
    W1 = L @ R - lr * ref.project(L, ref.row_basis(R), G)
    flips = np.array([1.0, -1, -1, 1])
    L2, R2 = L * flips, R * flips[:, None]
    linalg.wsi_step(L, R, *thin(L, R, G), lr)
    assert relative_error(R, L.T @ W1) < 1e-12
    linalg.wsi_step(L2, R2, *thin(L2, R2, G), lr)
    assert relative_error(L2 @ R2, L @ R) < 1e-12


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_zero_gradient_leaves_the_weight(rng, optimizer):
    L, R = factors(rng, 64, 48, 12)
    W, zeros = product(L, R), (np.zeros_like(L), np.zeros_like(R))
    state = linalg.WsiState(64, 48, 12, optimizer)
    for _ in range(100):
        linalg.wsi_step(L, R, *zeros, 0.1, state=state)
    assert relative_error(product(L, R), W) < 1e-6
    assert np.all(linalg.wsi_gradient_norm2(L, R, *zeros)[0] == 0)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_thousand_steps_keep_the_basis_orthonormal(rng, optimizer):
    O, I, K = 48, 64, 12
    L, R = factors(rng, O, I, K)
    state = linalg.WsiState(O, I, K, optimizer)
    target = rng.standard_normal((O, I))
    for _ in range(1000):
        linalg.wsi_step(L, R, *thin(L, R, product(L, R) - target), 0.01, state=state)
    assert orthogonality(L) < 1e-5
    best = np.linalg.norm(np.linalg.svd(target)[1][K:])
    assert np.linalg.norm(product(L, R) - target) < 1.05 * best


def test_no_dense_array_is_allocated(rng):
    O, I, K = 1024, 768, 8
    L, R = factors(rng, O, I, K)
    dL, dR = rng.standard_normal(L.shape).astype(np.float32), rng.standard_normal(R.shape).astype(np.float32)
    state = linalg.WsiState(O, I, K, "adamw")
    arena = wasi.Arena()
    with arena:
        linalg.wsi_gradient_norm2(L, R, dL, dR)
        linalg.wsi_step(L, R, dL, dR, 0.01, state=state)
    assert arena.stats()["largest_bytes"] < O * I * 4 / 2
    assert arena.stats()["peak_bytes"] < O * I * 4 / 2


def refused(L, R, dL, dR, lr, state, match):
    arrays = [L, R, *state.arrays.values()]
    before, n_steps = [a.copy() for a in arrays], state.n_steps
    with pytest.raises(ArithmeticError, match=match):
        linalg.wsi_step(L, R, dL, dR, lr, state=state)
    assert all(np.array_equal(a, b, equal_nan=True) for a, b in zip(arrays, before))
    assert state.n_steps == n_steps


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_collapse_and_nonfinite_change_nothing(rng, optimizer):
    O, I, K = 20, 30, 4
    L, R = factors(rng, O, I, K)
    state = linalg.WsiState(O, I, K, optimizer)
    G = rng.standard_normal((O, I))
    linalg.wsi_step(L, R, *thin(L, R, G), 0.01, state=state)
    dL, dR = thin(L, R, G)

    collapsed = R.copy()
    collapsed[2] = collapsed[0] - collapsed[1]
    refused(L, collapsed, dL, dR, 0.01, state, "the rank of a factor has collapsed")
    with pytest.raises(ArithmeticError, match="the rank of a factor has collapsed"):
        linalg.wsi_gradient_norm2(L, collapsed, dL, dR)
    if optimizer == "sgd":  # a step that empties R: R - lr dR = 0
        refused(L, R, np.zeros_like(dL), R.copy(), 1.0, state, "the rank of a factor has collapsed")
    for name, array in (("dL", dL), ("dR", dR), ("L", L), ("R", R)):
        bad = array.copy()
        bad[1, 2] = np.nan
        given = {"L": L, "R": R, "dL": dL, "dR": dR, name: bad}
        refused(*given.values(), 0.01, state, f"{name}: an input holds NaN or Inf")
    if optimizer != "adamw":  # whose direction does not grow with the gradient
        refused(L, R, dL * np.float32(1e30), 0 * dR, 1e20, state, "NaN or Inf")  # finite inputs, factors beyond float32


def test_gradients_are_left_alone_and_bits_repeat(rng, n_threads):
    L, R = factors(rng, 200, 300, 32)
    dL, dR = rng.standard_normal(L.shape).astype(np.float32), rng.standard_normal(R.shape).astype(np.float32)
    before, results = (dL.copy(), dR.copy()), []
    for _ in range(2):
        l, r, state = L.copy(), R.copy(), linalg.WsiState(200, 300, 32, "momentum")
        linalg.wsi_step(l, r, dL, dR, 0.01, state=state)
        linalg.wsi_step(l, r, dL, dR, 0.01, state=state)
        results.append([l, r, *state.arrays.values()])
    assert all(np.array_equal(a, b) for a, b in zip(*results))
    assert np.array_equal(dL, before[0]) and np.array_equal(dR, before[1])


def test_bad_input_is_refused_by_name(rng):
    L, R = factors(rng, 10, 12, 3)
    dL, dR = np.zeros_like(L), np.zeros_like(R)
    with pytest.raises(ValueError, match=r"dL: expected shape \(10, 3\) \(that of L\)"):
        linalg.wsi_step(L, R, dR, dR, 0.1)
    with pytest.raises(TypeError, match="dR: expected a float32 array"):
        linalg.wsi_step(L, R, dL, dR.astype(np.float64), 0.1)
    with pytest.raises(ValueError, match="L: expected a rank of at most 2"):
        linalg.wsi_step(np.zeros((2, 3), np.float32), R, np.zeros((2, 3), np.float32), dR, 0.1)
    with pytest.raises(ValueError, match="lr: expected a finite number >= 0, got -1.0"):
        linalg.wsi_step(L, R, dL, dR, -1.0)
    with pytest.raises(ValueError, match="dL: expected memory of its own|L: expected memory of its own"):
        linalg.wsi_step(L, R, L, dR, 0.1)
    with pytest.raises(ValueError, match=r"mA: expected shape \(3, 12\)"):
        linalg.wsi_step(L, R, dL, dR, 0.1, state=linalg.WsiState(10, 11, 3, "momentum"))
    with pytest.raises(ValueError, match="optimizer: expected one of sgd, momentum, adamw, got 'lion'"):
        linalg.WsiState(10, 12, 3, "lion")
    assert linalg.WsiState(10, 12, 3, "adamw").nbytes == 4 * 2 * 3 * (10 + 12)
