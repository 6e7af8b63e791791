"""Saved activations as Tucker factors: activation subspace iteration (ASI), and the full decomposition (AMC) beside it."""

import math
import weakref
from typing import NamedTuple

import numpy as np

from wasi import linalg
from wasi.layers.flops import asi_flops, hosvd_flops, tucker_gradient_flops


class Compressed(NamedTuple):
    """A linear's input x ~ core x_1 U_1 ... x_N U_N; a factor None stands for a mode that was left alone."""

    core: np.ndarray
    factors: tuple


class ActivationCompression:
    """Compresses the inputs of one linear layer, step after step, each from the subspaces of the one before.

    ranks: (batch, tokens, channels), each a share in (0, 1] of the mode's size or a number (capped at the size); all modes
    between the first and the last take the middle one. method: "asi", one warm-started subspace iteration a mode; "hosvd", the
    sequentially truncated decomposition from scratch each time (AMC).
    The gradient is exact for the compressed input: dW = dy' x~. Linears that are given the very same array (as those of queries,
    keys and values are) may share one of these: it is compressed once, and kept once.

    Source: WASI (arXiv 2510.09160), section 3.3; AMC is its comparison of section 4.
    """

    def __init__(self, ranks, method="asi"):
        if len(ranks) != 3 or not all((isinstance(r, int) and r >= 1) or 0 < r <= 1 for r in ranks):
            raise ValueError("activation_ranks: expected three shares in (0, 1] or whole numbers (batch, tokens, channels), "
                             f"got {ranks}")
        self.ranks = tuple(ranks)
        self.method = method
        self._factors = None
        self._last = None  # weak references to the last input and its core, and the factors

    def ranks_for(self, shape):
        """The rank of each mode of an input of that shape."""
        batch, tokens, channels = self.ranks
        wanted = [batch, *[tokens] * (len(shape) - 2), channels]
        return [min(d, r) if isinstance(r, int) else max(1, round(r * d)) for r, d in zip(wanted, shape)]

    def compress(self, x):
        """x (B, ..., I) as Compressed. A batch of another size restarts the batch mode alone; the other modes stay warm."""
        if self._last is not None:
            seen, core, factors = self._last
            if seen() is x and core() is not None:
                return Compressed(core(), factors)
        compressed = self._compress(x)
        self._last = weakref.ref(x), weakref.ref(compressed.core), compressed.factors
        return compressed

    def _compress(self, x):
        ranks = self.ranks_for(x.shape)
        if self.method == "hosvd":
            core, factors = linalg.tucker(x, ranks=ranks)
            return Compressed(core, tuple(factors))
        if self._factors is None:
            self._factors = linalg.asi_factors(x.shape, ranks)
        for mode, (factor, d, K) in enumerate(zip(self._factors, x.shape, ranks)):
            if K < d and (factor is None or factor.shape != (d, K)):
                self._factors[mode] = np.zeros((d, K), np.float32)
            elif K == d:
                self._factors[mode] = None
        return Compressed(linalg.asi_step(x, self._factors), tuple(self._factors))

    def state(self):
        """The subspaces that the next step starts from: a (d, K) array a mode, (0, 0) for one left alone; [] before the first."""
        return [np.zeros((0, 0), np.float32) if factor is None else factor for factor in self._factors or ()]

    def set_state(self, arrays):
        """Takes up what `state` gave. The arrays become its own."""
        self._factors = [array if array.size else None for array in arrays] or None

    def flops(self, shape):
        """FLOPs of `compress` on an input of that shape, warm."""
        return (hosvd_flops if self.method == "hosvd" else asi_flops)(shape, self.ranks_for(shape))

    def gradient_flops(self, shape, G):
        """FLOPs of g' x~ for g (..., G)."""
        return tucker_gradient_flops(shape, self.ranks_for(shape), G)

    def projected_gradient_flops(self, shape, K, G):
        """FLOPs of g' (x~ R') for R (K, I) and g (..., G), with `project`."""
        *ranks, last = self.ranks_for(shape)
        project_factor = 2 * K * shape[-1] * last if last < shape[-1] else 0
        return project_factor + 2 * math.prod(ranks) * last * K + tucker_gradient_flops((*shape[:-1], K), (*ranks, K), G)


def add_weight_gradient(dW, g, x):
    """dW += g' x~ for a Compressed x."""
    linalg.matmul_tucker(g, x.core, x.factors, out=dW)


def project(x, R):
    """Compressed x R' of a Compressed x: its last mode multiplied by R (K, I)."""
    last = R if x.factors[-1] is None else np.ascontiguousarray(R @ x.factors[-1])
    return Compressed(linalg.mode_dot(x.core, last, x.core.ndim - 1), (*x.factors[:-1], None))
