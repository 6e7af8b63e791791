import numpy as np
import pytest
from gradcheck import directional_check
from tables import LINEAR_SHAPES, assert_close

from wasi import ops
from wasi.reference import linear as ref


def problem(rng, M, O, I, K=None):
    x, dy, b = rng.standard_normal((M, I)), rng.standard_normal((M, O)), rng.standard_normal(O)
    if K is None:
        parameters = [rng.standard_normal((O, I))]
    else:
        parameters = [rng.standard_normal((O, K)), rng.standard_normal((K, I))]
    return [np.ascontiguousarray(a, np.float32) for a in (x, dy, *parameters, b)]


def wide(arrays):
    return [a.astype(np.float64) for a in arrays]


@pytest.mark.parametrize("M, O, I", LINEAR_SHAPES)
def test_linear_matches_reference(rng, n_threads, isa, M, O, I):
    x, dy, W, b = problem(rng, M, O, I)
    x64, dy64, W64, b64 = wide([x, dy, W, b])
    dW, db = np.ones_like(W), np.ones_like(b)
    assert_close(ops.linear(x, W, b), ref.linear_forward(x64, W64, b64))
    dx = ops.linear_backward(dy, x, W, dW, db)
    want_dx, want_dW, want_db = ref.linear_backward(dy64, x64, W64)
    assert_close(dx, want_dx)
    assert_close(dW, want_dW + 1)  # parameter gradients add
    assert_close(db, want_db + 1)


@pytest.mark.parametrize("M, O, I", LINEAR_SHAPES)
@pytest.mark.parametrize("K", [1, 7])
def test_factored_matches_reference(rng, n_threads, M, O, I, K):
    x, dy, L, R, b = problem(rng, M, O, I, K)
    x64, dy64, L64, R64, b64 = wide([x, dy, L, R, b])
    y, z = ops.factored_linear(x, L, R, b)
    want_y, want_z = ref.factored_forward(x64, L64, R64, b64)
    assert_close(y, want_y)
    assert_close(z, want_z)
    dL, dR, db = np.ones_like(L), np.ones_like(R), np.ones_like(b)
    dx, gl = ops.factored_linear_backward(dy, x, z, L, R, dL, dR, db)
    want_dx, want_dL, want_dR, want_db = ref.factored_backward(dy64, x64, want_z, L64, R64)
    assert_close(dx, want_dx)
    assert_close(gl, dy64 @ L64)
    assert_close(dL, want_dL + 1)
    assert_close(dR, want_dR + 1)
    assert_close(db, want_db + 1)


def test_gradients_against_finite_differences(rng):
    x, dy, L, R, b = wide(problem(rng, 5, 6, 7, 3))

    def loss(arguments):
        return float((ref.factored_forward(*arguments)[0] * dy).sum())

    y, z = ref.factored_forward(x, L, R, b)
    assert directional_check(loss, [x, L, R, b], ref.factored_backward(dy, x, z, L, R), rng) < 1e-7


def test_leading_dimensions_and_out(rng):
    x = rng.standard_normal((2, 3, 5)).astype(np.float32)
    W = rng.standard_normal((4, 5)).astype(np.float32)
    out = np.empty((2, 3, 4), np.float32)
    assert ops.linear(x, W, out=out) is out
    assert_close(out, ref.linear_forward(x.astype(float), W.astype(float)))


def test_arrays_of_no_number_share_no_memory(rng):
    memory = rng.standard_normal((8, 5)).astype(np.float32)
    assert ops.linear(memory[1:7], memory[:0], out=memory[2:, :0]).shape == (6, 0)


def test_inputs_are_left_alone(rng):
    arrays = problem(rng, 9, 4, 6, 2)
    before = [a.copy() for a in arrays]
    x, dy, L, R, b = arrays
    y, z = ops.factored_linear(x, L, R, b)
    ops.factored_linear_backward(dy, x, z, L, R)
    for a, a0 in zip(arrays, before):
        assert np.array_equal(a, a0)


def test_bad_input_is_refused_by_name(rng):
    x, dy, W, b = problem(rng, 4, 3, 5)
    with pytest.raises(TypeError, match=r"x: expected a float32 array, got float64 array of shape \(4, 5\)"):
        ops.linear(x.astype(float), W)
    with pytest.raises(TypeError, match="W: expected a float32 array, got list"):
        ops.linear(x, [[1.0]])
    with pytest.raises(ValueError, match=r"x.shape\[1\]: expected 5 \(W.shape\[1\]\), got 3"):
        ops.linear(dy, W)
    with pytest.raises(ValueError, match="x: expected a C-contiguous"):
        ops.linear(np.asfortranarray(x), W)
    with pytest.raises(ValueError, match=r"b.shape\[0\]: expected 3"):
        ops.linear(x, W, b[:2])
    with pytest.raises(ValueError, match=r"out.shape\[1\]: expected 3"):
        ops.linear(x, W, out=np.empty((4, 4), np.float32))
    with pytest.raises(ValueError, match="x: expected 4 rows, got 3"):
        ops.linear_backward(dy, x[:3], W, dW=np.zeros_like(W))
    read_only = np.zeros_like(W)
    read_only.flags.writeable = False
    with pytest.raises(ValueError, match="dW: expected a writable array"):
        ops.linear_backward(dy, x, W, dW=read_only)
    with pytest.raises(ValueError, match=r"R.shape\[0\]: expected 2"):
        ops.factored_linear(x, np.ones((3, 2), np.float32), np.ones((3, 5), np.float32))
