"""Convolution, pooling and batch normalisation, channels last: against the NumPy twins, finite differences and PyTorch."""

import numpy as np
import pytest
from gradcheck import directional_check
from tables import assert_close, relative_error

from wasi import ops
from wasi.ops import Window
from wasi.reference import conv as ref

# (B, H, W, C, O, kernel, stride, padding): the shapes of a ResNet in small, borders wider than the image, uneven strides, one.
SHAPES = [(2, 6, 6, 8, 5, 3, 1, 1), (2, 9, 7, 3, 4, 7, 2, 3), (3, 8, 8, 4, 6, 1, 2, 0), (2, 5, 4, 3, 7, 1, 1, 0),
          (1, 1, 1, 1, 1, 3, 1, 1), (2, 7, 10, 5, 3, 3, 2, 1), (1, 5, 11, 2, 3, 4, 3, 2), (33, 4, 3, 17, 19, 3, 1, 1),
          (1, 40, 41, 33, 8, 3, 1, 0)]
TAPS = [(2, 6, 6, 8, 3, 2, 1), (1, 1, 1, 1, 3, 1, 1), (2, 7, 9, 17, 2, 2, 0), (1, 5, 11, 3, 4, 3, 2), (3, 8, 8, 20, 3, 1, 1)]


def problem(rng, B, H, W, C, O, k, s, pad):
    window = Window(k, s, pad)
    arrays = (rng.standard_normal((B, H, W, C)), rng.standard_normal((B, *window.grid(H, W), O)),
              rng.standard_normal((O, k * k * C)), rng.standard_normal(O))
    return window, *(a.astype(np.float32) for a in arrays)


def wide(*arrays):
    return [a.astype(np.float64) for a in arrays]


@pytest.mark.parametrize("shape", SHAPES)
def test_conv_matches_reference(rng, n_threads, isa, shape):
    window, x, dy, W, b = problem(rng, *shape)
    before = [a.copy() for a in (x, dy, W, b)]
    x64, dy64, W64, b64 = wide(x, dy, W, b)
    assert_close(ops.linear(x, W, b, window=window), ref.conv_forward(x64, W64, *window, b64))
    dW, db = np.ones_like(W), np.ones_like(b)
    dx = ops.linear_backward(dy, x, W, dW, db, window=window)
    for got, want, start in zip((dx, dW, db), ref.conv_backward(dy64, x64, W64, *window), (0, 1, 1)):
        assert_close(got, want + start)  # parameter gradients add
    assert np.array_equal(ops.linear_backward(dy, None, W, window=window, size=x.shape[1:3]), dx)
    assert all(np.array_equal(a, a0) for a, a0 in zip((x, dy, W, b), before))


@pytest.mark.parametrize("shape", SHAPES)
def test_factored_conv_matches_reference(rng, n_threads, shape):
    window, x, dy, W, b = problem(rng, *shape)
    K = 2
    L, R = (rng.standard_normal(s).astype(np.float32) for s in ((len(W), K), (K, W.shape[1])))
    x64, dy64, L64, R64, b64 = wide(x, dy, L, R, b)
    y, z = ops.factored_linear(x, L, R, b, window=window)
    want_z = ref.conv_forward(x64, R64, *window)
    assert_close(z, want_z)
    assert_close(y, want_z @ L64.T + b64)
    dL, dR, db = np.ones_like(L), np.ones_like(R), np.ones_like(b)
    dx, gl = ops.factored_linear_backward(dy, x, z, L, R, dL, dR, db, window=window)
    want_dx, want_dR, _ = ref.conv_backward(dy64 @ L64, x64, R64, *window)
    for got, want in ((dx, want_dx), (gl, dy64 @ L64), (dR, want_dR + 1), (db, dy64.sum((0, 1, 2)) + 1),
                      (dL, np.tensordot(dy64, want_z, ((0, 1, 2), (0, 1, 2))) + 1)):
        assert_close(got, want)


def test_products_in_bfloat16(rng, n_threads):
    window, x, dy, W, b = problem(rng, 3, 12, 12, 40, 48, 3, 1, 1)
    found = []
    for precision in ("float32", "bfloat16"):
        try:
            ops.set_matmul_precision(precision)
        except ValueError as error:
            pytest.skip(str(error))
        try:
            dW = np.zeros_like(W)
            found.append((ops.conv(x, W, window, b), ops.conv_backward(dy, x, W, window, dW), dW))
        finally:
            ops.set_matmul_precision("float32")
    for exact, rounded in zip(*found):
        assert 1e-5 < relative_error(rounded, exact) < 1e-2


@pytest.mark.parametrize("shape", SHAPES[:4])
@pytest.mark.parametrize("bits", [4, 8])
def test_quantised_conv_is_the_convolution_by_its_weights(rng, n_threads, monkeypatch, shape, bits):
    window, x, dy, W, b = problem(rng, *shape)
    monkeypatch.setattr("wasi.ops.convolution.TILE_BYTES", 1)  # a tile an image
    Q = ops.quantize_residual(W, bits)
    x64, dy64, W64, b64 = wide(x, dy, ops.dequantize_residual(Q), b)
    want, want_dx = ref.conv_forward(x64, W64, *window, b64), ref.conv_backward(dy64, x64, W64, *window)[0]
    for exact, near in ((True, 1e-5), (False, 0.03)):
        y = ops.quant_linear(x, Q, b, exact=exact, window=window)
        dx = ops.quant_linear_backward(dy, Q, exact=exact, window=window, size=x.shape[1:3])
        assert relative_error(y, want) < near and relative_error(dx, want_dx) < near
        twice = ops.quant_linear_backward(dy, Q, out=dx.copy(), add=True, exact=exact, window=window, size=x.shape[1:3])
        assert relative_error(twice, 2 * dx) < 1e-5
        assert relative_error(ops.quant_linear(x, Q, b, out=y.copy(), add=True, exact=exact, window=window), 2 * y) < 1e-5


@pytest.mark.parametrize("shape", SHAPES)
def test_unfold_and_fold(rng, n_threads, shape):
    window, x, *_ = problem(rng, *shape)
    p = ops.unfold(x, window)
    assert np.array_equal(p, ref.unfold(x, *window))
    assert_close(ops.fold(p, x.shape[1:3], window), ref.fold(p.astype(float), *x.shape[1:3], *window))


@pytest.mark.parametrize("B, H, W, C, k, s, pad", TAPS)
def test_max_pool_matches_reference(rng, n_threads, isa, B, H, W, C, k, s, pad):
    x = rng.integers(-2, 3, (B, H, W, C)).astype(np.float32)  # many equal numbers
    y, tap = ops.max_pool(x, Window(k, s, pad))
    want, want_tap = ref.max_pool_forward(x, k, s, pad)
    assert np.array_equal(y, want) and np.array_equal(tap, want_tap)
    dy = rng.standard_normal(y.shape).astype(np.float32)
    assert_close(ops.max_pool_backward(dy, tap, (H, W), Window(k, s, pad)),
                 ref.max_pool_backward(dy.astype(float), want_tap, H, W, k, s, pad))


def test_max_pool_lets_nan_through():
    x = np.float32([1, np.nan, 3, 2]).reshape(1, 2, 2, 1)
    y, tap = ops.max_pool(x, Window(2))
    assert np.isnan(y).all() and tap.item() == 1


@pytest.mark.parametrize("shape", [(8, 8), (300, 16), (3, 1000), (1, 1), (31, 37), (7, 1), (2, 5, 6, 24), (20, 17000)])
@pytest.mark.parametrize("relu", [False, True])
def test_batch_norm_matches_reference(rng, n_threads, isa, shape, relu):
    C = shape[-1]
    x, r, dy = (rng.standard_normal(shape).astype(np.float32) for _ in range(3))
    x = x * 3 + 5
    w, b = (rng.standard_normal(C).astype(np.float32) for _ in range(2))
    mean, var = ops.batch_norm_statistics(x)
    want_mean, want_var = ref.batch_norm_statistics(x.astype(float))
    assert_close(mean, want_mean)
    assert np.abs(var - want_var).max() <= 1e-5 * want_var.max() + 1e-12
    rstd = 1 / np.sqrt(var + np.float32(1e-5))
    x64, r64, dy64, mean64, rstd64, w64, b64 = wide(x, r, dy, mean, rstd, w, b)
    y, none = ops.batch_norm(x, mean, rstd, w, b, relu=relu)
    assert none is None
    assert relative_error(y, ref.batch_norm_forward(x64, mean64, rstd64, w64, b64, relu=relu)) < 1e-5
    y, mask = ops.batch_norm(x, mean, rstd, w, b, r, relu, need_mask=True)
    assert relative_error(y, ref.batch_norm_forward(x64, mean64, rstd64, w64, b64, r64, relu)) < 1e-5
    bits = np.unpackbits(mask, count=y.size, bitorder="little").reshape(y.shape).astype(bool)
    assert np.array_equal(bits, y > 0)
    assert np.array_equal(ops.mask_gradient(dy, mask), np.where(bits, dy, 0))
    for of_batch in (True, False):
        dw, db = np.ones(C, np.float32), np.ones(C, np.float32)
        dx = ops.batch_norm_backward(dy, x, mean, rstd, w, b, dw, db, relu, of_batch)
        want = ref.batch_norm_backward(dy64, x64, mean64, rstd64, w64, b64, relu, of_batch)
        scale = np.abs(w64 * rstd64).max() * np.linalg.norm(dy64)
        assert np.linalg.norm(dx - want[0]) < 1e-5 * scale
        for got, wanted in ((dw, want[1]), (db, want[2])):
            assert np.linalg.norm(got - 1 - wanted) < 1e-5 * (np.linalg.norm(wanted) + np.linalg.norm(dy64))


def test_batch_statistics_keep_their_digits(rng, n_threads):
    """A mean far larger than the deviation, and many rows."""
    x = (1000 + rng.standard_normal((1 << 18, 3))).astype(np.float32)
    mean, var = ops.batch_norm_statistics(x)
    want_mean, want_var = ref.batch_norm_statistics(x.astype(float))
    assert np.allclose(mean, want_mean, rtol=2e-7) and np.allclose(var, want_var, rtol=2e-4)


def test_gradients_against_finite_differences(rng):
    window, x, dy, W, b = problem(rng, 2, 5, 6, 3, 4, 3, 2, 1)
    x, dy, W, b = wide(x, dy, W, b)
    assert directional_check(lambda a: float((ref.conv_forward(a[0], a[1], *window, a[2]) * dy).sum()), [x, W, b],
                             ref.conv_backward(dy, x, W, *window), rng) < 1e-7
    w, d = rng.standard_normal(3), rng.standard_normal(x.shape)

    def normed(a):
        mean, var = ref.batch_norm_statistics(a[0])
        return float((ref.batch_norm_forward(a[0], mean, 1 / np.sqrt(var + 0.1), a[1], a[2]) * d).sum())

    mean, var = ref.batch_norm_statistics(x)
    gradients = ref.batch_norm_backward(d, x, mean, 1 / np.sqrt(var + 0.1), w, b[:3])
    assert directional_check(normed, [x, w, b[:3]], gradients, rng) < 1e-6


@pytest.mark.parametrize("shape", SHAPES)
def test_conv_equals_pytorch(rng, torch, shape):
    window, x, dy, W, b = problem(rng, *shape)
    _, _, _, C, O, k, s, pad = shape
    tx = torch.from_numpy(x.transpose(0, 3, 1, 2).copy()).requires_grad_()
    tW = torch.from_numpy(W.reshape(O, k, k, C).transpose(0, 3, 1, 2).copy()).requires_grad_()
    ty = torch.nn.functional.conv2d(tx, tW, torch.from_numpy(b), s, pad)
    ty.backward(torch.from_numpy(dy.transpose(0, 3, 1, 2).copy()))
    assert relative_error(ops.conv(x, W, window, b), ty.detach().numpy().transpose(0, 2, 3, 1)) < 1e-5
    dW = np.zeros_like(W)
    assert relative_error(ops.conv_backward(dy, x, W, window, dW), tx.grad.numpy().transpose(0, 2, 3, 1)) < 1e-5
    assert relative_error(dW, tW.grad.numpy().transpose(0, 2, 3, 1).reshape(O, -1)) < 1e-5


def test_bad_input_is_refused_by_name(rng):
    window, x, dy, W, b = problem(rng, 2, 6, 6, 8, 5, 3, 1, 1)
    with pytest.raises(ValueError, match="kernel, stride, padding: expected 1 to 255, 1 to 65536, 0 to kernel - 1, got 3, 0, 1"):
        ops.conv(x, W, Window(3, 0, 1))
    with pytest.raises(ValueError, match="kernel, stride, padding: .* got 3, 1, 3"):
        ops.conv(x, W, Window(3, 1, 3))
    with pytest.raises(ValueError, match="x: expected images of at least 7 x 7 pixels for a kernel of 7 with padding 0"):
        ops.conv(x, W, Window(7))
    with pytest.raises(ValueError, match=r"W.shape\[1\]: expected 72 \(kernel \* kernel \* x.shape\[3\]\), got 71"):
        ops.conv(x, W[:, :71].copy(), window)
    with pytest.raises(ValueError, match=r"dy.shape\[1\]: expected 6 \(the window's lines\), got 3"):
        ops.conv_backward(dy[:, :3].copy(), x, W, window)
    with pytest.raises(ValueError, match=r"x.shape\[3\]: expected 8 \(W.shape\[1\] / kernel / kernel\), got 4"):
        ops.conv_backward(dy, x[..., :4].copy(), W, window, np.zeros_like(W))
    with pytest.raises(ValueError, match="out: expected memory of its own, got an array that overlaps x"):
        ops.conv(x, np.zeros((8, 72), np.float32), window, out=x)
    with pytest.raises(ValueError, match="x: expected .*4 dimensions"):
        ops.conv(x[0], W, window)
    with pytest.raises(ValueError, match="kernel: expected at most 15, got 16"):
        ops.max_pool(np.zeros((1, 20, 20, 1), np.float32), Window(16))
    with pytest.raises(ValueError, match="x: expected at least 1 row"):
        ops.batch_norm_statistics(np.zeros((0, 3), np.float32))
    with pytest.raises(ValueError, match=r"mask.shape\[0\]: expected 1 \(a bit for each number of dy\), got 2"):
        ops.mask_gradient(np.zeros(8, np.float32), np.zeros(2, np.uint8))
    with pytest.raises(ValueError, match=r"dp.shape\[3\]: expected a multiple of kernel \* kernel = 9, got 10"):
        ops.fold(np.zeros((1, 6, 6, 10), np.float32), (6, 6), window)
    none = np.zeros((2, 6, 6, 0), np.float32)
    for call in (lambda: ops.conv(none, np.zeros((5, 0), np.float32), window), lambda: ops.unfold(none, window),
                 lambda: ops.conv_backward(dy, x, np.zeros((5, 0), np.float32), window), lambda: ops.fold(none, (6, 6), window)):
        with pytest.raises(ValueError, match="(x|W|dp): expected at least 1 channel, got 0"):
            call()
