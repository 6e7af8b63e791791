"""RMSNorm, SwiGLU, token tables and rotary positions."""

import numpy as np
import pytest
from gradcheck import directional_check
from tables import ROW_SHAPES, assert_close

from wasi import ops
from wasi.reference import activation as ref_activation
from wasi.reference import decoder as ref
from wasi.reference import norm as ref_norm

EPS = 1e-5


def numbers(rng, *shape):
    return rng.standard_normal(shape).astype(np.float32)


def wide(arrays):
    return [a.astype(np.float64) for a in arrays]


@pytest.mark.parametrize("M, C", ROW_SHAPES)
def test_rms_norm_matches_reference(rng, n_threads, isa, M, C):
    x, r, dy, weight = numbers(rng, M, C), numbers(rng, M, C), numbers(rng, M, C), numbers(rng, C)
    y, rstd = ops.rms_norm(x, weight, EPS)
    want, want_rstd = ref_norm.rms_norm(*wide([x, weight]), EPS)
    assert_close(y, want)
    assert_close(rstd, want_rstd)
    assert np.array_equal(ops.rms_norm_apply(x, rstd, weight), y)

    dweight = np.ones_like(weight)
    dx = ops.rms_norm_backward(dy, x, rstd, weight, dweight, add_to=r)
    want_dx, want_dweight = ref_norm.rms_norm_backward(*wide([dy, x]), want_rstd, weight.astype(float))
    assert_close(dx, want_dx + r)
    assert_close(dweight, want_dweight + 1)  # parameter gradients add
    for target in range(3):
        copies = [dy.copy(), x.copy(), r.copy()]
        ops.rms_norm_backward(*copies[:2], rstd, weight, out=copies[target], add_to=copies[2])
        assert np.array_equal(copies[target], dx)


def test_rms_norm_gradients_against_finite_differences_and_torch(rng, torch):
    x, dy, weight = wide([numbers(rng, 5, 7), numbers(rng, 5, 7), numbers(rng, 7)])

    def loss(arguments):
        return float((ref_norm.rms_norm(*arguments, EPS)[0] * dy).sum())

    _, rstd = ref_norm.rms_norm(x, weight, EPS)
    gradients = ref_norm.rms_norm_backward(dy, x, rstd, weight)
    assert directional_check(loss, [x, weight], gradients, rng) < 1e-7
    leaves = [torch.tensor(a, requires_grad=True) for a in (x, weight)]
    torch.nn.functional.rms_norm(leaves[0], (7,), leaves[1], EPS).backward(torch.tensor(dy))
    for got, leaf in zip(gradients, leaves):
        assert_close(got, leaf.grad.numpy(), factor=10)


@pytest.mark.parametrize("n", [0, 1, 15, 17, 30_001])
def test_swiglu_matches_reference(rng, n_threads, isa, n):
    dy, a, b = numbers(rng, n), 4 * numbers(rng, n), numbers(rng, n)
    g = ops.swiglu(a, b)
    assert_close(g, ref_activation.swiglu(*wide([a, b])))
    da, db = ops.swiglu_backward(dy, a, b)
    want_da, want_db = ref_activation.swiglu_backward(*wide([dy, a, b]))
    assert_close(da, want_da)
    assert_close(db, want_db)
    for first, second in ((0, 1), (1, 2), (2, 0)):
        copies = [dy.copy(), a.copy(), b.copy()]
        ops.swiglu_backward(*copies, out_a=copies[first], out_b=copies[second])
        assert np.array_equal(copies[first], da) and np.array_equal(copies[second], db)
    for target in (0, 1):
        copies = [a.copy(), b.copy()]
        assert np.array_equal(ops.swiglu(*copies, out=copies[target]), g)


def test_swiglu_gradient_against_finite_differences(rng):
    dy, a, b = rng.standard_normal((3, 20))

    def loss(arguments):
        return float((ref_activation.swiglu(*arguments) * dy).sum())

    assert directional_check(loss, [a, b], ref_activation.swiglu_backward(dy, a, b), rng) < 1e-7


@pytest.mark.parametrize("V, C, shape", [(1, 1, (1,)), (7, 5, (3, 4)), (50, 300, (2, 67)), (4, 3, (0,))])
def test_embedding_matches_reference(rng, n_threads, V, C, shape):
    table, tokens = numbers(rng, V, C), rng.integers(0, V, shape)
    y = ops.embedding(tokens, table)
    assert np.array_equal(y, table[tokens])
    assert np.array_equal(y, ops.embedding(tokens.astype(np.longlong), table))  # the same numbers, another type to NumPy
    dy, dtable = numbers(rng, *shape, C), np.ones_like(table)
    ops.embedding_backward(dy, tokens, dtable)
    assert_close(dtable, ref.embedding_backward(dy.astype(float), tokens, V) + 1)


@pytest.mark.parametrize("B, N, H, D", [(1, 1, 1, 2), (2, 9, 3, 8), (3, 130, 4, 6), (2, 3, 1, 34)])
@pytest.mark.parametrize("start", [0, 5])
def test_rope_matches_reference_and_turns_back(rng, n_threads, isa, B, N, H, D, start):
    x = numbers(rng, B, N, H, D)
    angles = rng.uniform(-3, 3, (N + start + 2, D // 2))
    cosines, sines = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
    want = ref.rope(*wide([x, cosines, sines]), start)
    turned = x.copy()
    assert ops.rope(turned, cosines, sines, start) is turned
    assert_close(turned, want)
    assert_close(ops.rope(turned, cosines, sines, start, back=True), x, factor=2)


def test_rope_back_is_the_transpose(rng):
    x, y = rng.standard_normal((2, 2, 4, 3, 6))
    angles = rng.uniform(-3, 3, (4, 3))
    cosines, sines = np.cos(angles), np.sin(angles)
    forward = (ref.rope(x, cosines, sines) * y).sum()
    assert forward == pytest.approx((x * ref.rope(y, cosines, sines, back=True)).sum(), rel=1e-12)


def test_bad_input_is_refused_by_name(rng):
    table, tokens = numbers(rng, 5, 4), np.array([[1, 4], [0, 2]])
    for bad in (5, -1):
        wrong = np.array([[1, 4], [bad, 2]])
        with pytest.raises(ValueError, match=f"tokens: expected ids 0 to 4, got {bad} at place 2"):
            ops.embedding(wrong, table)
        dtable = np.zeros_like(table)
        with pytest.raises(ValueError, match="tokens: expected ids 0 to 4"):
            ops.embedding_backward(numbers(rng, 2, 2, 4), wrong, dtable)
        assert not dtable.any()
    with pytest.raises(TypeError, match="tokens: expected an int64 array"):
        ops.embedding(tokens.astype(np.int32), table)
    with pytest.raises(ValueError, match=r"dy.*: expected"):
        ops.embedding_backward(numbers(rng, 3, 4), tokens, table)
    x, cosines = numbers(rng, 1, 4, 2, 6), numbers(rng, 5, 3)
    with pytest.raises(ValueError, match="start: expected 4 positions from 0 within the tables' 5, got start 2"):
        ops.rope(x, cosines, cosines, 2)
    with pytest.raises(ValueError, match="start: expected"):
        ops.rope(x, cosines, cosines, -1)
    with pytest.raises(ValueError, match=r"x.shape\[3\]: expected an even width"):
        ops.rope(numbers(rng, 1, 4, 2, 5), cosines, cosines)
    with pytest.raises(ValueError, match=r"cosines.shape\[1\]: expected 3"):
        ops.rope(x, cosines[:, :2].copy(), cosines[:, :2].copy())
    with pytest.raises(ValueError, match=r"sines: expected shape \(5, 3\)"):
        ops.rope(x, cosines, cosines[:4])
    with pytest.raises(ValueError, match=r"weight.shape\[0\]: expected 4"):
        ops.rms_norm(table, table[0, :3].copy(), EPS)
    with pytest.raises(ValueError, match="eps: expected a number that is not negative"):
        ops.rms_norm(table, table[0], -1.0)
    with pytest.raises(ValueError, match="rstd: expected 5 numbers, one a row of x, got 4"):
        ops.rms_norm_backward(table, table, table[0], table[0])
    with pytest.raises(ValueError, match=r"b: expected shape \(5, 4\)"):
        ops.swiglu(table, table[:4])
    with pytest.raises(ValueError, match="out_a: expected memory of its own, .* overlaps out_b"):
        ops.swiglu_backward(table, table, table.copy(), out_a=table, out_b=table)
