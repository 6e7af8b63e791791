"""bfloat16 storage: the NumPy twin of csrc/kernels/bf16.c."""

import numpy as np


def bf16_round(x):
    """float32 x rounded to bfloat16, ties to even, as uint16 bits; NaN keeps its sign and becomes quiet."""
    bits = np.asarray(x, np.float32).view(np.uint32).astype(np.uint64)
    nearest = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    return np.where(np.isnan(x), bits >> 16 | 0x40, nearest).astype(np.uint16)


def bf16_expand(x):
    return (x.astype(np.uint32) << 16).view(np.float32)
