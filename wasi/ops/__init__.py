"""Operations on NumPy arrays, forward and backward, each on a C kernel. Layers are built from these."""

from wasi.ops.activation import (
    bias_gelu,
    gelu,
    gelu_backward,
    gelu_decode_backward,
    gelu_encode,
    silu,
    silu_backward,
    swiglu,
    swiglu_backward,
)
from wasi.ops.attention import attention, attention_backward, attention_gqa, attention_gqa_backward
from wasi.ops.bf16 import bf16_add_, bf16_expand, bf16_linear, bf16_linear_backward, bf16_round
from wasi.ops.decoder import embedding, embedding_backward, rope
from wasi.ops.embed import assemble_tokens, assemble_tokens_backward, extract_patches, fold_patches
from wasi.ops.knapsack import Selection, knapsack
from wasi.ops.linear import factored_linear, factored_linear_backward, linear, linear_backward
from wasi.ops.loss import cross_entropy
from wasi.ops.norm import (
    add_layer_norm,
    layer_norm,
    layer_norm_apply,
    layer_norm_backward,
    rms_norm,
    rms_norm_apply,
    rms_norm_backward,
)
from wasi.ops.optim import (
    adamw_update,
    add,
    all_finite,
    axpy_,
    scale_,
    sgd_update,
    sum_of_squares,
)
from wasi.ops.quant import (
    QuantizedMatrix,
    dequantize_residual,
    quant_linear,
    quant_linear_backward,
    quantize_residual,
)

__all__ = [
    "QuantizedMatrix",
    "Selection",
    "adamw_update",
    "add",
    "add_layer_norm",
    "all_finite",
    "assemble_tokens",
    "assemble_tokens_backward",
    "attention",
    "attention_backward",
    "attention_gqa",
    "attention_gqa_backward",
    "axpy_",
    "bf16_add_",
    "bf16_expand",
    "bf16_linear",
    "bf16_linear_backward",
    "bf16_round",
    "bias_gelu",
    "cross_entropy",
    "dequantize_residual",
    "embedding",
    "embedding_backward",
    "extract_patches",
    "factored_linear",
    "factored_linear_backward",
    "fold_patches",
    "gelu",
    "gelu_backward",
    "gelu_decode_backward",
    "gelu_encode",
    "knapsack",
    "layer_norm",
    "layer_norm_apply",
    "layer_norm_backward",
    "linear",
    "linear_backward",
    "quant_linear",
    "quant_linear_backward",
    "quantize_residual",
    "rms_norm",
    "rms_norm_apply",
    "rms_norm_backward",
    "rope",
    "scale_",
    "sgd_update",
    "silu",
    "silu_backward",
    "sum_of_squares",
    "swiglu",
    "swiglu_backward",
]
