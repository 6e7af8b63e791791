"""Published ways to train low-rank weights, kept for comparison: the dense weight and its dense gradient stay."""

import numpy as np

from wasi import linalg, ops
from wasi.layers.flops import Flops, orth_flops, svd_flops
from wasi.layers.linear import Linear


class DenseWeightLinear(Linear):
    """Linear layer with a dense trained weight W that computes with factors L R of rank K, at first W's truncated SVD.

    Backward forms the dense gradient of W. Saves FLOPs in the products with L and R, no memory: W, dW, L and R all exist.
    factors: (L, R) that it computes with, for a layer that goes on where it stood; then rank is not used.
    """

    def __init__(self, weight, bias, rank, factors=None):
        super().__init__(weight, bias)
        if factors is None:
            self._truncate(rank)
        else:
            self._L, self._R = factors

    def _truncate(self, rank):
        U, s, Vt = linalg.truncated_svd(self.weight.data, rank=rank)
        self._L, self._R = U, np.ascontiguousarray(s[:, None] * Vt)

    @property
    def rank(self):
        return self._L.shape[1]

    @property
    def basis(self):
        """L (O, K): the basis of the columns of what it computes with."""
        return self._L

    @property
    def factors(self):
        """(L, R) that it computes with, (O, K) and (K, I)."""
        return self._L, self._R

    @factors.setter
    def factors(self, pair):
        self._L, self._R = pair

    @property
    def fixed_bytes(self):
        return self._L.nbytes + self._R.nbytes

    def merged_weight(self):
        """The dense weight that it computes with, L R (O, I); W itself is near it."""
        return self._L @ self._R

    def forward(self, x, train=False, keep_input=True):
        """x (..., I) -> y (..., O)."""
        if train:
            self._saved = (self._keep(x, keep_input),)
        y, _ = ops.factored_linear(x, self._L, self._R, self._b, window=self.window)
        return y

    def _backward(self, dy, x, need_dx):
        """dx is through L R; dW = dy' x is that of the dense weight."""
        super()._backward(dy, x, need_dx=False)
        if not need_dx:
            return None
        return ops.factored_linear_backward(dy, None, None, self._L, self._R, window=self.window, size=self._size(x))[0]

    def flops(self, shape, rule="sgd", dx=True, prepared=False):
        """As `Linear.flops`, without what keeps L R near W."""
        product = 2 * self._rows(shape) * self.rank * (self.in_features + self.out_features)
        return Flops(product, self._input_gradient_flops(shape, self.out_features) + (product if dx else 0))


class WsiDenseLinear(DenseWeightLinear):
    """The published form of WSI: after each update L R follows W by one subspace iteration, L = orth(W R'), R = L' W.

    L is paired with the R that it yields (the authors' scripts pair it with the previous one).

    Source: WASI (arXiv 2510.09160), algorithm 1, which iterates at the beginning of the next forward pass: the same.
    """

    def after_step(self):
        """L R follows the updated W."""
        W = self.weight.data
        self._L = linalg.orthonormalize(np.ascontiguousarray(W @ self._R.T))
        self._R = np.ascontiguousarray(self._L.T @ W)

    def flops(self, shape, rule="sgd", dx=True, prepared=False):
        """As `Linear.flops`."""
        O, I, K = self.out_features, self.in_features, self.rank
        return super().flops(shape, rule, dx) + Flops(0, 0, 4 * O * I * K + orth_flops(O, K))


class SvdLinear(DenseWeightLinear):
    """Truncation at every step: the optimiser moves the dense W, then W becomes its own best approximation of rank K, L R."""

    def __init__(self, weight, bias, rank, factors=None):
        super().__init__(weight, bias, rank, factors)
        self.weight.data = self._L @ self._R

    def after_step(self):
        """W <- its truncated SVD."""
        self._truncate(self.rank)
        np.matmul(self._L, self._R, out=self.weight.data)

    def flops(self, shape, rule="sgd", dx=True, prepared=False):
        """As `Linear.flops`."""
        O, I = self.out_features, self.in_features
        return super().flops(shape, rule, dx) + Flops(0, 0, svd_flops(O, I) + 2 * O * I * self.rank)
