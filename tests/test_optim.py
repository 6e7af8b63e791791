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
    wide = [a if a is None else a.astype(float) for a in (param, grad, buffer)]
    want, want_buffer = ref.sgd_update(*wide, 0.1, momentum, 0.01, nesterov, 0.5)
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


@pytest.mark.parametrize("name, options", [
    ("SGD", {}),
    ("SGD", {"weight_decay": 0.01}),
    ("SGD", {"momentum": 0.9}),
    ("SGD", {"momentum": 0.9, "weight_decay": 0.01, "nesterov": True}),
    ("AdamW", {}),
    ("AdamW", {"weight_decay": 0}),
    ("AdamW", {"betas": (0.8, 0.95), "eps": 1e-4, "weight_decay": 0.1}),
])
@pytest.mark.parametrize("max_norm", [None, 1.0])
def test_twenty_steps_match_pytorch(rng, torch, name, options, max_norm):
    ours, gradients = arrays(rng, 50, 1)[0], arrays(rng, 50, 20)
    theirs = torch.nn.Parameter(torch.from_numpy(ours.copy()))
    optimizer = getattr(torch.optim, name)([theirs], 0.05, **options)
    first, second = np.zeros_like(ours), np.zeros_like(ours)
    for step, g in enumerate(gradients, 1):
        theirs.grad, scale = torch.from_numpy(g.copy()), 1.0
        if max_norm:
            torch.nn.utils.clip_grad_norm_([theirs], max_norm)
            scale = min(1.0, max_norm / (ops.sum_of_squares(g) ** 0.5 + 1e-6))
        optimizer.step()
        if name == "SGD":
            buffer = first if "momentum" in options else None
            ops.sgd_update(ours, g, buffer, 0.05, **options, grad_scale=scale)
        else:
            ops.adamw_update(ours, g, first, second, 0.05, *options.get("betas", (0.9, 0.999)),
                             options.get("eps", 1e-8), options.get("weight_decay", 0.01), step, scale)
        assert_close(ours, theirs.detach().numpy())


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


@pytest.mark.parametrize("n", [0, 1, 33, 40_001])
def test_add_scale_axpy(rng, n_threads, isa, n):
    x, y = arrays(rng, n, 2)
    want = x + y
    assert np.array_equal(ops.add(x, y), want)
    for i in range(2):
        both = [x.copy(), y.copy()]
        assert ops.add(*both, out=both[i]) is both[i] and np.array_equal(both[i], want)
    z = y.copy()
    ops.axpy_(z, -0.3, x)
    assert_close(z, y - 0.3 * x.astype(float))
    ops.scale_(z, 0.5)
    assert_close(z, 0.5 * (y - 0.3 * x.astype(float)))
    doubled = 2 * x
    ops.axpy_(x, 1.0, x)
    assert np.array_equal(x, doubled)


def test_gradients_and_inputs_are_left_alone(rng):
    param, grad, m, v = arrays(rng, 20, 4)
    before = grad.copy()
    ops.sgd_update(param, grad, m, 0.1, 0.9, 0.1, True, 0.5)
    ops.adamw_update(param, grad, m, v, 0.1, 0.9, 0.999, 1e-8, 0.1, 1, 0.5)
    ops.axpy_(param, 2.0, grad)
    assert np.array_equal(grad, before)


def test_bad_input_is_refused_by_name():
    a, b = np.zeros(3, np.float32), np.zeros(4, np.float32)
    with pytest.raises(ValueError, match="grad: expected 3 elements, as param has, got 4"):
        ops.sgd_update(a, b, None, 0.1)
    with pytest.raises(TypeError, match="buffer: expected a float32 array"):
        ops.sgd_update(a, a, np.zeros(3), 0.1)
    with pytest.raises(ValueError, match="step: expected 1 or more, got 0"):
        ops.adamw_update(a, a.copy(), a.copy(), a.copy(), 0.1, 0.9, 0.999, 1e-8, 0, 0)
    with pytest.raises(ValueError, match="param: expected memory of its own, got an array that overlaps m"):
        ops.adamw_update(a, np.zeros_like(a), a, a.copy(), 0.1, 0.9, 0.999, 1e-8, 0, 1)
    with pytest.raises(ValueError, match="param: expected memory of its own, .* overlaps grad"):
        ops.sgd_update(b[:3], b[1:], None, 0.1)
    with pytest.raises(ValueError, match=r"y: expected shape \(3,\) \(that of x\)"):
        ops.add(a, b)
    with pytest.raises(ValueError, match=r"x: expected shape \(3,\) \(that of y\)"):
        ops.axpy_(a, 1.0, b)
    with pytest.raises(ValueError, match="y: expected memory of its own or exactly that of x"):
        ops.axpy_(b[:3], 1.0, b[1:])
