import numpy as np
import pytest
from gradcheck import directional_check
from tables import assert_close

from wasi import ops
from wasi.reference import embed as ref


@pytest.mark.parametrize("B, C, S, p", [(1, 3, 4, 2), (3, 3, 32, 8), (2, 1, 7, 7), (5, 3, 224, 16)])
def test_patches_match_reference(rng, n_threads, B, C, S, p):
    images = rng.integers(0, 256, (B, C, S, S)).astype(np.uint8)
    mean, std = (0.4, 0.5, 0.6)[:C], (0.2, 0.3, 0.25)[:C]
    column = (slice(None), None, None)
    normal = (images / 255 - np.array(mean)[column]) / np.array(std)[column]
    assert_close(ops.extract_patches(images, p, mean, std), ref.extract_patches(normal, p))
    floats = normal.astype(np.float32)
    patches = ops.extract_patches(floats, p)
    assert np.array_equal(patches, ref.extract_patches(floats, p))
    assert np.array_equal(ops.fold_patches(patches, p, C), floats)


def test_fold_is_the_gradient_of_extract(rng, n_threads):
    images, dpatches = rng.standard_normal((3, 2, 12, 12)), rng.standard_normal((3, 9, 32))
    dimages = ops.fold_patches(dpatches.astype(np.float32), 4, 2)

    def loss(arguments):
        return float((ref.extract_patches(*arguments, 4) * dpatches).sum())

    assert directional_check(loss, [images], [dimages], rng) < 1e-6


def test_bytes_are_between_0_and_1_without_mean_and_std(rng):
    images = rng.integers(0, 256, (1, 3, 8, 8)).astype(np.uint8)
    assert_close(ops.extract_patches(images, 4), ref.extract_patches(images / 255, 4))


def test_out_and_inputs_left_alone(rng):
    images = rng.standard_normal((2, 3, 8, 8)).astype(np.float32)
    before, out = images.copy(), np.empty((2, 4, 48), np.float32)
    assert ops.extract_patches(images, 4, out=out) is out
    ops.fold_patches(out, 4)
    assert np.array_equal(images, before) and np.array_equal(out, ref.extract_patches(images, 4))


def test_patch_embedding_equals_a_convolution(rng, torch):
    images = rng.standard_normal((2, 3, 32, 32)).astype(np.float32)
    kernel = rng.standard_normal((10, 3, 8, 8)).astype(np.float32)
    want = torch.nn.functional.conv2d(torch.from_numpy(images), torch.from_numpy(kernel), stride=8)
    want = want.flatten(2).transpose(1, 2)
    got = ops.linear(ops.extract_patches(images, 8), kernel.reshape(10, -1))
    assert_close(got, want.numpy())


@pytest.mark.parametrize("n_cls", [0, 1])
def test_tokens_match_reference(rng, n_threads, n_cls):
    B, P, C = 4, 9, 40
    rows = rng.standard_normal((B, P, C)).astype(np.float32)
    pos = rng.standard_normal((1, P + n_cls, C)).astype(np.float32)
    cls = rng.standard_normal((1, 1, C)).astype(np.float32) if n_cls else None
    assert_close(ops.assemble_tokens(rows, cls, pos), ref.assemble_tokens(rows, cls, pos))
    dtokens = rng.standard_normal((B, P + n_cls, C)).astype(np.float32)
    dcls, dpos = np.ones_like(cls) if n_cls else None, np.ones_like(pos)
    drows = ops.assemble_tokens_backward(dtokens, dcls, dpos, n_cls)
    want_drows, want_dcls, want_dpos = ref.assemble_tokens_backward(dtokens.astype(float), n_cls)
    assert_close(drows, want_drows)
    assert_close(dpos, want_dpos + 1)
    if n_cls:
        assert_close(dcls, want_dcls + 1)


@pytest.mark.parametrize("B, H, W, C", [(2, 4, 4, 3), (1, 2, 6, 1), (3, 28, 28, 17), (0, 2, 2, 5)])
def test_merged_patches_match_reference_and_come_back(rng, n_threads, B, H, W, C):
    x = rng.standard_normal((B, H, W, C)).astype(np.float32)
    y = ops.merge_patches(x)
    assert np.array_equal(y, ref.merge_patches(x))
    assert np.array_equal(ops.merge_patches_backward(y), x)


def test_bad_input_is_refused_by_name():
    images = np.zeros((1, 3, 30, 30), np.uint8)
    with pytest.raises(ValueError, match="images: expected shape .* patch size 16, got images of 30 x 30"):
        ops.extract_patches(images, 16)
    with pytest.raises(TypeError, match="images: expected a float32 array, got float64 array"):
        ops.extract_patches(images.astype(float), 15)
    with pytest.raises(ValueError, match="mean: expected a sequence of 3 numbers"):
        ops.extract_patches(images, 15, (0.5,), (0.5, 0.5, 0.5))
    with pytest.raises(ValueError, match=r"std: expected positive numbers, got \(0.5, 0, 0.5\)"):
        ops.extract_patches(images, 15, (0.5, 0.5, 0.5), (0.5, 0, 0.5))
    rows, pos = np.zeros((2, 4, 8), np.float32), np.zeros((1, 4, 8), np.float32)
    with pytest.raises(ValueError, match=r"pos.shape\[1\]: expected 5 \(one position a token\), got 4"):
        ops.assemble_tokens(rows, np.zeros((1, 1, 8), np.float32), pos)
    for n in (0, 2):  # tables of no row would be read beyond their end
        with pytest.raises(ValueError, match=r"cls.shape\[0\]: expected 1 \(one for all samples\)"):
            ops.assemble_tokens(rows, np.zeros((n, 1, 8), np.float32), np.zeros((1, 5, 8), np.float32))
        with pytest.raises(ValueError, match=r"pos.shape\[0\]: expected 1"):
            ops.assemble_tokens(rows, None, np.zeros((n, 4, 8), np.float32))
        with pytest.raises(ValueError, match=r"dcls.shape\[0\]: expected 1"):
            ops.assemble_tokens_backward(rows, np.zeros((n, 1, 8), np.float32), None)
        with pytest.raises(ValueError, match=r"dpos.shape\[0\]: expected 1"):
            ops.assemble_tokens_backward(rows, None, np.zeros((n, 4, 8), np.float32))
    with pytest.raises(ValueError, match="patches: expected shape"):
        ops.fold_patches(np.zeros((1, 3, 12), np.float32), 2)
    with pytest.raises(ValueError, match=r"x.shape\[2\]: expected an even number, got 3"):
        ops.merge_patches(np.zeros((1, 2, 3, 4), np.float32))
    with pytest.raises(ValueError, match=r"dy.shape\[3\]: expected a multiple of 4, got 6"):
        ops.merge_patches_backward(np.zeros((1, 2, 3, 6), np.float32))
