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
    root, inverse = _roots(C, ridge)
    U, S, Vt = np.linalg.svd(W @ root, full_matrices=False)
    return U[:, :rank], S[:rank, None] * Vt[:rank] @ inverse, S


def fisher_svd(W, C, D, rank, ridge=1e-6, output_ridge=0.1):
    """(product, spectrum) by roots: truncate D^(1/2) W C^(1/2), and multiply by the inverse roots."""
    (left, left_inverse), (right, right_inverse) = _roots(D, output_ridge), _roots(C, ridge)
    U, S, Vt = np.linalg.svd(left @ W @ right, full_matrices=False)
    return left_inverse @ (U[:, :rank] * S[:rank]) @ Vt[:rank] @ right_inverse, S


def _roots(C, ridge):
    """C^(1/2) and C^(-1/2), where C's diagonal is raised by ridge times its mean."""
    w, Z = np.linalg.eigh(C + ridge * np.trace(C) / len(C) * np.eye(len(C)))
    return (Z * np.sqrt(w)) @ Z.T, (Z / np.sqrt(w)) @ Z.T
