"""Low-rank adaptation (LoRA): a frozen weight, dense or quantised, and a trained rank-r update beside it."""

import numpy as np

from wasi import ops
from wasi.layers.flops import Flops
from wasi.layers.linear import ThinLinear
from wasi.layers.module import Module, Parameter


class LoraLinear(ThinLinear):
    """y = x W' + scale (x A') B' + b with W frozen; A: (r, I) and B: (O, r) are trained by the plain optimiser.

    weight: (O, I) float32, or an `ops.QuantizedMatrix` (QLoRA's recipe). A starts uniform as PyTorch's linears do, B at zero, so
    the layer starts as its base; with rng None, A is at zero too, to be filled in. scale is alpha / r. Whether the bias is
    trained is left to the caller.

    Source: LoRA (arXiv 2106.09685); QLoRA (arXiv 2305.14314).
    """

    def __init__(self, weight, bias, rank, alpha, rng):
        O, I = weight.shape
        if not 1 <= rank <= min(O, I):
            raise ValueError(f"rank: expected 1 to {min(O, I)} for a weight of {O} x {I}, got {rank}")
        quantized = isinstance(weight, ops.QuantizedMatrix)
        self.base = weight if quantized else None
        if not quantized:
            self.weight = Parameter(weight)
            self.weight.trainable = False
        self.A = Parameter(np.zeros((rank, I)) if rng is None else rng.uniform(-(I**-0.5), I**-0.5, (rank, I)))
        self.B = Parameter(np.zeros((O, rank), np.float32))
        self.bias = None if bias is None else Parameter(bias, decay=False)
        self.scale = alpha / rank

    @property
    def out_features(self):
        return self.B.data.shape[0]

    @property
    def rank(self):
        return self.A.data.shape[0]

    @property
    def in_features(self):
        return self.A.data.shape[1]

    @property
    def quantized(self):
        return self.base

    def forward(self, x, train=False, keep_input=True):
        """x (..., I) -> y (..., O)."""
        y, z = ops.factored_linear(x, self._scaled_B(), self.A.data, self._b, window=self.window)
        if self.base is not None:
            ops.quant_linear(x, self.base, out=y, add=True, window=self.window)
        else:
            ops.add(y, ops.linear(x, self.weight.data, window=self.window), out=y)
        if train:
            self._keep_both(x, z, keep_input)
        return y

    def backward(self, dy, x=None, need_dx=True):
        """dy (..., O) -> dx (..., I); adds to the gradients of A, B and bias. x: the input again if it was not kept."""
        kept, z = self._take_saved()
        x = x if kept is None else kept
        B = self._scaled_B()
        dB = np.zeros_like(B)
        dx = self._thin_backward(dy, x, z, B, self.A.data, dB, self.A.grad_buffer(), need_dx)
        grad = self.B.grad_buffer()
        grad += np.float32(self.scale) * dB
        if not need_dx:
            return None
        window, size = self.window, self._size(x)
        if self.base is not None:
            return ops.quant_linear_backward(dy, self.base, out=dx, add=True, window=window, size=size)
        return ops.add(dx, ops.linear_backward(dy, None, self.weight.data, window=window, size=size), out=dx)

    def flops(self, shape, rule="sgd", dx=True, prepared=False):
        """As `Linear.flops`."""
        O, I, r = self.out_features, self.in_features, len(self.A.data)
        M = self._rows(shape)
        update = 2 * M * r * (I + O)
        gl_and_dx = 2 * M * O * r + (2 * M * I * (O + r) if dx else 0)
        return Flops(2 * M * I * O + update, gl_and_dx + self._thin_gradient_flops(shape, r, prepared))

    def _scaled_B(self):
        return self.B.data * np.float32(self.scale)

    def merged_weight(self):
        """The dense weight W + scale B A (O, I)."""
        base = self.weight.data if self.base is None else ops.dequantize_residual(self.base)
        return base + self._scaled_B() @ self.A.data


class LoraFactoredLinear(Module):
    """y = (x R~') L~' + b with LoRA beside each of two frozen factors: R~ = R + scale B1 A1 (K, I), L~ = L + scale B2 A2 (O, K).

    down, up: the LoraLinears of R and of L. Both are trained together; SVD-LLM trains one after the other.

    Source: SVD-LLM (arXiv 2403.07378), section 3.3.
    """

    def __init__(self, L, R, bias, rank, alpha, rng):
        self.down = LoraLinear(R, None, rank, alpha, rng)
        self.up = LoraLinear(L, bias, rank, alpha, rng)

    @property
    def bias(self):
        return self.up.bias

    @property
    def out_features(self):
        return self.up.out_features

    @property
    def in_features(self):
        return self.down.in_features

    @property
    def rank(self):
        return self.up.in_features

    @property
    def compression(self):
        """Of the input, as in the other linears; what lies between the factors is thin, and kept as it is."""
        return self.down.compression

    @compression.setter
    def compression(self, value):
        self.down.compression = value

    @property
    def window(self):
        """Of a convolution: the lower factor's; what lies between the factors is mapped pixel by pixel."""
        return self.down.window

    def adopt(self, old):
        self.down.adopt(old)

    def output_shape(self, shape):
        """As of linears."""
        return self.up.output_shape(self.down.output_shape(shape))

    @property
    def needs_input(self):
        return self.down.needs_input

    def forward(self, x, train=False, keep_input=True):
        """x (..., I) -> y (..., O)."""
        return self.up.forward(self.down.forward(x, train, keep_input), train)

    def prepare(self):
        """Readies backward as forward(train=True, keep_input=False) does, without computing anything."""
        self.down.prepare()
        self.up.prepare()

    def backward(self, dy, x=None, need_dx=True):
        """dy (..., O) -> dx (..., I); adds to the gradients of updates and bias. x: the input again if it was not kept."""
        between = self.down.forward(x) if self.up.needs_input else None
        return self.down.backward(self.up.backward(dy, between), x, need_dx)

    def flops(self, shape, rule="sgd", dx=True, prepared=False):
        """As `Linear.flops`."""
        total = self.down.flops(shape, rule, dx, prepared) + self.up.flops(self.down.output_shape(shape), rule, True, prepared)
        return total + Flops(0, self.down.flops(shape).forward) if prepared else total

    def merged_weight(self):
        """The dense weight L~ R~ (O, I)."""
        return self.up.merged_weight() @ self.down.merged_weight()
