"""Operations on NumPy arrays, forward and backward, each on a C kernel. Layers are built from these."""

from wasi.ops.attention import attention, attention_backward, attention_gqa, attention_gqa_backward
from wasi.ops.linear import factored_linear, factored_linear_backward, linear, linear_backward
from wasi.ops.norm import add_layer_norm, layer_norm, layer_norm_apply, layer_norm_backward

__all__ = [
    "add_layer_norm",
    "attention",
    "attention_backward",
    "attention_gqa",
    "attention_gqa_backward",
    "factored_linear",
    "factored_linear_backward",
    "layer_norm",
    "layer_norm_apply",
    "layer_norm_backward",
    "linear",
    "linear_backward",
]
