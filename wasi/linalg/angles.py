"""Angles between subspaces."""

import numpy as np


def principal_angles(A, B):
    """The principal angles between the spans of two orthonormal bases, in radians, ascending.

    Their cosines are the singular values of A' B, their sines those of B - A A' B; each angle comes from the one of the two that
    is accurate for it, so small angles between float32 bases are good to about 1e-7 (Bjorck and Golub, 1973).

    Parameters: A (m, j), B (m, k): orthonormal columns. Returns min(j, k) angles, float64.

    >>> A = np.eye(3)[:, :2]
    >>> np.rad2deg(principal_angles(A, np.array([[0.0], [0.6], [0.8]]))).round(2).tolist()
    [53.13]
    """
    if A.shape[1] < B.shape[1]:
        A, B = B, A
    A, B = A.astype(np.float64), B.astype(np.float64)
    cross = A.T @ B
    cosines = np.linalg.svd(cross, compute_uv=False).clip(0, 1)
    sines = np.linalg.svd(B - A @ cross, compute_uv=False)[::-1].clip(0, 1)
    return np.where(cosines > 0.7, np.arcsin(sines), np.arccos(cosines))
