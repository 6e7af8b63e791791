"""The shapes and tolerances that every operation is tested on."""

import numpy as np

# (rows, out features, in features): square, tall, wide, one, primes, wider than a SIMD register by one.
LINEAR_SHAPES = [(8, 8, 8), (100, 16, 64), (3, 130, 17), (1, 1, 1), (31, 37, 41), (65, 257, 33), (200, 10, 192)]

# (rows, width): square, tall, wide, one, primes, none, enough for two threads.
ROW_SHAPES = [(8, 8), (300, 16), (3, 1000), (1, 1), (31, 37), (7, 1), (0, 5), (97, 257)]

# Largest accepted ||got - want|| / ||want|| by dtype.
TOLERANCE = {np.dtype("float32"): 2e-6, np.dtype("float64"): 1e-13}


def relative_error(got, want):
    """||got - want|| / ||want|| in float64 (the absolute norm where want is zero)."""
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    assert got.shape == want.shape, f"shape {got.shape} where {want.shape} was wanted"
    norm = np.linalg.norm(want)
    return np.linalg.norm(got - want) / (norm if norm > 0 else 1.0)


def assert_close(got, want, factor=1.0):
    """Asserts relative_error within the tolerance of got's dtype, times `factor`."""
    assert relative_error(got, want) <= factor * TOLERANCE[np.asarray(got).dtype]
