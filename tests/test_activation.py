import numpy as np
import pytest
from gradcheck import directional_check
from tables import assert_close

from wasi import ops
from wasi.reference import activation as ref

FUNCTIONS = {
    "gelu": (ops.gelu, ops.gelu_backward, ref.gelu, ref.gelu_backward),
    "silu": (ops.silu, ops.silu_backward, ref.silu, ref.silu_backward),
}
function = pytest.mark.parametrize("name", FUNCTIONS)
# None, one, around a SIMD register, around a block of codes, enough for two threads with a remainder.
SIZES = [0, 1, 15, 16, 17, 255, 257, 30_001]


def numbers(rng, n):
    """Standard normal numbers, and some from the tails."""
    return np.concatenate([rng.standard_normal(n - n // 4), rng.uniform(-20, 20, n // 4)]).astype(np.float32)


@function
@pytest.mark.parametrize("n", SIZES)
def test_matches_reference(rng, n_threads, isa, name, n):
    forward, backward, ref_forward, ref_backward = FUNCTIONS[name]
    h, dy = numbers(rng, n), rng.standard_normal(n).astype(np.float32)
    assert_close(forward(h), ref_forward(h.astype(np.float64)))
    assert_close(backward(dy, h), ref_backward(dy.astype(np.float64), h.astype(np.float64)))


@function
def test_error_stays_below_a_millionth(isa, name):
    forward, backward, ref_forward, ref_backward = FUNCTIONS[name]
    extremes = [-1e30, -300, -90, -0.0, 90, 300, 1e30]
    h = np.concatenate([np.linspace(-14, 14, 200_003), extremes]).astype(np.float32)
    wide, one = h.astype(np.float64), np.ones_like(h)
    with np.errstate(over="ignore"):
        assert (np.abs(forward(h) - ref_forward(wide)) <= 1e-6 * np.maximum(1, np.abs(wide))).all()
        assert np.abs(backward(one, h) - ref_backward(1.0, wide)).max() <= 1e-6


@function
def test_gradient_against_finite_differences(rng, name):
    _, _, ref_forward, ref_backward = FUNCTIONS[name]
    h, dy = rng.standard_normal((2, 30))

    def loss(arguments):
        return float((ref_forward(arguments[0]) * dy).sum())

    assert directional_check(loss, [h], [ref_backward(dy, h)], rng) < 1e-7


@function
def test_matches_torch(rng, torch, name):
    forward, backward, _, _ = FUNCTIONS[name]
    h, dy = numbers(rng, 5000), rng.standard_normal(5000).astype(np.float32)
    leaf = torch.tensor(h, requires_grad=True)
    want = getattr(torch.nn.functional, name)(leaf)
    want.backward(torch.tensor(dy))
    assert_close(forward(h), want.detach().numpy())
    assert_close(backward(dy, h), leaf.grad.numpy())


@function
def test_in_place_and_nan(rng, isa, name):
    forward, backward, _, _ = FUNCTIONS[name]
    h, dy = numbers(rng, 1000).reshape(4, 250), rng.standard_normal((4, 250)).astype(np.float32)
    h[1, 3] = np.nan
    before = h.copy(), dy.copy()
    g, dh = forward(h), backward(dy, h)
    assert np.array_equal(h, before[0], equal_nan=True) and np.array_equal(dy, before[1])
    for result in (g, dh):
        assert np.array_equal(np.isnan(result), np.isnan(h))
    for target in (0, 1):
        copies = [dy.copy(), h.copy()]
        assert backward(*copies, out=copies[target]) is copies[target]
        assert np.array_equal(copies[target], dh, equal_nan=True)
    assert forward(h, out=h) is h and np.array_equal(h, g, equal_nan=True)


@pytest.mark.parametrize("in_place", [False, True])
def test_bias_gelu_is_add_then_gelu(rng, n_threads, isa, in_place):
    h, b = rng.standard_normal((3, 70, 65)).astype(np.float32), rng.standard_normal(65).astype(np.float32)
    total = h + b
    g = ops.bias_gelu(h, b, out=h if in_place else None)
    assert np.array_equal(g, ops.gelu(total))
    assert (g is h) if in_place else np.array_equal(h, total)


@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize("n", SIZES)
def test_few_bit_matches_reference(rng, n_threads, isa, bits, n):
    h, dy = numbers(rng, n), rng.standard_normal(n).astype(np.float32)
    g, codes = ops.gelu_encode(h, bits)
    assert np.array_equal(g, ops.gelu(h))
    assert codes.nbytes <= n * bits / 8 + 64
    dh = ops.gelu_decode_backward(dy, codes, bits)
    want = ref.few_bit_backward(dy.astype(np.float64), h.astype(np.float64), bits)
    # Next to a cut, the rounding of the derivative may pick the other level.
    near_a_cut = np.abs(dh - want) > 1e-6 * np.abs(dy)
    assert near_a_cut.sum() <= 1 + n / 10_000
    assert_close(dh[~near_a_cut], want[~near_a_cut])


@pytest.mark.parametrize("bits", [2, 4])
def test_few_bit_with_bias_and_in_place(rng, n_threads, isa, bits):
    h, b = rng.standard_normal((130, 100)).astype(np.float32), rng.standard_normal(100).astype(np.float32)
    dy, before = rng.standard_normal(h.shape).astype(np.float32), h.copy()
    want_g, want_codes = ops.gelu_encode(h + b, bits)
    g, codes = ops.gelu_encode(h, bits, b)
    assert np.array_equal(g, want_g) and np.array_equal(codes, want_codes) and np.array_equal(h, before)
    g, codes = ops.gelu_encode(h, bits, b, out=h)
    assert g is h and np.array_equal(g, want_g) and np.array_equal(codes, want_codes)
    want = ops.gelu_decode_backward(dy, codes, bits)
    assert ops.gelu_decode_backward(dy, codes, bits, out=dy) is dy and np.array_equal(dy, want)


@pytest.mark.parametrize("bits, error", [(2, 8.0011e-3), (4, 4.6209e-4)])
def test_few_bit_levels_are_the_least_squares_ones(bits, error):
    h = np.linspace(-9, 9, 200_001)
    density, d, levels = np.exp(-h * h / 2), ref.gelu_derivative(h), ref.few_bit_levels(bits)
    density /= density.sum()
    cell = np.searchsorted((levels[1:] + levels[:-1]) / 2, d)
    mass = np.bincount(cell, density)
    # Each level is the mean of its cell, to the step of the grid.
    assert np.abs(np.bincount(cell, density * d) / mass - levels).max() < 1e-4
    assert (density * (d - levels[cell]) ** 2).sum() == pytest.approx(error, rel=1e-4)
    # Levels are the best of all: dynamic programming over a coarser grid finds none with less error.
    h = np.linspace(-4, 4, 801)
    density, d = np.exp(-h * h / 2), ref.gelu_derivative(h)
    order = np.argsort(d)
    assert best_error(d[order], density[order] / density.sum(), 2**bits) == pytest.approx(error, rel=0.02)


def best_error(values, weights, n_levels):
    """Least mean squared error of n_levels levels for sorted weighted values, over every way to cut them."""
    w, s, q = (np.concatenate([[0], np.cumsum(weights * values**k)]) for k in range(3))
    mass = w - w[:, None] + np.eye(len(w))  # 1 in place of 0 for an empty cell
    cost = q - q[:, None] - (s - s[:, None]) ** 2 / mass
    cost[np.tril_indices(len(w), -1)] = np.inf
    best = cost[0]
    for _ in range(n_levels - 1):
        best = (best[:, None] + cost).min(0)
    return best[-1]


def test_bad_input_is_refused_by_name(rng):
    h = np.zeros((4, 6), np.float32)
    with pytest.raises(TypeError, match="h: expected a float32 array, got float64 array"):
        ops.gelu(h.astype(float))
    with pytest.raises(ValueError, match=r"h: expected shape \(3, 6\) \(that of dy\)"):
        ops.silu_backward(h[:3], h)
    with pytest.raises(ValueError, match=r"out.shape\[0\]: expected 4"):
        ops.silu(h, out=np.zeros((3, 6), np.float32))
    with pytest.raises(ValueError, match=r"b.shape\[0\]: expected 6 \(h.shape\[-1\]\), got 5"):
        ops.bias_gelu(h, np.zeros(5, np.float32))
    read_only = h.copy()
    read_only.flags.writeable = False
    with pytest.raises(ValueError, match="h: expected a writable array"):
        ops.bias_gelu(read_only, h[0])
    buffer = np.zeros(30, np.float32)
    with pytest.raises(ValueError, match="out: expected memory of its own or exactly that of h"):
        ops.gelu(buffer[:24], out=buffer[6:])
    with pytest.raises(ValueError, match="bits: expected 2 or 4, got 3"):
        ops.gelu_encode(h, 3)
    codes = ops.gelu_encode(h, 4)[1]
    with pytest.raises(ValueError, match=r"codes.shape\[0\]: expected 64"):
        ops.gelu_decode_backward(h, codes[:10], 4)
    with pytest.raises(TypeError, match="codes: expected a uint8 array"):
        ops.gelu_decode_backward(h, h, 4)
