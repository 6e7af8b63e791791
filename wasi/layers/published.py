"""The published form of WSI, kept for comparison: the dense weight and its dense gradient stay."""

import math

import numpy as np

from wasi import linalg, ops
from wasi.layers.compression import Compressed, add_weight_gradient
from wasi.layers.flops import Flops, orth_flops
from wasi.layers.linear import Linear


class WsiDenseLinear(Linear):
    """Linear layer that computes with a rank-K approximation of a dense trained weight.

    Each training forward follows the weight by one subspace iteration, L = orth(W R'), R = L' W, and multiplies by L R; backward
    forms the dense gradient of W. Saves FLOPs in the products with L and R, no memory: W, dW, L and R all exist.
    L is paired with the R that it yields (the authors' scripts pair it with the previous one).

    Source: WASI (arXiv 2510.09160), algorithm 1.
    """

    def __init__(self, weight, bias, rank):
        super().__init__(weight, bias)
        U, s, Vt = linalg.truncated_svd(self.weight.data, rank=rank)
        self._L, self._R = U, np.ascontiguousarray(s[:, None] * Vt)

    @property
    def rank(self):
        return self._L.shape[1]

    @property
    def fixed_bytes(self):
        return self._L.nbytes + self._R.nbytes

    def forward(self, x, train=False, keep_input=True):
        """x (..., I) -> y (..., O)."""
        W = self.weight.data
        if train:
            self._L = linalg.orthonormalize(np.ascontiguousarray(W @ self._R.T))
            self._R = np.ascontiguousarray(self._L.T @ W)
            self._saved = (self._keep(x, keep_input),)
        y, _ = ops.factored_linear(x, self._L, self._R, self.bias.data if self.bias else None)
        return y

    def backward(self, dy, x=None, need_dx=True):
        """dy (..., O) -> dx (..., I) through L R; adds the dense dW = dy' x."""
        (kept,) = self._take_saved()
        dW, db = self.weight.grad_buffer(), self.bias.grad_buffer() if self.bias else None
        if isinstance(kept, Compressed):
            add_weight_gradient(dW, dy, kept)
            kept = dW = None
        ops.linear_backward(dy, x if kept is None else kept, self.weight.data, dW, db, need_dx=False)
        if not need_dx:
            return None
        dx, _ = ops.factored_linear_backward(dy, None, None, self._L, self._R)
        return dx

    def flops(self, shape, rule="sgd", dx=True, prepared=False):
        """As `Linear.flops`; the subspace iteration is the training forward's."""
        O, I, K = self.out_features, self.in_features, self.rank
        product = 2 * math.prod(shape[:-1]) * K * (I + O)
        follow = 0 if prepared else 4 * O * I * K + orth_flops(O, K)
        return Flops(product, follow + self._input_gradient_flops(shape, O) + (product if dx else 0))
