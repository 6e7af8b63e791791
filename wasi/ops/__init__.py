"""Operations on NumPy arrays, forward and backward, each on a C kernel. Layers are built from these."""

from wasi.ops.linear import factored_linear, factored_linear_backward, linear, linear_backward

__all__ = ["factored_linear", "factored_linear_backward", "linear", "linear_backward"]
