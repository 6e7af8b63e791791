"""Linear layers for PyTorch models that run wasi's kernels: dense, and factored over a frozen residual if there is one.

What backward needs of the input is kept exactly, or as Tucker factors of it. Tensors are float32 on the CPU
and are handed to the kernels as NumPy arrays of the same memory; everything kept goes through
save_for_backward, so torch.utils.checkpoint and saved-tensor hooks see it. Gradients are those of one
differentiation; there is no second.
"""

import torch
from torch import nn
from torch.autograd.function import Function, once_differentiable

from wasi import ops
from wasi.layers.compression import ActivationCompression, Compressed, add_weight_gradient, project


def as_array(tensor, name):
    """The memory of a contiguous float32 tensor on the CPU as a NumPy array; None stays None. Raises TypeError for others."""
    if tensor is None:
        return None
    if tensor.dtype != torch.float32 or tensor.device.type != "cpu" or tensor.layout != torch.strided:
        kind = "" if tensor.layout == torch.strided else f" {str(tensor.layout).removeprefix('torch.')}"
        raise TypeError(f"{name}: expected a float32 tensor on the CPU, got{kind} {str(tensor.dtype).removeprefix('torch.')} on "
                        f"{tensor.device}")
    return tensor.detach().numpy()


class InputCompression(ActivationCompression):
    """Tucker factors of a layer's input tensors, each from the subspaces of the one before.

    Every result has memory of its own: a layer may run several times before backward does. Linears that are
    given the very same tensor and have the same ranks (queries, keys and values, say) share one result.
    """

    def compress(self, x):
        """x (B, ..., I) as tensors (core, U_1, ..., U_N), None for a mode that is left alone."""
        key = (self.ranks, self.method, x._version)
        known = getattr(x, "_wasi_compressed", None)
        if known is None or known[0] != key:
            self._factors = self._factors and [None if factor is None else factor.copy() for factor in self._factors]
            known = key, self._compress(as_array(x, "x"))
            x._wasi_compressed = known  # lives as long as x does
        core, factors = known[1]
        if self.method == "asi":
            self._factors = list(factors)
        return tuple(None if a is None else torch.from_numpy(a) for a in (core, *factors))


def _compressed(tensors):
    """The Compressed of tensors that `InputCompression.compress` gave."""
    core, *factors = map(_array, tensors)
    return Compressed(core, tuple(factors))


def _array(tensor):
    """The array of a tensor that was checked before; None stays None."""
    return None if tensor is None else tensor.detach().numpy()


def _zeros(tensor, wanted):
    """A gradient to add to, as a tensor, and its array."""
    gradient = torch.zeros_like(tensor) if wanted else None
    return gradient, _array(gradient)


def _tensor(array):
    return None if array is None else torch.from_numpy(array)


class _Dense(Function):
    """y = x W' + b. tucker: what `InputCompression.compress` gave, or nothing to keep x itself."""

    @staticmethod
    def forward(ctx, x, W, b, *tucker):
        kept = (tucker or (x,)) if ctx.needs_input_grad[1] else ()
        ctx.save_for_backward(W, b, *kept)
        ctx.is_compressed = bool(tucker)
        return torch.from_numpy(ops.linear(_array(x), _array(W), _array(b)))

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        W, b, *kept = ctx.saved_tensors
        need_dx, need_dW, need_db = ctx.needs_input_grad[:3]
        dy = _array(dy.contiguous())
        dW, dW_array = _zeros(W, need_dW)
        db, db_array = _zeros(b, need_db)
        if need_dW and ctx.is_compressed:
            add_weight_gradient(dW_array, dy, _compressed(kept))
            dW_array = None
        x = _array(kept[0]) if dW_array is not None else None
        dx = ops.linear_backward(dy, x, _array(W), dW_array, db_array, need_dx)
        return _tensor(dx), dW, db, *[None] * (len(ctx.needs_input_grad) - 3)


class _Factored(Function):
    """y = (x R') L' + x Q' + b. residual: Q as an ops.QuantizedMatrix, or None; tucker: as of `_Dense`."""

    @staticmethod
    def forward(ctx, x, L, R, b, residual, exact, *tucker):
        X = _array(x)
        y, z = ops.factored_linear(X, _array(L), _array(R), _array(b))
        if residual is not None:
            ops.quant_linear(X, residual, out=y, add=True, exact=exact)
        _, need_dL, need_dR, *_ = ctx.needs_input_grad
        if tucker:
            kept = tucker if need_dL or need_dR else ()
        else:
            kept = x if need_dR else None, torch.from_numpy(z) if need_dL else None
        ctx.save_for_backward(L, R, b, *kept)
        ctx.is_compressed, ctx.residual, ctx.exact = bool(tucker), residual, exact
        return torch.from_numpy(y)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        L, R, b, *kept = ctx.saved_tensors
        L_array, R_array = _array(L), _array(R)
        need_dx, need_dL, need_dR, need_db = ctx.needs_input_grad[:4]
        dy = _array(dy.contiguous())
        (dL, dL_array), (dR, dR_array), (db, db_array) = (_zeros(p, need) for p, need in
                                                          ((L, need_dL), (R, need_dR), (b, need_db)))
        if ctx.is_compressed:
            dx, gl = ops.factored_linear_backward(dy, None, None, L_array, R_array, None, None, db_array, need_dx)
            if need_dR:
                add_weight_gradient(dR_array, gl, _compressed(kept))
            if need_dL:
                add_weight_gradient(dL_array, dy, project(_compressed(kept), R_array))
        else:
            x, z = map(_array, kept)
            dx, _ = ops.factored_linear_backward(dy, x, z, L_array, R_array, dL_array, dR_array, db_array, need_dx)
        if need_dx and ctx.residual is not None:
            ops.quant_linear_backward(dy, ctx.residual, out=dx, add=True, exact=ctx.exact)
        return _tensor(dx), dL, dR, db, *[None] * (len(ctx.needs_input_grad) - 4)


class _FewBitGelu(Function):
    """GELU that keeps 2 or 4 bits a number of its derivative."""

    @staticmethod
    def forward(ctx, x, bits):
        y, codes = ops.gelu_encode(_array(x), bits)
        ctx.save_for_backward(torch.from_numpy(codes))
        ctx.bits = bits
        return torch.from_numpy(y)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        (codes,) = ctx.saved_tensors
        return torch.from_numpy(ops.gelu_decode_backward(_array(dy.contiguous()), codes.numpy(), ctx.bits)), None


class Gelu(nn.Module):
    """GELU whose derivative is kept in 2 or 4 bits a number for backward, in place of its input in 32.

    The output is exact; the root mean square error of the derivative is 0.089 with 2 bits, 0.021 with 4, for normal inputs.
    """

    def __init__(self, bits=4, name=""):
        super().__init__()
        if bits not in (2, 4):
            raise ValueError(f"gelu_bits: expected 2 or 4, got {bits}")
        self.bits, self.name = bits, name

    def forward(self, x):
        """x -> y of its shape."""
        if not (torch.is_grad_enabled() and x.requires_grad):
            return nn.functional.gelu(x)
        if torch.is_autocast_enabled("cpu"):
            x = x.float()
        as_array(x, f"the input of {self.name or 'Gelu'}")
        return _FewBitGelu.apply(x.contiguous(), self.bits)

    def extra_repr(self):
        return f"bits={self.bits}"


class _Converted:
    """What both layers share. `name`: the layer's in its model, for messages; `compression`: an InputCompression, or None."""

    name = ""
    compression = None

    def _checked(self, x):
        """The input as the kernels take it: contiguous float32 (copied where it is not contiguous, cast under autocast)."""
        if torch.is_autocast_enabled("cpu"):
            x = x.float()
        for tensor, what in [(x, "the input"), *((p, what) for what, p in self.named_parameters())]:
            as_array(tensor, f"{what} of {self.name or type(self).__name__}")
        if x.ndim < 1 or x.shape[-1] != self.in_features:
            raise ValueError(f"the input of {self.name or type(self).__name__}: expected shape (..., {self.in_features}), got "
                             f"{tuple(x.shape)}")
        return x.contiguous()

    def _kept(self, x, *weights):
        """Tensors to keep instead of x, where gradients of the weights will be wanted and the input is to be compressed."""
        if self.compression is None or not torch.is_grad_enabled() or not any(w.requires_grad for w in weights):
            return ()
        return self.compression.compress(x) if 2 <= x.ndim <= 5 and x.numel() else ()

    def extra_repr(self):
        kept = "" if self.compression is None else f", activation_ranks={self.compression.ranks}"
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}{kept}"


class Linear(_Converted, nn.Linear):
    """nn.Linear by wasi's kernels, with the same parameters; what it keeps of its input may be compressed."""

    @staticmethod
    def of(linear, name, compression=None):
        """The layer that takes the place of an nn.Linear, and over its very parameters."""
        new = Linear(linear.in_features, linear.out_features, linear.bias is not None, device="meta")
        new.weight, new.bias = linear.weight, linear.bias
        new.name, new.compression = name, compression
        return new.train(linear.training)

    def forward(self, x):
        """x (..., I) -> y (..., O)."""
        x = self._checked(x)
        return _Dense.apply(x, self.weight, self.bias, *self._kept(x, self.weight))

    def merged_weight(self):
        """The weight itself (O, I)."""
        return self.weight


class FactoredLinear(_Converted, nn.Module):
    """y = (x R') L' + x Q' + b with trained factors L (O, K) and R (K, I), and Q frozen in 4 or 8 bits, or absent.

    L and R are float32 arrays, or tensors, whose memory the parameters share; bias: a Parameter, or None;
    residual: Q as an `ops.QuantizedMatrix` (its arrays become buffers), or None. exact: multiply by Q with
    float32 activations instead of rounding those to 8 bits (slower; for gradient checks). `weight` is
    read-only: the dense L R + Q, multiplied out at each access.
    """

    def __init__(self, L, R, bias=None, residual=None, name="", compression=None):
        super().__init__()
        L, R = torch.as_tensor(L), torch.as_tensor(R)
        if L.ndim != 2 or R.ndim != 2 or L.shape[1] != R.shape[0]:
            raise ValueError(f"L, R: expected shapes (O, K) and (K, I), got {tuple(L.shape)} and {tuple(R.shape)}")
        self.L, self.R = nn.Parameter(L), nn.Parameter(R)
        self.register_parameter("bias", bias)
        self.group = None if residual is None else residual.group
        for part in ("codes", "s", "r", "c"):
            array = None if residual is None else getattr(residual, part)
            self.register_buffer(f"residual_{part}", None if array is None else torch.from_numpy(array))
        self.name, self.compression, self.exact = name, compression, False

    @property
    def out_features(self):
        return self.L.shape[0]

    @property
    def in_features(self):
        return self.R.shape[1]

    @property
    def rank(self):
        return self.L.shape[1]

    @property
    def residual(self):
        """Q as an `ops.QuantizedMatrix` on the buffers' memory, or None."""
        if self.group is None:
            return None
        parts = (self.residual_codes, self.residual_s, self.residual_r, self.residual_c)
        if self.residual_r.dtype != torch.float32 or self.residual_r.device.type != "cpu":
            as_array(self.residual_r, f"the residual of {self.name or type(self).__name__}")
        return ops.QuantizedMatrix(*map(_array, parts), self.group)

    def forward(self, x):
        """x (..., I) -> y (..., O)."""
        x = self._checked(x)
        return _Factored.apply(x, self.L, self.R, self.bias, self.residual, self.exact, *self._kept(x, self.L, self.R))

    def merged_weight(self):
        """The dense weight L R + Q (O, I), detached."""
        W = self.L.detach() @ self.R.detach()
        return W if self.group is None else W.add_(torch.from_numpy(ops.dequantize_residual(self.residual)))

    @property
    def weight(self):
        return self.merged_weight()

    def extra_repr(self):
        bits = "" if self.group is None else f", residual_bits={self.residual.bits}"
        return f"{super().extra_repr()}, rank={self.rank}{bits}"
