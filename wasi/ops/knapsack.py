"""One choice of each group under a common limit, exactly."""

from typing import NamedTuple

import numpy as np

from wasi import _core


class Selection(NamedTuple):
    """What `knapsack` chose."""

    choice: np.ndarray  # (groups,) int32: the index within each group
    value: float  # sums over the groups, added in their order
    weight: float
    feasible: bool  # False: nothing fits, and this is the lightest selection


def knapsack(values, weights, limit, max_states=2**20):
    """The selection of one choice a group with the least sum of values whose sum of weights is <= limit.

    Parameters: values, weights: sequences with one sequence of numbers >= 0 a group, as long as the group has choices; limit;
    max_states: partial sums that the proof of optimality may take (24 bytes each).
    Returns a `Selection`; of equal values the least weight is taken. Sums are of float64: whole numbers up to 2^53 are exact.
    Raises ValueError for groups that do not match or are empty and for negative numbers, ArithmeticError for NaN and Inf,
    MemoryError where max_states do not do.
    Source: Dyer, Riha and Walker (1995), dynamic programming on undominated sums with bounds.

    >>> knapsack([[5, 2, 1], [7, 3]], [[0, 4, 9], [1, 6]], limit=10).choice.tolist()
    [1, 1]
    """
    if len(values) != len(weights) or any(len(v) != len(w) or len(v) == 0 for v, w in zip(values, weights)):
        raise ValueError("values, weights: expected groups of equal lengths with at least one choice each, got "
                         f"{[len(v) for v in values]} and {[len(w) for w in weights]}")
    first = np.cumsum([0, *(len(v) for v in values)], dtype=np.int64)
    flat_values, flat_weights = (np.array([x for group in groups for x in group], np.float64) for groups in (values, weights))
    for name, numbers in (("values", flat_values), ("weights", flat_weights)):
        if (numbers < 0).any():
            raise ValueError(f"{name}: expected numbers >= 0, got {numbers.min()}")
    return Selection(*_core.knapsack(flat_values, flat_weights, first, limit, max_states))
