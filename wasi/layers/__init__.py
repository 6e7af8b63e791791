"""Layers: parameters, and what is kept between forward and backward."""

from wasi.layers.compression import ActivationCompression
from wasi.layers.decoder import DecoderBlock, Embedding, GatedMlp, GroupedQueryAttention
from wasi.layers.linear import FactoredLinear, Linear
from wasi.layers.module import Module, Parameter
from wasi.layers.norm import LayerNorm, RMSNorm
from wasi.layers.transformer import ActivationPolicy, Attention, Block, Mlp
from wasi.layers.windows import PatchMerging, WindowAttention

__all__ = ["ActivationCompression", "ActivationPolicy", "Attention", "Block", "DecoderBlock", "Embedding",
           "FactoredLinear", "GatedMlp", "GroupedQueryAttention", "LayerNorm", "Linear", "Mlp", "Module", "Parameter",
           "PatchMerging", "RMSNorm", "WindowAttention"]
