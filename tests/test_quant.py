import platform
import subprocess
from pathlib import Path

import numpy as np
import pytest
from compilers import isa_flags, need_tools
from tables import LINEAR_SHAPES, assert_close, relative_error

import wasi
from wasi import ops
from wasi.reference import quant as ref

ROOT = Path(__file__).resolve().parents[1]
SHAPES = [*LINEAR_SHAPES, (13, 96, 160), (50, 200, 300)]


def matrix(rng, *shape):
    return rng.standard_normal(shape, dtype=np.float32)


def packed(Q):
    """(q, r, c) of a packed matrix, q by the twin's reading of the format."""
    return ref.unpack(Q.codes, Q.s, Q.shape[1], Q.group), Q.r.astype(float), Q.c.astype(float)


def assert_rows_close(got, want):
    """Equal to rounding; in one row of 50 an activation may lie between two codes and go the other way."""
    errors = np.array([relative_error(g, w) for g, w in zip(got, want)])
    assert (errors > 1e-5).sum() <= 1 + len(errors) // 50 and errors.max() < 0.02


# The packed matrix


def test_the_table_is_the_formula():
    codes = np.tile(np.arange(16, dtype=np.uint8) * 17, (128, 1))  # block of 32: codes 0..15 twice
    s = np.arange(128, dtype=np.uint8)[:, None]
    Q = ops.QuantizedMatrix(codes, s, np.ones(128, np.float32), np.ones(32, np.float32), 32)
    assert np.array_equal(ops.dequantize_residual(Q), np.concatenate([ref.TABLE, ref.TABLE], axis=1))


@pytest.mark.parametrize("O, I", [(8, 8), (37, 70), (1, 1), (16, 256), (5, 33)])
@pytest.mark.parametrize("bits, group", [(4, 32), (4, 128), (8, 32)])
def test_quantize_matches_reference(rng, n_threads, isa, O, I, bits, group):
    W = matrix(rng, O, I) * np.exp(matrix(rng, O, 1)) * np.exp(matrix(rng, I))  # scales of many sizes
    Q = ops.quantize_residual(W, bits, group)
    q, _, r, c = ref.quantize(W.astype(float), bits, group)
    assert Q.bits == bits and Q.shape == (O, I)
    assert_close(Q.r, r, 2)
    assert_close(Q.c, c, 2)
    assert relative_error(packed(Q)[0], q) < 5e-3  # but for ties
    assert_close(ops.dequantize_residual(Q), Q.r[:, None] * Q.c * packed(Q)[0].astype(float))


@pytest.mark.parametrize("bits, group, error, n_bytes", [(4, 32, 0.075, 0.54), (4, 64, 0.083, 0.53),
                                                         (4, 128, 0.089, 0.52), (8, 32, 0.009, 1.01)])
def test_error_and_bytes_of_a_normal_matrix(rng, bits, group, error, n_bytes):
    W = matrix(rng, 1024, 1024)
    Q = ops.quantize_residual(W, bits, group)
    assert relative_error(ops.dequantize_residual(Q), W) < error
    assert Q.nbytes <= n_bytes * W.size


def test_zero_rows_and_columns_stay_zero(rng):
    W = matrix(rng, 20, 70)
    W[3], W[:, 40] = 0, 0
    for bits in (4, 8):
        D = ops.dequantize_residual(ops.quantize_residual(W, bits))
        assert not D[3].any() and not D[:, 40].any()
    Q = ops.quantize_residual(np.zeros_like(W))
    assert not ops.quant_linear(np.ones((2, 70), np.float32), Q).any()


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_very_small_and_large_weights(rng, scale):
    W = matrix(rng, 64, 64) * np.float32(scale)
    assert relative_error(ops.dequantize_residual(ops.quantize_residual(W)) / scale, W / scale) < 0.08


# Products


@pytest.mark.parametrize("M, O, I", SHAPES)
@pytest.mark.parametrize("bits", [4, 8])
def test_products_match_reference(rng, n_threads, isa, M, O, I, bits):
    Q = ops.quantize_residual(matrix(rng, O, I), bits)
    x, dy, b = matrix(rng, M, I), matrix(rng, M, O), matrix(rng, O)
    q, r, c = packed(Q)
    assert_rows_close(ops.quant_linear(x, Q, b), ref.forward(x.astype(float), q, r, c) + b)
    assert_rows_close(ops.quant_linear_backward(dy, Q), ref.backward(dy.astype(float), q, r, c))
    D = r[:, None] * c * q
    assert_close(ops.quant_linear(x, Q, b, exact=True), x.astype(float) @ D.T + b)
    assert_close(ops.quant_linear_backward(dy, Q, exact=True), dy.astype(float) @ D)


@pytest.mark.parametrize("exact", [False, True])
def test_results_add_to_what_is_there(rng, n_threads, exact):
    Q = ops.quantize_residual(matrix(rng, 70, 50))
    x, dy, b = matrix(rng, 2, 20, 50), matrix(rng, 2, 20, 70), matrix(rng, 70)
    y0, dx0 = matrix(rng, 2, 20, 70), matrix(rng, 2, 20, 50)
    y, dx = y0.copy(), dx0.copy()
    assert ops.quant_linear(x, Q, b, out=y, add=True, exact=exact) is y
    assert ops.quant_linear_backward(dy, Q, out=dx, add=True, exact=exact) is dx
    assert_close(y, y0.astype(float) + ops.quant_linear(x, Q, b, exact=exact))
    assert_close(dx, dx0.astype(float) + ops.quant_linear_backward(dy, Q, exact=exact))


@pytest.mark.parametrize("bits", [4, 8])
def test_sums_are_exact_integers(rng, n_threads, isa, bits):
    """Integers that 8 bits hold exactly, and r = c = 1: the product is that of integers, to the last bit."""
    Q = ops.quantize_residual(matrix(rng, 70, 300), bits)
    Q = ops.QuantizedMatrix(Q.codes, Q.s, np.ones_like(Q.r), np.ones_like(Q.c), Q.group)
    q = packed(Q)[0].astype(np.int64)
    for M in (*range(1, 14), 100):
        x, dy = rng.integers(-100, 156, (M, 300)), rng.integers(-100, 156, (M, 70))
        for a in (x, dy):
            a[:, 0], a[:, 1] = -100, 155  # scale 1, zero 100
        assert np.array_equal(ops.quant_linear(x.astype(np.float32), Q), x @ q.T)
        assert np.array_equal(ops.quant_linear_backward(dy.astype(np.float32), Q), dy @ q)


def test_many_tokens_go_by_in_chunks(rng, n_threads):
    Q = ops.quantize_residual(matrix(rng, 40, 600))
    x = matrix(rng, 9001, 600)
    y = ops.quant_linear(x, Q)
    for m in (0, 3500, 7000, 9000):
        assert_close(y[m : m + 1], ops.quant_linear(x[m : m + 1], Q), 10)


def test_scratch_is_bounded(rng):
    Q = ops.quantize_residual(matrix(rng, 512, 512))
    x, y = matrix(rng, 20000, 512), np.empty((20000, 512), np.float32)
    arena = wasi.Arena()
    with arena:
        ops.quant_linear(x, Q, out=y)
        assert arena.stats()["peak_bytes"] < 3e6
        arena.reset_stats()
        ops.quant_linear(x[:64], Q, out=y[:64])
        assert arena.stats()["peak_bytes"] < Q.nbytes < 512 * 512 * 4 / 7


def test_thread_count_leaves_the_bits_alone(rng):
    Q, x, dy = ops.quantize_residual(matrix(rng, 200, 300)), matrix(rng, 100, 300), matrix(rng, 100, 200)
    before, results = wasi.get_num_threads(), []
    for n in (1, 2, 3):
        wasi.set_num_threads(n)
        results.append((ops.quant_linear(x, Q), ops.quant_linear_backward(dy, Q)))
    wasi.set_num_threads(before)
    for y, dx in results[1:]:
        assert np.array_equal(y, results[0][0]) and np.array_equal(dx, results[0][1])


def test_accuracy_of_8_bit_activations(rng):
    Q = ops.quantize_residual(matrix(rng, 300, 400))
    x, dy = matrix(rng, 100, 400), matrix(rng, 100, 300)
    assert relative_error(ops.quant_linear(x, Q), ops.quant_linear(x, Q, exact=True)) < 0.009
    dx = ops.quant_linear_backward(dy, Q)
    assert relative_error(dx, ops.quant_linear_backward(dy, Q, exact=True)) < 0.009
    x = 3 * x / (1 + np.exp(-5 * x))  # as after GELU: all codes lie between its small minimum and its maximum
    assert relative_error(ops.quant_linear(x, Q), ops.quant_linear(x, Q, exact=True)) < 0.006


def test_backward_is_the_adjoint_of_forward(rng):
    Q, x, dy = ops.quantize_residual(matrix(rng, 90, 120)), matrix(rng, 30, 120), matrix(rng, 30, 90)
    for exact, tolerance in ((True, 1e-5), (False, 1e-2)):
        y, dx = ops.quant_linear(x, Q, exact=exact), ops.quant_linear_backward(dy, Q, exact=exact)
        a, b = np.vdot(y.astype(float), dy), np.vdot(x, dx.astype(float))
        assert abs(a - b) < tolerance * np.linalg.norm(y) * np.linalg.norm(dy)


@pytest.mark.parametrize("exact", [False, True])
def test_nan_and_inf_stay_in_their_token(rng, isa, exact):
    Q, x = ops.quantize_residual(matrix(rng, 40, 50)), matrix(rng, 20, 50)
    good = ops.quant_linear(x, Q, exact=exact)
    x[3, 7], x[15, 49] = np.nan, np.inf
    x[9] = 0
    y = ops.quant_linear(x, Q, exact=exact)
    assert np.isnan(y[3]).all() and not np.isfinite(y[15]).any() and not y[9].any()
    rest = np.delete(np.arange(20), [3, 9, 15])
    assert np.array_equal(y[rest], good[rest])


def test_inputs_are_left_alone(rng):
    W, x, dy = matrix(rng, 40, 50), matrix(rng, 20, 50), matrix(rng, 20, 40)
    Q = ops.quantize_residual(W)
    arrays = [W, x, dy, Q.codes, Q.s, Q.r, Q.c]
    before = [a.copy() for a in arrays]
    for exact in (False, True):
        ops.quant_linear(x, Q, exact=exact)
        ops.quant_linear_backward(dy, Q, exact=exact)
    ops.dequantize_residual(Q)
    assert all(np.array_equal(a, b) for a, b in zip(arrays, before))


def test_bad_input_is_refused_by_name(rng):
    W, x = matrix(rng, 40, 50), matrix(rng, 20, 50)
    Q = ops.quantize_residual(W)
    with pytest.raises(TypeError, match=r"W: expected a float32 array, got float64 array of shape"):
        ops.quantize_residual(W.astype(float))
    with pytest.raises(ValueError, match="bits: expected 4 or 8, got 3"):
        ops.quantize_residual(W, 3)
    for group in (20, 0, 2**63 - 32):
        with pytest.raises(ValueError, match=f"group: expected a multiple of 32 up to 65536, got {group}"):
            ops.quantize_residual(W, group=group)
    with pytest.raises(ValueError, match=r"W.shape\[1\]: expected a size of 1 to 65536, got 0"):
        ops.quantize_residual(W[:, :0].copy())
    for bad in (np.nan, np.inf, -np.inf):
        W[39, 49] = bad
        with pytest.raises(ArithmeticError, match="W: an input holds NaN or Inf"):
            ops.quantize_residual(W)
    with pytest.raises(ValueError, match=r"x.shape\[1\]: expected 50 \(c.shape\[0\]\), got 49"):
        ops.quant_linear(np.ascontiguousarray(x[:, 1:]), Q)
    with pytest.raises(ValueError, match=r"dy.shape\[1\]: expected 40 \(r.shape\[0\]\), got 50"):
        ops.quant_linear_backward(x, Q)
    with pytest.raises(ValueError, match=r"b.shape\[0\]: expected 40"):
        ops.quant_linear(x, Q, np.zeros(41, np.float32))
    with pytest.raises(TypeError, match="out: expected an array to add to, got None"):
        ops.quant_linear(x, Q, add=True)
    square = ops.quantize_residual(matrix(rng, 50, 50))
    with pytest.raises(ValueError, match="out: expected memory of its own, got an array that overlaps x"):
        ops.quant_linear(x, square, out=x)
    for name, wrong in {"codes": Q.codes[:, 1:].copy(), "s": Q.s[1:].copy(), "r": Q.r[1:].copy()}.items():
        arrays = {"codes": Q.codes, "s": Q.s, "r": Q.r, "c": Q.c, name: wrong}
        with pytest.raises(ValueError, match=r"(codes|s).shape\[[01]\]: expected"):
            ops.dequantize_residual(ops.QuantizedMatrix(**arrays, group=32))


# The kernels of other machines


def run_driver(folder, compiler, machine, link=(), emulator=()):
    """{isa: checksum} as tests/native/qgemm_sums.c prints it, with the kernels of every instruction set."""
    common = [compiler, "-std=gnu11", "-O2", "-fopenmp-simd", "-Wall", "-I", ROOT / "csrc"]
    objects = []
    for isa, flags in isa_flags(machine).items():
        objects.append(folder / f"{machine}_{isa}.o")
        source = ROOT / "csrc/kernels/qgemm_simd.c"
        macros = [f"-DWASI_ISA={isa}", f"-DWASI_ISA_{isa.upper()}"]
        subprocess.run([*common, *flags, *macros, "-c", source, "-o", objects[-1]], check=True)
    program = folder / f"qgemm_sums_{machine}"
    names = ["tests/native/qgemm_sums.c", "csrc/kernels/quantize_table.c", "csrc/common/isa.c"]
    sources = [ROOT / name for name in names]
    subprocess.run([*common, *sources, *objects, *link, "-lm", "-o", program], check=True)
    run = subprocess.run([*emulator, program], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    return dict(line.split() for line in run.stdout.splitlines())


def test_the_sums_are_the_same_on_every_machine(tmp_path):
    need_tools("cc", "aarch64-linux-gnu-gcc", "qemu-aarch64")
    here = run_driver(tmp_path, "cc", platform.machine())
    emulator = ["qemu-aarch64", "-cpu", "max"]
    there = run_driver(tmp_path, "aarch64-linux-gnu-gcc", "aarch64", ["-static"], emulator)
    assert set(there) == {"plain", "dotprod"}
    assert len({*here.values(), *there.values()}) == 1
