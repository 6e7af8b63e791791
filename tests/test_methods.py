import numpy as np
import pytest
from gradcheck import directional_check
from small_models import DECODER, RESNET, SWIN, VIT
from tables import relative_error

import wasi
from wasi import ops
from wasi.layers import ActivationPolicy, FactoredLinear, Linear
from wasi.layers.lora import LoraFactoredLinear, LoraLinear
from wasi.models.factorize import curvatures, gradient_factors, input_covariances, weight_gradients
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


def calibration(method, images):
    """The batches that a method asks for."""
    return [images] if method.startswith("svd-llm") else None


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains(method):
    model, images, labels = model_and_batch()
    apply_method(model, method, MethodOptions(targets=("all",), rank=8), calibration(method, images), verbose=False)
    optimizer = Optimizer(model, "sgd", clip_norm=1.0)
    losses = []
    for _ in range(15):
        losses.append(accumulate_gradient(model, images, labels).loss)
        optimizer.step(0.1)
    assert losses[-1] < 0.9 * losses[0]
    assert sum(m.saved_bytes for _, m in model.named_modules()) == 0


@pytest.mark.parametrize("method, start", [("qwasi", "svd"), ("qwasi", "whitened"), ("qwasi", "gradient"), ("lora", None),
                                           ("qlora", None)])
def test_methods_that_keep_the_weights_start_from_the_dense_function(method, start):
    model, images, labels = model_and_batch()
    want = model.forward(images)
    apply_method(model, method, MethodOptions(targets=("all",), rank=8, bits=8, start=start), [(images, labels)], verbose=False)
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
    apply_method(model, method, MethodOptions(targets=("all",), rank=8), calibration(method, images), verbose=False)
    model.blocks[0].norm1.weight.data[:] = 1.5
    wasi.save_model(model, tmp_path / "m.safetensors")
    again, _ = wasi.load_model(tmp_path / "m.safetensors")
    got, want = again.forward(images), model.forward(images)
    if method in ("wsi-dense", "svd"):  # the file holds the products of their factors
        assert relative_error(got, want) < 1e-5
    else:
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


def truncated(W, rank):
    U, s, Vt = np.linalg.svd(W.astype(float), full_matrices=False)
    return (U[:, :rank] * s[:rank]) @ Vt[:rank]


@pytest.mark.parametrize("kind, state", [("sgd", 0), ("sgd", 1), ("adamw", 2)])
def test_a_step_of_svd_is_the_dense_step_truncated(kind, state):
    model, images, labels = model_and_batch()
    apply_method(model, "svd", MethodOptions(rank=8), verbose=False)
    layer = model.blocks[1].mlp.fc1
    dense, _, _ = model_and_batch()
    other = dense.blocks[1].mlp.fc1
    for name in wasi.models.find_targets(dense, ("mlp",)):
        weight = dense.get_module(name).weight
        weight.data[:] = truncated(weight.data, 8)
    optimizers = [Optimizer(m, kind, momentum=0.9 if state == 1 else 0, weight_decay=0.1, clip_norm=1.0) for m in (model, dense)]
    for _ in range(3):
        losses = [accumulate_gradient(m, images, labels).loss for m in (model, dense)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-4)
        assert relative_error(layer.weight.grad, other.weight.grad) < 1e-3
        for optimizer in optimizers:
            optimizer.step(0.02)
        for name in wasi.models.find_targets(dense, ("mlp",)):
            weight = dense.get_module(name).weight
            weight.data[:] = truncated(weight.data, 8)
        assert relative_error(layer.weight.data, other.weight.data) < 1e-4
        assert relative_error(layer._L @ layer._R, layer.weight.data) < 1e-6
    # Nothing is saved by it: the dense weight, gradient and state stay.
    assert layer.weight.grad.nbytes == layer.weight.data.nbytes == other.weight.data.nbytes
    assert optimizers[0].state_bytes == optimizers[1].state_bytes
    assert layer.fixed_bytes == 4 * 8 * (256 + 64)


def test_a_step_of_the_published_form_is_the_dense_step_followed_by_one_iteration():
    """Also where blocks are recomputed, and for a batch in parts: forward passes do not move the followed factors."""
    gradients = []
    for policy, micro_batch in ((ActivationPolicy(), None), (ActivationPolicy(recompute=True), 3)):
        model, images, labels = model_and_batch()
        apply_method(model, "wsi-dense", MethodOptions(rank=8), verbose=False)
        model.set_policy(policy)
        layer = model.blocks[1].mlp.fc1
        R = layer._R.copy()
        accumulate_gradient(model, images, labels, micro_batch)
        W = layer.weight.data - np.float32(0.1) * layer.weight.grad
        gradients.append(layer.weight.grad.copy())
        Optimizer(model, "sgd").step(0.1)
        assert relative_error(layer.weight.data, W) < 1e-6
        L = np.linalg.qr(W @ R.T)[0]
        assert relative_error(layer._L @ layer._R, L @ (L.T @ W)) < 1e-5
    assert relative_error(*gradients) < 1e-5


def test_svd_llm_starts_from_the_whitened_truncation_in_balanced_factors():
    model, images, _ = model_and_batch()
    layer = model.blocks[0].mlp.fc1
    W = layer.weight.data.copy()
    cov = input_covariances(model, ["blocks.0.mlp.fc1"], [images])["blocks.0.mlp.fc1"]
    apply_method(model, "svd-llm", MethodOptions(targets=("blocks.0.mlp.fc1",), rank=8), [images], verbose=False)
    new = model.blocks[0].mlp.fc1
    root = np.linalg.cholesky(cov + 1e-6 * np.trace(cov) / 64 * np.eye(64))
    want = truncated(W @ root, 8) @ np.linalg.inv(root)  # SVD-LLM's form: a Cholesky factor whitens
    assert relative_error(new.merged_weight(), want) < 1e-3
    norms = np.linalg.norm(new.L.data, axis=0), np.linalg.norm(new.R.data, axis=1)
    assert np.allclose(*norms, rtol=1e-5)


def test_svd_llm_moves_both_factors_by_their_own_gradients():
    model, images, labels = model_and_batch()
    apply_method(model, "svd-llm", MethodOptions(rank=8), [images], verbose=False)
    layer = model.blocks[0].mlp.fc2
    optimizer = Optimizer(model, "sgd")
    accumulate_gradient(model, images, labels)
    want = [p.data - np.float32(0.1) * p.grad for p in (layer.L, layer.R)]
    optimizer.step(0.1)
    assert all(relative_error(p.data, w) < 1e-6 for p, w in zip((layer.L, layer.R), want))


def test_svd_llm_lora_trains_the_updates_of_both_factors_and_the_head_alone():
    model, images, labels = model_and_batch()
    apply_method(model, "svd-llm-lora", MethodOptions(rank=8, lora_rank=3), [images], verbose=False)
    before = {n: p.data.copy() for n, p in model.named_parameters()}
    optimizer = Optimizer(model, "adamw")
    for _ in range(3):
        accumulate_gradient(model, images, labels)
        optimizer.step(0.01)
    changed = {n for n, p in model.named_parameters() if not np.array_equal(p.data, before[n])}
    wanted = {f"blocks.{i}.mlp.{fc}.{side}.{ab}" for i in range(2) for fc in ("fc1", "fc2") for side in ("up", "down")
              for ab in "AB"}
    assert changed == wanted | {"head.weight", "head.bias"}
    assert model.blocks[0].mlp.fc1.down.A.data.shape == (3, 64)


def test_gradients_of_lora_on_factors_against_finite_differences(rng):
    L, R, b = (rng.standard_normal(shape).astype(np.float32) for shape in ((24, 6), (6, 40), 24))
    x, dy = (rng.standard_normal((10, n)).astype(np.float32) for n in (40, 24))
    layer = LoraFactoredLinear(L, R, b, 3, 6.0, rng)
    for part in (layer.down, layer.up):
        part.B.data[:] = rng.standard_normal(part.B.data.shape)

    def loss(a):
        A1, B1, A2, B2, x, b = a
        return float((((x @ (R + 2 * B1 @ A1).T) @ (L + 2 * B2 @ A2).T + b) * dy).sum())

    parameters = [layer.down.A, layer.down.B, layer.up.A, layer.up.B]
    arguments = [a.astype(float) for a in [p.data for p in parameters] + [x, b]]
    y = layer.forward(x, train=True)
    assert float((y * dy).sum()) == pytest.approx(loss(arguments), rel=1e-4)
    gradients = [layer.backward(dy), layer.up.bias.grad]
    assert directional_check(loss, arguments, [p.grad for p in parameters] + gradients, rng) < 1e-4
    kept = [p.grad.copy() for p in parameters]
    for p in parameters:
        p.grad.fill(0)
    layer.prepare()
    assert layer.needs_input
    layer.backward(dy, x)
    assert all(relative_error(p.grad, k) < 1e-6 for p, k in zip(parameters, kept))


@pytest.mark.parametrize("shape", [(7, 5, 24), (7, 3, 4, 24)])
def test_whitening_takes_inputs_of_three_and_four_dimensions(rng, shape):
    class Model(wasi.layers.Module):
        def __init__(self):
            self.fc1 = wasi.layers.Linear(rng.standard_normal((10, 24)))

        def forward(self, x):
            return self.fc1.forward(x)

    x = rng.standard_normal(shape).astype(np.float32)
    rows = x.reshape(-1, 24).astype(float)
    model = Model()
    W = model.fc1.weight.data.copy()
    assert relative_error(input_covariances(model, ["fc1"], [x])["fc1"], rows.T @ rows / len(rows)) < 1e-6
    wasi.factorize(model, rank=4, whiten=[x], target_modules=("fc1",), verbose=False)
    y, best = model.forward(x).reshape(-1, 10), rows @ W.T.astype(float)
    error = np.linalg.norm(y - best)
    assert error == pytest.approx(np.linalg.norm(np.linalg.svd(best, compute_uv=False)[4:]), rel=1e-3)  # the best of its rank


@pytest.mark.parametrize("O, I", [(24, 40), (40, 24), (16, 16)])
def test_gradient_factors_hold_the_best_part_of_the_gradient(rng, O, I):
    """The tangent space at L R takes all of the best rank-K part of G (by NumPy in float64), and R is perfectly conditioned."""
    W, G = (rng.standard_normal((O, I)).astype(np.float32) for _ in range(2))
    L, R, share = gradient_factors(W, G, rank=5)
    U, S, Vt = np.linalg.svd(G.astype(float), full_matrices=False)
    s = np.linalg.norm(W.astype(float)) / min(O, I) ** 0.5
    assert relative_error(L @ R, s * U[:, :5] @ Vt[:5]) < 1e-5
    assert relative_error(R @ R.T, s**2 * np.eye(5)) < 1e-5
    assert share == pytest.approx((S[:5] ** 2).sum() / (S**2).sum(), rel=1e-5)
    norm2, _ = wasi.linalg.wsi_gradient_norm2(L, R, G @ R.T, L.T @ G)
    assert norm2 == pytest.approx((S[:5] ** 2).sum(), rel=1e-5)
    assert gradient_factors(W, G, variance=share - 1e-4)[0].shape == (O, 5)


def test_start_scale_makes_the_factors_smaller_and_the_residual_takes_the_rest():
    model, images, labels = model_and_batch()
    weight = model.blocks[0].mlp.fc1.weight.data.copy()
    options = MethodOptions(rank=4, bits=8, start_scale=0.01)
    apply_method(model, "qwasi", options, [(images, labels)], verbose=False)
    layer = model.blocks[0].mlp.fc1
    s = 0.01 * np.linalg.norm(weight.astype(float)) / min(weight.shape) ** 0.5
    np.testing.assert_allclose(np.linalg.svd(layer.R.data)[1], s, rtol=1e-4)
    assert relative_error(layer.merged_weight(), weight) < 0.01
    for scale in (0, -1, np.nan, np.inf):
        with pytest.raises(ValueError, match="start_scale: expected a finite number above 0"):
            apply_method(model_and_batch()[0], "qwasi", MethodOptions(start_scale=scale), [(images, labels)])


def test_frozen_parameters_stay_and_take_no_gradient():
    model, images, labels = model_and_batch()
    options = MethodOptions(rank=4, freeze=("patch_embed", "pos_embed", "blocks.1.mlp.fc1"))
    apply_method(model, "qwasi", options, [(images, labels)], verbose=False)
    assert isinstance(model.blocks[1].mlp.fc1, Linear) and isinstance(model.blocks[1].mlp.fc2, FactoredLinear)
    before = {name: p.data.copy() for name, p in model.named_parameters()}
    optimizer = Optimizer(model, "sgd", momentum=0.9)
    accumulate_gradient(model, images, labels)
    optimizer.step(0.1)
    moved = {name for name, p in model.named_parameters() if not np.array_equal(p.data, before[name])}
    assert moved == {name for name in before if not name.startswith(("patch_embed.", "pos_embed", "blocks.1.mlp.fc1."))}
    with pytest.raises(ValueError, match="freeze: the model has no parameters 'patch'"):
        apply_method(model_and_batch()[0], "dense", MethodOptions(freeze=("patch",)))


@pytest.mark.parametrize("small, frozen", [(VIT, ("patch_embed.", "pos_embed", "cls_token")), (SWIN, ("patch_embed.",)),
                                           (DECODER, ("embed.",)), (RESNET, ("conv1.", "bn1."))])
def test_the_word_stem_freezes_what_comes_before_the_blocks(small, frozen):
    model = apply_method(small.model(), "qwasi", MethodOptions(rank=2, freeze=("stem",)), verbose=False)
    assert {n for n, p in model.named_parameters() if not p.trainable and "running" not in n} == {
        n for n, _ in model.named_parameters() if n.startswith(frozen) and "running" not in n}


def test_the_word_batchnorm_freezes_those_of_all_blocks_and_their_statistics(rng):
    model = apply_method(RESNET.model(), "dense", MethodOptions(freeze=("batchnorm",)), verbose=False)
    images, labels = RESNET.batch(rng)
    before = {n: p.data.copy() for n, p in model.named_parameters()}
    accumulate_gradient(model, images, labels)
    Optimizer(model, "sgd").step(0.1)
    stayed = {n for n, p in model.named_parameters() if np.array_equal(p.data, before[n])}
    assert stayed == {n for n in before if "bn" in n or "downsample.1" in n}
    assert apply_method(VIT.model(), "dense", MethodOptions(freeze=("batchnorm",)), verbose=False).cls_token.trainable


@pytest.mark.parametrize("method", ["dense", "wsi", "lora"])
def test_backward_ends_at_the_first_trained_block(method):
    """The gradients are the same bits; blocks before it keep nothing, and no FLOPs of their backward are counted."""
    model, images, labels = model_and_batch()
    frozen = ("patch_embed", "pos_embed", "cls_token", "blocks.0")
    apply_method(model, method, MethodOptions(rank=4, freeze=frozen), [(images, labels)], verbose=False)
    gradients, saved, flops = [], [], []
    for whole in (False, True):
        model.cls_token.trainable = whole  # with it, backward goes through all blocks
        model.zero_grad()
        saved.append(accumulate_gradient(model, images, labels).saved_bytes)
        gradients.append([p.grad.copy() for name, p in model.named_parameters() if p.grad is not None and name != "cls_token"])
        flops.append(model.training_flops(len(images)))
        assert model.n_frozen_blocks == (0 if whole else 1)
    assert len(gradients[0]) > 2 and all(np.array_equal(a, b) for a, b in zip(*gradients, strict=True))
    assert saved[0] < saved[1] and flops[0].backward < flops[1].backward and flops[0].forward == flops[1].forward


def test_weight_gradients_are_those_of_training_and_leave_the_model_as_it_was():
    model, images, labels = model_and_batch()
    names = ["blocks.0.attn.qkv", "blocks.1.mlp.fc2"]
    got = weight_gradients(model, names, [(images, labels), (images[:3], labels[:3])])
    assert all(p.grad is None and p.trainable for _, p in model.named_parameters())
    for part in (slice(None), slice(3)):
        accumulate_gradient(model, images[part], labels[part])
    for name in names:
        assert relative_error(got[name], model.get_module(name).weight.grad) < 1e-6


class _Offset(Linear):
    """A linear whose output is moved by `offset`."""

    def forward(self, x, train=False, keep_input=True):
        y = super().forward(x, train, keep_input)
        return y + self.offset.reshape(y.shape)


def test_curvatures_are_the_mean_squares_of_inputs_and_of_output_gradients():
    """Those of the outputs by differences of the loss, token by token; the model stays as it was."""
    model, images, labels = model_and_batch()
    names = ["blocks.0.attn.qkv", "blocks.1.mlp.fc2"]
    before = {name: p.data.copy() for name, p in model.named_parameters()}
    model.blocks[0].mlp.fc1.weight.trainable = False
    covariances, slopes = curvatures(model, names, [(images[:2], labels[:2]), (images[2:], labels[2:])])
    assert all(p.grad is None and np.array_equal(p.data, before[name]) for name, p in model.named_parameters())
    assert [name for name, p in model.named_parameters() if not p.trainable] == ["blocks.0.mlp.fc1.weight"]
    expected = input_covariances(model, names, [images])
    rng = np.random.default_rng(1)
    for name in names:
        assert relative_error(covariances[name], expected[name]) < 1e-6
        layer = model.get_module(name)
        moved, v = _Offset(layer.weight.data, layer.bias.data), rng.standard_normal(layer.out_features)
        v = (v / np.linalg.norm(v)).astype(np.float32)
        squares = []
        with model.replaced({name: moved}):
            for part in (slice(0, 2), slice(2, 6)):
                for i, token in np.ndindex(len(labels[part]), 5):
                    losses = []
                    for sign in (1, -1):
                        moved.offset = np.zeros((len(labels[part]), 5, len(v)), np.float32)
                        moved.offset[i, token] = sign * 0.05 * v
                        losses.append(model.loss(model.forward(images[part]), labels[part], need_gradient=False)[0])
                    squares.append(((losses[0] - losses[1]) / 0.1) ** 2)
        assert v @ slopes[name] @ v == pytest.approx(np.mean(squares), rel=0.02)


@pytest.mark.parametrize("share", [0.3, 0.6])
def test_ranks_of_a_share_go_where_the_loss_misses_them(rng, share):
    """As many parameters as in proportion, and the model's answers are nearer to the dense one's."""
    rows, moved = {}, {}
    for start in ("whitened", "fisher"):
        model, images, labels = model_and_batch()
        images, labels = rng.standard_normal((60, 3, 16, 16)).astype(np.float32), rng.integers(0, 5, 60)
        for i in (0, 1):  # inputs of many scales, and one layer that does little
            model.blocks[i].norm2.weight.data *= np.geomspace(3, 0.03, 64).astype(np.float32)
        model.blocks[1].mlp.fc2.weight.data *= 0.05
        want = model.forward(images)
        options = MethodOptions(("all",), share=share, start=start)
        rows[start] = apply_method(model, "wsi", options, [(images, labels)], verbose=False).factorization
        moved[start] = np.linalg.norm(model.forward(images) - want)
    parameters = {start: sum(row.parameters_after for row in found) for start, found in rows.items()}
    asked = share * sum(row.parameters_before for row in rows["fisher"])
    assert asked - (64 + 256) < parameters["fisher"] <= asked
    assert parameters["whitened"] == pytest.approx(asked, rel=0.03)
    ranks = {row.name: row.rank for row in rows["fisher"]}
    assert ranks["blocks.1.mlp.fc2"] < ranks["blocks.0.mlp.fc2"]
    assert moved["fisher"] < 0.9 * moved["whitened"]


def test_a_share_is_by_fisher_where_it_can_be_and_leaves_given_ranks():
    for method, start in (("wsi", "fisher"), ("wasi", "fisher"), ("svd-llm", "whitened"), ("wsi-dense", "svd")):
        found = []
        for chosen in (None, start):
            model, images, labels = model_and_batch()
            options = MethodOptions(("all",), share=0.4, start=chosen, rank_pattern={"blocks.0.mlp.fc1": 5})
            apply_method(model, method, options, [(images, labels)], verbose=False)
            assert model.get_module("blocks.0.mlp.fc1").rank == 5
            found.append(model.forward(images))
        assert np.array_equal(*found)
    model = apply_method(model_and_batch()[0], "lora", MethodOptions(("all",), share=0.5), verbose=False)
    assert {m.rank for _, m in model.named_modules() if isinstance(m, LoraLinear)} == {16, 24, 26}


def test_factors_of_a_share_are_those_of_the_loss_at_the_ranks_that_it_chose(monkeypatch):
    """And each layer is decomposed once for both."""
    model, images, labels = model_and_batch()
    names = wasi.models.find_targets(model, ("all",))
    weights = {name: model.get_module(name).weight.data for name in names}
    covariances, slopes = curvatures(model, names, [(images, labels)])
    made, decompose = [], wasi.linalg.FisherSvd.__init__
    monkeypatch.setattr(wasi.linalg.FisherSvd, "__init__", lambda self, W, *rest: (made.append(W), decompose(self, W, *rest))[0])
    apply_method(model, "wsi", MethodOptions(("all",), share=0.4), [(images, labels)], verbose=False)
    monkeypatch.undo()
    assert len(made) == len(names)
    for row in model.factorization:
        L, R, s = wasi.linalg.fisher_svd(weights[row.name], covariances[row.name], slopes[row.name], row.rank)
        assert relative_error(model.get_module(row.name).merged_weight(), L @ R) < 1e-5
        assert row.variance == pytest.approx((s[: row.rank] ** 2).sum() / (s**2).sum(), rel=1e-5)


def test_a_weight_of_zeros_has_factors_that_keep_all_of_it():
    model, images, labels = model_and_batch()
    model.blocks[0].mlp.fc2.weight.data[:] = 0
    for start in ("svd", "whitened", "fisher"):
        rows = apply_method(model_and_batch()[0], "wsi", MethodOptions(("blocks.0.mlp.fc2",), rank=3, start=start),
                            [(images, labels)], verbose=False).factorization
        assert 0 < rows[0].variance < 1
    options = MethodOptions(("blocks.0.mlp.fc2",), rank=3)
    rows = apply_method(model, "wsi", options, [(images, labels)], verbose=False).factorization
    assert rows[0].variance == 1 and not model.blocks[0].mlp.fc2.merged_weight().any()


def test_dense_training_needs_no_target():
    """As of a decoder whose blocks are all frozen; targets that are named are looked for."""
    model, images, labels = model_and_batch()
    options = MethodOptions(freeze=tuple(f"blocks.{i}" for i in range(2)))
    assert accumulate_gradient(apply_method(model, "dense", options), images, labels).loss > 0
    with pytest.raises(ValueError, match="target_modules: \\['mlp'\\] match none"):
        apply_method(model_and_batch()[0], "dense", MethodOptions(("mlp",), freeze=options.freeze))


def test_bad_method_is_refused_by_name():
    model, _, _ = model_and_batch()
    with pytest.raises(ValueError, match="method: expected one of dense, asi, .*got 'magic'"):
        apply_method(model, "magic")
    with pytest.raises(ValueError, match="rank: expected 1 to 64"):
        apply_method(model, "lora", MethodOptions(rank=65))
    with pytest.raises(ValueError, match="lora_rank: expected 1 to 4 for the factors of blocks.0.mlp.fc1, got 8"):
        apply_method(model_and_batch()[0], "svd-llm-lora", MethodOptions(rank=4), [model_and_batch()[1:]])
    with pytest.raises(ValueError, match="start: expected 'whitened' and calibration batches for svd-llm, got 'svd'"):
        apply_method(model, "svd-llm")
    with pytest.raises(ValueError, match="start: expected one of svd, whitened, fisher, gradient, got 'magic'"):
        apply_method(model, "wsi", MethodOptions(start="magic"))
    with pytest.raises(ValueError, match="calibration: expected batches for the start 'gradient', got None"):
        apply_method(model, "qwasi", MethodOptions(start="gradient"))
    with pytest.raises(ValueError, match="start: expected 'svd', 'whitened' or 'fisher' for wsi, which keeps no residual"):
        apply_method(model, "wsi", MethodOptions(start="gradient"), [model_and_batch()[1:]])
    with pytest.raises(ValueError, match="gradients: expected residual_bits of 4 or 8 with them"):
        wasi.factorize(model, gradients=[model_and_batch()[1:]], verbose=False)
    with pytest.raises(ValueError, match="gradients: expected at least one calibration batch, got none"):
        apply_method(model, "qwasi", calibration=[])
    for share in (0, 1.5, float("nan")):
        with pytest.raises(ValueError, match=rf"share: expected a number in \(0, 1\], got {share}"):
            apply_method(model, "wsi", MethodOptions(share=share))
    with pytest.raises(ValueError, match="share: expected None with a rank, got 0.5 and rank 4"):
        apply_method(model, "wsi", MethodOptions(share=0.5, rank=4))
    with pytest.raises(ValueError, match="fisher: expected at least one calibration batch, got none"):
        apply_method(model, "wsi", MethodOptions(share=0.5), calibration=[])
    with pytest.raises(ValueError, match="whiten, gradients, fisher: expected at most one of them"):
        wasi.factorize(model, whiten=[], fisher=[])
