"""Products of linear layers with factors rounded to bfloat16."""

import threading

import numpy as np
import pytest
from tables import LINEAR_SHAPES, assert_close, relative_error

import wasi
from wasi import ops
from wasi.reference import bf16 as ref_bf16
from wasi.reference import linear as ref

# Beside the common shapes: several blocks of k, of rows (768 KiB hold 756 rows of 515) and of columns, ragged in each.
SHAPES = [*LINEAR_SHAPES, (50, 96, 2051), (800, 70, 1030), (24, 17, 32), (2051, 40, 40)]


@pytest.fixture
def bfloat16():
    try:
        wasi.set_matmul_precision("bfloat16")
    except ValueError as error:
        pytest.skip(str(error))
    yield
    wasi.set_matmul_precision("float32")


def rounded(x):
    return ref_bf16.bf16_expand(ref_bf16.bf16_round(x)).astype(np.float64)


def float32s(rng, *shapes):
    return [rng.standard_normal(shape).astype(np.float32) for shape in shapes]


def used(m, n, k):
    """Whether the core rounds the factors of such a product."""
    return m >= 24 and n > 16 and k >= 32


def product(a, b, m, n, k):
    return rounded(a) @ rounded(b) if used(m, n, k) else a.astype(np.float64) @ b.astype(np.float64)


@pytest.mark.parametrize("M, O, I", SHAPES)
def test_linear_multiplies_rounded_factors_exactly(rng, n_threads, bfloat16, M, O, I):
    x, dy, W, b = float32s(rng, (M, I), (M, O), (O, I), O)
    assert_close(ops.linear(x, W, b), product(x, W.T, M, O, I) + b)
    dW, db = np.ones_like(W), np.ones_like(b)
    assert_close(ops.linear_backward(dy, x, W, dW, db), product(dy, W, M, I, O))
    assert_close(dW, product(dy.T, x, O, I, M) + 1)  # parameter gradients add
    assert_close(db, dy.sum(0, dtype=np.float64) + 1)


def test_factored_within_the_rounding_of_its_factors(rng, n_threads, bfloat16):
    x, dy, L, R, b = float32s(rng, (300, 128), (300, 96), (96, 40), (40, 128), 96)
    y, z = ops.factored_linear(x, L, R, b)
    want_y, want_z = ref.factored_forward(*(a.astype(np.float64) for a in (x, L, R, b)))
    dL, dR = np.zeros_like(L), np.zeros_like(R)
    dx, _ = ops.factored_linear_backward(dy, x, z, L, R, dL, dR)
    want = ref.factored_backward(*(a.astype(np.float64) for a in (dy, x, want_z, L, R)))
    for got, expected in zip((y, z, dx, dL, dR), (want_y, want_z, *want)):
        assert 1e-5 < relative_error(got, expected) < 2**-8


@pytest.mark.parametrize("M, O, I", [(40, 1301, 1037), (800, 1100, 70), (24, 32, 32), (37, 33, 45)])
def test_a_frozen_bfloat16_weight_multiplies_rounded_activations(rng, n_threads, bfloat16, M, O, I):
    x, dy, W = float32s(rng, (M, I), (M, O), (O, I))
    bits = ref_bf16.bf16_round(W)
    assert_close(ops.bf16_linear(x, bits), rounded(x) @ rounded(W).T)
    assert_close(ops.bf16_linear_backward(dy, bits), rounded(dy) @ rounded(W))


def test_small_products_with_a_frozen_bfloat16_weight_are_not_rounded(rng, n_threads, bfloat16):
    x, dy, W = float32s(rng, (5, 64), (5, 48), (48, 64))
    bits = ref_bf16.bf16_round(W)
    assert_close(ops.bf16_linear(x, bits), x.astype(np.float64) @ rounded(W).T)
    assert_close(ops.bf16_linear_backward(dy, bits), dy.astype(np.float64) @ rounded(W))


def test_same_bits_for_the_same_thread_count_and_for_the_rows_alone(rng, n_threads, bfloat16):
    x, W = float32s(rng, (200, 64), (96, 64))
    y = ops.linear(x, W)
    assert np.array_equal(ops.linear(x, W), y)
    assert np.array_equal(ops.linear(x[:100], W), y[:100])


def test_not_a_number_and_infinity_pass_through(rng, bfloat16):
    x, W = float32s(rng, (48, 64), (32, 64))
    x[3, 5], x[7, 9] = np.nan, np.inf
    y = ops.linear(x, W)
    assert np.isnan(y[3]).all() and np.isinf(y[7]).all()
    assert np.isfinite(np.delete(y, [3, 7], axis=0)).all()


def test_the_choice_holds_for_all_threads_and_goes_back(rng, bfloat16):
    x, W = float32s(rng, (64, 64), (64, 64))
    seen = []
    thread = threading.Thread(target=lambda: seen.append((wasi.get_matmul_precision(), ops.linear(x, W))))
    thread.start()
    thread.join()
    assert seen[0][0] == "bfloat16" and np.array_equal(seen[0][1], ops.linear(x, W))
    wasi.set_matmul_precision("float32")
    assert wasi.get_matmul_precision() == "float32"
    assert_close(ops.linear(x, W), ref.linear_forward(x.astype(float), W.astype(float)))


def test_without_such_products_it_is_refused(isa):
    if isa == "avx512":
        pytest.skip("some machines of this instruction set have them")
    with pytest.raises(ValueError, match="precision: this processor does not multiply bfloat16 numbers .*; use 'float32'"):
        wasi.set_matmul_precision("bfloat16")
    assert wasi.get_matmul_precision() == "float32"


def test_another_word_is_refused():
    with pytest.raises(ValueError, match="precision: expected one of float32, bfloat16, got 'bf16'"):
        wasi.set_matmul_precision("bf16")
