"""Layers: parameters, and what is kept between forward and backward."""

from wasi.layers.compression import ActivationCompression
from wasi.layers.decoder import DecoderBlock, Embedding, GatedMlp, GroupedQueryAttention
from wasi.layers.linear import FactoredLinear, Linear
from wasi.layers.module import Buffer, Module, Parameter
from wasi.layers.norm import LayerNorm, RMSNorm
from wasi.layers.residual import BasicBlock, BatchNorm, MaxPool, MeanPool, uses_batch_statistics
from wasi.layers.transformer import ActivationPolicy, Attention, Block, Mlp
from wasi.layers.windows import PatchMerging, WindowAttention

__all__ = ["ActivationCompression", "ActivationPolicy", "Attention", "BasicBlock", "BatchNorm", "Block",
           "Buffer", "DecoderBlock", "Embedding", "FactoredLinear", "GatedMlp", "GroupedQueryAttention",
           "LayerNorm", "Linear", "MaxPool", "MeanPool", "Mlp", "Module", "Parameter", "PatchMerging",
           "RMSNorm", "WindowAttention", "uses_batch_statistics"]
