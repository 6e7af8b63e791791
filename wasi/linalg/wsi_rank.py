"""Changes of rank of W = L R between WSI steps: truncation, new directions, and the optimiser's state along with them."""

import numpy as np

from wasi.linalg.svd import orthonormalize, truncated_svd
from wasi.linalg.wsi import WsiState, wsi_gradient_norm2, wsi_step


def _row_basis(R):
    """The orthonormal row basis Q (K, I) of R = T' Q with T upper triangular and of positive diagonal, as the step has it."""
    Q, T = np.linalg.qr(R.T.astype(np.float64))
    return (Q * np.where(np.diag(T) < 0, -1.0, 1.0)).T


def _new_rows_gradient(R, dR, n_new):
    """The gradient of the last n_new rows, zeros in R, less its part in the span of the other rows (B stands for that)."""
    old = len(R) - n_new
    g, Q = dR[old:].astype(np.float64), _row_basis(R[:old])
    return g - (g @ Q.T) @ Q


def wsi_truncate(L, R, rank, state=None):
    """(L, R) of the best approximation of that rank to L R: with R = U S V', the factors L U_k and S_k V_k'.

    Parameters: L (O, K) orthonormal, R (K, I), read; rank 1..K; state: the layer's `WsiState`, which is moved, or None.
    Returns new arrays (O, rank) orthonormal and (rank, I).
    Momentum and Adam's first moment are projected on the new tangent space: exact. Adam's second moments are moved as variances
    of independent coordinates, as `wsi_step` does. Raises ValueError for a rank out of range.
    """
    K = R.shape[0]
    if not 1 <= rank <= K:
        raise ValueError(f"rank: expected 1 to {K}, got {rank}")
    U, _, _ = truncated_svd(R)
    new_L = orthonormalize(np.ascontiguousarray(L @ U[:, :rank]))
    # L U_k is orthonormal but for rounding, so its basis differs by rounding and signs; R takes up the signs.
    new_R = np.ascontiguousarray((new_L.T @ L) @ R)
    if state is not None and state.arrays:
        Q, Q_new = _row_basis(R), _row_basis(new_R)
        X, D = new_L.T.astype(np.float64) @ L, Q @ Q_new.T
        A, B = state.arrays["mA"], state.arrays["mB"]
        tangent = L @ (A @ Q_new.T) + B @ D
        moved = {"mA": X @ A + (new_L.T @ B) @ Q, "mB": tangent - new_L @ (new_L.T @ tangent)}
        if "vA" in state.arrays:
            moved |= {"vA": X**2 @ state.arrays["vA"], "vB": state.arrays["vB"] @ D**2}
        state.arrays = {name: np.ascontiguousarray(a, L.dtype) for name, a in moved.items()}
    return new_L, new_R


def wsi_extend(L, R, directions, state=None):
    """(L, R) with further columns in L, orthonormal to it, and rows of zeros in R: L R is unchanged.

    R's rows are dependent now, which `wsi_step` refuses: the next step is that of `wsi_step_extended`.

    Parameters: L (O, K) orthonormal, R (K, I), read; directions (O, p) whose part outside L gives the new columns (random ones
    stand in where there is none), K + p at most min(O, I); state: the layer's `WsiState`, which is extended, or None. New first
    moments are zero, new second moments the mean of the old.
    Returns new arrays (O, K + p), (K + p, I). Raises ValueError where there is no room for so many directions.
    """
    (O, K), I, p = L.shape, R.shape[1], directions.shape[1]
    if K + p > min(O, I):
        raise ValueError(f"directions: expected at most {min(O, I) - K} beside rank {K} of {O} x {I}, got {p}")
    both = orthonormalize(np.ascontiguousarray(np.hstack([L, directions]), L.dtype))
    if state is not None:
        for name, old in state.arrays.items():
            axis = 0 if name.endswith("A") else 1
            fill = old.mean(axis, keepdims=True) if name.startswith("v") else np.zeros_like(old.take([0], axis))
            state.arrays[name] = np.ascontiguousarray(np.concatenate([old] + [fill] * p, axis))
        state.n_new += p
    return np.ascontiguousarray(np.hstack([L, both[:, K:]])), np.vstack([R, np.zeros((p, I), R.dtype)])


def wsi_extended_norm2(L, R, dL, dR, n_new):
    """As `wsi_gradient_norm2` where the last n_new rows of R are zeros; T (K, K) is the triangle of the K others.

    norm2 is that of L L' G + (I - L L') G Q' Q + U U' G (I - Q' Q), with L and R = T' Q without the new columns U and rows.
    """
    K = len(R) - n_new
    norm2, T = wsi_gradient_norm2(*(np.ascontiguousarray(a) for a in (L[:, :K], R[:K], dL[:, :K], dR[:K])))
    return norm2 + float((_new_rows_gradient(R, dR, n_new) ** 2).sum()), T


def wsi_step_extended(L, R, dL, dR, lr, grad_scale=1.0, weight_decay=0.0, state=None, momentum=0.9, betas=(0.9, 0.999), eps=1e-8,
                      T=None):
    """The first step after `wsi_extend`, in place in L, R and the state; parameters as those of `wsi_step`.

    The state.n_new last rows of R are zeros. The other rows and columns take a `wsi_step`. The new rows take the optimiser's
    step with their gradient u' G (I - Q' Q), beside new columns u that are made orthonormal to the moved L; u's part of G Q' Q
    is in the step of L. From the next step on `wsi_step` turns these columns towards what the gradient wants: for a row
    r = u' G that is a power iteration on G. Where the gradient gives no independent rows (it is zero, say), they stay zero and
    state.n_new stays as it is.
    Raises ArithmeticError as `wsi_step`; then nothing has changed.
    """
    O, (K, I) = len(L), R.shape
    old = K - state.n_new
    part = WsiState(O, I, old, state.optimizer, L.dtype)
    part.n_steps = state.n_steps
    part.arrays = {name: np.ascontiguousarray(a[:old] if name.endswith("A") else a[:, :old]) for name, a in state.arrays.items()}
    l, r, dl = (np.ascontiguousarray(a) for a in (L[:, :old], R[:old].copy(), dL[:, :old]))
    wsi_step(l, r, dl, np.ascontiguousarray(dR[:old]), lr, grad_scale, weight_decay, part, momentum, betas, eps, T)
    u = orthonormalize(np.hstack([l, L[:, old:]]))[:, old:]
    m = direction = grad_scale * _new_rows_gradient(R, dR, state.n_new)
    if state.optimizer == "adamw":
        v = betas[1] * state.arrays["vA"][old:] + (1 - betas[1]) * m**2
        m = (1 - betas[0]) * m
        direction = m / (1 - betas[0] ** part.n_steps) / (np.sqrt(v / (1 - betas[1] ** part.n_steps)) + eps)
    rows = np.vstack([r, (-lr * direction).astype(R.dtype)])
    accepted = orthonormalize(np.ascontiguousarray(rows.T), return_rank=True)[1] == K
    L[:, :old], L[:, old:], R[:old] = l, u, r
    state.n_steps = part.n_steps
    for name, a in part.arrays.items():
        (state.arrays[name][:old] if name.endswith("A") else state.arrays[name][:, :old])[:] = a
    if not accepted:
        return
    R[old:] = rows[old:]
    state.n_new = 0
    if state.arrays:  # old momentum is projected on the larger tangent space: exact; B's part along u becomes rows of A
        A, B = state.arrays["mA"], state.arrays["mB"]
        along = u.T @ B[:, :old]
        A[old:] = m + along @ _row_basis(r)
        B[:, :old] -= u @ along
    if state.optimizer == "adamw":
        state.arrays["vA"][old:] = v
