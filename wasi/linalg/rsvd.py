"""Randomised, adaptive and warm-started truncated SVD.

All of them work on a basis V of the matrix's short side and never hold more than a few blocks of rank +
oversamples columns beside A. Random numbers depend on `seed` alone: the same seed and thread count give the
same bits.
"""

import math
from typing import NamedTuple

import numpy as np

from wasi import _core
from wasi.linalg.svd import orthonormalize, truncated_svd

_NORMALIZERS = ("auto", "QR", "LU", "none")


class AdaptiveSvd(NamedTuple):
    """A truncated SVD and its relative error |A - U diag(S) Vt| / |A| in the Frobenius norm."""

    U: np.ndarray
    S: np.ndarray
    Vt: np.ndarray
    rel_error: float


def _need_rank(A, rank):
    if not isinstance(A, np.ndarray) or A.ndim != 2:
        raise TypeError(f"A: expected a matrix, got {type(A).__name__}")
    if not 1 <= rank <= min(A.shape):
        raise ValueError(f"rank: expected 1 to {min(A.shape)}, the smaller side, got {rank}")


def _scale(A, norm=None):
    """The power of two next to 1 / |A|, within the range of A's type."""
    norm = _core.frobenius_norm(A) if norm is None else norm
    limit = 120 if A.dtype == np.float32 else 1000
    return 2.0 ** -min(max(round(math.log2(norm)), -limit), limit) if norm > 0 else 1.0


def _columns(rank, n_oversamples, q):
    """Columns of a block, at most q: a narrow one is filled up to a multiple of 16, at the cost of a GEMM of as many."""
    wanted = rank + n_oversamples
    return min(-(-wanted // 16) * 16 if wanted <= 144 else wanted, q)


def _plan(p, q, rank, l, n_iter, accelerate, exact, moderate):
    """The cheapest way and its iterations: "one" or "two" blocks, the "gram" matrix iterated on, or "exact".

    Costs in FLOPs at GEMM's speed: a product of A with a block; an eigenproblem of order k is about 30 k^3.
    """
    product = 2 * p * q * l
    many, few, on_gram = (n_iter,) * 3 if n_iter is not None else (6, 3, 5) if rank < q / 10 else (4, 3, 4)
    ways = {"one": (many, (2 + 2 * many) * product)}
    if accelerate and few > 0 and 2 * l <= q:
        ways["two"] = (few, 30 * (2 * l) ** 3 + (2 + 2 * few) * product)
    if accelerate and on_gram > 0 and moderate:
        ways["gram"] = (on_gram, 1.2 * p * q**2 + 2 * (on_gram + 1) * q**2 * l + product)
    if exact:
        ways["exact"] = (0, 2 * p * q**2 + 30 * q**3)
    way = min(ways, key=lambda name: ways[name][1])
    return way, ways[way][0]


def _finish(A_shape, S, right, W, flip_sign):
    """U, S, Vt from the short side's vectors and W, which holds the long side's in its first numbers."""
    m, n = A_shape
    long = W.reshape(-1)[: W.shape[0] * len(S)].reshape(W.shape[0], len(S))
    U, Vt = (long, right) if m >= n else (right, np.ascontiguousarray(long.T))
    if flip_sign:  # the entry of largest size in each column of U becomes positive
        signs = np.where(U.max(0) >= -U.min(0), 1, -1).astype(U.dtype)
        U *= signs
        Vt *= signs[:, None]
    return U, S, Vt


def _by_gram(A, rank, flip_sign):
    """Exact by the Gram matrix of the short side, in float64."""
    p, alpha = max(A.shape), _scale(A)
    S, V = _core.gram_svd(A, rank)
    W = np.empty((p, rank), A.dtype)
    _core.range(A, V, W, alpha=alpha)
    _core.orthonormalize(W, W)
    return _finish(A.shape, S, V if A.shape[0] < A.shape[1] else np.ascontiguousarray(V.T), W, flip_sign)


def randomized_svd(A, rank=None, variance=None, n_oversamples=10, n_iter=None,
                   power_iteration_normalizer="auto", flip_sign=True, seed=0):
    """Truncated SVD A ~ U diag(S) Vt by a randomised method: near the best error at a fraction of the cost.

    A random block of rank + n_oversamples columns is multiplied by Chebyshev polynomials of A' A, which take
    half the passes over A that powers take. Where the rank is not small beside A's smaller side, the products
    are taken with the Gram matrix of that side, formed once; where it is, A is projected on the last two
    blocks. A is read again for the values and vectors in any case. A long thin float32 matrix is decomposed by
    its Gram matrix in float64, where that costs less.

    Parameters: A (m, n); rank: 1..min(m, n); or variance in (0, 1]: as `adaptive_svd`; n_oversamples >= 0, at
    least so many; n_iter: iterations of two products with A (or one with its Gram matrix) each, None: 3 to 6;
    power_iteration_normalizer: "auto" (Chebyshev polynomials), "QR" (plain powers, orthonormalised in between;
    "LU" is the same, as our QR costs no more), "none" (plain powers); flip_sign: the entry of largest size in
    each column of U is made positive; seed: of the random block.
    Returns U (m, rank), S (rank,) descending, Vt (rank, n).
    Raises ValueError for arguments out of range, ArithmeticError for NaN or Inf in A.

    Source: Halko, Martinsson and Tropp (2011); the parameters are scikit-learn's.

    >>> A = np.outer(np.arange(1.0, 5.0), np.arange(1.0, 4.0))
    >>> U, S, Vt = randomized_svd(A, rank=1)
    >>> bool(np.allclose(U * S @ Vt, A))
    True
    """
    if (rank is None) == (variance is None):
        raise ValueError("rank, variance: expected exactly one of them")
    if power_iteration_normalizer not in _NORMALIZERS:
        raise ValueError(f"power_iteration_normalizer: expected one of {', '.join(_NORMALIZERS)}, "
                         f"got {power_iteration_normalizer!r}")
    if n_oversamples < 0:
        raise ValueError(f"n_oversamples: expected at least 0, got {n_oversamples}")
    if n_iter is not None and n_iter < 0:
        raise ValueError(f"n_iter: expected at least 0, got {n_iter}")
    if variance is not None:
        return adaptive_svd(A, variance=variance, seed=seed)[:3]
    _need_rank(A, rank)
    alpha = _scale(A)
    p, q = max(A.shape), min(A.shape)
    l = _columns(rank, n_oversamples, q)
    accelerate = power_iteration_normalizer == "auto"
    exact = A.dtype == np.float32 and n_iter is None
    by_default = n_iter is None
    way, n_iter = _plan(p, q, rank, l, n_iter, accelerate, exact, 2.0**-40 < alpha < 2.0**40)
    if way == "exact":
        return _by_gram(A, rank, flip_sign)
    V, X, previous = np.empty((q, l), A.dtype), None, None
    by_gram = way == "gram" and _core.gram_range(A, V, rank, n_iter, alpha, seed)
    W = np.empty((p, l), A.dtype)
    if by_gram:
        _core.range(A, V, W, alpha=alpha)
    else:
        X, previous = np.empty_like(V), np.empty_like(V) if accelerate else None
        cold = by_default and way == "two"
        if not cold:
            _core.range_start(A, V, W, True, alpha, seed)
        _core.range(A, V, W, X, previous, rank, n_iter, accelerate, way == "two",
                    power_iteration_normalizer != "none", alpha, seed, cold)
    if way != "two":
        X = None
    previous = None
    S, right = _core.ritz(W, V, A.shape[0] < A.shape[1], rank, alpha, X, A)
    del V, X
    return _finish(A.shape, S, right, W, flip_sign)


def adaptive_svd(A, variance=None, rel_error=None, max_rank=None, block=None, n_iter=1, flip_sign=True,
                 seed=0):
    """Truncated SVD of the smallest rank, nearly, that explains a wanted part of |A|^2, without a full SVD.

    Random blocks are added to a basis, each iterated against those before it, until A's projection on it
    holds enough energy, which is known exactly at each step; one iteration of the whole basis follows.

    Parameters: A (m, n); variance in (0, 1]: keep at least this part of |A|^2, or rel_error in [0, 1): |A - U
    diag(S) Vt| <= rel_error |A|; max_rank: give up there (None: min(m, n)); block: columns added at a time;
    n_iter: iterations of each block; flip_sign, seed: as in `randomized_svd`.
    Returns AdaptiveSvd(U, S, Vt, rel_error) with the error that was reached. In float32 an error below 5e-4
    of |A| is lost in rounding and reported as anything below that.
    Raises ValueError for arguments out of range, ArithmeticError for NaN or Inf in A.

    Source: Halko, Martinsson and Tropp (2011), section 4.4; Yu, Gu and Li (2018) for the exact indicator.

    >>> A = np.diag([3.0, 2.0, 0.1, 0.05])
    >>> adaptive_svd(A, variance=0.99).S.round(6).tolist()
    [3.0, 2.0]
    """
    if (variance is None) == (rel_error is None):
        raise ValueError("variance, rel_error: expected exactly one of them")
    if variance is not None and not 0 < variance <= 1:
        raise ValueError(f"variance: expected a number in (0, 1], got {variance!r}")
    if rel_error is not None and not 0 <= rel_error < 1:
        raise ValueError(f"rel_error: expected a number in [0, 1), got {rel_error!r}")
    norm = _core.frobenius_norm(A)
    alpha, wide = _scale(A, norm), A.shape[0] < A.shape[1]
    p, q = max(A.shape), min(A.shape)
    limit = q if max_rank is None else max_rank
    _need_rank(A, limit)
    total = (alpha * norm) ** 2
    wanted = total * (variance if variance is not None else 1 - rel_error**2)
    block = min(block or max(8, q // 24), limit)
    V, W = np.empty((q, 4 * block), A.dtype), np.empty((p, 4 * block), A.dtype)
    done, energy = 0, 0.0
    while done < limit and (energy < wanted or done == 0):
        b = min(block, limit - done)
        if done + b > V.shape[1]:
            more = min(V.shape[1], limit - done + b)
            V, W = (np.hstack([a, np.empty((len(a), more), a.dtype)]) for a in (V, W))
        X, Y = np.empty((q, b), A.dtype), np.empty((p, b), A.dtype)
        for it in range(n_iter + 1):
            _core.range_start(A, X, Y, it == 0, alpha, seed + done)
            _core.complement(X, V, done, seed + done)
            _core.range(A, X, Y, alpha=alpha)  # Y = alpha B X
        V[:, done : done + b], W[:, done : done + b] = X, Y
        energy += _core.frobenius_norm(Y) ** 2
        done += b
    V, W = np.ascontiguousarray(V[:, :done]), np.ascontiguousarray(W[:, :done])
    if done < q:
        _core.range_start(A, V, W, False, alpha, seed)
        _core.range(A, V, W, alpha=alpha)
    S, right = _core.ritz(W, V, wide, done, alpha)
    U, S, Vt = _finish(A.shape, S, right, W, flip_sign)
    kept = np.cumsum((alpha * S.astype(np.float64)) ** 2)
    K = min(int(np.searchsorted(kept, wanted)) + 1, done)
    reached = math.sqrt(max(0.0, 1 - kept[K - 1] / total)) if total > 0 else 0.0
    return AdaptiveSvd(np.ascontiguousarray(U[:, :K]), S[:K].copy(), Vt[:K].copy(), reached)


def subspace_svd(A, rank, U0=None, n_iter=1, n_oversamples=0, seed=0):
    """Truncated SVD by subspace iteration from U0, a guess of the left singular vectors (None: random).

    Cheaper than `randomized_svd` where the guess is good: 2 n_iter passes over A, one more for a wide A.

    Parameters: A (m, n); rank: 1..min(m, n); U0 (m, c) with c >= rank + n_oversamples columns, of which the
    first are taken, or None; n_iter >= 1.
    Returns U, S, Vt, as `randomized_svd`; signs follow the iteration.

    >>> A = np.diag([4.0, 3.0, 2.0, 1.0])
    >>> U, S, Vt = subspace_svd(A, 2, U0=np.eye(4)[:, :2])
    >>> S.tolist()
    [4.0, 3.0]
    """
    _need_rank(A, rank)
    if n_iter < 1:
        raise ValueError(f"n_iter: expected at least 1, got {n_iter}")
    wide, p, q = A.shape[0] < A.shape[1], max(A.shape), min(A.shape)
    l = min(rank + n_oversamples, q)
    alpha = _scale(A)
    V, W, X = np.empty((q, l), A.dtype), np.empty((p, l), A.dtype), np.empty((q, l), A.dtype)
    if U0 is not None and (U0.shape[0] != len(A) or U0.shape[1] < l):
        raise ValueError(f"U0: expected shape ({len(A)}, {l} or more), got {U0.shape}")
    if U0 is not None and wide:
        V = orthonormalize(np.ascontiguousarray(U0[:, :l], A.dtype))
    else:
        if U0 is not None:
            W[:] = U0[:, :l]
        _core.range_start(A, V, W, U0 is None, alpha, seed)
        n_iter -= 1
    _core.range(A, V, W, X, K=rank, n_iter=n_iter, alpha=alpha)
    S, right = _core.ritz(W, V, wide, rank, alpha)
    return _finish(A.shape, S, right, W, False)


class SubspaceTracker:
    """Follows the truncated SVD of a slowly changing matrix at two thin products a step.

    Keeps rank + n_oversamples triplets; each step is one warm-started subspace iteration with all of them.

    >>> rng = np.random.default_rng(0)
    >>> A = rng.standard_normal((30, 20))
    >>> tracker = SubspaceTracker(rank=3, n_oversamples=5)
    >>> U, S, Vt = tracker.init(A)
    >>> U, S, Vt = tracker.step(A + 0.01 * rng.standard_normal((30, 20)))
    >>> U.shape, S.shape, Vt.shape
    ((30, 3), (3,), (3, 20))
    """

    def __init__(self, rank, n_oversamples=8, seed=0):
        if rank < 1:
            raise ValueError(f"rank: expected at least 1, got {rank}")
        self.rank, self.n_oversamples, self.seed = rank, n_oversamples, seed
        self._U = self._S = self._Vt = None

    def _result(self):
        K = self.rank
        return self._U[:, :K], self._S[:K], self._Vt[:K]

    def _started(self):
        if self._U is None:
            raise RuntimeError("SubspaceTracker: step or update before init")

    def init(self, A):
        """Decomposes A (m, n) by `randomized_svd`; returns U, S, Vt, views of the tracker's arrays."""
        _need_rank(A, self.rank)
        kept = min(self.rank + self.n_oversamples, *A.shape)
        self._U, self._S, self._Vt = randomized_svd(A, kept, flip_sign=False, seed=self.seed)
        return self._result()

    def step(self, A):
        """Takes the matrix's new value A, of the shape and type that `init` saw; returns U, S, Vt."""
        self._started()
        if A.shape != (self._U.shape[0], self._Vt.shape[1]):
            raise ValueError(f"A: expected shape {(self._U.shape[0], self._Vt.shape[1])}, got {A.shape}")
        alpha, wide = _scale(A), A.shape[0] < A.shape[1]
        W = np.ascontiguousarray(self._Vt.T) if wide else self._U
        V = np.empty((min(A.shape), len(self._S)), A.dtype)
        _core.range_start(A, V, W, False, alpha, 0)
        _core.range(A, V, W, alpha=alpha)
        S, right = _core.ritz(W, V, wide, len(self._S), alpha)
        self._U, self._S, self._Vt = _finish(A.shape, S, right, W, False)
        return self._result()

    def step_products(self, matmul, rmatmul):
        """The same for a matrix known by its products with thin arrays: matmul(x) = A @ x, rmatmul(y) = A.T @ y."""
        self._started()
        (m, n), wide = (self._U.shape[0], self._Vt.shape[1]), self._U.shape[0] < self._Vt.shape[1]
        forward, back, start = (rmatmul, matmul, self._Vt.T) if wide else (matmul, rmatmul, self._U)
        V = orthonormalize(np.array(back(np.ascontiguousarray(start)), self._U.dtype, order="C"))
        W = np.array(forward(V), self._U.dtype, order="C")
        alpha = _scale(W)
        W *= alpha
        S, right = _core.ritz(W, V, wide, len(self._S), alpha)
        self._U, self._S, self._Vt = _finish((m, n), S, right, W, False)
        return self._result()

    def update(self, X, Y):
        """A <- A + X Y' for thin X (m, c), Y (n, c): exact on what is kept of A, in (m + n) (rank + c)^2 FLOPs."""
        self._started()
        sides = []
        for basis, new in ((self._U, X), (self._Vt.T, Y)):
            if new.shape[0] != basis.shape[0]:
                raise ValueError(f"X, Y: expected {basis.shape[0]} rows, got {new.shape[0]}")
            joint = np.ascontiguousarray(np.hstack([basis, new]), basis.dtype)
            tall = joint.shape[1] <= joint.shape[0]
            Q = orthonormalize(joint) if tall else np.eye(len(joint), dtype=basis.dtype)
            sides.append((Q, Q.T @ joint))
        (QU, CU), (QV, CV) = sides
        K = len(self._S)
        small = (CU[:, :K] * self._S) @ CV[:, :K].T + CU[:, K:] @ CV[:, K:].T
        U, S, Vt = truncated_svd(np.ascontiguousarray(small), rank=min(K, *small.shape))
        self._U, self._S, self._Vt = np.ascontiguousarray(QU @ U), S, np.ascontiguousarray(Vt @ QV.T)
        return self._result()


def diff_norm(A, U, S, Vt):
    """The Frobenius norm |A - U diag(S) Vt|, accurate to rounding: the difference exists 64 rows at a time.

    Parameters: A (m, n), U (m, K), S (K,), Vt (K, n), all of one type.

    >>> A = np.diag([3.0, 4.0])
    >>> diff_norm(A, np.array([[1.0], [0.0]]), np.array([3.0]), np.array([[1.0, 0.0]]))
    4.0
    """
    return _core.diff_norm(A, U, S, Vt)
