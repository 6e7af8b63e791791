"""The WSI step on a dense W: the NumPy twin of csrc/kernels/wsi.c.

Here W, its gradient G and the momentum are O x I arrays, and the tangent space is an explicit projection.
"""

import numpy as np


def project(L, Q, X):
    """X's projection on the tangent space of rank-K matrices with column basis L (O x K) and row basis Q (K x
    I)."""
    LX = L @ (L.T @ X)
    return LX + (X - LX) @ Q.T @ Q


def row_basis(R):
    """The orthonormal row basis Q of R = T' Q with T upper triangular and of positive diagonal."""
    Q, T = np.linalg.qr(R.T)
    return (Q * np.where(np.diag(T) < 0, -1.0, 1.0)).T


def orth(Y):
    """The orthonormal basis of Y's columns for which Y = L N with N upper triangular and of positive
    diagonal."""
    L, N = np.linalg.qr(Y)
    return L * np.where(np.diag(N) < 0, -1.0, 1.0)


def iterate(L, W1):
    """One subspace iteration of W1 from L: (L_new, R_new)."""
    A1 = L.T @ W1
    L_new = orth(W1 @ A1.T @ np.linalg.inv(A1 @ A1.T))
    return L_new, L_new.T @ W1


def step(L, R, G, lr, grad_scale=1.0, weight_decay=0.0, buffer=None, momentum=0.9):
    """(L, R, buffer) after one step of SGD (buffer None) or heavy-ball momentum (buffer O x I, in the tangent
    space)."""
    W = L @ R
    direction = project(L, row_basis(R), grad_scale * G) + weight_decay * W
    if buffer is not None:
        direction = buffer = momentum * buffer + direction
    L_new, R_new = iterate(L, W - lr * direction)
    return L_new, R_new, None if buffer is None else project(L_new, row_basis(R_new), buffer)


def step_adamw(L, R, G, moments, n_steps, lr, grad_scale=1.0, weight_decay=0.0, betas=(0.9, 0.999), eps=1e-8):
    """(L, R, moments) after AdamW step number `n_steps` (from 1) on moments (mA, mB, vA, vB) in the bases (L,
    Q)."""
    mA, mB, vA, vB = moments
    W, Q, P = L @ R, row_basis(R), np.eye(len(L)) - L @ L.T
    gA, gB = grad_scale * L.T @ G, grad_scale * P @ G @ Q.T
    mA, mB = (betas[0] * m + (1 - betas[0]) * g for m, g in ((mA, gA), (mB, gB)))
    vA, vB = (betas[1] * v + (1 - betas[1]) * g**2 for v, g in ((vA, gA), (vB, gB)))
    c1, c2 = 1 - betas[0] ** n_steps, 1 - betas[1] ** n_steps
    uA, uB = ((m / c1) / (np.sqrt(v / c2) + eps) for m, v in ((mA, vA), (mB, vB)))
    L_new, R_new = iterate(L, (1 - lr * weight_decay) * W - lr * (L @ uA + P @ uB @ Q))
    Q_new = row_basis(R_new)
    first = project(L_new, Q_new, L @ mA + mB @ Q)
    mA, mB = L_new.T @ first, (first - L_new @ (L_new.T @ first)) @ Q_new.T
    return L_new, R_new, (mA, mB, (L_new.T @ L) ** 2 @ vA, vB @ (Q @ Q_new.T) ** 2)
