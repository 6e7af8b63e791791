"""randomized_svd, adaptive_svd, subspace_svd, SubspaceTracker and diff_norm."""

import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tables import assert_close, relative_error

from wasi import _core, linalg
from wasi.reference import rsvd as ref

DTYPES = [np.float32, np.float64]
SHAPES = [(120, 90), (90, 120), (100, 100), (700, 40), (40, 700)]


def spectra(n):
    """Decaying fast and slowly, stepped with the cut on and inside a plateau, flat, deficient."""
    i = np.arange(1, n + 1)
    return {
        "exponential": np.exp(-i / 6),
        "harmonic": 1 / i,
        "stepped": np.where(i <= 10, 1.0, np.where(i <= 20, 0.1, 0.01)),
        "plateau": np.where(i <= 5, 1.0, np.where(i <= 20, 0.1, 0.001)),
        "flat": np.ones(n),
        "deficient": np.where(i <= 6, 1.0 / i, 0.0),
    }


def with_spectrum(rng, m, n, S, dtype):
    U, V = (np.linalg.qr(rng.standard_normal((side, len(S))))[0] for side in (m, n))
    return np.ascontiguousarray((U * S) @ V.T, dtype)


def assert_svd(A, U, S, Vt, rank):
    """Shapes, types, orthonormal vectors, descending values."""
    assert U.shape == (A.shape[0], rank) and S.shape == (rank,) and Vt.shape == (rank, A.shape[1])
    assert U.dtype == S.dtype == Vt.dtype == A.dtype
    assert U.flags.c_contiguous and Vt.flags.c_contiguous
    for Q in (U.astype(np.float64), Vt.T.astype(np.float64)):
        assert np.linalg.norm(Q.T @ Q - np.eye(rank), 2) < (4e-6 if A.dtype == np.float32 else 1e-12)
    assert np.all(S >= 0) and np.all(S[:-1] >= S[1:] - 1e-6 * S[0])


def error(A, U, S, Vt):
    return np.linalg.norm(A.astype(np.float64) - (U.astype(np.float64) * S) @ Vt.astype(np.float64))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("m, n", SHAPES)
@pytest.mark.parametrize("kind", list(spectra(1)))
def test_error_is_near_the_best(rng, n_threads, dtype, m, n, kind):
    S = spectra(min(m, n))[kind]
    A = with_spectrum(rng, m, n, S, dtype)
    for rank in (1, 10):
        U, values, Vt = linalg.randomized_svd(A, rank)
        assert_svd(A, U, values, Vt, rank)
        best = np.linalg.norm(S[rank:])
        rounding = 1e-6 if dtype is np.float32 else 1e-13
        assert error(A, U, values, Vt) <= best * 1.002 + rounding * np.linalg.norm(S)
        reference = error(A, *ref.randomized_svd(A.astype(np.float64), rank))
        assert error(A, U, values, Vt) <= reference * 1.01 + rounding * np.linalg.norm(S)
        assert linalg.diff_norm(A, U, values, Vt) == pytest.approx(
            error(A, U, values, Vt), rel=1e-3, abs=rounding * np.linalg.norm(S))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("m, n", [(260, 200), (200, 260), (97, 96), (30, 30)])
@pytest.mark.parametrize("way, n_iter", [("one", 6), ("two", 4), ("gram", 6), ("exact", 0)])
def test_every_way_is_near_the_best(rng, n_threads, monkeypatch, dtype, m, n, way, n_iter):
    if way == "two" and min(m, n) < 64:
        pytest.skip("two blocks do not fit")
    monkeypatch.setattr(linalg.rsvd, "_plan", lambda *a: (way, n_iter))
    for kind, S in spectra(min(m, n)).items():
        A = with_spectrum(rng, m, n, S, dtype)
        U, values, Vt = linalg.randomized_svd(A, 12)
        assert_svd(A, U, values, Vt, 12)
        rounding = 2e-6 if dtype is np.float32 or way == "exact" else 1e-13  # "exact" is meant for float32
        assert error(A, U, values, Vt) <= np.linalg.norm(S[12:]) * 1.005 + rounding * np.linalg.norm(S), kind
        again = linalg.randomized_svd(A, 12)
        assert all(np.array_equal(a, b) for a, b in zip((U, values, Vt), again))


def test_a_spectrum_too_steep_for_the_gram_matrix_is_iterated_on_the_matrix(rng, monkeypatch):
    monkeypatch.setattr(linalg.rsvd, "_plan", lambda *a: ("gram", 4))
    S = np.where(np.arange(80) < 10, 1.0, 1e-5)  # squares below float32's accuracy
    A = with_spectrum(rng, 120, 80, S, np.float32)
    assert not _core.gram_range(A, np.empty((80, 26), np.float32), 16, 4, 0.25, 0)
    assert error(A, *linalg.randomized_svd(A, 16)) <= 1.05 * np.linalg.norm(S[16:])


@pytest.mark.parametrize("normalizer", ["auto", "QR", "LU", "none"])
@pytest.mark.parametrize("n_iter", [0, 1, 3])
@pytest.mark.parametrize("m, n", [(90, 60), (60, 90)])
def test_iterations_and_normalizers(rng, normalizer, n_iter, m, n):
    A = with_spectrum(rng, m, n, spectra(60)["harmonic"], np.float32)
    U, S, Vt = linalg.randomized_svd(A, 8, None, 4, n_iter, power_iteration_normalizer=normalizer)
    assert_svd(A, U, S, Vt, 8)
    best = np.linalg.norm(spectra(60)["harmonic"][8:])
    assert error(A, U, S, Vt) <= best * {0: 1.6, 1: 1.1, 3: 1.02}[n_iter]


@pytest.mark.parametrize("m, n", [(30, 20), (20, 30), (20, 20), (1, 7), (7, 1), (1, 1)])
def test_every_rank_up_to_the_smaller_side(rng, m, n):
    A = rng.standard_normal((m, n)).astype(np.float32)
    exact = np.linalg.svd(A.astype(np.float64), compute_uv=False)
    for rank in {1, min(m, n) // 2 or 1, min(m, n)}:
        for oversamples in (0, 100):
            U, S, Vt = linalg.randomized_svd(A, rank, n_oversamples=oversamples)
            assert_svd(A, U, S, Vt, rank)
            if oversamples:
                assert relative_error(S, exact[:rank]) < 1e-5
    assert_close((U * S) @ Vt, A, 20)  # full rank: exact


@pytest.mark.parametrize("dtype, scale", [(np.float32, 1e-30), (np.float32, 1e30), (np.float64, 1e-200),
                                          (np.float64, 1e200)])
@pytest.mark.parametrize("m, n", [(90, 60), (60, 90), (900, 20)])
def test_extreme_scales(rng, dtype, scale, m, n):
    A = with_spectrum(rng, m, n, spectra(min(m, n))["stepped"], np.float64)
    U, S, Vt = linalg.randomized_svd((A * scale).astype(dtype), 10)
    assert_svd(A.astype(dtype), U, S, Vt, 10)
    assert S[0] / scale == pytest.approx(1, rel=1e-5)
    assert linalg.adaptive_svd((A * scale).astype(dtype), rel_error=0.2).rel_error < 0.2
    wanted = linalg.diff_norm(A.astype(dtype), U, (S / scale).astype(dtype), Vt)
    assert linalg.diff_norm((A * scale).astype(dtype), U, S, Vt) / scale == pytest.approx(wanted, rel=1e-4)


def test_a_slow_spectrum_takes_an_iteration_more(rng, n_threads, monkeypatch):
    monkeypatch.setattr(linalg.rsvd, "_plan", lambda *a: ("two", 2))
    A = rng.standard_normal((400, 300)).astype(np.float32)
    best = np.linalg.norm(np.linalg.svd(A.astype(np.float64), compute_uv=False)[10:])
    assert error(A, *linalg.randomized_svd(A, 10)) < error(A, *linalg.randomized_svd(A, 10, n_iter=2))
    assert error(A, *linalg.randomized_svd(A, 10)) < 1.01 * best


def test_zero_matrix():
    for dtype in DTYPES:
        A = np.zeros((9, 6), dtype)
        U, S, Vt = linalg.randomized_svd(A, 3)
        assert np.array_equal(S, np.zeros(3))
        assert_svd(A, U, S, Vt, 3)
        assert linalg.adaptive_svd(A, variance=0.9).S.shape == (1,)
        assert linalg.diff_norm(A, U, S, Vt) == 0


def test_flip_sign_and_seeds(rng, n_threads):
    A = rng.standard_normal((80, 50)).astype(np.float32)
    np.random.seed(1)
    U, S, Vt = linalg.randomized_svd(A, 6, seed=3)
    assert np.all(U.max(0) >= -U.min(0))
    np.random.seed(2)
    before = np.random.get_state()[1].copy()
    again = linalg.randomized_svd(A, 6, seed=3)
    assert all(np.array_equal(a, b) for a, b in zip((U, S, Vt), again))  # independent of the global generator
    assert np.array_equal(np.random.get_state()[1], before)
    other = linalg.randomized_svd(A, 6, seed=4)
    assert not np.array_equal(other[0], U)
    unsigned = linalg.randomized_svd(A, 6, seed=3, flip_sign=False)
    assert_close((unsigned[0] * unsigned[1]) @ unsigned[2], (U * S) @ Vt)


def test_inputs_are_left_alone(rng):
    A = rng.standard_normal((60, 40)).astype(np.float32)
    U0 = rng.standard_normal((60, 5)).astype(np.float32)
    before = A.copy(), U0.copy()
    linalg.randomized_svd(A, 5)
    linalg.subspace_svd(A, 5, U0)
    linalg.adaptive_svd(A, variance=0.5)
    assert np.array_equal(A, before[0]) and np.array_equal(U0, before[1])


@pytest.mark.parametrize("m, n", [(400, 300), (300, 400)])
def test_memory_beside_the_matrix_is_a_few_blocks(rng, m, n):
    A = rng.standard_normal((m, n)).astype(np.float32)
    linalg.randomized_svd(A, 10)
    tracemalloc.start()
    linalg.randomized_svd(A, 10)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < A.nbytes  # scratch of the small problems weighs most here


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("m, n", SHAPES)
@pytest.mark.parametrize("kind", ["exponential", "harmonic", "stepped", "deficient"])
def test_adaptive_rank(rng, dtype, m, n, kind):
    S = spectra(min(m, n))[kind]
    A = with_spectrum(rng, m, n, S, dtype)
    total = (S**2).sum()
    for variance in (0.5, 0.9, 0.999):
        U, values, Vt, rel_error = linalg.adaptive_svd(A, variance=variance, block=5)
        K = len(values)
        assert_svd(A, U, values, Vt, K)
        smallest = int(np.searchsorted(np.cumsum(S**2), variance * total)) + 1
        assert K <= smallest + 1 + smallest // 8
        true = error(A, U, values, Vt) / np.sqrt(total)
        assert true <= np.sqrt(1 - variance) * (1 + 1e-3) + 1e-6
        assert rel_error == pytest.approx(true, rel=1e-2, abs=5e-4 if dtype is np.float32 else 1e-7)
    assert error(A, *linalg.adaptive_svd(A, rel_error=0.05)[:3]) <= 0.0501 * np.sqrt(total)
    few = linalg.adaptive_svd(A, variance=0.9999, max_rank=2, block=5)
    assert len(few.S) == 2 and few.rel_error > 0
    assert len(linalg.randomized_svd(A, variance=0.9)[1]) == len(linalg.adaptive_svd(A, variance=0.9).S)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("m, n", SHAPES)
def test_subspace_svd(rng, dtype, m, n):
    A = with_spectrum(rng, m, n, spectra(min(m, n))["harmonic"], dtype)
    U0 = np.linalg.qr(rng.standard_normal((m, 8)))[0].astype(dtype)
    want = ref.subspace_svd(A.astype(np.float64), 8, U0.astype(np.float64), 3)
    got = linalg.subspace_svd(A, 8, U0, n_iter=3)
    assert_svd(A, *got, 8)
    assert error(A, *got) <= error(A, *want) * 1.001  # a wide A gets half an iteration more
    exact = np.linalg.svd(A.astype(np.float64), full_matrices=False)
    warm = linalg.subspace_svd(A, 5, exact[0][:, :5].astype(dtype))
    assert relative_error(warm[1], exact[1][:5]) < 1e-5
    cold = linalg.subspace_svd(A, 5, n_iter=4, n_oversamples=5)
    assert error(A, *cold) < 1.05 * np.linalg.norm(exact[1][5:])


@pytest.mark.parametrize("m, n", [(90, 60), (60, 90), (50, 50)])
def test_tracker_follows_a_drifting_matrix(rng, m, n):
    A = with_spectrum(rng, m, n, spectra(min(m, n))["harmonic"], np.float32)
    drift = [rng.standard_normal((2, side, 3)).astype(np.float32) for side in (m, n)]
    dense, by_products = linalg.SubspaceTracker(6), linalg.SubspaceTracker(6)
    dense.init(A), by_products.init(A)
    for step in range(30):
        A = A + 2e-4 * drift[0][step % 2] @ drift[1][step % 2].T
        A = np.ascontiguousarray(A)
        best = np.linalg.norm(np.linalg.svd(A.astype(np.float64), compute_uv=False)[6:])
        U, S, Vt = dense.step(A)
        assert error(A, U, S, Vt) < 1.01 * best
        at = A  # bound to this step's value
        U, S, Vt = by_products.step_products(lambda x, at=at: at @ x, lambda y, at=at: at.T @ y)
        assert error(A, U, S, Vt) < 1.01 * best


@pytest.mark.parametrize("m, n", [(40, 30), (30, 40), (10, 8)])
def test_tracker_takes_thin_updates(rng, m, n):
    A = with_spectrum(rng, m, n, spectra(8)["harmonic"], np.float64)  # of rank 8: the tracker holds all of it
    tracker = linalg.SubspaceTracker(3, n_oversamples=7)
    tracker.init(A)
    X, Y = rng.standard_normal((m, 2)), 0.1 * rng.standard_normal((n, 2))
    U, S, Vt = tracker.update(X, Y)
    want = np.linalg.svd(A + X @ Y.T)
    assert relative_error(S, want[1][:3]) < 1e-10
    assert_close((U * S) @ Vt, (want[0][:, :3] * want[1][:3]) @ want[2][:3], 1e4)


def test_bad_input_is_refused_by_name(rng):
    A = rng.standard_normal((8, 6)).astype(np.float32)
    for rank in (0, -1, 7):
        for call in (linalg.randomized_svd, linalg.subspace_svd):
            with pytest.raises(ValueError, match=f"rank: expected 1 to 6, the smaller side, got {rank}"):
                call(A, rank)
    with pytest.raises(ValueError, match="rank, variance: expected exactly one of them"):
        linalg.randomized_svd(A)
    with pytest.raises(ValueError, match="n_oversamples: expected at least 0, got -1"):
        linalg.randomized_svd(A, 2, n_oversamples=-1)
    with pytest.raises(ValueError, match="n_iter: expected at least 0, got -2"):
        linalg.randomized_svd(A, 2, n_iter=-2)
    with pytest.raises(ValueError, match="power_iteration_normalizer: expected one of"):
        linalg.randomized_svd(A, 2, power_iteration_normalizer="qr?")
    with pytest.raises(ValueError, match="variance: expected a number in"):
        linalg.adaptive_svd(A, variance=1.5)
    with pytest.raises(ValueError, match="rel_error: expected a number in"):
        linalg.adaptive_svd(A, rel_error=1.0)
    with pytest.raises(TypeError, match="A: expected a float32 or float64 array"):
        linalg.randomized_svd(A.astype(np.float16), 2)
    with pytest.raises(ValueError, match="A: expected a C-contiguous"):
        linalg.randomized_svd(A.T, 2)
    with pytest.raises(ValueError, match=r"U0: expected shape \(8, 3 or more\), got \(8, 2\)"):
        linalg.subspace_svd(A, 3, A[:, :2])
    with pytest.raises(RuntimeError, match="before init"):
        linalg.SubspaceTracker(2).step(A)
    with pytest.raises(ValueError, match=r"Vt.shape\[1\]: expected 6"):
        linalg.diff_norm(A, A[:, :2].copy(), A[0, :2].copy(), np.zeros((2, 5), np.float32))
    for rank in (0, -2):
        with pytest.raises(ValueError, match=f"rank: expected at least 1, got {rank}"):
            linalg.SubspaceTracker(rank)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("two", [False, True])
def test_nan_in_a_block_does_not_reach_lapack(rng, dtype, two):
    A, V = rng.standard_normal((30, 12)).astype(dtype), linalg.orthonormalize(rng.standard_normal((12, 4)).astype(dtype))
    W, X = A @ V, np.full((12, 4), np.nan, dtype)
    W[3, 1] = np.nan
    with pytest.raises(ArithmeticError, match="ritz: an input holds NaN or Inf"):
        _core.ritz(W, V, False, 2, 1.0, X if two else None, A)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nonfinite_input_is_refused_within_a_millisecond(rng, dtype, bad):
    """For matrices of a layer's size, wherever it is; a larger array takes the time of two reads."""
    A = rng.standard_normal((768, 768)).astype(dtype)
    tracker = linalg.SubspaceTracker(4)
    tracker.init(A)
    A[-1, -1] = bad
    calls = [
        lambda: linalg.randomized_svd(A, 2), lambda: linalg.adaptive_svd(A, variance=0.5),
        lambda: linalg.subspace_svd(A, 2), lambda: linalg.truncated_svd(A, 2), lambda: tracker.step(A),
        lambda: linalg.tucker(A.reshape(24, 32, 768), (2, 2, 2)),
    ]
    for call in calls:
        seconds = []
        for _ in range(15):  # the best of them: the machine may be busy
            start = time.perf_counter()
            with pytest.raises(ArithmeticError, match="A: an input holds NaN or Inf"):
                call()
            seconds.append(time.perf_counter() - start)
        assert min(seconds) < 1e-3


@pytest.mark.parametrize("m, n", [(60, 40), (40, 60)])
def test_same_seed_same_bits_whatever_the_global_generator(rng, n_threads, m, n):
    A = rng.standard_normal((m, n)).astype(np.float32)

    def tracked():
        tracker = linalg.SubspaceTracker(4, seed=5)
        tracker.init(A)
        return tracker.step(A)

    for call in (lambda: linalg.adaptive_svd(A, variance=0.6, seed=5)[:3], tracked,
                 lambda: linalg.subspace_svd(A, 4, seed=5), lambda: linalg.randomized_svd(A, 4, seed=5)):
        np.random.seed(1)
        first = call()
        np.random.seed(2)
        assert all(np.array_equal(a, b) for a, b in zip(first, call()))


@given(
    m=st.integers(1, 30),
    n=st.integers(1, 30),
    dtype=st.sampled_from(DTYPES),
    view=st.sampled_from(["transposed", "rows", "columns", "reversed", "fortran", "offset"]),
)
@settings(max_examples=60, deadline=None)
def test_any_strides(m, n, dtype, view):
    """An array that does not lie row by row is refused by name, not copied in silence; its copy is taken."""
    A = np.random.default_rng(m * 31 + n).standard_normal((2 * m, 2 * n)).astype(dtype)
    A = {"transposed": A.T, "rows": A[::2], "columns": A[:, ::2], "reversed": A[::-1], "fortran": np.asfortranarray(A),
         "offset": A[1:, :]}[view]
    calls = [lambda A: linalg.randomized_svd(A, 1), lambda A: linalg.adaptive_svd(A, variance=0.5),
             lambda A: linalg.subspace_svd(A, 1), lambda A: linalg.truncated_svd(A, 1),
             lambda A: linalg.mode_dot(A, np.ones((2, A.shape[0]), dtype), 0)]
    for call in calls:
        if not A.flags.c_contiguous:
            with pytest.raises(ValueError, match="A: expected a C-contiguous"):
                call(A)
        call(np.ascontiguousarray(A))


@given(
    m=st.integers(1, 60),
    n=st.integers(1, 60),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 2**32 - 1),
    data=st.data(),
)
@settings(max_examples=80, deadline=None)
def test_any_shape(m, n, dtype, seed, data):
    rng = np.random.default_rng(seed)
    true_rank = data.draw(st.integers(0, min(m, n)))
    rank = data.draw(st.integers(1, min(m, n)))
    A = (rng.standard_normal((m, true_rank)) @ rng.standard_normal((true_rank, n))).astype(dtype)
    U, S, Vt = linalg.randomized_svd(A, rank)
    assert_svd(A, U, S, Vt, rank)
    exact = np.linalg.svd(A.astype(np.float64), compute_uv=False)
    tolerance = (1e-5 if dtype is np.float32 else 1e-12) * max(exact[0], 1e-300)
    assert error(A, U, S, Vt) <= 1.01 * np.linalg.norm(exact[rank:]) + tolerance
    if rank >= true_rank:
        assert np.all(S[true_rank:] <= 2 * tolerance)
