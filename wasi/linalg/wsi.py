"""The WSI step: gradient, optimiser and one subspace iteration of W = L R, without any O x I array."""

import numpy as np

from wasi import _core

# What an optimiser remembers of each trained number, by its rule; a rule's place here is its number in the core.
MOMENTS = {"sgd": (), "momentum": ("m",), "adamw": ("m", "v")}
RULES = tuple(MOMENTS)


def wsi_state_shapes(O, I, K, optimizer="sgd"):
    """Shapes of the state arrays that `wsi_step` keeps for one layer, by name: none, one tangent vector, or
    two.

    >>> wsi_state_shapes(8, 6, 2, "momentum")
    {'mA': (2, 6), 'mB': (8, 2)}
    """
    if optimizer not in RULES:
        raise ValueError(f"optimizer: expected one of {', '.join(RULES)}, got {optimizer!r}")
    return {name + part: shape for name in MOMENTS[optimizer] for part, shape in (("A", (K, I)), ("B", (O, K)))}


class WsiState:
    """What an optimiser remembers about one layer, as coordinates of the tangent space at W = L R.

    A tangent vector is L A + B Q, where Q is R's orthonormal row basis: A (K, I) and B (O, K) with L' B = 0.
    arrays: {"mA", "mB"} for momentum, and {"vA", "vB"} more for AdamW's second moments; zero at the start.
    n_steps: steps taken. n_new: rows of R, the last ones, that `wsi_extend` added and no step has moved yet.
    A checkpoint needs `optimizer`, `arrays`, `n_steps` and `n_new`.
    """

    def __init__(self, O, I, K, optimizer="sgd", dtype=np.float32):
        self.optimizer = optimizer
        shapes = wsi_state_shapes(O, I, K, optimizer)
        self.arrays = {name: np.zeros(shape, dtype) for name, shape in shapes.items()}
        self.n_steps = 0
        self.n_new = 0

    @property
    def nbytes(self):
        return sum(a.nbytes for a in self.arrays.values())


def wsi_gradient_norm2(L, R, dL, dR):
    """The squared norm of the gradient's projection on the tangent space of rank-K matrices at W = L R.

    norm2 = |dR|^2 + |(I - L L') dL T^-1|^2 with R R' = T' T, from dL = G R' and dR = L' G alone.

    Parameters: L (O, K) orthonormal, R (K, I), dL (O, K), dR (K, I), all of one type.
    Returns (norm2, T): a float, and R's triangle T (K, K) float64, which `wsi_step` takes to save work as
    long as R has not changed.
    Raises ArithmeticError where R's rank has collapsed or an array holds NaN or Inf.
    """
    return _core.wsi_gradient_norm2(L, R, dL, dR)


def wsi_step(L, R, dL, dR, lr, grad_scale=1.0, weight_decay=0.0, state=None, momentum=0.9, betas=(0.9, 0.999),
             eps=1e-8, T=None):
    """One optimiser step on W = L R followed by one subspace iteration, in place in L and R.

    W1 = W - lr * (direction in the tangent space at W), L_new = orth(W1 W1' L), R_new = L_new' W1. For SGD
    the direction is the projected gradient L dR + (I - L L') dL (R R')^-1 R. L stays orthonormal to 1e-6.

    Parameters: L (O, K) orthonormal, R (K, I): overwritten; dL (O, K), dR (K, I): the gradients of the
    factors, read; lr >= 0; grad_scale: factor on the gradient (clipping); weight_decay >= 0: added to the
    gradient as weight_decay * W (SGD, momentum) or W *= 1 - lr * weight_decay (AdamW); state: a `WsiState` of
    this layer, which names the optimiser and is updated, or None for SGD; momentum: of the heavy ball, in [0,
    1); betas, eps: Adam's; T: from `wsi_gradient_norm2` of the same R, or None.
    Raises ArithmeticError where the rank of R, or of R after the step, has collapsed (condition above about
    3e6 with rows scaled to unit norm) or an array holds NaN or Inf. Then L, R and the state are as they were.

    Exact (up to rounding): SGD, heavy ball, and Adam's first moment, which are tangent vectors and are
    projected on the new tangent space. Approximate: Adam's second moments, moved as variances of independent
    coordinates.
    Source: WASI (arXiv 2510.09160), section 3.1.
    """
    optimizer = "sgd" if state is None else state.optimizer
    arrays = {} if state is None else state.arrays
    step = 1 if state is None else state.n_steps + 1
    hyper = (lr, grad_scale, weight_decay, momentum, *betas, eps)
    _core.wsi_step(L, R, dL, dR, RULES.index(optimizer), *hyper, step, **arrays, Tri=T)
    if state is not None:
        state.n_steps = step
