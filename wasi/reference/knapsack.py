"""Twin of csrc/kernels/knapsack.c by trying every combination."""

import itertools


def knapsack(values, weights, limit):
    """(choice, value, weight) of least value, then least weight, among those of weight <= limit; None where none is.

    values, weights: a list of numbers a group.
    """
    best = None
    for choice in itertools.product(*(range(len(v)) for v in values)):
        value = weight = 0.0
        for g, c in enumerate(choice):
            value += values[g][c]
            weight += weights[g][c]
        if weight <= limit and (best is None or (value, weight) < best[1:]):
            best = (choice, value, weight)
    return best
