import numpy as np
import pytest
from tables import ROW_SHAPES, relative_error

import wasi
from wasi import ops
from wasi.layers import ActivationPolicy
from wasi.models.methods import MethodOptions, apply_method
from wasi.reference import store as ref
from wasi.training.step import accumulate_gradient

SMALL = {"img_size": 32, "embed_dim": 64, "depth": 3, "num_heads": 4, "num_classes": 5}


@pytest.mark.parametrize("M, C", [shape for shape in ROW_SHAPES if 0 not in shape])
@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e30])
def test_rows_come_back_within_half_a_step(rng, n_threads, isa, M, C, scale):
    x = (rng.standard_normal((M, C)) * scale + rng.standard_normal((M, 1)) * scale).astype(np.float32)
    codes, step, offset = ops.store_rows(x)
    want_codes, want_step, want_offset = ref.store_rows(x.astype(np.float64))
    assert relative_error(step, want_step) < 1e-6 and np.array_equal(offset, want_offset.astype(np.float32))
    assert np.abs(codes.astype(int) - want_codes.astype(int)).max(initial=0) <= 1  # ties fall either way
    back = ops.restore_rows(codes, step, offset)
    assert relative_error(back, ref.restore_rows(codes, step.astype(float), offset.astype(float))) < 1e-6
    assert np.all(np.abs(back.astype(float) - x) <= 0.5001 * want_step[:, None] + 1e-6 * np.abs(x))


def test_edges(isa):
    x = np.zeros((6, 40), np.float32)
    x[1] = -7.25  # constant
    x[2, ::2], x[2, 1::2] = 3e38, -3e38  # its range overflows
    x[3, 5], x[4, 39] = np.nan, np.inf
    x[5, 0] = 1e-44  # its range is denormal
    back = ops.restore_rows(*ops.store_rows(x))
    assert np.array_equal(back[:2], x[:2])
    assert relative_error(back[2].astype(float), x[2].astype(float)) < 1e-5
    assert np.isnan(back[3:5]).all()
    assert np.abs(back[5]).max() <= 1e-44
    assert ops.restore_rows(*ops.store_rows(np.zeros((0, 8), np.float32))).shape == (0, 8)
    with pytest.raises(ValueError, match="scale"):
        ops.restore_rows(np.zeros((2, 3), np.uint8), np.zeros(3, np.float32), np.zeros(2, np.float32))
    with pytest.raises(TypeError, match="x"):
        ops.store_rows(np.zeros((2, 3)))


@pytest.mark.parametrize("method", ["dense", "wsi", "qwasi", "lora"])
@pytest.mark.parametrize("bits, share, error", [(16, 0.51, 0.01), (8, 0.29, 0.03)])
def test_blocks_keep_less_and_gradients_stay_near(rng, method, bits, share, error):
    images, labels = rng.integers(0, 256, (8, 3, 32, 32), np.uint8), rng.integers(0, 5, 8)
    gradients, kept = [], []
    for saved_bits in (None, bits):
        model = wasi.create_model("vit_micro_patch8_64", **SMALL)
        apply_method(model, method, MethodOptions(("all",), rank=8), verbose=False)
        for _, p in model.named_parameters():
            p.data += 0.05 * np.random.default_rng(1).standard_normal(p.data.shape).astype(np.float32)
        model.set_policy(ActivationPolicy(saved_bits=saved_bits))
        loss = accumulate_gradient(model, images, labels).loss
        model.forward(images, train=True)
        kept.append(sum(block.total_saved_bytes for block in model.blocks))
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert kept[1] <= share * kept[0]
    assert np.isfinite(loss)
    for name, want in gradients[0].items():
        assert relative_error(gradients[1][name], want) < error, name


def test_recomputed_blocks_keep_their_input_in_fewer_bits(rng):
    images, labels = rng.integers(0, 256, (4, 3, 32, 32), np.uint8), rng.integers(0, 5, 4)
    model = wasi.create_model("vit_micro_patch8_64", **SMALL)
    model.set_policy(ActivationPolicy(recompute=True, saved_bits=8))
    model.forward(images, train=True)
    rows = 4 * 17
    assert all(block.total_saved_bytes == rows * (64 + 8) for block in model.blocks)
    accumulate_gradient(model, images, labels)
    assert all(np.isfinite(p.grad).all() for _, p in model.named_parameters())


def test_other_numbers_of_bits_are_refused():
    with pytest.raises(ValueError, match="saved_bits: expected None, 8 or 16, got 4"):
        ActivationPolicy(saved_bits=4)
