"""Saved activations as Tucker factors: activation subspace iteration (ASI), and the full decomposition (AMC) beside it."""

import math
import weakref
from typing import NamedTuple

import numpy as np

from wasi import linalg, ops
from wasi.layers.flops import asi_flops, hosvd_flops, tucker_gradient_flops


class Compressed(NamedTuple):
    """A linear's input x ~ core x_1 U_1 ... x_N U_N; a factor None stands for a mode that was left alone."""

    core: np.ndarray
    factors: tuple

    @property
    def shape(self):
        """Of the input."""
        return tuple(d if U is None else len(U) for d, U in zip(self.core.shape, self.factors))


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

    def gradient_flops(self, shape, G, window=None):
        """FLOPs of g' x~ for g (..., G)."""
        ranks = self.ranks_for(shape)
        if window is None:
            return tucker_gradient_flops(shape, ranks, G)
        (B, H, W, C), (K1, _, _, K4) = shape, ranks
        pixels = math.prod(window.grid(H, W))
        shrink = 2 * B * K1 * pixels * G if K1 < B else 0
        widen = 2 * G * window.taps * K4 * C if K4 < C else 0
        return self._grow_flops(shape, ranks) + shrink + 2 * K1 * pixels * window.taps * K4 * G + widen

    @staticmethod
    def _grow_flops(shape, ranks):
        """Of the core along lines and columns."""
        (_, H, W, _), (K1, K2, K3, K4) = shape, ranks
        return (2 * K1 * H * K2 * K3 * K4 if K2 < H else 0) + (2 * K1 * H * W * K3 * K4 if K3 < W else 0)

    def projected_gradient_flops(self, shape, K, G, window=None):
        """FLOPs of g' (x~ R') for R (K, I) and g (..., G), with `project`."""
        *ranks, last = self.ranks_for(shape)
        if window is not None:
            grid, first = window.grid(*shape[1:3]), ranks[0]
            narrow = 2 * K * window.taps * shape[-1] * last if last < shape[-1] else 0
            product = 2 * first * math.prod(grid) * window.taps * last * K
            return (self._grow_flops(shape, (*ranks, last)) + narrow + product
                    + tucker_gradient_flops((shape[0], *grid, K), (first, *grid, K), G))
        project_factor = 2 * K * shape[-1] * last if last < shape[-1] else 0
        return project_factor + 2 * math.prod(ranks) * last * K + tucker_gradient_flops((*shape[:-1], K), (*ranks, K), G)


def add_weight_gradient(dW, g, x, window=None):
    """dW += g' x~ for a Compressed x; with a window, x~ stands for its patches.

    A convolution of x~ is one of its channels' core, grown along lines and columns alone: over K1 images of K4 channels.
    """
    if window is None:
        linalg.matmul_tucker(g, x.core, x.factors, out=dW)
        return
    batch, *_, channels = x.factors
    grown = _grown(x)
    if batch is not None:
        g = linalg.mode_dot(g, batch, 0, transpose=True)
    if channels is None:
        ops.conv_backward(g, grown, dW, window, dW, need_dx=False)
        return
    narrow = np.zeros((len(dW), window.taps * grown.shape[-1]), np.float32)
    ops.conv_backward(g, grown, narrow, window, narrow, need_dx=False)
    dW += ops.linear(narrow.reshape(-1, grown.shape[-1]), channels).reshape(dW.shape)


def _grown(x):
    """The core of a Compressed (B, H, W, C) along lines and columns: (K1, H, W, K4)."""
    core = x.core
    for mode in (1, 2):
        if x.factors[mode] is not None:
            core = linalg.mode_dot(core, x.factors[mode], mode)
    return core


def project(x, R, window=None):
    """Compressed x R' of a Compressed x: its last mode multiplied by R (K, I); with a window, R multiplies its patches."""
    if window is not None:
        channels = x.factors[-1]
        if channels is not None:
            R = np.ascontiguousarray(R.reshape(-1, len(channels)) @ channels).reshape(len(R), -1)
        return Compressed(ops.conv(_grown(x), R, window), (x.factors[0], None, None, None))
    last = R if x.factors[-1] is None else np.ascontiguousarray(R @ x.factors[-1])
    return Compressed(linalg.mode_dot(x.core, last, x.core.ndim - 1), (*x.factors[:-1], None))
