import numpy as np
import pytest
from tables import assert_close

import wasi
from wasi import ops
from wasi.reference import optim as ref


def arrays(rng, n, count):
    return [rng.standard_normal(n).astype(np.float32) for _ in range(count)]


@pytest.mark.parametrize("n", [1, 17, 100_003])
@pytest.mark.parametrize("momentum, nesterov", [(0.0, False), (0.9, False), (0.9, True)])
def test_sgd_matches_reference(rng, n_threads, isa, n, momentum, nesterov):
    param, grad, buffer = arrays(rng, n, 3)
    buffer = buffer if momentum else None
    want, want_buffer = ref.sgd_update(param.astype(float), grad.astype(float), None if buffer is None else buffer.astype(float),
                                       0.1, momentum, 0.01, nesterov, 0.5)
    ops.sgd_update(param, grad, buffer, 0.1, momentum, 0.01, nesterov, 0.5)
    assert_close(param, want)
    if momentum:
        assert_close(buffer, want_buffer)


@pytest.mark.parametrize("n", [1, 17, 100_003])
def test_adamw_matches_reference(rng, n_threads, isa, n):
    param, grad, m, v = arrays(rng, n, 4)
    v *= v
    options = (1e-3, 0.9, 0.999, 1e-8, 0.05, 3, 0.5)
    want = ref.adamw_update(*(a.astype(float) for a in (param, grad, m, v)), *options)
    ops.adamw_update(param, grad, m, v, *options)
    for got, wanted in zip((param, m, v), want):
        assert_close(got, wanted)


def test_twenty_steps_match_pytorch(rng, torch):
    start, gradients = arrays(rng, 50, 1)[0], arrays(rng, 50, 20)
    for make, update, state in [
        (lambda p: torch.optim.SGD([p], 0.1, 0.9, weight_decay=0.01, nesterov=True),
         lambda p, g, s, t: ops.sgd_update(p, g, s[0], 0.1, 0.9, 0.01, True), 1),
        (lambda p: torch.optim.AdamW([p], 1e-2, weight_decay=0.1),
         lambda p, g, s, t: ops.adamw_update(p, g, *s, 1e-2, 0.9, 0.999, 1e-8, 0.1, t), 2),
    ]:
        theirs = torch.nn.Parameter(torch.from_numpy(start.copy()))
        ours, buffers, optimizer = start.copy(), [np.zeros_like(start) for _ in range(state)], make(theirs)
        for step, g in enumerate(gradients, 1):
            theirs.grad = torch.from_numpy(g)
            optimizer.step()
            update(ours, g, buffers, step)
        assert_close(ours, theirs.detach().numpy(), factor=5)


def test_sum_of_squares_has_the_same_bits_for_every_thread_count(rng, isa):
    x = arrays(rng, 100_003, 1)[0]
    before, sums = wasi.get_num_threads(), []
    for n in (1, 2, 5):
        wasi.set_num_threads(n)
        sums.append(ops.sum_of_squares(x))
    wasi.set_num_threads(before)
    assert sums[0] == sums[1] == sums[2] == pytest.approx((x.astype(float) ** 2).sum(), rel=1e-13)
    assert ops.sum_of_squares(np.zeros(0, np.float32)) == 0


def test_all_finite(rng, isa):
    x = rng.uniform(-3e38, 3e38, 40_001).astype(np.float32)
    assert ops.all_finite(x)
    for bad in (np.nan, np.inf, -np.inf):
        for at in (0, 20_000, 40_000):
            y = x.copy()
            y[at] = bad
            assert not ops.all_finite(y)


def test_add_in_place(rng):
    x, y = arrays(rng, 33, 2)
    want = x + y
    assert np.array_equal(ops.add(x, y), want)
    assert ops.add(x, y, out=y) is y and np.array_equal(y, want)


def test_bad_input_is_refused_by_name():
    a, b = np.zeros(3, np.float32), np.zeros(4, np.float32)
    with pytest.raises(ValueError, match="grad: expected 3 elements, as param has, got 4"):
        ops.sgd_update(a, b, None, 0.1)
    with pytest.raises(TypeError, match="buffer: expected a float32 array"):
        ops.sgd_update(a, a, np.zeros(3), 0.1)
    with pytest.raises(ValueError, match="step: expected 1 or more, got 0"):
        ops.adamw_update(a, a, a.copy(), a.copy(), 0.1, 0.9, 0.999, 1e-8, 0, 0)
    with pytest.raises(ValueError, match=r"y.shape\[0\]: expected 3"):
        ops.add(a, b)
