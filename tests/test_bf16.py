import numpy as np
import pytest
from tables import assert_close

from wasi import ops
from wasi.reference import bf16 as ref

SPECIAL = np.uint32([0, 0x80000000, 1, 0x7F800000, 0xFF800000, 0x7FC00000, 0x7F800001, 0xFFFFFFFF, 0x7F7FFFFF, 0x3F808000,
                     0x3F818000, 0x3F808001]).view(np.float32)


@pytest.mark.parametrize("n", [0, 1, 33, 40_001])
def test_rounding_and_expanding_equal_the_twin_bit_for_bit(rng, n_threads, isa, n):
    x = rng.integers(0, 2**32, n, np.uint32).view(np.float32)  # every exponent, NaNs and denormals among them
    x[: min(n, SPECIAL.size)] = SPECIAL[:n]
    narrow = ops.bf16_round(x)
    assert np.array_equal(narrow, ref.bf16_round(x))
    assert np.array_equal(ops.bf16_expand(narrow).view(np.uint32), ref.bf16_expand(narrow).view(np.uint32))


def test_rounding_is_within_half_a_unit_and_keeps_what_fits(rng):
    x = rng.standard_normal(10_000).astype(np.float32)
    back = ops.bf16_expand(ops.bf16_round(x))
    assert np.all(np.abs(back - x) <= 2.0**-8 * np.abs(x))
    assert np.array_equal(ops.bf16_round(back), ops.bf16_round(x))


def test_rounding_equals_pytorch(rng, torch):
    x = rng.integers(0, 2**32, 50_000, np.uint32).view(np.float32)
    x = x[~np.isnan(x)]
    assert np.array_equal(ops.bf16_round(x), torch.from_numpy(x).bfloat16().view(torch.uint16).numpy())


@pytest.mark.parametrize("shape", [(3, 5), (200, 301)])
def test_a_running_sum_rounds_once_a_term(rng, n_threads, isa, shape):
    total, want = np.zeros(shape, np.uint16), np.zeros(shape, np.float32)
    for _ in range(16):
        x = rng.standard_normal(shape).astype(np.float32)
        ops.bf16_add_(total, x)
        want = ref.bf16_expand(ref.bf16_round(want + x))
    assert np.array_equal(ops.bf16_expand(total), want)


def test_arguments_that_do_not_fit_are_named():
    x, h = np.zeros((2, 3), np.float32), np.zeros((2, 3), np.uint16)
    with pytest.raises(TypeError, match="x: expected"):
        ops.bf16_round(h)
    with pytest.raises(TypeError, match="x: expected"):
        ops.bf16_expand(x)
    with pytest.raises(ValueError, match="out"):
        ops.bf16_expand(h, out=np.zeros((3, 2), np.float32))
    with pytest.raises(ValueError, match="x.*sum|sum.*x"):
        ops.bf16_add_(h, np.zeros((3, 2), np.float32))
    frozen = h.copy()
    frozen.flags.writeable = False
    with pytest.raises(ValueError, match="sum"):
        ops.bf16_add_(frozen, x)


@pytest.mark.parametrize("M, O, I", [(1, 1, 1), (7, 13, 5), (0, 3, 4), (3, 1500, 1100), (64, 33, 257)])
def test_products_with_frozen_weights(rng, n_threads, isa, M, O, I):
    x, dy = rng.standard_normal((M, I)).astype(np.float32), rng.standard_normal((M, O)).astype(np.float32)
    W = ref.bf16_round(rng.standard_normal((O, I)).astype(np.float32))
    wide = ref.bf16_expand(W).astype(np.float64)
    assert_close(ops.bf16_linear(x, W), x.astype(np.float64) @ wide.T, factor=2)
    assert_close(ops.bf16_linear_backward(dy, W), dy.astype(np.float64) @ wide, factor=2)
    W.flags.writeable = False
    out = np.empty((1, M, O), np.float32)
    assert ops.bf16_linear(x[None], W, out=out) is out


def test_products_refuse_what_does_not_fit():
    x, W = np.zeros((2, 3), np.float32), np.zeros((4, 3), np.uint16)
    with pytest.raises(ValueError, match=r"x.shape\[1\]: expected 3 \(W.shape\[1\]\), got 2"):
        ops.bf16_linear(x[:, :2].copy(), W)
    with pytest.raises(ValueError, match=r"dy.shape\[1\]: expected 4 \(W.shape\[0\]\), got 3"):
        ops.bf16_linear_backward(x, W)
    with pytest.raises(TypeError, match="W: expected a uint16 array"):
        ops.bf16_linear(x, W.astype(np.float32))
    square = np.zeros((3, 3), np.float32)
    with pytest.raises(ValueError, match="out: expected memory of its own"):
        ops.bf16_linear(square, np.zeros((3, 3), np.uint16), out=square)
