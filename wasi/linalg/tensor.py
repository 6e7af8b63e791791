"""Tucker decompositions A ~ core x_1 U_1 ... x_N U_N of arrays of 2 to 5 dimensions.

`factors` holds one array (d_n, K_n) of orthonormal columns for each mode, or None where the mode is left
alone (K_n = d_n). Modes are numbered from 0, as axes are.
"""

import math

import numpy as np

from wasi import _core


def mode_dot(A, M, mode, transpose=False, out=None):
    """The product of A with a matrix along a mode: dimension d of A becomes J.

    Parameters: A: 2 to 5 dimensions; M (J, d), or (d, J) with transpose; mode: an axis of A; out: None or an
    array of the result's shape.

    >>> mode_dot(np.ones((2, 3, 4)), np.ones((5, 3)), 1).shape
    (2, 5, 4)
    """
    return _core.mode_dot(A, M, mode, transpose, out)


def tucker_to_tensor(core, factors):
    """The array that a core and its factors stand for; the cheapest growth comes first."""
    order = sorted((n for n, U in enumerate(factors) if U is not None),
                   key=lambda n: factors[n].shape[0] / factors[n].shape[1])
    for n in order:
        core = mode_dot(core, factors[n], n)
    return core


def _target_ranks(A, ranks, variance):
    """ranks as a list, or None for each mode where `variance` decides."""
    if (ranks is None) == (variance is None):
        raise ValueError("ranks, variance: expected exactly one of them")
    if ranks is None:
        if not 0 < variance <= 1:
            raise ValueError(f"variance: expected a number in (0, 1], got {variance!r}")
        return [None] * A.ndim
    if len(ranks) != A.ndim:
        raise ValueError(f"ranks: expected {A.ndim} numbers, one for each dimension, got {len(ranks)}")
    for n, (K, d) in enumerate(zip(ranks, A.shape)):
        if not 1 <= K <= d:
            raise ValueError(f"ranks[{n}]: expected 1 to {d}, got {K}")
    return [int(K) for K in ranks]


def _leading_basis(A, mode, K, lost):
    """The K leading left singular vectors of A's unfolding; K None: as few as leave an energy <= lost."""
    S, Z = _core.mode_svd(A, mode)
    if K is None:
        tail = np.append(np.cumsum(S[::-1] ** 2)[::-1], 0.0)  # tail[k] = s_{k+1}^2 + ...
        K = max(1, int(np.argmax(tail <= lost)))
    return None if K == A.shape[mode] else np.ascontiguousarray(Z[:K].T, A.dtype)


def tucker(A, ranks=None, variance=None, method="st-hosvd", n_iter=0):
    """Tucker decomposition with exact singular vectors.

    method "st-hosvd": sequentially truncated, each factor from the array as the modes before it left it;
    "hosvd": every factor from A itself. Both have an error of at most sqrt(N) times the best one; the first
    is cheaper and mostly better. n_iter: sweeps of HOOI that follow, which lower the error, each factor in
    turn from A projected on all the others.

    Parameters: A: 2 to 5 dimensions, float32 or float64; ranks: one number for each mode, 1..d_n; or variance
    in (0, 1]: ranks such that the decomposition keeps at least this part of |A|^2, shared evenly by the
    modes.
    Returns core, factors: factors[n] (d_n, K_n) with orthonormal columns, or None where K_n = d_n.
    Raises ValueError for bad ranks, ArithmeticError for NaN or Inf in A.
    Singular values are accurate to 1e-8 of the largest (from Gram matrices in float64).

    Source: WASI (arXiv 2510.09160), section 3.3; Vannieuwenhoven et al. (2012) for the sequential truncation.

    >>> A = np.arange(24.0).reshape(2, 3, 4)
    >>> core, factors = tucker(A, ranks=(2, 2, 2))
    >>> core.shape, bool(np.allclose(tucker_to_tensor(core, factors), A))
    ((2, 2, 2), True)
    """
    if method not in ("st-hosvd", "hosvd"):
        raise ValueError(f"method: expected 'st-hosvd' or 'hosvd', got {method!r}")
    targets = _target_ranks(A, ranks, variance)
    norm = _core.frobenius_norm(A.reshape(len(A), -1))  # refuses NaN and Inf before any work
    lost = 0.0 if variance is None else (1 - variance) * norm**2 / A.ndim
    factors, core = [None] * A.ndim, A
    for n in np.argsort(A.shape if ranks is None else ranks, kind="stable"):
        if targets[n] == A.shape[n]:
            continue
        factors[n] = _leading_basis(core if method == "st-hosvd" else A, n, targets[n], lost)
        if method == "st-hosvd" and factors[n] is not None:
            core = mode_dot(core, factors[n], n, transpose=True)
    for _ in range(n_iter):
        for n, U in enumerate(factors):
            if U is not None:
                factors[n] = _leading_basis(_project(A, factors, skip=n), n, U.shape[1], 0.0)
    if method == "hosvd" or n_iter:
        core = _project(A, factors)
    return (core.copy() if core is A else core), factors


def _project(A, factors, skip=None):
    """A x_n U_n' over all factors but one; the strongest reduction comes first."""
    order = sorted((n for n, U in enumerate(factors) if U is not None and n != skip),
                   key=lambda n: factors[n].shape[1] / factors[n].shape[0])
    for n in order:
        A = mode_dot(A, factors[n], n, transpose=True)
    return A


def asi_factors(shape, ranks, dtype=np.float32):
    """Factors for `asi_step` to start from: zeros (d_n, K_n), not yet warm; None for ranks[n] >= d_n."""
    return [None if K >= d else np.zeros((d, K), dtype) for d, K in zip(shape, ranks)]


def asi_step(A, factors, n_iter=1, seed=0, out=None):
    """One warm-started step of activation subspace iteration: updates `factors` in place, returns the core.

    For each mode U_n <- orth(T_n (T_n' U_n)), with T the array as the modes done before have left it
    (sequential truncation), in the order that costs least. Modes whose factor is all zeros start from random
    numbers of `seed` and take two iterations more. The core is A x_1 U_1' ... x_N U_N', so that the squared
    error is |A|^2 - |core|^2.

    Parameters: A: 2 to 5 dimensions; factors: as `asi_factors` gives them, of A's type, overwritten; n_iter
    >= 1: iterations of each mode; out: None or an array for the core.
    Returns the core (K_1, ..., K_N).
    Raises ValueError for factors that do not fit, ArithmeticError for NaN or Inf in A, found in the first
    mode's products rather than by a pass of its own; then some factors may have been updated.

    Source: WASI (arXiv 2510.09160), section 3.3.

    >>> A = np.arange(60.0).reshape(3, 4, 5)
    >>> factors = asi_factors(A.shape, (2, 2, 2), A.dtype)
    >>> core = asi_step(A, factors)
    >>> core.shape, [U.shape for U in factors]
    ((2, 2, 2), [(3, 2), (4, 2), (5, 2)])
    """
    cold = sum(1 << n for n, U in enumerate(factors) if U is not None and not U.any())
    return _core.asi_step(A, factors, cold, n_iter, seed, out)


def matmul_tucker(g, core, factors, out=None):
    """dW = sum over rows of g' x for x given by core and factors: a weight gradient without rebuilding x.

    For a linear layer with input x (..., I), whose Tucker form was saved, and output gradient g (..., G). Of
    the modes before the last, some shrink g by U_n' and the others grow the core by U_n, whichever costs
    least. For a factored layer y = (x R') L': dR from g = dy L, and dL from g = dy with the last factor R
    U_N, or with the core times R where the last factor is None.

    Parameters: g (d_1, ..., d_{N-1}, G); core (K_1, ..., K_N); factors: (d_n, K_n) or None each; out (G, d_N)
    or None: is added to.
    Returns out, or a new array (G, d_N).

    >>> x = np.arange(24.0).reshape(2, 3, 4)
    >>> g = np.ones((2, 3, 5))
    >>> core, factors = tucker(x, ranks=(2, 2, 2))
    >>> bool(np.allclose(matmul_tucker(g, core, factors), g.reshape(6, 5).T @ x.reshape(6, 4)))
    True
    """
    if out is None:
        d = core.shape[-1] if factors[-1] is None else factors[-1].shape[0]
        out = np.zeros((g.shape[-1], d), core.dtype)
    _core.matmul_tucker(out, g, core, factors)
    return out


def tucker_error(A, core, factors):
    """The norm |A - core x_1 U_1 ... x_N U_N|, accurate to rounding: the difference is formed slab by slab.

    A slab is one index of the first axis; besides it, the core grown along the other axes is held.
    """
    if any(U is not None and U.shape != (d, K) for U, d, K in zip(factors, A.shape, core.shape)):
        raise ValueError(f"factors: expected shapes (d, K) for A {A.shape} and core {core.shape}")
    grown = tucker_to_tensor(core, [None, *factors[1:]])
    first, total = factors[0], 0.0
    for i in range(A.shape[0]):
        slab = grown[i] if first is None else np.tensordot(first[i], grown, 1)
        total = math.hypot(total, _core.frobenius_norm((A[i] - slab).reshape(1, -1)))
    return total
