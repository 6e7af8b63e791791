import numpy as np
import pytest
from gradcheck import directional_check
from tables import assert_close, relative_error

import wasi
from wasi import ops
from wasi.reference import attention as ref

TOKENS = [1, 2, 49, 50, 197, 300]  # a block of queries is 64, one of keys 256
HEAD_WIDTHS = [1, 8, 48, 64]

# (B, Nq, Nk, H, Hkv, D, causal, q_offset): grouped, one key head, cross-attention, decoding, prompt in two
# parts, queries that see nothing, more than one block of keys and of stacked queries.
GQA_SHAPES = [
    (2, 5, 5, 4, 2, 16, True, None),
    (1, 70, 70, 6, 1, 32, False, None),
    (2, 3, 40, 2, 2, 80, False, None),
    (3, 1, 300, 8, 2, 64, True, None),
    (1, 40, 330, 4, 2, 128, True, None),
    (2, 20, 30, 2, 1, 24, True, -7),
    (1, 90, 600, 3, 3, 8, True, 250),
]


def normal(rng, *shape):
    return rng.standard_normal(shape, dtype=np.float32)


def wide(arrays):
    return [None if a is None else a.astype(np.float64) for a in arrays]


def packed_reference(do, qkv, n_heads, **terms):
    """(o, lse, dqkv, dbias) of the twin in float64."""
    B, N, C = do.shape
    do, qkv = wide([do, qkv])
    q, k, v = ref.unpack(qkv, n_heads)
    o, lse = ref.attention_forward(q, k, v, **terms)
    dq, dk, dv, dbias = ref.attention_backward(do.reshape(o.shape), q, k, v, o, lse, **terms)
    return o.reshape(B, N, C), lse, np.stack([dq, dk, dv], axis=2).reshape(B, N, 3 * C), dbias


@pytest.mark.parametrize("N", TOKENS)
@pytest.mark.parametrize("D", HEAD_WIDTHS)
@pytest.mark.parametrize("causal", [False, True])
def test_packed_matches_reference(rng, isa, N, D, causal):
    qkv, do = normal(rng, 2, N, 3 * 3 * D), normal(rng, 2, N, 3 * D)
    want_o, want_lse, want_dqkv, _ = packed_reference(do, qkv, 3, causal=causal)
    o, lse = ops.attention(qkv, 3, causal=causal)
    assert_close(o, want_o)
    assert_close(lse, want_lse)
    assert_close(ops.attention_backward(do, qkv, o, lse, 3, causal=causal), want_dqkv)


@pytest.mark.parametrize("B, Nq, Nk, H, Hkv, D, causal, q_offset", GQA_SHAPES)
def test_gqa_matches_reference(rng, isa, B, Nq, Nk, H, Hkv, D, causal, q_offset):
    q, k, v = normal(rng, B, Nq, H, D), normal(rng, B, Nk, Hkv, D), normal(rng, B, Nk, Hkv, D)
    do = normal(rng, B, Nq, H, D)
    terms = {"causal": causal, "q_offset": q_offset, "scale": 0.3}
    want_o, want_lse = ref.attention_forward(*wide([q, k, v]), **terms)
    want = ref.attention_backward(*wide([do, q, k, v, want_o, want_lse]), **terms)
    o, lse = ops.attention_gqa(q, k, v, **terms)
    assert_close(o, want_o)
    assert np.array_equal(np.isinf(lse), np.isinf(want_lse))
    assert_close(lse[np.isfinite(lse)], want_lse[np.isfinite(want_lse)])
    for got, expected in zip(ops.attention_gqa_backward(do, q, k, v, o, lse, **terms), want):
        assert_close(got, expected)


@pytest.mark.parametrize("B, N, H, n_masks", [(6, 49, 3, 3), (1, 7, 1, 1), (5, 70, 2, 1), (2, 300, 2, 2)])
@pytest.mark.parametrize("with_bias, with_mask", [(True, False), (False, True), (True, True)])
def test_score_terms_match_reference(rng, isa, B, N, H, n_masks, with_bias, with_mask):
    D = 8
    qkv, do = normal(rng, B, N, 3 * H * D), normal(rng, B, N, H * D)
    bias = normal(rng, H, N, N) if with_bias else None
    mask = np.where(rng.random((n_masks, N, N)) < 0.3, -np.inf, 0).astype(np.float32) if with_mask else None
    if with_mask:
        mask[:, 0] = 0
        mask[0, N // 2] = -np.inf  # a query that sees nothing
    wide_bias, wide_mask = wide([bias, mask])
    want_o, want_lse, want_dqkv, want_dbias = packed_reference(do, qkv, H, bias=wide_bias, mask=wide_mask)
    o, lse = ops.attention(qkv, H, None, False, bias, mask)  # by position as attention_gqa has them
    assert_close(o, want_o)
    assert np.array_equal(np.isinf(lse), np.isinf(want_lse))
    dbias = np.ones((H, N, N), np.float32)
    dqkv = ops.attention_backward(do, qkv, o, lse, H, None, False, bias, mask, dbias)
    assert_close(dqkv, want_dqkv)
    assert_close(dbias, want_dbias + 1)  # parameter gradients add


def test_gradients_against_finite_differences(rng):
    q, do = rng.standard_normal((2, 2, 5, 4, 3))
    k, v = rng.standard_normal((2, 2, 6, 2, 3))
    bias = rng.standard_normal((4, 5, 6))
    terms = {"causal": True, "scale": 0.7, "mask": rng.standard_normal((2, 5, 6))}

    def loss(arguments):
        q, k, v, bias = arguments
        return float((ref.attention_forward(q, k, v, bias=bias, **terms)[0] * do).sum())

    o, lse = ref.attention_forward(q, k, v, bias=bias, **terms)
    gradients = ref.attention_backward(do, q, k, v, o, lse, bias=bias, **terms)
    assert directional_check(loss, [q, k, v, bias], gradients, rng) < 1e-7


@pytest.mark.torch
@pytest.mark.parametrize("N, D, causal, grouped", [(50, 64, False, False), (197, 64, False, False),
                                                   (300, 48, True, False), (130, 32, True, True)])
def test_equals_torch(rng, torch, N, D, causal, grouped):
    H, Hkv = 4, 2 if grouped else 4
    arrays = normal(rng, 2, N, H, D), normal(rng, 2, N, Hkv, D), normal(rng, 2, N, Hkv, D)
    do, bias = normal(rng, 2, N, H, D), None if causal else normal(rng, H, N, N)
    tensors = [torch.from_numpy(a).double().requires_grad_() for a in arrays]
    if bias is not None:
        tensors.append(torch.from_numpy(bias).double().requires_grad_())
    out = torch.nn.functional.scaled_dot_product_attention(
        *(t.transpose(1, 2) for t in tensors[:3]), attn_mask=None if causal else tensors[3], is_causal=causal,
        enable_gqa=grouped,
    ).transpose(1, 2)
    out.backward(torch.from_numpy(do).double())

    o, lse = ops.attention_gqa(*arrays, causal=causal, bias=bias)
    dbias = np.zeros((H, N, N), np.float32)
    gradients = ops.attention_gqa_backward(do, *arrays, o, lse, causal=causal, bias=bias, dbias=dbias)
    assert_close(o, out.detach().numpy())
    for got, tensor in zip((*gradients, dbias), tensors):
        assert_close(got, tensor.grad.numpy())


def test_large_scores_stay_finite(rng, isa):
    qkv = normal(rng, 1, 70, 3 * 16)
    qkv[:, :, :32] *= 100  # scores of magnitude 1e4
    do = normal(rng, 1, 70, 16)
    o, lse = ops.attention(qkv, 1)
    want_o, want_lse, _, _ = packed_reference(do, qkv, 1)
    assert np.abs(want_lse).max() > 1e4
    assert relative_error(o, want_o) < 1e-3  # the rounding of a score of 1e4 is 1e-3
    assert_close(lse, want_lse)
    assert np.isfinite(ops.attention_backward(do, qkv, o, lse, 1)).all()


def test_nan_is_not_hidden(rng, isa):
    qkv = normal(rng, 1, 20, 3 * 8)
    qkv[0, 3, 0] = np.nan
    o, lse = ops.attention(qkv, 1)
    assert np.isnan(o[0, 3]).all() and np.isnan(lse[0, 0, 3])
    assert np.isfinite(np.delete(o[0], 3, axis=0)).all()


def test_same_bits_for_any_thread_count(rng):
    qkv, do, bias = normal(rng, 7, 70, 3 * 48), normal(rng, 7, 70, 48), normal(rng, 3, 70, 70)
    before = wasi.get_num_threads()
    results = []
    for n in (1, 2, 3, 5):
        wasi.set_num_threads(n)
        o, lse = ops.attention(qkv, 3, bias=bias)
        dbias = np.zeros_like(bias)
        results.append((o, lse, ops.attention_backward(do, qkv, o, lse, 3, bias=bias, dbias=dbias), dbias))
    wasi.set_num_threads(before)
    for other in results[1:]:
        assert all(np.array_equal(a, b) for a, b in zip(results[0], other))


def test_strided_views_and_out(rng):
    """Parts of one projection and of a cache, read and written in place, equal their contiguous copies."""
    B, N, H, Hkv, D = 2, 9, 4, 2, 8
    x, cache = normal(rng, B, N, H + 2 * Hkv, D), normal(rng, B, 20, Hkv, D)
    q, k, v = x[:, :, :H], cache[:, :N], x[:, :, H + Hkv:]
    do = normal(rng, B, N, H, D)
    copies = [np.ascontiguousarray(a) for a in (q, k, v)]
    want_o, want_lse = ops.attention_gqa(*copies, causal=True)
    out = np.empty((B, N, H, D), np.float32)
    o, lse = ops.attention_gqa(q, k, v, causal=True, out=out)
    assert o is out and np.array_equal(o, want_o) and np.array_equal(lse, want_lse)
    dx, dcache = np.zeros_like(x), np.zeros_like(cache)
    dq, dk, dv = dx[:, :, :H], dcache[:, :N], dx[:, :, H + Hkv:]
    returned = ops.attention_gqa_backward(do, q, k, v, o, lse, causal=True, dq=dq, dk=dk, dv=dv)
    assert all(a is b for a, b in zip(returned, (dq, dk, dv)))
    for got, want in zip(returned, ops.attention_gqa_backward(do, *copies, o, lse, causal=True)):
        assert np.array_equal(got, want)
    assert not dx[:, :, H:H + Hkv].any() and not dcache[:, N:].any()

    qkv = normal(rng, B, N, 3 * H * D)
    out, dqkv = np.empty((B, N, H * D), np.float32), np.empty_like(qkv)
    o, lse = ops.attention(qkv, H, out=out)
    assert o is out and ops.attention_backward(o, qkv, o, lse, H, out=dqkv) is dqkv


def test_decoding_step_equals_the_last_row(rng):
    q, k, v = normal(rng, 2, 30, 6, 16), normal(rng, 2, 30, 2, 16), normal(rng, 2, 30, 2, 16)
    whole, _ = ops.attention_gqa(q, k, v, causal=True)
    last, _ = ops.attention_gqa(np.ascontiguousarray(q[:, -1:]), k, v, causal=True)
    assert_close(last, whole[:, -1:])


def test_inputs_are_left_alone(rng):
    qkv, do, bias = normal(rng, 2, 50, 3 * 32), normal(rng, 2, 50, 32), normal(rng, 2, 50, 50)
    o, lse = ops.attention(qkv, 2, bias=bias)
    before = [a.copy() for a in (qkv, do, bias, o, lse)]
    ops.attention_backward(do, qkv, o, lse, 2, bias=bias)
    for a, a0 in zip((qkv, do, bias, o, lse), before):
        assert np.array_equal(a, a0)


def test_empty_batch():
    o, lse = ops.attention(np.zeros((0, 5, 12), np.float32), 2)
    assert o.shape == (0, 5, 4) and lse.shape == (0, 2, 5)
    dbias = np.ones((2, 5, 5), np.float32)
    dqkv = ops.attention_backward(o, np.zeros((0, 5, 12), np.float32), o, lse, 2, dbias=dbias)
    assert dqkv.shape == (0, 5, 12) and (dbias == 1).all()


def test_scratch_is_independent_of_the_square(rng):
    """Peak memory of a long sequence stays far below one N x N matrix."""
    N = 4096
    qkv, before = normal(rng, 1, N, 3 * 8), wasi.get_num_threads()
    wasi.set_num_threads(1)
    with wasi.Arena() as arena:
        arena.reset_stats()
        o, lse = ops.attention(qkv, 1)
        ops.attention_backward(o, qkv, o, lse, 1)
        peak = arena.stats()["peak_bytes"]
        del o, lse
    wasi.set_num_threads(before)
    assert peak < N * N * 4 / 20


# (B, H, W, heads, D, window, shift): a window for all, one token a window, oblong, more than a block of queries, of keys.
WINDOW_SHAPES = [(2, 14, 14, 3, 32, 7, 3), (1, 7, 7, 2, 8, 7, 0), (3, 4, 4, 1, 5, 1, 0), (2, 8, 12, 2, 16, 4, 2),
                 (1, 4, 6, 1, 3, 2, 1), (1, 20, 10, 2, 4, 10, 7), (1, 34, 34, 1, 8, 17, 8)]


@pytest.mark.parametrize("B, H, W, heads, D, M, shift", WINDOW_SHAPES)
def test_windows_match_reference(rng, n_threads, isa, B, H, W, heads, D, M, shift):
    qkv, do, bias = normal(rng, B, H, W, 3 * heads * D), normal(rng, B, H, W, heads * D), normal(rng, heads, M * M, M * M)
    cut = [ref.windows_of(a, M, shift) for a in wide([do, qkv])]
    want_o, want_lse, want_dqkv, want_dbias = packed_reference(*cut, heads, bias=bias.astype(float),
                                                               mask=ref.seam_mask(H, W, M, shift))
    o, lse = ops.window_attention(qkv, heads, M, shift, bias=bias)
    assert_close(o, ref.images_of(want_o, H, W, shift))
    assert_close(lse, want_lse)
    dbias, dqkv = np.ones_like(bias), np.full_like(qkv, np.nan)
    assert ops.window_attention_backward(do, qkv, o, lse, heads, M, shift, bias=bias, dbias=dbias, out=dqkv) is dqkv
    assert_close(dqkv, ref.images_of(want_dqkv, H, W, shift))
    assert_close(dbias, want_dbias + 1)


def test_windows_equal_attention_of_windows_cut_out(rng):
    qkv = normal(rng, 2, 6, 6, 24)
    o, lse = ops.window_attention(qkv, 2, 3)
    want, want_lse = ops.attention(np.ascontiguousarray(ref.windows_of(qkv, 3)), 2)
    assert np.array_equal(ref.windows_of(o, 3), want) and np.array_equal(lse, want_lse)


def test_bad_windows_are_refused_by_name(rng):
    qkv = normal(rng, 2, 6, 6, 24)
    o, lse = ops.window_attention(qkv, 2, 3)
    with pytest.raises(ValueError, match="window: expected a divisor of the height and width of qkv, 6 x 6, got 4"):
        ops.window_attention(qkv, 2, 4)
    with pytest.raises(ValueError, match="window: expected at least 1, got 0"):
        ops.window_attention(qkv, 2, 0)
    with pytest.raises(ValueError, match="shift: expected 0 to window - 1 = 2, got 3"):
        ops.window_attention(qkv, 2, 3, 3)
    with pytest.raises(ValueError, match=r"qkv.shape\[3\]: expected a multiple of 3 \* n_heads .* got 24"):
        ops.window_attention(qkv, 5, 3)
    with pytest.raises(ValueError, match=r"bias.shape\[1\]: expected 9"):
        ops.window_attention(qkv, 2, 3, bias=np.zeros((2, 4, 4), np.float32))
    with pytest.raises(ValueError, match=r"do.shape\[3\]: expected 8"):
        ops.window_attention_backward(qkv, qkv, o, lse, 2, 3)
    with pytest.raises(ValueError, match=r"lse.shape\[0\]: expected 8"):
        ops.window_attention_backward(o, qkv, o, lse[:4].copy(), 2, 3)
    with pytest.raises(ValueError, match="out: expected memory of its own"):
        ops.window_attention_backward(o, qkv, o, lse, 2, 3, out=qkv)


def test_bad_input_is_refused_by_name(rng):
    qkv, do = normal(rng, 2, 5, 24), normal(rng, 2, 5, 8)
    o, lse = ops.attention(qkv, 2)
    with pytest.raises(TypeError, match="qkv: expected a float32 array, got float64"):
        ops.attention(qkv.astype(float), 2)
    with pytest.raises(ValueError, match=r"qkv.shape\[2\]: .* of 3 \* n_heads \(n_heads is 5\), got 24"):
        ops.attention(qkv, 5)
    with pytest.raises(ValueError, match="n_heads: expected at least 1, got 0"):
        ops.attention(qkv, 0)
    with pytest.raises(ValueError, match="qkv: expected a C-contiguous"):
        ops.attention(qkv[:, ::2], 2)
    with pytest.raises(ValueError, match=r"bias.shape\[2\]: expected 5"):
        ops.attention(qkv, 2, bias=np.zeros((2, 5, 4), np.float32))
    with pytest.raises(ValueError, match=r"mask.shape\[0\]: expected a divisor of the batch size 2, got 3"):
        ops.attention(qkv, 2, mask=np.zeros((3, 5, 5), np.float32))
    with pytest.raises(ValueError, match="out: expected memory of its own"):
        ops.attention(qkv, 2, out=qkv.reshape(-1)[:80].reshape(2, 5, 8))
    with pytest.raises(ValueError, match=r"do.shape\[1\]: expected 5"):
        ops.attention_backward(do[:, :4].copy(), qkv, o, lse, 2)
    with pytest.raises(ValueError, match=r"lse.shape\[1\]: expected 2"):
        ops.attention_backward(do, qkv, o, lse[:, :1].copy(), 2)
    with pytest.raises(ValueError, match="out: expected memory of its own, got an array that overlaps qkv"):
        ops.attention_backward(do, qkv, o, lse, 2, out=qkv)

    q, k = normal(rng, 2, 5, 4, 8), normal(rng, 2, 5, 2, 8)
    with pytest.raises(ValueError, match=r"q.shape\[2\]: .* multiple of k.shape\[2\] = 3 heads, got 4"):
        ops.attention_gqa(q, normal(rng, 2, 5, 3, 8), normal(rng, 2, 5, 3, 8))
    with pytest.raises(ValueError, match=r"v.shape\[1\]: expected 5"):
        ops.attention_gqa(q, k, k[:, :4])
    with pytest.raises(ValueError, match="k: expected an aligned array"):
        ops.attention_gqa(q, k[..., ::-1], k)
    with pytest.raises(ValueError, match="q: expected 4 dimensions"):
        ops.attention_gqa(q[0], k, k)
    with pytest.raises(ValueError, match=r"k.shape\[1\]: expected at least 1, got 0"):
        ops.attention_gqa(q, k[:, :0], k[:, :0])
    o, lse = ops.attention_gqa(q, k, k)
    read_only = np.zeros_like(q)
    read_only.flags.writeable = False
    with pytest.raises(ValueError, match="dq: expected a writable array"):
        ops.attention_gqa_backward(q, q, k, k, o, lse, dq=read_only)
