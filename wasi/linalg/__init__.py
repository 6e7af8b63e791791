"""Subspace linear algebra: bases, exact, randomised and tracked SVD, Tucker forms, the WSI and ASI steps.

Arrays are float32 or float64 and C-contiguous; a result has the type of its input. Nothing is copied
silently, and NaN or Inf in an input is an ArithmeticError that names it.
"""

from wasi.linalg.angles import principal_angles
from wasi.linalg.rsvd import (
    AdaptiveSvd,
    SubspaceTracker,
    adaptive_svd,
    diff_norm,
    randomized_svd,
    subspace_svd,
)
from wasi.linalg.svd import FisherSvd, fisher_svd, orthonormalize, truncated_svd, whitened_svd
from wasi.linalg.tensor import (
    asi_factors,
    asi_step,
    matmul_tucker,
    mode_dot,
    tucker,
    tucker_error,
    tucker_to_tensor,
)
from wasi.linalg.wsi import WsiState, wsi_gradient_norm2, wsi_state_shapes, wsi_step
from wasi.linalg.wsi_mean import wsi_mean
from wasi.linalg.wsi_rank import wsi_extend, wsi_extended_norm2, wsi_step_extended, wsi_truncate

__all__ = [
    "AdaptiveSvd",
    "FisherSvd",
    "SubspaceTracker",
    "WsiState",
    "adaptive_svd",
    "asi_factors",
    "asi_step",
    "diff_norm",
    "fisher_svd",
    "matmul_tucker",
    "mode_dot",
    "orthonormalize",
    "principal_angles",
    "randomized_svd",
    "subspace_svd",
    "truncated_svd",
    "tucker",
    "tucker_error",
    "tucker_to_tensor",
    "whitened_svd",
    "wsi_extend",
    "wsi_extended_norm2",
    "wsi_gradient_norm2",
    "wsi_mean",
    "wsi_state_shapes",
    "wsi_step",
    "wsi_step_extended",
    "wsi_truncate",
]
