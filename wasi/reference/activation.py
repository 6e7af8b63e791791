"""GELU, its few-bit backward pass, SiLU and SwiGLU: the NumPy twins of csrc/kernels/gelu.c and silu.c."""

import math

import numpy as np

_erf = np.vectorize(math.erf, otypes=[np.float64])

# Magnitudes m of the levels 1/2 + m and 1/2 - m that minimise E[(d(h) - level)^2], h standard normal,
# d the derivative of GELU.
FEW_BIT_MAGNITUDES = {
    2: np.array([0.187324903, 0.546385928]),
    4: np.array([0.044239999, 0.132537493, 0.220267163, 0.306974997,
                 0.392059595, 0.474606688, 0.549721626, 0.613156337]),
}


def gelu(h):
    """h Phi(h)."""
    return h * (1 + _erf(h / math.sqrt(2))) / 2


def gelu_derivative(h):
    """Phi(h) + h phi(h)."""
    return (1 + _erf(h / math.sqrt(2))) / 2 + h * np.exp(-h * h / 2) / math.sqrt(2 * math.pi)


def gelu_backward(dy, h):
    """dh of gelu."""
    return dy * gelu_derivative(h)


def few_bit_levels(bits):
    """The 2^bits levels, ascending."""
    m = FEW_BIT_MAGNITUDES[bits]
    return np.concatenate([0.5 - m[::-1], 0.5 + m])


def few_bit_backward(dy, h, bits):
    """dh with the derivative rounded to the nearest of the few-bit levels."""
    levels = few_bit_levels(bits)
    return dy * levels[np.searchsorted((levels[1:] + levels[:-1]) / 2, gelu_derivative(h))]


def silu(h):
    """h / (1 + exp(-h))."""
    return h * _sigmoid(h)


def silu_backward(dy, h):
    """dh of silu."""
    s = _sigmoid(h)
    return dy * s * (1 + h * (1 - s))


def swiglu(a, b):
    """silu(a) b."""
    return silu(a) * b


def swiglu_backward(dy, a, b):
    """(da, db) of swiglu."""
    return silu_backward(dy * b, a), dy * silu(a)


def _sigmoid(h):
    e = np.exp(-np.abs(h))
    return np.where(h < 0, e, 1) / (1 + e)
