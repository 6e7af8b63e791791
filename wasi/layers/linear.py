"""Linear layers with their parameters: dense y = x W' + b, and factored y = (x R') L' + b.

Both keep for backward what their caller does not promise to give again: a block that can recompute a linear's input
(a LayerNorm's output, a GELU) calls forward with keep_input=False and passes the input to backward. With a `compression` they
keep the input's Tucker factors instead, and need no input again. With a `window` they are convolutions, of inputs (B, H, W, C):
what is said of rows of I numbers holds for patches.
"""

import math

import numpy as np

from wasi import ops
from wasi.layers.compression import Compressed, add_weight_gradient, project
from wasi.layers.flops import Flops, wsi_update_flops
from wasi.layers.module import Module, Parameter


class LinearBase(Module):
    """What linear layers share: how the input is kept for backward. `_saved[0]` is the input, Compressed, or None."""

    compression = None  # an ActivationCompression, or None to keep the input as it is
    window = None  # the `ops.Window` of a convolution, or None
    quantized = None  # the frozen `ops.QuantizedMatrix` that is part of the weight, if any

    @property
    def fixed_bytes(self):
        return 0 if self.quantized is None else self.quantized.nbytes

    def _keep(self, x, keep_input):
        if self.compression is not None:
            return self.compression.compress(x)
        return x if keep_input else None

    @property
    def _b(self):
        """The bias (O,), or None."""
        return self.bias.data if self.bias else None

    @property
    def _db(self):
        """What backward adds the bias's gradient to, or None."""
        return self.bias.grad_buffer() if self.bias else None

    def adopt(self, old):
        """The window stays where it is when layers change."""
        self.window = getattr(old, "window", self.window)

    def output_shape(self, shape):
        """The shape of the output for an input of that shape."""
        return (*shape[:-1], self.out_features) if self.window is None else (shape[0], *self.window.grid(*shape[1:3]),
                                                                             self.out_features)

    def _size(self, x):
        """(H, W) of an input, plain or Compressed, where that matters."""
        return None if self.window is None else x.shape[1:3]

    def _rows(self, shape):
        """Rows, or patches, of an input of that shape."""
        return math.prod(self.output_shape(shape)[:-1])

    def _input_gradient_flops(self, shape, G):
        """Keeping the input x in its form, and g' x for g (..., G)."""
        if self.compression is None:
            return 2 * self._rows(shape) * self.in_features * G
        return self.compression.flops(shape) + self.compression.gradient_flops(shape, G, self.window)

    @property
    def needs_input(self):
        """Whether backward must be given the input again."""
        return self._saved is not None and self._saved[0] is None


class Linear(LinearBase):
    """Dense linear layer.

    weight: (O, I), bias: (O,) or None; float32.
    """

    def __init__(self, weight, bias=None):
        self.weight = Parameter(weight)
        self.bias = None if bias is None else Parameter(bias, decay=False)

    @property
    def out_features(self):
        return self.weight.data.shape[0]

    @property
    def in_features(self):
        return self.weight.data.shape[1]

    def forward(self, x, train=False, keep_input=True):
        """x (..., I) -> y (..., O)."""
        if train:
            self._saved = (self._keep(x, keep_input),)
        return ops.linear(x, self.weight.data, self._b, window=self.window)

    def prepare(self):
        """Readies backward as forward(train=True, keep_input=False) does, without computing anything."""
        self._saved = (None,)

    def backward(self, dy, x=None, need_dx=True):
        """dy (..., O) -> dx (..., I); adds to the parameters' gradients. x: the input again if it was not kept."""
        (kept,) = self._take_saved()
        return self._backward(dy, x if kept is None else kept, need_dx)

    def _backward(self, dy, x, need_dx):
        """The same for an input x, plain or Compressed."""
        dW, size = self.weight.grad_buffer(), self._size(x)
        if isinstance(x, Compressed):
            if dW is not None:
                add_weight_gradient(dW, dy, x, self.window)
            dW = None
        x = None if dW is None else x
        return ops.linear_backward(dy, x, self.weight.data, dW, self._db, need_dx, window=self.window, size=size)

    def flops(self, shape, rule="sgd", dx=True, prepared=False):
        """The Flops of one training step on an input of that shape (..., I).

        rule: of the optimiser: "sgd", "momentum" or "adamw". dx: whether the input's gradient is wanted. prepared: backward
        was readied by `prepare`, and computes again what forward would have kept.
        """
        product = 2 * self._rows(shape) * self.in_features * self.out_features
        dW = self._input_gradient_flops(shape, self.out_features) if self.weight.trainable else 0
        return Flops(product, (product if dx else 0) + dW)


class ThinLinear(LinearBase):
    """What layers share that multiply by two thin factors: z = x R' (..., K) is kept for backward, unless x is compressed."""

    def _keep_both(self, x, z, keep_input):
        kept = self._keep(x, keep_input)
        self._saved = (kept, None if isinstance(kept, Compressed) else z)

    def prepare(self):
        """Readies backward as forward(train=True, keep_input=False) does, without computing anything."""
        self._saved = (None, None)

    def _thin_gradient_flops(self, shape, K, prepared):
        """Keeping the input x in its form; dR = gl' x and dL = dy' (x R') of rank K. prepared: x R' is computed again."""
        I, M = self.in_features, self._rows(shape)
        total = self._input_gradient_flops(shape, K)
        if self.compression is None:
            return total + 2 * M * K * self.out_features + (2 * M * K * I if prepared else 0)
        return total + self.compression.projected_gradient_flops(shape, K, self.out_features, self.window)

    def _thin_backward(self, dy, x, z, L, R, dL, dR, need_dx):
        """dx of y = (x R') L' + b, or None, for an input x, plain or Compressed; adds to dL, dR and db. z: x R', or None."""
        db = self._db
        if isinstance(x, Compressed):
            dx, gl = ops.factored_linear_backward(dy, None, None, L, R, None, None, db, need_dx, window=self.window,
                                                  size=self._size(x))
            if dR is not None:
                add_weight_gradient(dR, gl, x, self.window)
            if dL is not None:
                add_weight_gradient(dL, dy, project(x, R, self.window))
            return dx
        z = ops.linear(x, R, window=self.window) if z is None else z
        return ops.factored_linear_backward(dy, x, z, L, R, dL, dR, db, need_dx, window=self.window)[0]


class FactoredLinear(ThinLinear):
    """Linear layer with a trained rank-K weight L R that is never multiplied out, over a frozen residual if there is one.

    W = L R + Q. L: (O, K) with orthonormal columns, R: (K, I), bias: (O,) or None; float32. Trained by the WSI step
    (`wasi.linalg.wsi_step`), which keeps L orthonormal. residual: Q as an `ops.QuantizedMatrix` (O, I), or None.
    exact: multiply by Q with float32 activations instead of rounding those to 8 bits (slower; for gradient checks).
    plain: L and R are parameters like others, trained without the WSI step; L need not be orthonormal then.
    """

    def __init__(self, L, R, bias=None, residual=None, plain=False):
        L, R = np.asarray(L), np.asarray(R)
        if L.ndim != 2 or R.ndim != 2 or L.shape[1] != R.shape[0]:
            raise ValueError(f"L, R: expected shapes (O, K) and (K, I), got {L.shape} and {R.shape}")
        if residual is not None and residual.shape != (L.shape[0], R.shape[1]):
            raise ValueError(f"residual: expected shape {(L.shape[0], R.shape[1])}, got {residual.shape}")
        self.L = Parameter(L)
        self.R = Parameter(R)
        self.bias = None if bias is None else Parameter(bias, decay=False)
        self.residual = residual
        self.exact = False
        self.plain = plain

    @property
    def out_features(self):
        return self.L.data.shape[0]

    @property
    def in_features(self):
        return self.R.data.shape[1]

    @property
    def rank(self):
        return self.L.data.shape[1]

    @property
    def basis(self):
        """L (O, K): the basis of the weight's columns."""
        return self.L.data

    @property
    def quantized(self):
        return self.residual

    def forward(self, x, train=False, keep_input=True):
        """x (..., I) -> y (..., O)."""
        y, z = ops.factored_linear(x, self.L.data, self.R.data, self._b, window=self.window)
        if self.residual is not None:
            ops.quant_linear(x, self.residual, out=y, add=True, exact=self.exact, window=self.window)
        if train:
            self._keep_both(x, z, keep_input)
        return y

    def backward(self, dy, x=None, need_dx=True):
        """dy (..., O) -> dx (..., I); adds to the gradients of L, R and bias. x: the input again if it was not kept."""
        kept, z = self._take_saved()
        x = x if kept is None else kept
        dx = self._thin_backward(dy, x, z, self.L.data, self.R.data, self.L.grad_buffer(), self.R.grad_buffer(), need_dx)
        if need_dx and self.residual is not None:
            ops.quant_linear_backward(dy, self.residual, out=dx, add=True, exact=self.exact, window=self.window,
                                      size=self._size(x))
        return dx

    def flops(self, shape, rule="sgd", dx=True, prepared=False):
        """As `Linear.flops`."""
        O, I, K = self.out_features, self.in_features, self.rank
        M = self._rows(shape)
        product = 2 * M * K * (I + O)
        residual = 0 if self.residual is None else 2 * M * I * O
        gl_and_dx = 2 * M * O * K + (2 * M * K * I + residual if dx else 0)
        backward = gl_and_dx + self._thin_gradient_flops(shape, K, prepared)
        return Flops(product + residual, backward, 0 if self.plain else wsi_update_flops(O, I, K, rule))

    def merged_weight(self):
        """The dense weight L R + Q (O, I)."""
        W = self.L.data @ self.R.data
        return W if self.residual is None else W + ops.dequantize_residual(self.residual)
