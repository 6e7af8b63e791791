"""The running mean of a weight that is held as factors whose basis turns from step to step."""

import numpy as np

from wasi.linalg.svd import orthonormalize


def wsi_mean(L, R, new_L, new_R, decay):
    """The best rank-K approximation of decay * L R + (1 - decay) * new_L new_R, without any O x I array where 2 K <= O.

    Means of L and of R alone would depend on the factors' gauge: for every invertible M, L M and M^-1 R are the same weight. So
    the product is averaged: both bases span at most 2 K columns, in which the sum is a thin matrix, and that is truncated.

    Parameters: L (O, K0), R (K0, I); new_L (O, K), new_R (K, I); all read, of one type; L's columns need not be orthonormal.
    Returns (L, R, dropped): (O, K) orthonormal, (K, I), and the Frobenius norm of what was truncated. A mean that has gone
    through many such steps is off from the exact one by at most the sum of what each dropped times the decays since.
    The products are made in float64, since their roundings would add up over steps.

    >>> import numpy as np
    >>> e, f = np.eye(3)[:, :1], np.eye(3)[:, 1:2]
    >>> L, R, dropped = wsi_mean(e, e.T, f, f.T, 0.75)  # diag(0.75, 0.25, 0)
    >>> np.round(L @ R + 0, 6).tolist(), dropped
    ([[0.75, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]], 0.25)
    """
    O, K, wide = len(L), new_L.shape[1], [a.astype(np.float64) for a in (L, R, new_L, new_R)]
    L0, R0, L1, R1 = wide
    span = np.hstack([L0, L1])
    basis = orthonormalize(span) if span.shape[1] <= O else np.eye(O)
    thin = decay * (basis.T @ L0) @ R0 + (1 - decay) * (basis.T @ L1) @ R1
    squares, U = np.linalg.eigh(thin @ thin.T)  # ascending; what it blurs is below 1e-8 of the largest singular value
    U = U[:, -K:]
    return (np.ascontiguousarray(basis @ U, L.dtype), np.ascontiguousarray(U.T @ thin, L.dtype),
            float(np.sqrt(squares[:-K].clip(0).sum())))
