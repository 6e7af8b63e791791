import time

import numpy as np
import pytest

import wasi
from wasi.ops import knapsack
from wasi.reference import knapsack as reference


def groups_of(rng, n_groups, most, draw):
    sizes = rng.integers(1, most + 1, n_groups)
    return [draw(k) for k in sizes], [draw(k) for k in sizes]


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("draw", ["whole", "few", "real", "bytes"])
def test_matches_brute_force(seed, draw):
    rng = np.random.default_rng(seed)
    draws = {"whole": lambda k: rng.integers(0, 50, k), "few": lambda k: rng.integers(0, 3, k),
             "real": lambda k: rng.random(k), "bytes": lambda k: rng.integers(0, 2**40, k)}
    values, weights = groups_of(rng, int(rng.integers(0, 7)), 5, draws[draw])
    largest = sum(w.max() for w in weights)
    for limit in (0, largest * rng.random(), largest / 2, largest, 2 * largest + 1, -1):
        want = reference.knapsack(values, weights, limit)
        got = knapsack(values, weights, limit)
        assert got.feasible == (want is not None)
        assert got.weight == sum((w[c] for w, c in zip(weights, got.choice)), 0.0)
        assert got.value == sum((v[c] for v, c in zip(values, got.choice)), 0.0)
        if want is None:
            assert got.weight == sum(w.min() for w in weights) or draw == "real"
        else:
            assert (got.value, got.weight) == want[1:]


def test_a_limit_that_is_met_exactly_is_kept():
    rng = np.random.default_rng(1)
    weights = [rng.integers(1, 2**40, 8) for _ in range(12)]
    values = [np.sort(rng.random(8)) for _ in weights]
    best = sum(w[0] for w in weights)
    assert knapsack(values, weights, best).choice.tolist() == [0] * 12
    assert knapsack(values, weights, best - 1).weight < best


def test_fifty_layers_of_twenty_choices_take_less_than_a_second():
    """Errors that fall with the bytes, as a planner's do; a budget of 1 GiB in bytes; proven by the other direction."""
    rng = np.random.default_rng(2)
    weights = [np.sort(rng.integers(2**20, 2**25, 20)) for _ in range(50)]
    values = [rng.random() * (1 - np.sort(rng.random(20))) for _ in weights]
    began = time.perf_counter()
    got = knapsack(values, weights, 2**30 - 2**29)
    assert time.perf_counter() - began < 1 and got.feasible and got.weight <= 2**29
    back = knapsack(weights, values, got.value * (1 + 1e-14))
    assert back.value <= got.weight and back.weight <= got.value * (1 + 1e-14)
    lighter = knapsack(weights, values, np.nextafter(got.value, 0))
    assert lighter.value > 2**29 or lighter.weight >= got.value * (1 - 1e-14)


def test_unlike_choices_that_sum_alike_end_with_an_error_not_without_memory():
    """Values that fall exactly as weights rise (subset sums) leave the bound nothing to cut."""
    rng = np.random.default_rng(3)
    weights = [rng.integers(0, 2**40, 20) for _ in range(30)]
    values = [2**40 - w for w in weights]
    with pytest.raises(MemoryError, match="max_states = 1000 "):
        knapsack(values, weights, 15 * 2**40 + 12345, max_states=1000)


@pytest.mark.parametrize("change, error, message", [
    (lambda a: a.update(values=[[1.0, -1.0]]), ValueError, "values: expected numbers >= 0, got -1.0"),
    (lambda a: a.update(weights=[[1.0, np.nan]]), ArithmeticError, "NaN or Inf"),
    (lambda a: a.update(limit=np.nan), ArithmeticError, "NaN or Inf"),
    (lambda a: a.update(values=[[1e308, 1e308]]), ArithmeticError, "NaN or Inf"),
    (lambda a: a.update(values=[[1.0]]), ValueError, r"equal lengths .* got \[1\] and \[2\]"),
    (lambda a: a.update(values=[[], [1.0]], weights=[[], [1.0]]), ValueError, "at least one choice"),
    (lambda a: a.update(max_states=0), ValueError, "max_states: expected 1 to 2147483647, got 0"),
])
def test_bad_input_is_refused(change, error, message):
    arguments = {"values": [[2.0, 1.0]], "weights": [[0.0, 1.0]], "limit": 1.0}
    change(arguments)
    with pytest.raises(error, match=message):
        knapsack(**arguments)


def test_the_core_checks_its_offsets():
    x = np.ones(3)
    for first in ([0, 2], [1, 3], [0, 2, 2, 3], []):
        with pytest.raises(ValueError, match="first: expected rising offsets"):
            wasi._core.knapsack(x, x, np.array(first, np.int64), 1.0)
