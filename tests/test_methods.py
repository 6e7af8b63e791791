import numpy as np
import pytest
from gradcheck import directional_check
from tables import relative_error

import wasi
from wasi import ops
from wasi.layers.lora import LoraLinear
from wasi.models.methods import METHODS, MethodOptions, apply_method
from wasi.training.optimizer import Optimizer
from wasi.training.step import accumulate_gradient

SHAPE = {"img_size": 16, "embed_dim": 64, "depth": 2, "num_heads": 2, "num_classes": 5}


def model_and_batch(seed=0):
    rng = np.random.default_rng(seed)
    model = wasi.create_model("vit_micro_patch8_64", **SHAPE)
    for _, p in model.named_parameters():
        p.data += (0.2 * rng.standard_normal(p.data.shape)).astype(np.float32)
    return model, rng.standard_normal((6, 3, 16, 16)).astype(np.float32), rng.integers(0, 5, 6)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains(method):
    model, images, labels = model_and_batch()
    apply_method(model, method, MethodOptions(targets=("all",), rank=8), verbose=False)
    optimizer = Optimizer(model, "sgd", clip_norm=1.0)
    losses = []
    for _ in range(15):
        losses.append(accumulate_gradient(model, images, labels).loss)
        optimizer.step(0.1)
    assert losses[-1] < 0.9 * losses[0]
    assert sum(m.saved_bytes for _, m in model.named_modules()) == 0


@pytest.mark.parametrize("method", ["qwasi", "lora", "qlora"])
def test_methods_that_keep_the_weights_start_from_the_dense_function(method):
    model, images, _ = model_and_batch()
    want = model.forward(images)
    apply_method(model, method, MethodOptions(targets=("all",), rank=8, bits=8), verbose=False)
    assert relative_error(model.forward(images), want) < (1e-6 if method == "lora" else 0.05)


@pytest.mark.parametrize("method", ["qwasi", "lora", "qlora"])
def test_gradients_of_frozen_bases_against_finite_differences(rng, method):
    """One layer in float64: y = x W' + b with W the merged weight, differentiated through the trained factors."""
    W, b = rng.standard_normal((24, 40)).astype(np.float32), rng.standard_normal(24).astype(np.float32)
    x, dy = (rng.standard_normal((10, n)).astype(np.float32) for n in (40, 24))
    if method == "qwasi":
        U, s, Vt = wasi.linalg.truncated_svd(W, rank=4)
        layer = wasi.layers.FactoredLinear(U, s[:, None] * Vt, b, ops.quantize_residual(W - (U * s) @ Vt, 4))
        layer.exact = True
        left, right, scale = layer.L, layer.R, 1.0
        base = ops.dequantize_residual(layer.residual)
    else:
        layer = LoraLinear(ops.quantize_residual(W, 8) if method == "qlora" else W, b, 4, 8.0, rng)
        layer.B.data[:] = rng.standard_normal((24, 4))
        left, right, scale = layer.B, layer.A, layer.scale
        base = W if method == "lora" else ops.dequantize_residual(layer.base)

    def loss(a):
        left, right, x, b = a
        return float(((x @ (base.astype(float) + scale * left @ right).T + b) * dy).sum())

    y = layer.forward(x, train=True)
    arguments = [a.astype(float) for a in (left.data, right.data, x, b)]
    assert float((y * dy).sum()) == pytest.approx(loss(arguments), rel=1e-2 if method == "qlora" else 1e-4)
    dx = layer.backward(dy)
    gradients = [left.grad, right.grad, None if method == "qlora" else dx, layer.bias.grad]
    assert directional_check(loss, arguments, gradients, rng) < 1e-4
    want_dx = dy @ (base + scale * left.data @ right.data)
    assert relative_error(dx, want_dx) < (0.02 if method == "qlora" else 1e-5)


@pytest.mark.parametrize("method", ["wsi", "wsi-dense", "lora"])
def test_a_rank_pattern_goes_before_the_rank(method):
    model, _, _ = model_and_batch()
    apply_method(model, method, MethodOptions(rank=8, rank_pattern={"blocks.1.mlp.fc2": 3}), verbose=False)
    layers = [model.blocks[1].mlp.fc2, model.blocks[0].mlp.fc1]
    assert [m.A.data.shape[0] if method == "lora" else m.rank for m in layers] == [3, 8]
    with pytest.raises(ValueError, match="rank_pattern: \\['blocks.0.attn.qkv'\\] are not among the targets"):
        apply_method(model_and_batch()[0], method, MethodOptions(rank_pattern={"blocks.0.attn.qkv": 3}), verbose=False)


def test_lora_trains_its_updates_and_the_head_alone():
    model, images, labels = model_and_batch()
    apply_method(model, "lora", MethodOptions(rank=4), verbose=False)
    before = {n: p.data.copy() for n, p in model.named_parameters()}
    optimizer = Optimizer(model, "adamw")
    for _ in range(3):
        accumulate_gradient(model, images, labels)
        optimizer.step(0.01)
    changed = {n for n, p in model.named_parameters() if not np.array_equal(p.data, before[n])}
    wanted = {f"blocks.{i}.mlp.{fc}.{ab}" for i in range(2) for fc in ("fc1", "fc2") for ab in "AB"}
    assert changed == wanted | {"head.weight", "head.bias"}
    assert all(p.grad is None for _, p in model.named_parameters() if not p.trainable)


def test_a_frozen_residual_takes_a_seventh_of_the_dense_bytes_and_is_read_packed():
    model, images, labels = model_and_batch()
    dense = sum(model.get_module(n).weight.data.nbytes for n in wasi.models.find_targets(model, ("all",)))
    apply_method(model, "qwasi", MethodOptions(targets=("all",), rank=4), verbose=False)
    layers = [m for _, m in model.named_modules() if isinstance(m, wasi.layers.FactoredLinear)]
    assert sum(layer.residual.nbytes for layer in layers) < dense / 5  # row and column scales weigh on small layers


@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_saved_and_loaded(tmp_path, method):
    model, images, _ = model_and_batch()
    apply_method(model, method, MethodOptions(targets=("all",), rank=8), verbose=False)
    model.blocks[0].norm1.weight.data[:] = 1.5
    wasi.save_model(model, tmp_path / "m.safetensors")
    again, _ = wasi.load_model(tmp_path / "m.safetensors")
    got, want = again.forward(images), model.forward(images)
    if method == "wsi-dense":  # its followed factors are not part of the model: the file holds the dense weights
        assert relative_error(got, want) > 0
        want = wasi.load_model(tmp_path / "m.safetensors")[0].forward(images)
    assert np.array_equal(got, want)


def test_a_damaged_quantised_file_is_refused_by_name(tmp_path):
    from safetensors.numpy import load_file, save_file

    model, _, _ = model_and_batch()
    apply_method(model, "qwasi", MethodOptions(rank=4), verbose=False)
    wasi.save_model(model, tmp_path / "m.safetensors")
    with wasi.models.weights.safe_open(tmp_path / "m.safetensors", "numpy") as file:
        metadata = file.metadata()
    tensors = load_file(tmp_path / "m.safetensors")
    tensors["blocks.0.mlp.fc1.quantized.codes"] = tensors["blocks.0.mlp.fc1.quantized.codes"][:-1].copy()
    save_file(tensors, tmp_path / "bad.safetensors", metadata)
    with pytest.raises(ValueError, match="quantised matrix blocks.0.mlp.fc1.quantized of bad.safetensors is damaged"):
        wasi.load_model(tmp_path / "bad.safetensors")


def test_bad_method_is_refused_by_name():
    model, _, _ = model_and_batch()
    with pytest.raises(ValueError, match="method: expected one of dense, asi, .*got 'magic'"):
        apply_method(model, "magic")
    with pytest.raises(ValueError, match="rank: expected 1 to 64"):
        apply_method(model, "lora", MethodOptions(rank=65))
