import numpy as np
import pytest
from gradcheck import directional_check
from tables import ROW_SHAPES, assert_close, relative_error

from wasi import ops
from wasi.reference import norm as ref

EPS = 1e-2  # large enough for a row of one, whose spread is rounding alone, to be well conditioned


def problem(rng, M, C):
    """x, r, dy (M, C), weight, bias (C,); x has a mean that a one-pass variance would stumble over."""
    arrays = [rng.standard_normal((M, C)) + 10, *rng.standard_normal((2, M, C)), *rng.standard_normal((2, C))]
    return [a.astype(np.float32) for a in arrays]


def wide(arrays):
    return [a.astype(np.float64) for a in arrays]


@pytest.mark.parametrize("M, C", ROW_SHAPES)
def test_matches_reference(rng, n_threads, isa, M, C):
    x, r, dy, weight, bias = problem(rng, M, C)
    y, mean, rstd = ops.layer_norm(x, weight, bias, EPS)
    want, want_mean, want_rstd = ref.layer_norm(*wide([x, weight, bias]), EPS)
    assert mean.shape == rstd.shape == (M,)
    assert_close(mean, want_mean)
    assert_close(rstd, want_rstd)
    assert_close(y, want, factor=10)  # x - mean is rounded at the size of the mean, ten deviations away

    dweight, dbias = np.ones_like(weight), np.ones_like(bias)
    dx = ops.layer_norm_backward(dy, x, mean, rstd, weight, dweight, dbias, add_to=r)
    want_dx, want_dweight, want_dbias = ref.layer_norm_backward(*wide([dy, x, mean, rstd, weight]))
    assert_close(dx, want_dx + r)
    assert_close(dweight, want_dweight + 1)  # parameter gradients add
    assert_close(dbias, want_dbias + 1)


@pytest.mark.parametrize("M, C", ROW_SHAPES)
def test_apply_gives_the_same_bits(rng, n_threads, isa, M, C):
    x, _, _, weight, bias = problem(rng, M, C)
    y, mean, rstd = ops.layer_norm(x, weight, bias, EPS)
    assert np.array_equal(ops.layer_norm_apply(x, mean, rstd, weight, bias), y)


@pytest.mark.parametrize("M, C", ROW_SHAPES)
@pytest.mark.parametrize("in_place", [False, True])
def test_add_layer_norm_is_add_then_norm(rng, n_threads, isa, M, C, in_place):
    x, r, _, weight, bias = problem(rng, M, C)
    total = x + r
    want = ops.layer_norm(total, weight, bias, EPS)
    s, *got = ops.add_layer_norm(x, r, weight, bias, EPS, *((x, r) if in_place else ()))
    assert np.array_equal(s, total)
    for a, b in zip(got, want):
        assert np.array_equal(a, b)
    if in_place:
        assert s is x and got[0] is r


def test_gradients_against_finite_differences(rng):
    x, _, dy, weight, bias = wide(problem(rng, 5, 7))

    def loss(arguments):
        return float((ref.layer_norm(*arguments, EPS)[0] * dy).sum())

    _, mean, rstd = ref.layer_norm(x, weight, bias, EPS)
    gradients = ref.layer_norm_backward(dy, x, mean, rstd, weight)
    assert directional_check(loss, [x, weight, bias], gradients, rng) < 1e-7


@pytest.mark.parametrize("offset", [0, 100])
def test_matches_torch(rng, torch, n_threads, offset):
    x, _, dy, weight, bias = problem(rng, 64, 192)
    x += np.float32(offset)
    leaves = [torch.tensor(a, requires_grad=True) for a in (x, weight, bias)]
    want = torch.nn.functional.layer_norm(leaves[0], (192,), *leaves[1:], 1e-6)
    want.backward(torch.tensor(dy))
    y, mean, rstd = ops.layer_norm(x, weight, bias, 1e-6)
    dweight, dbias = np.zeros_like(weight), np.zeros_like(bias)
    dx = ops.layer_norm_backward(dy, x, mean, rstd, weight, dweight, dbias)
    exact = ref.layer_norm(*wide([x, weight, bias]), 1e-6)[0]
    assert relative_error(y, exact) <= 2 * relative_error(want.detach().numpy(), exact)
    for got, leaf in zip((dx, dweight, dbias), leaves):
        assert_close(got, leaf.grad.numpy(), factor=1 + offset)


def test_backward_in_place(rng):
    x, r, dy, weight, _ = problem(rng, 9, 20)
    _, mean, rstd = ops.layer_norm(x, weight, weight, EPS)
    want = ops.layer_norm_backward(dy, x, mean, rstd, weight, add_to=r)
    for target in range(3):
        arguments = [dy.copy(), x.copy(), r.copy()]
        out = arguments[target]
        ops.layer_norm_backward(*arguments[:2], mean, rstd, weight, out=out, add_to=arguments[2])
        assert np.array_equal(out, want)


def test_leading_dimensions_and_inputs_left_alone(rng, n_threads):
    x, r, dy, weight, bias = problem(rng, 60, 300)
    arrays = [a.reshape(3, 20, 300) for a in (x, r, dy)] + [weight, bias]
    before = [a.copy() for a in arrays]
    s, y, mean, rstd = ops.add_layer_norm(*arrays[:2], weight, bias, EPS)
    dx = ops.layer_norm_backward(arrays[2], s, mean, rstd, weight, add_to=arrays[1])
    assert s.shape == y.shape == dx.shape == (3, 20, 300) and mean.shape == rstd.shape == (3, 20)
    for a, a0 in zip(arrays, before):
        assert np.array_equal(a, a0)


def test_sums_repeat_bit_for_bit(rng, n_threads):
    x, _, dy, weight, bias = problem(rng, 500, 96)
    _, mean, rstd = ops.layer_norm(x, weight, bias, EPS)
    results = []
    for _ in range(3):
        results.append(np.zeros((2, 96), np.float32))
        ops.layer_norm_backward(dy, x, mean, rstd, weight, *results[-1])
    assert np.array_equal(results[0], results[1]) and np.array_equal(results[0], results[2])


def test_bad_input_is_refused_by_name(rng):
    x, r, dy, weight, bias = problem(rng, 4, 6)
    _, mean, rstd = ops.layer_norm(x, weight, bias, EPS)
    with pytest.raises(TypeError, match="x: expected a float32 array, got float64 array"):
        ops.layer_norm(x.astype(float), weight, bias, EPS)
    with pytest.raises(ValueError, match=r"weight.shape\[0\]: expected 6 \(x.shape\[-1\]\), got 5"):
        ops.layer_norm(x, weight[:5], bias, EPS)
    with pytest.raises(ValueError, match="eps: expected a number that is not negative"):
        ops.layer_norm(x, weight, bias, -1.0)
    with pytest.raises(ValueError, match=r"r: expected shape \(4, 6\) \(that of x\), got .* \(3, 6\)"):
        ops.add_layer_norm(x, r[:3], weight, bias, EPS)
    with pytest.raises(ValueError, match="out: expected memory of its own, .* overlaps out_sum"):
        ops.add_layer_norm(x, r, weight, bias, EPS, out_sum=x, out=x)
    buffer = np.zeros(30, np.float32)
    with pytest.raises(ValueError, match="out: expected memory of its own or exactly that of x"):
        ops.layer_norm(buffer[:24].reshape(4, 6), weight, bias, EPS, out=buffer[6:].reshape(4, 6))
    with pytest.raises(ValueError, match="mean: expected 4 numbers, one a row of x, got 3"):
        ops.layer_norm_apply(x, mean[:3], rstd, weight, bias)
    with pytest.raises(ValueError, match=r"dbias.shape\[0\]: expected 6"):
        ops.layer_norm_backward(dy, x, mean, rstd, weight, dbias=np.zeros(7, np.float32))
    with pytest.raises(ValueError, match=r"add_to: expected shape \(4, 6\)"):
        ops.layer_norm_backward(dy, x, mean, rstd, weight, add_to=r[:2])
