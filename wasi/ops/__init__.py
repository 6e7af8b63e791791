"""Operations on NumPy arrays, forward and backward, each on a C kernel. Layers are built from these."""

from wasi.ops.linear import factored_linear, factored_linear_backward, linear, linear_backward
from wasi.ops.norm import add_layer_norm, layer_norm, layer_norm_apply, layer_norm_backward

__all__ = [
    "add_layer_norm",
    "factored_linear",
    "factored_linear_backward",
    "layer_norm",
    "layer_norm_apply",
    "layer_norm_backward",
    "linear",
    "linear_backward",
]
