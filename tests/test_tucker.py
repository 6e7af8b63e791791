import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tables import assert_close, relative_error

import wasi
from wasi import _core, linalg
from wasi.reference import tucker as ref

DTYPES = [np.float32, np.float64]
# Shape, ranks: 2-D to 5-D, a mode of rank one, a whole mode, a mode of size one, ranks above half (by Gram).
CASES = [
    ((6, 7, 8), (2, 3, 4)),
    ((16, 25, 40), (4, 6, 10)),
    ((5, 9, 11), (5, 1, 3)),
    ((1, 30, 12), (1, 20, 9)),
    ((8, 5, 6, 12), (2, 3, 6, 4)),
    ((3, 4, 5, 4, 6), (2, 2, 3, 4, 2)),
    ((33, 17), (4, 17)),
    ((40, 3, 130), (33, 2, 20)),
    ((3, 20, 333), (2, 17, 5)),
]


def tensor(rng, shape, dtype=np.float32, decay=1.0):
    """Correlated along every mode, as activations are."""
    A = rng.standard_normal(shape)
    for n, d in enumerate(shape):
        Q = np.linalg.qr(rng.standard_normal((d, d)))[0]
        A = ref.mode_dot(A, Q * np.arange(1, d + 1) ** -decay, n)
    return np.ascontiguousarray(A, dtype)


def start(rng, shape, ranks, dtype=np.float32):
    """Random orthonormal factors, None where nothing is cut."""
    return [None if K == d else np.linalg.qr(rng.standard_normal((d, K)))[0].astype(dtype)
            for d, K in zip(shape, ranks)]


def wide(arrays):
    return [None if a is None else a.astype(np.float64) for a in arrays]


def assert_orthonormal(factors):
    for U in factors:
        if U is not None:
            U = U.astype(np.float64)
            assert np.linalg.norm(U.T @ U - np.eye(U.shape[1]), 2) < 2e-6


def error(A, core, factors):
    return relative_error(ref.tucker_to_tensor(core.astype(np.float64), wide(factors)), A)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape, ranks", CASES)
def test_mode_dot(rng, n_threads, dtype, shape, ranks):
    A = rng.standard_normal(shape).astype(dtype)
    for n, K in enumerate(ranks):
        M = rng.standard_normal((K, shape[n])).astype(dtype)
        want = ref.mode_dot(A.astype(np.float64), M.astype(np.float64), n)
        assert_close(linalg.mode_dot(A, M, n), want, 2)
        assert_close(linalg.mode_dot(A, np.ascontiguousarray(M.T), n - len(shape), transpose=True), want, 2)
        out = np.empty(want.shape, dtype)
        assert linalg.mode_dot(A, M, n, out=out) is out


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("length", [256, 301, 1400])  # whole vectors, a rest, several pieces
def test_few_columns(rng, isa, n_threads, dtype, length):
    """Products with few columns have loops of their own, with tiles of each height."""
    for K in (1, 2, 3, 4, 5, 6, 13, 49, 65):
        A = rng.standard_normal((3, max(K + 1, 9), length)).astype(dtype)
        U = np.linalg.qr(rng.standard_normal((A.shape[1], K)))[0].astype(dtype)
        want = ref.mode_dot(A.astype(np.float64), U.T.astype(np.float64), 1)
        assert_close(linalg.mode_dot(A, U, 1, transpose=True), want, 2)
        unfolded = ref.unfold(A.astype(np.float64), 1)
        new = U.copy()
        _core.asi_step(A, [None, new, None])
        assert_orthonormal([new])
        if 2 * K < A.shape[1]:  # above, several iterations on the Gram matrix
            power = np.linalg.qr(unfolded @ (unfolded.T @ U.astype(np.float64)))[0]
            assert_close(new @ new.T, power @ power.T, 1e2)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape, ranks", CASES)
@pytest.mark.parametrize("method", ["st-hosvd", "hosvd"])
def test_tucker_is_quasi_optimal(rng, n_threads, dtype, shape, ranks, method):
    A = tensor(rng, shape, dtype)
    core, factors = linalg.tucker(A, ranks, method=method)
    assert core.shape == ranks and core.dtype == dtype
    assert [U is None for U in factors] == [K == d for K, d in zip(ranks, shape)]
    assert_orthonormal(factors)
    assert_close(core, ref.project(A.astype(np.float64), wide(factors)), 10)
    spectra = [np.linalg.svd(ref.unfold(A.astype(np.float64), n), compute_uv=False) for n in range(A.ndim)]
    bound = np.linalg.norm([np.linalg.norm(S[K:]) for S, K in zip(spectra, ranks)]) / np.linalg.norm(A)
    assert error(A, core, factors) <= bound * (1 + 1e-5) + 1e-6
    if method == "hosvd":
        want_core, want_factors = ref.hosvd(A.astype(np.float64), ranks)
        assert error(A, core, factors) == pytest.approx(error(A, want_core, want_factors), rel=1e-3, abs=1e-6)
    swept = linalg.tucker(A, ranks, method=method, n_iter=2)
    assert error(A, *swept) <= error(A, core, factors) + 1e-6
    assert linalg.tucker_error(A, core, factors) / np.linalg.norm(A) == pytest.approx(
        error(A, core, factors), rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_tucker_by_variance(rng, dtype):
    A = tensor(rng, (10, 12, 14), dtype)
    previous = 0
    for variance in (0.5, 0.9, 0.99, 1.0):
        core, factors = linalg.tucker(A, variance=variance)
        kept = np.linalg.norm(core.astype(np.float64)) ** 2 / np.linalg.norm(A.astype(np.float64)) ** 2
        assert kept >= variance - 1e-6 and core.size >= previous
        previous = core.size
    assert error(A, core, factors) < 1e-6
    assert linalg.tucker(np.zeros((3, 4, 5), dtype), variance=0.9)[0].shape == (1, 1, 1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape, ranks", CASES)
def test_asi_step_is_no_worse_than_the_published_form(rng, n_threads, dtype, shape, ranks):
    A = tensor(rng, shape, dtype)
    factors = start(rng, shape, ranks, dtype)
    published = [np.eye(d) if U is None else U.astype(np.float64) for U, d in zip(factors, shape)]
    for step in range(3):
        core = linalg.asi_step(A, factors)
        want_core, published = ref.asi_step_published(A.astype(np.float64), published)
        assert_orthonormal(factors)
        assert_close(core, ref.project(A.astype(np.float64), wide(factors)), 10)
        # From a random start a single step may be a little behind.
        slack = 1.05 if step == 0 else 1.01
        assert error(A, core, factors) <= slack * error(A, want_core, published) + 1e-6
    exact, exact_factors = ref.hosvd(A.astype(np.float64), ranks)
    for _ in range(30):
        core = linalg.asi_step(A, factors)
    assert error(A, core, factors) <= 1.02 * error(A, exact, exact_factors) + 1e-6


@pytest.mark.parametrize("dtype", DTYPES)
def test_asi_step_matches_reference(rng, isa, dtype):
    shape, ranks, order = (24, 40, 60), (3, 5, 7), (0, 1, 2)  # all below half: every mode on the array itself
    A = tensor(rng, shape, dtype)
    factors = start(rng, shape, ranks, dtype)
    want_core, want = ref.asi_step(A.astype(np.float64), wide(factors), order)
    core = linalg.asi_step(A, factors)
    for U, V in zip(factors, want):
        assert_close(U @ U.T, V @ V.T, 1e2 if dtype is np.float32 else 1e4)
    assert error(A, core, factors) == pytest.approx(error(A, want_core, want), rel=1e-4)


@pytest.mark.parametrize("shape, ranks", CASES)
def test_cold_start_is_close_to_hosvd(rng, shape, ranks):
    A = tensor(rng, shape)
    factors = linalg.asi_factors(shape, ranks)
    core = linalg.asi_step(A, factors, seed=3)
    exact, exact_factors = ref.hosvd(A.astype(np.float64), ranks)
    assert error(A, core, factors) <= 1.2 * error(A, exact, exact_factors) + 1e-6
    again = linalg.asi_factors(shape, ranks)
    assert np.array_equal(linalg.asi_step(A, again, seed=3), core)


def test_a_last_smaller_batch_restarts_its_mode_only(rng):
    A = tensor(rng, (16, 10, 20))
    factors = linalg.asi_factors(A.shape, (4, 5, 6))
    for _ in range(3):
        linalg.asi_step(A, factors)
    tail = A[:7].copy()
    small = [np.zeros((7, 4), np.float32), *(U.copy() for U in factors[1:])]
    core = linalg.asi_step(tail, small)
    exact, exact_factors = ref.hosvd(tail.astype(np.float64), (4, 5, 6))
    assert error(tail, core, small) <= 1.1 * error(tail, exact, exact_factors) + 1e-6


@pytest.mark.parametrize("scale", [1e-30, 1e-6, 1e30])
def test_asi_step_at_extreme_scales(rng, scale):
    A = tensor(rng, (12, 15, 18), np.float64)
    want = linalg.asi_step(A, start(np.random.default_rng(5), A.shape, (8, 4, 5), np.float64))
    scaled = (A * scale).astype(np.float32)
    got = linalg.asi_step(scaled, start(np.random.default_rng(5), A.shape, (8, 4, 5)))
    assert np.linalg.norm(got.astype(np.float64)) / scale == pytest.approx(np.linalg.norm(want), rel=1e-2)


@pytest.mark.parametrize("dtype, scale", [(np.float32, 1e-39), (np.float64, 1e-310)])
def test_asi_step_on_denormal_numbers(rng, dtype, scale):
    """Of which 1 over the largest would be Inf."""
    A = tensor(rng, (12, 15, 18), np.float64)
    want = linalg.asi_step(A, start(np.random.default_rng(5), A.shape, (8, 4, 5), np.float64))
    factors = start(np.random.default_rng(5), A.shape, (8, 4, 5), dtype)
    core = linalg.asi_step((A * scale).astype(dtype), factors)
    assert_orthonormal(factors)
    assert np.linalg.norm(core / scale) == pytest.approx(np.linalg.norm(want), rel=1e-2)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_tucker_at_extreme_scales(rng, scale):
    A = tensor(rng, (10, 12, 14), np.float64)
    scaled = (A * scale).astype(np.float32)
    for variance in (0.5, 0.95):
        core, factors = linalg.tucker(scaled, variance=variance)
        assert core.shape == linalg.tucker(A.astype(np.float32), variance=variance)[0].shape
        lost = linalg.tucker_error(scaled, core, factors) / (scale * np.linalg.norm(A))
        assert lost**2 <= 1 - variance + 1e-6
    core, factors = linalg.tucker(scaled, (3, 4, 5))
    want = error(A, *linalg.tucker(A, (3, 4, 5)))
    assert linalg.tucker_error(scaled, core, factors) / (scale * np.linalg.norm(A)) == pytest.approx(want, rel=1e-3)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape, ranks", CASES)
@pytest.mark.parametrize("G", [1, 5, 300])
def test_matmul_tucker(rng, n_threads, dtype, shape, ranks, G):
    A = rng.standard_normal(shape).astype(dtype)
    factors = start(rng, shape, ranks, dtype)
    core = np.ascontiguousarray(ref.project(A, factors))
    g = rng.standard_normal((*shape[:-1], G)).astype(dtype)
    want = ref.matmul_tucker(g.astype(np.float64), core.astype(np.float64), wide(factors))
    assert_close(linalg.matmul_tucker(g, core, factors), want, 4)
    out = np.ones_like(want, dtype)
    assert linalg.matmul_tucker(g, core, factors, out=out) is out
    assert_close(out, want + 1, 4)  # adds


def test_matmul_tucker_gives_the_gradients_of_a_factored_layer(rng):
    B, N, I, O, K = 12, 10, 32, 20, 6
    x = tensor(rng, (B, N, I))
    L, R = rng.standard_normal((O, K)).astype(np.float32), rng.standard_normal((K, I)).astype(np.float32)
    dy = rng.standard_normal((B, N, O)).astype(np.float32)
    factors = linalg.asi_factors(x.shape, (4, 10, 8))
    core = linalg.asi_step(x, factors)
    x_saved = ref.tucker_to_tensor(core, factors)
    dR = linalg.matmul_tucker(dy @ L, core, factors)
    dL = linalg.matmul_tucker(dy, core, [*factors[:2], np.ascontiguousarray(R @ factors[2])])
    assert_close(dR, np.einsum("bnk,bni->ki", dy @ L, x_saved), 8)
    assert_close(dL, np.einsum("bno,bnk->ok", dy, x_saved @ R.T), 8)


def test_no_array_of_the_size_of_x_is_allocated(rng):
    A = tensor(rng, (64, 48, 96))
    factors = linalg.asi_factors(A.shape, (8, 6, 12))
    g = rng.standard_normal((64, 48, 16)).astype(np.float32)
    arena = wasi.Arena()
    with arena:
        core = linalg.asi_step(A, factors)
        linalg.matmul_tucker(g, core, factors)
    assert arena.stats()["largest_bytes"] < A.nbytes / 2


def test_inputs_are_left_alone_and_bits_repeat(rng, n_threads):
    A = tensor(rng, (20, 30, 40))
    before, first = A.copy(), start(rng, A.shape, (5, 8, 10))
    runs = []
    for _ in range(2):
        factors = [U.copy() for U in first]
        runs.append([linalg.asi_step(A, factors), *factors])
    assert all(np.array_equal(a, b) for a, b in zip(*runs))
    assert np.array_equal(A, before)


def test_bad_input_is_refused_by_name(rng):
    A = tensor(rng, (4, 5, 6))
    bad = A.copy()
    bad[1, 2, 3] = np.nan
    for call in (lambda: linalg.asi_step(bad, linalg.asi_factors(A.shape, (2, 2, 2))),
                 lambda: linalg.tucker(bad, (2, 2, 2))):
        with pytest.raises(ArithmeticError, match="A: an input holds NaN or Inf"):
            call()
    factors = start(rng, A.shape, (2, 2, 2))
    with pytest.raises(ValueError, match="factors: expected 3, one for each dimension, got 2"):
        linalg.asi_step(A, factors[:2])
    with pytest.raises(TypeError, match=r"factors\[1\]: expected a float32 array"):
        linalg.asi_step(A, [factors[0], factors[1].astype(np.float64), factors[2]])
    with pytest.raises(ValueError, match=r"shape\[0\]: expected 5"):
        linalg.asi_step(A, [factors[0], factors[0], factors[2]])
    with pytest.raises(ValueError, match="n_iter: expected at least 1, got 0"):
        linalg.asi_step(A, factors, n_iter=0)
    with pytest.raises(ValueError, match="A: expected 2 to 5 dimensions, got 1"):
        linalg.mode_dot(A[0, 0].copy(), np.ones((2, 6), np.float32), 0)
    with pytest.raises(ValueError, match="mode: expected -3 to 2, got 3"):
        linalg.mode_dot(A, np.ones((2, 6), np.float32), 3)
    with pytest.raises(ValueError, match=r"ranks\[1\]: expected 1 to 5, got 6"):
        linalg.tucker(A, (2, 6, 2))
    with pytest.raises(ValueError, match=r"ranks\[2\]: expected 1 to 6, got 0"):
        linalg.tucker(A, (2, 2, 0))
    with pytest.raises(ValueError, match="ranks, variance: expected exactly one of them"):
        linalg.tucker(A)
    with pytest.raises(ValueError, match="variance: expected a number in"):
        linalg.tucker(A, variance=0.0)
    shared = np.zeros((6, 2), np.float32)
    with pytest.raises(ValueError, match=r"factors\[0\]: expected memory of its own, got an array that overlaps factors\[2\]"):
        linalg.asi_step(A, [shared[:4], factors[1], shared])
    core = np.zeros((2, 2, 2), np.float32)
    assert linalg.matmul_tucker(np.zeros((4, 5, 0), np.float32), core, factors).shape == (0, 6)
    with pytest.raises(ValueError, match=r"g.shape\[1\]: expected 5"):
        linalg.matmul_tucker(np.zeros((4, 4, 3), np.float32), core, factors)
    with pytest.raises(ValueError, match=r"dW.shape\[1\]: expected 6"):
        linalg.matmul_tucker(np.zeros((4, 5, 3), np.float32), core, factors, out=np.zeros((3, 5), np.float32))


@given(
    shape=st.lists(st.integers(1, 9), min_size=2, max_size=5),
    seed=st.integers(0, 2**32 - 1),
    dtype=st.sampled_from(DTYPES),
    whole=st.integers(0, 31),
)
@settings(max_examples=80, deadline=None)
def test_any_shape(shape, seed, dtype, whole):
    rng = np.random.default_rng(seed)
    A = rng.standard_normal(shape).astype(dtype)
    ranks = [d if whole >> n & 1 else int(rng.integers(1, d + 1)) for n, d in enumerate(shape)]
    factors = linalg.asi_factors(shape, ranks, dtype)
    core = linalg.asi_step(A, factors)
    assert_orthonormal(factors)
    assert_close(core, ref.project(A.astype(np.float64), wide(factors)), 20)
    g = rng.standard_normal((*shape[:-1], 3)).astype(dtype)
    want = ref.matmul_tucker(g.astype(np.float64), core.astype(np.float64), wide(factors))
    difference = np.linalg.norm(linalg.matmul_tucker(g, core, factors) - want)
    assert difference <= 1e-5 * np.linalg.norm(A) * np.linalg.norm(g)
