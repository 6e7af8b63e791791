"""Layers: parameters, and what is kept between forward and backward."""

from wasi.layers.compression import ActivationCompression
from wasi.layers.linear import FactoredLinear, Linear
from wasi.layers.module import Module, Parameter
from wasi.layers.norm import LayerNorm
from wasi.layers.transformer import ActivationPolicy, Attention, Block, Mlp

__all__ = ["ActivationCompression", "ActivationPolicy", "Attention", "Block", "FactoredLinear", "LayerNorm", "Linear", "Mlp",
           "Module", "Parameter"]
