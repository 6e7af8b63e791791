"""Models: compositions of layers, and published weights."""

from wasi.models.factorize import FactorizedLayer, factorization_table, factorize, find_targets
from wasi.models.factory import create_model, list_models, load_model
from wasi.models.inference import InferenceChoice, optimize_for_inference
from wasi.models.vit import VisionTransformer, ViTConfig
from wasi.models.weights import LoadReport, WeightsError, load_weights, save_model

__all__ = ["FactorizedLayer", "InferenceChoice", "LoadReport", "ViTConfig", "VisionTransformer", "WeightsError", "create_model",
           "factorization_table", "factorize", "find_targets", "list_models", "load_model", "load_weights",
           "optimize_for_inference", "save_model"]
