import numpy as np
import pytest
from gradcheck import directional_check
from tables import assert_close, relative_error

from wasi import ops
from wasi.reference.loss import cross_entropy


@pytest.mark.parametrize("B, V", [(1, 2), (7, 10), (64, 1000), (5, 1)])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_matches_reference(rng, n_threads, B, V, smoothing):
    logits, targets = (3 * rng.standard_normal((B, V))).astype(np.float32), rng.integers(0, V, B)
    loss, dlogits, n_correct = ops.cross_entropy(logits, targets, smoothing)
    want_loss, want_dlogits, want_correct = cross_entropy(logits.astype(np.float64), targets, smoothing)
    assert loss == pytest.approx(want_loss, rel=1e-6, abs=1e-7)
    assert np.abs(dlogits - want_dlogits).max() < 1e-7 if V == 1 else relative_error(dlogits, want_dlogits) < 1e-6
    assert n_correct == want_correct


def test_gradient_against_finite_differences(rng):
    logits, targets = rng.standard_normal((5, 7)), rng.integers(0, 7, 5)
    gradient = cross_entropy(logits, targets, 0.2)[1]
    assert directional_check(lambda a: cross_entropy(a[0], targets, 0.2)[0], [logits], [gradient], rng) < 1e-7


def test_matches_pytorch(rng, torch):
    logits, targets = rng.standard_normal((9, 11)).astype(np.float32), rng.integers(0, 11, 9)
    z = torch.from_numpy(logits).requires_grad_()
    want = torch.nn.functional.cross_entropy(z, torch.from_numpy(targets), label_smoothing=0.1)
    want.backward()
    loss, dlogits, _ = ops.cross_entropy(logits, targets, 0.1)
    assert loss == pytest.approx(want.item(), rel=1e-6)
    assert_close(dlogits, z.grad.numpy())


def test_huge_logits_stay_finite_and_nan_shows(rng):
    loss, dlogits, n_correct = ops.cross_entropy(np.float32([[1e30, -1e30, 0]]), np.array([0]))
    assert (loss, n_correct) == (0.0, 1) and np.isfinite(dlogits).all()
    assert np.isnan(ops.cross_entropy(np.float32([[np.nan, 0]]), np.array([1]))[0])


def test_bad_input_is_refused_by_name():
    logits = np.zeros((2, 3), np.float32)
    for bad in (-1, 3):
        with pytest.raises(ValueError, match="targets: expected classes 0 to 2, got one outside"):
            ops.cross_entropy(logits, np.array([0, bad]))
    with pytest.raises(TypeError, match="targets: expected a int64 array, got float64 array"):
        ops.cross_entropy(logits, np.zeros(2))
    with pytest.raises(ValueError, match=r"targets.shape\[0\]: expected 2"):
        ops.cross_entropy(logits, np.array([0]))
    with pytest.raises(ValueError, match=r"label_smoothing: expected a number in \[0, 1\)"):
        ops.cross_entropy(logits, np.array([0, 0]), 1.0)
    with pytest.raises(ValueError, match="logits: expected at least one row"):
        ops.cross_entropy(np.zeros((0, 3), np.float32), np.zeros(0, np.int64))
