"""Randomised SVD as in the text book: the NumPy twin of csrc/kernels/rsvd.c.

The kernel iterates with other polynomials and random numbers, so the two agree in their error, not in bits.
"""

import numpy as np

from wasi.reference.svd import orthonormalize


def randomized_svd(A, rank, n_oversamples=10, n_iter=4, rng=None):
    """(U, S, Vt) by subspace iteration on a random block, orthonormalised at each step (Halko et al., 2011)."""
    rng = np.random.default_rng(0) if rng is None else rng
    Q = orthonormalize(A @ rng.standard_normal((A.shape[1], min(rank + n_oversamples, *A.shape))))
    for _ in range(n_iter):
        Q = orthonormalize(A @ orthonormalize(A.T @ Q))
    U, S, Vt = np.linalg.svd(Q.T @ A, full_matrices=False)
    return Q @ U[:, :rank], S[:rank], Vt[:rank]


def subspace_svd(A, rank, U0, n_iter):
    """(U, S, Vt) by subspace iteration from U0."""
    U = U0
    for _ in range(n_iter):
        V = orthonormalize(A.T @ U)
        U = orthonormalize(A @ V)
    P, S, Qt = np.linalg.svd(A @ V, full_matrices=False)
    return P[:, :rank], S[:rank], (Qt @ V.T)[:rank]
