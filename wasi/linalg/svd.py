"""Orthonormal bases and truncated singular value decompositions."""

import numpy as np

from wasi import _core


def orthonormalize(A, out=None, return_rank=False):
    """An orthonormal basis Q of a tall A's columns: Q' Q = 1 to 1e-6 (float32), whatever A's condition.

    Parameters: A (m, k) with m >= k; out (m, k) or None, may be A itself; return_rank: also return A's
    numerical rank, which counts directions above 1e-6 (float32) or 1e-14 (float64) of the largest, columns
    scaled to unit norm.
    Returns Q (m, k), or (Q, rank). A = Q T with an upper triangular T; where the rank is below k, Q is
    completed to k orthonormal columns.
    Raises ArithmeticError for NaN or Inf; TypeError or ValueError for an array that does not fit.

    >>> import numpy as np
    >>> Q, rank = orthonormalize(np.array([[3.0, 6.0], [4.0, 8.0]]), return_rank=True)
    >>> rank, np.abs(Q.T @ Q).round(6).tolist()
    (1, [[1.0, 0.0], [0.0, 1.0]])
    """
    Q, rank = _core.orthonormalize(A, out)
    return (Q, rank) if return_rank else Q


def truncated_svd(A, rank=None, variance=None):
    """The exact truncated SVD A ~ U diag(S) Vt, the best approximation of its rank.

    Parameters: A (m, n); rank: 1..min(m, n), or None for all; variance: in (0, 1], or None: the smallest rank
    K with s_1^2 + ... + s_K^2 >= variance * sum s_i^2. Where both are given, the smaller rank counts.
    Returns U (m, K), S (K,) descending, Vt (K, n).
    Raises ValueError for a rank or variance out of range, ArithmeticError for NaN or Inf in A.

    >>> import numpy as np
    >>> U, S, Vt = truncated_svd(np.diag([3.0, 2.0, 0.1]), variance=0.99)
    >>> S.round(6).tolist()
    [3.0, 2.0]
    """
    return _core.truncated_svd(A, rank, variance)


def whitened_svd(W, C, rank=None, variance=None, ridge=1e-6):
    """The rank-K product L R that is best on a layer's output: min E |(W - L R) x|^2 where E[x' x] = C.

    L holds the leading left singular vectors of W C^(1/2), and R = L' W: that is S_K V_K' C^(-1/2) for a
    regular C, and safe for a singular one.

    Parameters: W (O, I); C (I, I) float64, symmetric positive semidefinite, or, where O < I, the smaller
    (O, O) that decides: E[y' y] of the outputs y = x W'; rank and variance as in `truncated_svd`, on the
    spectrum of W C^(1/2); ridge in [0, 1]: ridge * (mean of C's diagonal) is added to that diagonal, or as
    much to that of the C of white inputs with such outputs.
    Returns L (O, K) orthonormal, R (K, I), spectrum (min(O, I),): all singular values of W C^(1/2), to 1e-8
    of the largest. The squared error on the output is the sum of spectrum[K:]**2.
    Raises as `truncated_svd`; TypeError where C is not float64.

    Source: WASI (arXiv 2510.09160), section 3.1, with the truncation-aware whitening of SVD-LLM (arXiv
    2403.07378).

    >>> import numpy as np
    >>> L, R, spectrum = whitened_svd(np.eye(3), np.diag([1.0, 4.0, 9.0]), rank=2, ridge=0.0)
    >>> spectrum.round(6).tolist(), np.abs(L @ R).round(6).tolist()
    ([3.0, 2.0, 1.0], [[0.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    """
    if isinstance(C, np.ndarray) and np.ndim(W) == 2 and C.shape == (len(W), len(W)) and len(W) < W.shape[1]:
        return _from_outputs(W, C, rank, variance, ridge)
    return _core.whitened_svd(W, C, rank, variance, ridge)


def fisher_svd(W, C, D, rank=None, variance=None, ridge=1e-6, output_ridge=0.1):
    """The rank-K product L R that the loss misses least: min tr(D (W - L R) C (W - L R)') for inputs x and output gradients d.

    C = E[x' x] and D = E[d' d] are the two factors of a layer's Fisher matrix (K-FAC's), so half of that trace is what the loss
    rises by, to second order, and the spectra of layers can be compared: `wasi.models.factorize.allocated_ranks` does.

    Parameters: W (O, I); C as in `whitened_svd`; D (O, O) float64, symmetric positive semidefinite, or zero for the unit matrix;
    rank, variance and ridge as there, on the spectrum of D^(1/2) W C^(1/2); output_ridge above 0: so much of the mean of D's
    eigenvalues is added to each, since few gradients say little about the directions in which they are small.
    Returns L (O, K) orthonormal, R (K, I), spectrum (min(O, I),): the singular values of D^(1/2) W C^(1/2).
    Raises as `whitened_svd`.

    Source: generalised Fisher-weighted SVD (arXiv 2505.17974); the Fisher matrix's two factors from K-FAC (arXiv 1503.05671).

    >>> import numpy as np
    >>> L, R, spectrum = fisher_svd(np.eye(2), np.diag([1.0, 4.0]), np.diag([100.0, 1.0]), rank=1, output_ridge=1e-9)
    >>> spectrum.round(3).tolist(), (L @ R).round(3).tolist()
    ([10.0, 2.0], [[1.0, 0.0], [0.0, 0.0]])
    """
    found = FisherSvd(W, C, D, rank, variance, ridge, output_ridge)
    return (*found.factors(), found.spectrum)


class FisherSvd:
    """What `fisher_svd` truncates, decomposed once, to be cut at one rank after another.

    Parameters and errors as of `fisher_svd`, which has the formula; rank and variance bound the ranks that can be had. It holds
    W itself, the leading left singular vectors of D^(1/2) W C^(1/2), (O, rank), and D's eigenvectors, (O, O), in float64: nothing
    as wide as a wide W, and neither C nor D. spectrum (min(O, I),): all singular values, descending.

    >>> import numpy as np
    >>> found = FisherSvd(np.eye(3), np.eye(3), np.diag([1.0, 4.0, 9.0]), output_ridge=1e-9)
    >>> found.spectrum.round(3).tolist(), (np.matmul(*found.factors(1)) + 0.0).round(3).tolist()
    ([3.0, 2.0, 1.0], [[0.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    """

    def __init__(self, W, C, D, rank=None, variance=None, ridge=1e-6, output_ridge=0.1):
        O = len(W)
        if not (isinstance(D, np.ndarray) and D.dtype == np.float64):
            raise TypeError(f"D: expected a float64 array, got {getattr(D, 'dtype', type(D).__name__)}")
        if D.shape != (O, O):
            raise ValueError(f"D: expected shape {(O, O)}, got {D.shape}")
        if not output_ridge > 0:
            raise ValueError(f"output_ridge: expected a number above 0, got {output_ridge}")
        if not np.isfinite(D).all():
            raise ArithmeticError("fisher_svd: D holds NaN or Inf")
        energy, self._Z = np.linalg.eigh(D)
        energy = np.maximum(energy, 0)
        self._energy = energy + output_ridge * energy.mean() if energy.any() else np.ones(O)
        root = (self._Z * self._energy**0.5) @ self._Z.T
        if np.shape(C) == (O, O) and O < W.shape[1]:  # of the outputs
            C = root @ C @ root
        self._W = W
        self._seen, _, spectrum = whitened_svd(root @ W, C, rank, variance, ridge)
        self.spectrum = np.ascontiguousarray(spectrum, W.dtype)

    def factors(self, rank=None):
        """L (O, K) orthonormal and R (K, I), of W's type, for K = rank; None: the largest that there is.

        Raises ValueError for a rank out of range.
        """
        K = self._seen.shape[1] if rank is None else rank
        if not 1 <= K <= self._seen.shape[1]:
            raise ValueError(f"rank: expected 1 to {self._seen.shape[1]}, got {K}")
        turned = self._Z.T @ self._seen[:, :K]
        L, T = np.linalg.qr((self._Z * self._energy**-0.5) @ turned)
        R = T @ (((self._Z * self._energy**0.5) @ turned).T @ self._W)
        return tuple(np.ascontiguousarray(a, self._W.dtype) for a in (L, R))


def _from_outputs(W, M, rank, variance, ridge):
    """`whitened_svd` by the eigenvectors of M = E[y' y] = W C W'."""
    O, smallest = len(W), np.finfo(np.float64).tiny
    if M.dtype != np.float64:
        raise TypeError(f"C: expected a float64 array, got {M.dtype}")
    if rank is not None and not 1 <= rank <= O:
        raise ValueError(f"rank: expected 1 to {O}, got {rank}")
    if variance is not None and not 0 < variance <= 1:
        raise ValueError(f"variance: expected a number in (0, 1], got {variance}")
    wide = W.astype(np.float64)
    square = wide @ wide.T
    M = M + ridge * np.trace(M) / max(np.trace(square), smallest) * square
    if not np.isfinite(M).all():
        raise ArithmeticError("whitened_svd: W or C holds NaN or Inf")
    energy, Z = np.linalg.eigh(M)
    energy, K = np.maximum(energy[::-1], 0), O if rank is None else rank
    if variance is not None:
        K = min(K, int(np.searchsorted(np.cumsum(energy), variance * energy.sum() * (1 - 1e-15))) + 1)
    L = np.ascontiguousarray(Z[:, ::-1][:, :K], W.dtype)
    return L, np.ascontiguousarray(L.T @ W), np.sqrt(energy).astype(W.dtype)
