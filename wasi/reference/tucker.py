"""Tucker decompositions on explicit unfoldings: the NumPy twin of csrc/kernels/tucker.c."""

import numpy as np


def unfold(A, mode):
    """A's unfolding: one row for each index of `mode`."""
    return np.moveaxis(A, mode, 0).reshape(A.shape[mode], -1)


def mode_dot(A, M, mode):
    """A x_mode M."""
    return np.moveaxis(np.tensordot(M, A, (1, mode)), 0, mode)


def tucker_to_tensor(core, factors):
    for n, U in enumerate(factors):
        core = core if U is None else mode_dot(core, U, n)
    return core


def project(A, factors):
    """A x_n U_n' over all factors."""
    return tucker_to_tensor(A, [None if U is None else U.T for U in factors])


def hosvd(A, ranks):
    """Each factor from A's own unfolding."""
    factors = [np.linalg.svd(unfold(A, n), full_matrices=False)[0][:, :K] for n, K in enumerate(ranks)]
    return project(A, factors), factors


def asi_step(A, factors, order):
    """One iteration of each mode in the given order, sequentially truncated."""
    factors = list(factors)
    for n in order:
        T = unfold(A, n)
        factors[n] = np.linalg.qr(T @ (T.T @ factors[n]))[0]
        A = mode_dot(A, factors[n].T, n)
    return A, factors


def asi_step_published(A, factors):
    """The published form: every mode from A itself."""
    factors = [np.linalg.qr(unfold(A, n) @ (unfold(A, n).T @ U))[0] for n, U in enumerate(factors)]
    return project(A, factors), factors


def matmul_tucker(g, core, factors):
    """g' x summed over rows, with x rebuilt."""
    x = tucker_to_tensor(core, factors)
    return g.reshape(-1, g.shape[-1]).T @ x.reshape(-1, x.shape[-1])
