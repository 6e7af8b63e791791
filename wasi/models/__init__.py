"""Models: compositions of layers, and published weights."""

from wasi.models.exporting import export
from wasi.models.factorize import FactorizedLayer, factorization_table, factorize, find_targets
from wasi.models.factory import create_model, list_models, load_model
from wasi.models.generation import generate, perplexity
from wasi.models.inference import InferenceChoice, merge, optimize_for_inference
from wasi.models.llama import Llama, LlamaConfig
from wasi.models.llama_files import load_llama, save_hugging_face
from wasi.models.methods import MethodOptions, apply_method
from wasi.models.resnet import ResNet, ResNetConfig
from wasi.models.swin import SwinConfig, SwinTransformer
from wasi.models.tokenizer import TokenizerError, load_tokenizer
from wasi.models.vit import VisionTransformer, ViTConfig
from wasi.models.weights import LoadReport, WeightsError, load_weights, save_model

__all__ = ["FactorizedLayer", "InferenceChoice", "Llama", "LlamaConfig", "LoadReport", "MethodOptions",
           "ResNet", "ResNetConfig", "SwinConfig", "SwinTransformer", "TokenizerError", "ViTConfig",
           "VisionTransformer", "WeightsError", "apply_method", "create_model", "export",
           "factorization_table", "factorize", "find_targets", "generate", "list_models", "load_llama",
           "load_model", "load_tokenizer", "load_weights", "merge", "optimize_for_inference",
           "perplexity", "save_hugging_face", "save_model"]
