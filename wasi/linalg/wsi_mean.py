"""The running mean of a weight that is held as factors whose basis turns from step to step."""

import numpy as np

from wasi.linalg.svd import orthonormalize

# An iteration leaves the angle to the best basis times (sigma_K+1 / sigma_K)^2; where that may be more, the best is computed.
LARGEST_RATIO = 0.01


def wsi_mean(L, R, new_L, new_R, decay):
    """The best rank-K approximation of M = decay * L R + (1 - decay) * new_L new_R, without any O x I array where 2 K <= O.

    Means of L and of R alone would depend on the factors' gauge: for every invertible N, L N and N^-1 R are the same weight. So
    the product is averaged. Where new_L lies near an orthonormal L of the same rank, as after a step, one iteration does it,
    L_mean = orth(M M' L), R_mean = L_mean' M, within LARGEST_RATIO of the best angle; else M is truncated in the span of both.

    Parameters: L (O, K0), R (K0, I); new_L (O, K), new_R (K, I); all read, of one type; L's columns need not be orthonormal.
    Returns (L, R, dropped): (O, K) orthonormal, (K, I), and the Frobenius norm of what was truncated, or slightly more. A mean
    that has gone through many such steps is off from the exact one by at most the sum of what each dropped, times the decays
    since.

    >>> import numpy as np
    >>> e, f = np.eye(3)[:, :1], np.eye(3)[:, 1:2]
    >>> L, R, dropped = wsi_mean(e, e.T, f, f.T, 0.75)  # diag(0.75, 0.25, 0)
    >>> np.round(L @ R + 0, 6).tolist(), dropped
    ([[0.75, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]], 0.25)
    """
    K = new_L.shape[1]
    near = None
    if L.shape[1] == K and np.abs(L.T @ L - np.eye(K)).max() < 1e-4:
        near = _iterate(L, R, new_L, new_R, decay)
    mean_L, mean_R, dropped = near or _truncate(L, R, new_L, new_R, decay)
    return np.ascontiguousarray(mean_L, L.dtype), np.ascontiguousarray(mean_R, L.dtype), dropped


def _iterate(L, R, new_L, new_R, decay):
    """One subspace iteration from an orthonormal L; None where that may not do.

    With P = (I - L L') new_L, M = L A + P B. Then M M' L = (L + P Y) A A', Y = B A' (A A')^-1, and what lies outside is at most
    P (B - Y A). Tall products are of the factors' type, all else is float64.
    """
    X = L.T @ new_L
    P = new_L - L @ X
    B = (1 - decay) * new_R.astype(np.float64)
    A = decay * R.astype(np.float64) + X.astype(np.float64) @ B
    G = (P.T @ P).astype(np.float64)
    try:
        inverse = np.linalg.inv(A @ A.T)
        Y = B @ A.T @ inverse
        outside = B - Y @ A
        dropped2 = max(0.0, float(((G @ outside) * outside).sum()))
        if not dropped2 * np.linalg.norm(inverse) <= LARGEST_RATIO:
            return None
        Z = L + P @ Y.astype(L.dtype)
        N = np.linalg.inv(np.linalg.cholesky((Z.T @ Z).astype(np.float64)))
    except np.linalg.LinAlgError:
        return None
    return Z @ N.T.astype(L.dtype), N @ (A + Y.T @ (G @ B)), dropped2**0.5


def _truncate(L, R, new_L, new_R, decay):
    """M in an orthonormal basis of both, there truncated."""
    O, K, (L0, R0, L1, R1) = len(L), new_L.shape[1], (a.astype(np.float64) for a in (L, R, new_L, new_R))
    span = np.hstack([L0, L1])
    basis = orthonormalize(span) if span.shape[1] <= O else np.eye(O)
    thin = decay * (basis.T @ L0) @ R0 + (1 - decay) * (basis.T @ L1) @ R1
    squares, U = np.linalg.eigh(thin @ thin.T)  # ascending; what it blurs is below 1e-8 of the largest singular value
    U = U[:, -K:]
    return basis @ U, U.T @ thin, float(np.sqrt(squares[:-K].clip(0).sum()))
