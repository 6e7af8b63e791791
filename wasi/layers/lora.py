"""Low-rank adaptation (LoRA): a frozen weight, dense or quantised, and a trained rank-r update beside it."""

import math

import numpy as np

from wasi import ops
from wasi.layers.compression import Compressed, add_weight_gradient, project
from wasi.layers.flops import Flops
from wasi.layers.linear import LinearBase
from wasi.layers.module import Parameter


class LoraLinear(LinearBase):
    """y = x W' + scale (x A') B' + b with W frozen; A: (r, I) and B: (O, r) are trained by the plain optimiser.

    weight: (O, I) float32, or an `ops.QuantizedMatrix` (QLoRA's recipe). A starts uniform as PyTorch's linears do, B at zero, so
    the layer starts as its base. scale is alpha / r. Whether the bias is trained is left to the caller.

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
        self.A = Parameter(rng.uniform(-(I**-0.5), I**-0.5, (rank, I)))
        self.B = Parameter(np.zeros((O, rank), np.float32))
        self.bias = None if bias is None else Parameter(bias, decay=False)
        self.scale = alpha / rank

    @property
    def out_features(self):
        return self.B.data.shape[0]

    @property
    def in_features(self):
        return self.A.data.shape[1]

    @property
    def fixed_bytes(self):
        return 0 if self.base is None else self.base.nbytes

    def forward(self, x, train=False, keep_input=True):
        """x (..., I) -> y (..., O)."""
        y, z = ops.factored_linear(x, self._scaled_B(), self.A.data, self.bias.data if self.bias else None)
        if self.base is not None:
            ops.quant_linear(x, self.base, out=y, add=True)
        else:
            ops.add(y, ops.linear(x, self.weight.data), out=y)
        if train:
            kept = self._keep(x, keep_input)
            self._saved = (kept, None if isinstance(kept, Compressed) else z)
        return y

    def prepare(self):
        """Readies backward as forward(train=True, keep_input=False) does, without computing anything."""
        self._saved = (None, None)

    def backward(self, dy, x=None, need_dx=True):
        """dy (..., O) -> dx (..., I); adds to the gradients of A, B and bias. x: the input again if it was not kept."""
        kept, z = self._take_saved()
        A, B, db = self.A.data, self._scaled_B(), self.bias.grad_buffer() if self.bias else None
        dB = np.zeros_like(B)
        if isinstance(kept, Compressed):
            dx, gl = ops.factored_linear_backward(dy, None, None, B, A, None, None, db, need_dx)
            add_weight_gradient(self.A.grad_buffer(), gl, kept)
            add_weight_gradient(dB, dy, project(kept, A))
        else:
            x = x if kept is None else kept
            z = ops.linear(x, A) if z is None else z
            dx, _ = ops.factored_linear_backward(dy, x, z, B, A, dB, self.A.grad_buffer(), db, need_dx)
        grad = self.B.grad_buffer()
        grad += np.float32(self.scale) * dB
        if not need_dx:
            return None
        if self.base is not None:
            return ops.quant_linear_backward(dy, self.base, out=dx, add=True)
        return ops.add(dx, ops.linear_backward(dy, None, self.weight.data), out=dx)

    def flops(self, shape, rule="sgd", dx=True, prepared=False):
        """As `Linear.flops`."""
        O, I, r = self.out_features, self.in_features, len(self.A.data)
        M = math.prod(shape[:-1])
        update = 2 * M * r * (I + O)
        gl_and_dx = 2 * M * O * r + (2 * M * I * (O + r) if dx else 0)
        return Flops(2 * M * I * O + update, gl_and_dx + self._thin_gradient_flops(shape, r, prepared))

    def _scaled_B(self):
        return self.B.data * np.float32(self.scale)

    def merged_weight(self):
        """The dense weight W + scale B A (O, I)."""
        base = self.weight.data if self.base is None else ops.dequantize_residual(self.base)
        return base + self._scaled_B() @ self.A.data
