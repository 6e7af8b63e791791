"""orthonormalize, truncated_svd and whitened_svd."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tables import TOLERANCE, assert_close, relative_error

from wasi import linalg
from wasi.reference import svd as ref

DTYPES = [np.float32, np.float64]
SHAPES = [(8, 8), (50, 7), (7, 50), (1, 1), (1, 9), (9, 1), (41, 37), (300, 20), (20, 300)]


def with_spectrum(rng, m, n, S, dtype):
    """An m x n matrix with the singular values S (as many as there are, at most min(m, n))."""
    k = len(S)
    U, V = (np.linalg.qr(rng.standard_normal((side, k)))[0] for side in (m, n))
    return np.ascontiguousarray((U * S) @ V.T, dtype)


def orthogonality(Q):
    Q = Q.astype(np.float64)
    return np.linalg.norm(Q.T @ Q - np.eye(Q.shape[1]), 2)


def unexplained(A, Q):
    """The part of A outside the span of Q, relative to A."""
    A, Q = A.astype(np.float64), Q.astype(np.float64)
    return np.linalg.norm(A - Q @ (Q.T @ A)) / np.linalg.norm(A)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("m, k", [(m, k) for m, k in SHAPES if m >= k] + [(3000, 64), (400, 150)])
@pytest.mark.parametrize("condition", [1, 1e2, 1e4, 1e6, 1e7])
def test_orthonormalize_at_every_condition(rng, n_threads, dtype, m, k, condition):
    A = with_spectrum(rng, m, k, np.geomspace(1, 1 / condition, k), dtype)
    Q, rank = linalg.orthonormalize(A, return_rank=True)
    assert Q.dtype == dtype
    assert orthogonality(Q) <= (1e-6 if dtype is np.float32 else 1e-13)
    assert unexplained(A, Q) <= 10 * TOLERANCE[np.dtype(dtype)]
    assert rank == k or condition == 1e7


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [1e-30, 1, 1e30])
def test_orthonormalize_completes_a_deficient_block(rng, dtype, scale):
    A = rng.standard_normal((60, 9)).astype(dtype) * dtype(scale)
    A[:, 4] = A[:, 1] - A[:, 2]
    A[:, 6] = 0
    Q, rank = linalg.orthonormalize(A, return_rank=True)
    assert rank == 7
    assert orthogonality(Q) <= 1e-6
    assert unexplained(A, Q) <= 1e-5
    Q, rank = linalg.orthonormalize(np.zeros((5, 3), dtype), return_rank=True)
    assert rank == 0 and orthogonality(Q) <= 1e-6


def test_orthonormalize_takes_badly_scaled_columns(rng):
    A = rng.standard_normal((80, 6)).astype(np.float32) * np.float32([1, 1e-20, 1e15, 1e-8, 1e8, 1])
    Q, rank = linalg.orthonormalize(A, return_rank=True)
    assert rank == 6 and orthogonality(Q) <= 1e-6
    huge = rng.standard_normal((80, 6)) * 1e200  # squares overflow even float64
    Q, rank = linalg.orthonormalize(huge, return_rank=True)
    assert rank == 6 and orthogonality(Q) <= 1e-13


def test_orthonormalize_in_place_and_out(rng):
    A = rng.standard_normal((30, 4)).astype(np.float32)
    before, want = A.copy(), linalg.orthonormalize(A)
    assert np.array_equal(A, before)
    out = np.empty_like(A)
    assert linalg.orthonormalize(A, out=out) is out and np.array_equal(out, want)
    assert linalg.orthonormalize(A, out=A) is A and np.array_equal(A, want)


def lapack_tolerance(m, n, dtype):
    """Backward error of an m x n SVD: rounding errors of max(m, n) operations add up like a random walk. LAPACK's own
    tests accept 30 max(m, n) eps; how far a build stays below that depends on its kernels."""
    return 8 * np.finfo(dtype).eps * (4 + np.sqrt(max(m, n)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("m, n", SHAPES)
def test_truncated_svd_matches_reference(rng, dtype, m, n):
    A = rng.standard_normal((m, n)).astype(dtype)
    for rank in {1, (min(m, n) + 1) // 2, min(m, n)}:
        U, S, Vt = linalg.truncated_svd(A, rank)
        U64, S64, Vt64 = ref.truncated_svd(A.astype(np.float64), rank)
        assert U.dtype == S.dtype == Vt.dtype == dtype
        tolerance = lapack_tolerance(m, n, dtype)
        assert relative_error(S, S64) <= tolerance
        assert relative_error((U * S) @ Vt, (U64 * S64) @ Vt64) <= 4 * tolerance  # turned by the gaps of random values
        assert orthogonality(U) <= tolerance and orthogonality(Vt.T) <= tolerance


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("m, n", [(12, 30), (30, 12), (20, 20)])
def test_rank_by_variance(rng, dtype, m, n):
    spectrum = np.array([4, 2, 2, 2, 1, 0.5, 0, 0])  # repeated and zero values
    A = with_spectrum(rng, m, n, spectrum, dtype)
    for K in range(1, 7):
        just_below = (spectrum[:K] ** 2).sum() / (spectrum**2).sum() - 1e-4
        U, S, Vt = linalg.truncated_svd(A, variance=just_below)
        assert len(S) == K == ref.rank_by_variance(spectrum, just_below)
        assert_close(S, spectrum[:K], 4)
        assert relative_error((U * S) @ Vt, A) <= np.sqrt(1 - just_below) + 1e-6
    assert len(linalg.truncated_svd(A, rank=2, variance=0.999)[1]) == 2
    assert len(linalg.truncated_svd(np.zeros((3, 5), dtype), variance=0.5)[1]) == 1


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_truncated_svd_at_extreme_scales(rng, scale):
    A = (rng.standard_normal((20, 30)) * scale).astype(np.float32)
    U, S, Vt = linalg.truncated_svd(A)
    assert_close((U * S) @ Vt / scale, A / scale, 8)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nonfinite_input_is_refused_at_once_and_by_name(rng, bad):
    C = np.eye(3)
    for dtype in DTYPES:
        A = np.ones((3, 3), dtype)
        A[1, 2] = bad
        calls = [
            ("A", linalg.truncated_svd, (A,)),
            ("A", linalg.orthonormalize, (A,)),
            ("W", linalg.whitened_svd, (A, C)),
            ("C", linalg.whitened_svd, (np.ones_like(A), A.astype(np.float64))),
        ]
        for name, function, arguments in calls:
            start = time.perf_counter()
            with pytest.raises(ArithmeticError, match=f": {name}: an input holds NaN or Inf"):
                function(*arguments)
            assert time.perf_counter() - start < 0.02  # gesdd would not return; a busy machine may dawdle


def test_bad_input_is_refused_by_name(rng):
    A = rng.standard_normal((4, 3)).astype(np.float32)
    for rank in (0, -1, 4):
        with pytest.raises(ValueError, match=f"rank: expected 1 to 3, the smaller side, got {rank}"):
            linalg.truncated_svd(A, rank)
    for variance in (0.0, 1.5, float("nan")):
        with pytest.raises(ValueError, match=r"variance: expected a number in \(0, 1\], got"):
            linalg.truncated_svd(A, variance=variance)
    with pytest.raises(TypeError, match="A: expected a float32 or float64 array, got int64 array"):
        linalg.truncated_svd(np.ones((3, 3), np.int64))
    with pytest.raises(ValueError, match="A: expected a C-contiguous"):
        linalg.truncated_svd(A.T)
    with pytest.raises(ValueError, match="A: expected at least one row and one column"):
        linalg.truncated_svd(np.ones((0, 3)))
    with pytest.raises(ValueError, match=r"A: expected at least as many rows as columns, got shape \(3, 4\)"):
        linalg.orthonormalize(np.ones((3, 4)))
    with pytest.raises(TypeError, match="C: expected a float64 array"):
        linalg.whitened_svd(A, np.eye(3, dtype=np.float32))
    with pytest.raises(ValueError, match=r"C.shape\[0\]: expected 3"):
        linalg.whitened_svd(A, np.eye(4))
    with pytest.raises(ValueError, match="ridge: expected a number in"):
        linalg.whitened_svd(A, np.eye(3), ridge=-1.0)


def covariance(rng, I, n_samples):
    x = rng.standard_normal((n_samples, I)) * np.geomspace(1, 0.01, I)
    return x.T @ x / n_samples


def output_error(W, C, L, R):
    D = W.astype(np.float64) - L.astype(np.float64) @ R.astype(np.float64)
    return np.sqrt(max(np.trace(D @ C @ D.T), 0))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("O, I", [(20, 20), (12, 40), (40, 12), (1, 5), (5, 1)])
def test_whitened_svd_matches_the_text_book(rng, n_threads, dtype, O, I):
    W, C = rng.standard_normal((O, I)).astype(dtype), covariance(rng, I, 4 * I)
    for rank in {1, min(O, I) // 2 or 1, min(O, I)}:
        L, R, spectrum = linalg.whitened_svd(W, C, rank)
        L64, R64, S64 = ref.whitened_svd(W.astype(np.float64), C, rank)
        assert_close(spectrum, S64, 10 if dtype is np.float32 else 1e6)
        assert orthogonality(L) < 1e-6
        assert_close(L @ R, L64 @ R64, 20 if dtype is np.float32 else 1e6)


@pytest.mark.parametrize("O, I", [(12, 40), (40, 24)])
def test_whitened_svd_minimises_the_output_error(rng, O, I):
    W = rng.standard_normal((O, I)).astype(np.float32)
    for n_samples in (4 * I, I // 3):  # a regular and a singular C
        C = covariance(rng, I, n_samples)
        L, R, spectrum = linalg.whitened_svd(W, C, 5, ridge=0.0)
        error = output_error(W, C, L, R)
        assert error == pytest.approx(np.linalg.norm(spectrum[5:].astype(np.float64)), rel=1e-4)
        U, S, Vt = linalg.truncated_svd(W, 5)
        assert error < output_error(W, C, U * S, Vt)
        best = min(output_error(W, C, L + 1e-3 * rng.standard_normal(L.shape), R) for _ in range(5))
        assert error <= best


def loss_of(W, C, D, product):
    """tr(D E C E') of the error E."""
    E = W.astype(np.float64) - product.astype(np.float64)
    return np.trace(D @ E @ C @ E.T)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("O, I", [(20, 20), (12, 40), (40, 12), (1, 5), (5, 1)])
def test_fisher_svd_matches_the_text_book_and_nothing_near_loses_less(rng, dtype, O, I):
    W, C, D = rng.standard_normal((O, I)).astype(dtype), covariance(rng, I, 4 * I), covariance(rng, O, 4 * O)
    for rank in {1, min(O, I) // 2 or 1, min(O, I)}:
        L, R, spectrum = linalg.fisher_svd(W, C, D, rank, output_ridge=1e-3)
        product, S = ref.fisher_svd(W.astype(np.float64), C, D, rank, output_ridge=1e-3)
        assert L.dtype == R.dtype == spectrum.dtype == dtype and orthogonality(L) < 1e-6
        assert_close(spectrum, S, 20 if dtype is np.float32 else 1e6)
        assert_close(L @ R, product, 50 if dtype is np.float32 else 1e6)
    L, R, spectrum = linalg.fisher_svd(W, C, D, 1, ridge=0.0, output_ridge=1e-9)
    lost = loss_of(W, C, D, L @ R)
    assert lost == pytest.approx((spectrum[1:].astype(np.float64) ** 2).sum(), rel=1e-3, abs=1e-9)
    for _ in range(5 if min(O, I) > 1 else 0):
        assert lost < loss_of(W, C, D, (L + 1e-2 * rng.standard_normal(L.shape)) @ R)
    if min(O, I) > 1:
        assert lost < loss_of(W, C, D, np.matmul(*linalg.whitened_svd(W, C, 1)[:2]))


def test_fisher_svd_by_output_covariances_is_that_by_input_covariances(rng):
    """As for convolutions, whose patches are wide."""
    W, C, D = rng.standard_normal((12, 40)), covariance(rng, 40, 160), covariance(rng, 12, 48)
    by_input, by_output = (linalg.fisher_svd(W, M, D, 5, ridge=0.0) for M in (C, W @ C @ W.T))
    assert_close(by_output[0] @ by_output[1], by_input[0] @ by_input[1], 1e6)
    assert_close(by_output[2], by_input[2], 1e6)


def test_fisher_svd_without_gradients_is_whitened_svd(rng):
    W, C = rng.standard_normal((12, 20)).astype(np.float32), covariance(rng, 20, 80)
    for D in (np.zeros((12, 12)), np.eye(12)):
        L, R, _ = linalg.fisher_svd(W, C, D, variance=0.8)
        whitened = linalg.whitened_svd(W, C, variance=0.8)
        assert L.shape == whitened[0].shape
        assert_close(L @ R, whitened[0] @ whitened[1], 8)


@pytest.mark.parametrize("O, I", [(12, 20), (20, 12)])
def test_one_decomposition_gives_the_factors_of_every_rank(rng, O, I):
    W, C, D = rng.standard_normal((O, I)).astype(np.float32), covariance(rng, I, 80), covariance(rng, O, 80)
    found = linalg.FisherSvd(W, C, D)
    for rank in (1, 5, 12):
        L, R, spectrum = linalg.fisher_svd(W, C, D, rank)
        assert_close(np.matmul(*found.factors(rank)), L @ R)
        assert np.array_equal(found.spectrum, spectrum)
    assert [a.shape for a in found.factors()] == [(O, 12), (12, I)]
    bounded = linalg.FisherSvd(W, C, D, rank=5)
    assert_close(np.matmul(*bounded.factors(4)), np.matmul(*found.factors(4)))
    for got in (0, 6):
        with pytest.raises(ValueError, match=f"rank: expected 1 to 5, got {got}"):
            bounded.factors(got)


def test_fisher_svd_refuses_by_name():
    W, C, D = np.eye(4, 3), np.eye(3), np.eye(4)
    with pytest.raises(TypeError, match="D: expected a float64 array, got float32"):
        linalg.fisher_svd(W, C, D.astype(np.float32))
    with pytest.raises(ValueError, match=r"D: expected shape \(4, 4\), got \(3, 3\)"):
        linalg.fisher_svd(W, C, C)
    with pytest.raises(ValueError, match="output_ridge: expected a number above 0, got 0"):
        linalg.fisher_svd(W, C, D, output_ridge=0)
    with pytest.raises(ValueError, match="rank: expected 1 to 3"):
        linalg.fisher_svd(W, C, D, rank=4)
    D[1, 2] = np.nan
    with pytest.raises(ArithmeticError, match="fisher_svd: D holds NaN or Inf"):
        linalg.fisher_svd(W, C, D)


def test_whitened_svd_with_identity_is_plain_svd(rng):
    W = rng.standard_normal((15, 25)).astype(np.float32)
    L, R, spectrum = linalg.whitened_svd(W, np.eye(25), variance=0.8)
    U, S, Vt = linalg.truncated_svd(W, variance=0.8)
    assert_close(L @ R, (U * S) @ Vt, 8)
    assert len(spectrum) == 15


@given(
    m=st.integers(1, 40),
    n=st.integers(1, 40),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 2**32 - 1),
    deficient=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_any_shape(m, n, dtype, seed, deficient):
    rng = np.random.default_rng(seed)
    A = rng.standard_normal((m, n)).astype(dtype)
    if deficient:
        A[:, n // 2] = A[:, 0]
    U, S, Vt = linalg.truncated_svd(A)
    assert_close((U * S) @ Vt, A, 20)
    assert np.all(S[:-1] >= S[1:]) and np.all(S >= 0)
    if m >= n:
        Q, rank = linalg.orthonormalize(A, return_rank=True)
        assert orthogonality(Q) < 1e-6 and unexplained(A, Q) < 1e-5
        assert rank == n - (deficient and n > 1) or m == n  # square blocks may be ill-conditioned by chance


def test_each_instruction_set(rng, isa):
    A = with_spectrum(rng, 333, 21, np.geomspace(1, 1e-6, 21), np.float32)
    Q = linalg.orthonormalize(A)
    assert orthogonality(Q) <= 1e-6 and unexplained(A, Q) <= 1e-6
    W = A[:15].copy()
    L, R, _ = linalg.whitened_svd(W, np.eye(21))
    assert_close(L @ R, W, 4)


def test_same_threads_same_bits(rng, n_threads):
    A = rng.standard_normal((500, 40)).astype(np.float32)
    W, C = A[:30].copy(), covariance(rng, 40, 100)
    for call in (lambda: linalg.orthonormalize(A), lambda: linalg.truncated_svd(A, 5)[0],
                 lambda: linalg.whitened_svd(W, C, 7)[1]):
        assert np.array_equal(call(), call())


def test_whitened_svd_from_outputs_is_that_from_inputs(rng):
    W, x = rng.standard_normal((6, 20)), rng.standard_normal((50, 20)) * np.arange(1, 21)
    C = x.T @ x / 50
    for keep in ({"rank": 3}, {"variance": 0.9}, {}):
        L, R, spectrum = linalg.whitened_svd(W, C, ridge=0.0, **keep)
        L2, R2, spectrum2 = linalg.whitened_svd(W, W @ C @ W.T, ridge=0.0, **keep)
        assert L2.shape == L.shape and np.allclose(L2 @ R2, L @ R, atol=1e-6) and np.allclose(spectrum2, spectrum)
    with pytest.raises(ValueError, match="rank: expected 1 to 6, got 7"):
        linalg.whitened_svd(W, W @ C @ W.T, rank=7)
    with pytest.raises(ArithmeticError, match="NaN or Inf"):
        linalg.whitened_svd(W, np.full((6, 6), np.nan))
