"""Orthonormal bases and truncated SVD: the NumPy twin of csrc/kernels/{orth,svd}.c."""

import numpy as np


def orthonormalize(A):
    """An orthonormal basis of A's columns."""
    return np.linalg.qr(A)[0]


def rank_by_variance(S, variance):
    """The smallest k >= 1 with sum_{i<=k} s_i^2 >= variance * sum s_i^2."""
    energy = np.cumsum(S.astype(np.float64) ** 2)
    return int(min(np.searchsorted(energy, variance * energy[-1]), len(S) - 1)) + 1


def truncated_svd(A, rank=None, variance=None):
    """(U, S, Vt) of the given rank, or of the smallest rank that explains `variance`."""
    U, S, Vt = np.linalg.svd(A, full_matrices=False)
    K = len(S) if rank is None else rank
    K = K if variance is None else min(K, rank_by_variance(S, variance))
    return U[:, :K], S[:K], Vt[:K]


def whitened_svd(W, C, rank, ridge=1e-6):
    """(L, R, spectrum) by the text-book way: P = C^(1/2), truncate W P, R = S V' P^-1."""
    w, Z = np.linalg.eigh(C + ridge * np.trace(C) / len(C) * np.eye(len(C)))
    root = np.sqrt(w)
    U, S, Vt = np.linalg.svd(W @ (Z * root) @ Z.T, full_matrices=False)
    return U[:, :rank], S[:rank, None] * Vt[:rank] @ (Z / root) @ Z.T, S
