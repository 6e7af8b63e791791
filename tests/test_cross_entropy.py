import numpy as np
import pytest
from gradcheck import directional_check
from tables import assert_close

import wasi
from wasi import ops
from wasi.reference.loss import cross_entropy

SHAPES = [(1, 2), (7, 10), (64, 1000), (33, 101), (3, 20_000)]
kinds = pytest.mark.parametrize("kind", ["labels", "soft"])
smoothings = pytest.mark.parametrize("smoothing", [0.0, 0.1])
weighted = pytest.mark.parametrize("weighted", [False, True])


def problem(rng, B, V, kind, weighted):
    """logits, targets, class weights (None unless weighted)."""
    logits = (3 * rng.standard_normal((B, V))).astype(np.float32)
    targets = rng.integers(0, V, B) if kind == "labels" else rng.dirichlet(np.ones(V), B).astype(np.float32)
    return logits, targets, rng.uniform(0.5, 2, V).astype(np.float32) if weighted else None


def wide(array):
    return array.astype(np.float64) if array is not None and array.dtype == np.float32 else array


@pytest.mark.parametrize("B, V", SHAPES)
@kinds
@smoothings
@weighted
def test_matches_reference(rng, n_threads, isa, B, V, kind, smoothing, weighted):
    logits, targets, weights = problem(rng, B, V, kind, weighted)
    before = logits.copy(), targets.copy()
    loss, dlogits, n_correct = ops.cross_entropy(logits, targets, smoothing, class_weights=weights)
    arguments = wide(logits), wide(targets), smoothing, wide(weights)
    want_loss, want_dlogits, want_correct = cross_entropy(*arguments)
    assert loss == pytest.approx(want_loss, rel=1e-6)
    assert_close(dlogits, want_dlogits)
    assert n_correct == want_correct
    assert np.array_equal(logits, before[0]) and np.array_equal(targets, before[1])
    assert ops.cross_entropy(logits, targets, smoothing, False, weights) == (loss, None, n_correct)
    again = ops.cross_entropy(logits, targets, smoothing, class_weights=weights, dlogits_out=logits)
    assert again[0] == loss and again[1] is logits and np.array_equal(logits, dlogits)


@kinds
def test_one_class_costs_nothing(rng, kind):
    logits, targets, _ = problem(rng, 5, 1, kind, False)
    loss, dlogits, n_correct = ops.cross_entropy(logits, targets, 0.1)
    assert (loss, n_correct) == (0.0, 5) and np.abs(dlogits).max() < 1e-7


@kinds
@weighted
def test_gradient_against_finite_differences(rng, kind, weighted):
    logits, targets, weights = map(wide, problem(rng, 5, 7, kind, weighted))
    gradient = cross_entropy(logits, targets, 0.2, weights)[1]

    def loss(arguments):
        return cross_entropy(*arguments, targets, 0.2, weights)[0]

    assert directional_check(loss, [logits], [gradient], rng) < 1e-7


@kinds
@smoothings
@weighted
def test_matches_pytorch(rng, torch, kind, smoothing, weighted):
    logits, targets, weights = problem(rng, 9, 11, kind, weighted)
    z = torch.from_numpy(logits).requires_grad_()
    their_weights = torch.from_numpy(weights) if weighted else None
    function = torch.nn.functional.cross_entropy
    want = function(z, torch.from_numpy(targets), their_weights, label_smoothing=smoothing)
    want.backward()
    loss, dlogits, _ = ops.cross_entropy(logits, targets, smoothing, class_weights=weights)
    assert loss == pytest.approx(want.item(), rel=1e-6)
    assert_close(dlogits, z.grad.numpy())


@kinds
def test_same_bits_for_every_thread_count(rng, isa, kind):
    logits, targets, weights = problem(rng, 200, 300, kind, True)
    before, results = wasi.get_num_threads(), []
    for n in (1, 2, 5):
        wasi.set_num_threads(n)
        results.append(ops.cross_entropy(logits, targets, 0.1, class_weights=weights))
    wasi.set_num_threads(before)
    for loss, dlogits, n_correct in results[1:]:
        assert (loss, n_correct) == (results[0][0], results[0][2]) and np.array_equal(dlogits, results[0][1])


def test_extreme_logits(isa):
    loss, dlogits, n_correct = ops.cross_entropy(np.float32([[1e30, -1e30, 0]]), np.array([0]))
    assert (loss, n_correct) == (0.0, 1) and np.isfinite(dlogits).all()
    masked = np.float32([[1, 2, -np.inf]])
    for targets in (np.array([1]), np.float32([[0, 1, 0]])):  # a masked class that nobody wants
        loss, dlogits, n_correct = ops.cross_entropy(masked, targets)
        assert loss == pytest.approx(np.log1p(np.exp(-1)), rel=1e-6) and n_correct == 1 and dlogits[0, 2] == 0
    assert ops.cross_entropy(masked, np.array([2]))[0] == np.inf
    for targets in (np.array([1]), np.float32([[0.5, 0.5]])):
        loss, dlogits, n_correct = ops.cross_entropy(np.float32([[np.nan, 0]]), targets)
        assert np.isnan(loss) and np.isnan(dlogits).all() and n_correct == 0


def test_equal_logits_count_the_first(isa):
    logits = np.zeros((3, 40), np.float32)
    assert ops.cross_entropy(logits, np.array([0, 1, 39]))[2] == 1
    assert ops.cross_entropy(logits, np.full((3, 40), 1 / 40, np.float32))[2] == 3


def test_bad_input_is_refused_by_name():
    logits = np.zeros((2, 3), np.float32)
    for bad in (-1, 3):
        with pytest.raises(ValueError, match=f"targets: expected classes 0 to 2, got {bad} at place 1"):
            ops.cross_entropy(logits, np.array([0, bad]))
    with pytest.raises(TypeError, match="targets: expected an int64 array, got float64 array"):
        ops.cross_entropy(logits, np.zeros(2))
    with pytest.raises(ValueError, match=r"targets.shape\[0\]: expected 2"):
        ops.cross_entropy(logits, np.array([0]))
    with pytest.raises(ValueError, match=r"targets: expected shape \(2, 3\) \(that of logits\)"):
        ops.cross_entropy(logits, np.zeros((2, 4), np.float32))
    with pytest.raises(ValueError, match=r"class_weights.shape\[0\]: expected 3"):
        ops.cross_entropy(logits, np.array([0, 0]), class_weights=np.ones(2, np.float32))
    with pytest.raises(ValueError, match=r"label_smoothing: expected a number in \[0, 1\)"):
        ops.cross_entropy(logits, np.array([0, 0]), 1.0)
    with pytest.raises(ValueError, match=r"dlogits_out.shape\[0\]: expected 2"):
        ops.cross_entropy(logits, np.array([0, 0]), dlogits_out=np.zeros((1, 3), np.float32))
    with pytest.raises(ValueError, match="logits: expected at least one row"):
        ops.cross_entropy(np.zeros((0, 3), np.float32), np.zeros(0, np.int64))
