"""Subspace linear algebra: orthonormal bases, truncated and whitened SVD, and the WSI step on factors L R.

Arrays are float32 or float64 and C-contiguous; a result has the type of its input. Nothing is copied
silently, and NaN or Inf in an input is an ArithmeticError that names it.
"""

from wasi.linalg.svd import orthonormalize, truncated_svd, whitened_svd
from wasi.linalg.wsi import WsiState, wsi_gradient_norm2, wsi_state_shapes, wsi_step

__all__ = [
    "WsiState",
    "orthonormalize",
    "truncated_svd",
    "whitened_svd",
    "wsi_gradient_norm2",
    "wsi_state_shapes",
    "wsi_step",
]
