"""The residual network: against a float64 NumPy twin, finite differences and PyTorch."""

import numpy as np
import pytest
from small_models import RESNET, assert_same_loss_curve, gradients_of
from tables import relative_error

import wasi
from wasi import ops
from wasi.layers import ActivationCompression, ActivationPolicy, BatchNorm, FactoredLinear
from wasi.layers.compression import Compressed
from wasi.models import load_model, load_weights, save_model
from wasi.models.factorize import curvatures, input_covariances
from wasi.models.methods import MethodOptions, apply_method
from wasi.models.weights import WeightsError, published_shape
from wasi.ops import Window
from wasi.training.optimizer import Optimizer
from wasi.training.step import accumulate_gradient

NAME, SMALL = RESNET.name, RESNET.sizes


def torch_twin(torch, model):
    import torch_resnet

    c = model.config
    twin = torch_resnet.ResNet(c.depths, c.widths, c.num_classes)
    state = {n: torch.from_numpy(published_shape(model, n, p.data).copy()) for n, p in model.named_parameters()}
    missing, unexpected = twin.load_state_dict(state, strict=False)
    assert not unexpected and all(n.endswith("num_batches_tracked") for n in missing)
    return twin


@pytest.mark.parametrize("name, changes", [("resnet18", {"img_size": 64, "num_classes": 7}), (NAME, SMALL)])
def test_logits_gradients_and_statistics_equal_pytorch(rng, torch, name, changes):
    model = RESNET.model() if name == NAME else wasi.create_model(name, **changes)
    S = model.config.img_size
    images, labels = rng.standard_normal((4, 3, S, S)).astype(np.float32), rng.integers(0, 5, 4)
    twin = torch_twin(torch, model)
    twin.eval()
    with torch.no_grad():
        assert relative_error(model.forward(images), twin(torch.from_numpy(images)).numpy()) < 1e-4
    twin.train()
    torch.nn.functional.cross_entropy(twin(torch.from_numpy(images)), torch.from_numpy(labels)).backward()
    accumulate_gradient(model, images, labels)
    want = {n: p.grad.numpy() for n, p in twin.named_parameters()}
    assert set(want) == set(gradients_of(model))
    for n, g in gradients_of(model).items():
        assert relative_error(published_shape(model, n, g), want[n]) < 1e-4, n
    buffers = dict(twin.named_buffers())
    for n, p in model.named_parameters():
        if not p.trainable:
            assert relative_error(p.data, buffers[n].numpy()) < 1e-5, n


def test_the_loss_curve_is_pytorchs(rng, torch):
    """A small network: in deep ones a relu that lets through by rounding alone makes curves part, PyTorch's from its own too."""
    model = wasi.create_model(NAME, num_classes=5)
    twin = torch_twin(torch, model)
    assert_same_loss_curve(torch, rng, model, twin, n_steps=16, batch_size=16, lr=0.05, rel=0.01)


def test_published_size_and_flops():
    model = wasi.create_model("resnet18", seed=None)
    assert sum(p.data.size for _, p in model.named_parameters() if p.trainable) == 11_689_512  # as published
    assert model.training_flops(1).forward / 2 == pytest.approx(1.814e9, rel=0.01)
    assert sum(p.data.size for _, p in wasi.create_model("resnet34", seed=None).named_parameters() if p.trainable) == 21_797_672


def test_full_rank_factors_are_the_dense_convolution(rng):
    images, labels = RESNET.batch(rng)
    dense, factored = RESNET.model(), RESNET.model()
    wasi.factorize(factored, variance=1.0, verbose=False)
    accumulate_gradient(dense, images, labels)
    accumulate_gradient(factored, images, labels)
    assert relative_error(factored.forward(images), dense.forward(images)) < 1e-4
    for name, layer in factored.named_modules():
        if isinstance(layer, FactoredLinear):
            G = dense.get_module(name).weight.grad
            assert relative_error(layer.R.grad, layer.L.data.T @ G) < 1e-3
            assert relative_error(layer.L.grad, G @ layer.R.data.T) < 1e-3
    assert [r.name for r in factored.factorization][:3] == ["layer1.0.conv1", "layer1.0.conv2", "layer2.0.conv1"]


def test_micro_batches_layerwise_updates_and_packed_gradients(rng):
    """Layer by layer the step is the same; bfloat16 sums are near; of micro-batches each has statistics of its own."""
    images, labels = RESNET.batch(rng, 8)
    found = []
    for settings, micro in (({}, None), ({"layerwise": True}, None), ({"gradient_bits": 16}, None), ({}, 4)):
        model = RESNET.model(True)
        optimizer = Optimizer(model, **settings)
        accumulate_gradient(model, images, labels, micro, after=optimizer.after_backward(0.02))
        optimizer.step(0.02)
        found.append(model.forward(images))
    exact, layerwise, packed, micro = found
    assert np.array_equal(layerwise, exact) and relative_error(packed, exact) < 1e-2 and 1e-3 < relative_error(micro, exact) < 1


def test_running_statistics_move_in_training_alone(rng):
    model = RESNET.model()
    images, labels = RESNET.batch(rng)
    norms = [m for _, m in model.named_modules() if isinstance(m, BatchNorm)]
    before = [n.running_mean.data.copy() for n in norms]
    model.forward(images)
    input_covariances(model, ["layer1.0.conv1"], [images])
    assert all(np.array_equal(n.running_mean.data, b) for n, b in zip(norms, before))
    norms[0].weight.trainable = False  # a frozen norm is in evaluation
    accumulate_gradient(model, images, labels)
    assert np.array_equal(norms[0].running_mean.data, before[0])
    assert all(not np.array_equal(n.running_mean.data, b) for n, b in zip(norms[1:], before[1:]))
    norms[1].running_mean.trainable = True
    assert not norms[1].running_mean.trainable


def test_running_statistics_are_averaged_and_restored_with_the_weights(rng):
    from wasi.training.ema import Snapshot, WeightAverage

    model = RESNET.model()
    images, labels = RESNET.batch(rng)
    snapshot, average, logits = Snapshot(model), WeightAverage(model, 0.5), model.forward(images)
    start = model.bn1.running_mean.data.copy()
    optimizer = Optimizer(model)
    accumulate_gradient(model, images, labels)
    optimizer.step(0.1)
    average.update()
    moved = model.bn1.running_mean.data.copy()
    with average.applied():
        assert relative_error(model.bn1.running_mean.data, 0.1 * start + 0.9 * moved) < 1e-5
    assert np.array_equal(model.bn1.running_mean.data, moved) and not np.array_equal(model.forward(images), logits)
    snapshot.restore(model)
    assert np.array_equal(model.forward(images), logits)


def test_inputs_are_compressed_with_four_modes(rng):
    """Every target's input is B x H x W x C, and is kept as a core with a factor for each mode; full ranks are exact."""
    images, labels = RESNET.batch(rng)
    for factored in (False, True):
        model, exact, whole = (RESNET.model(factored) for _ in range(3))
        names = [n for n, m in model.named_modules() if getattr(m, "window", None) == Window(3, 1, 1)]
        for net, ranks in ((model, (0.5, 0.5, 3)), (whole, (1.0, 1.0, 1.0))):
            for name in names:
                net.get_module(name).compression = ActivationCompression(ranks)
        model.forward(images, train=True)
        for name in names:
            kept = model.get_module(name)._saved[0]
            assert isinstance(kept, Compressed) and kept.core.ndim == 4 and kept.core.shape[::3] == (2, 3), name
        assert model.layer1[0]._saved == (None,)  # the block's input has no other reader
        for net in (exact, whole):
            accumulate_gradient(net, images, labels)
        for name, g in gradients_of(exact).items():
            assert relative_error(gradients_of(whole)[name], g) < 1e-4, name


@pytest.mark.parametrize("window", [Window(3, 1, 1), Window(3, 2, 1), Window(1, 2)])
@pytest.mark.parametrize("ranks", [(2, 3, 4), (1.0, 3, 1.0), (2, 1.0, 4), (3, 3, 1.0)])
def test_gradients_are_exact_for_the_compressed_input(rng, window, ranks):
    from wasi.layers.linear import FactoredLinear, Linear
    from wasi.linalg import tucker_to_tensor

    x = rng.standard_normal((4, 6, 7, 5)).astype(np.float32)
    W = rng.standard_normal((8, window.taps * 5)).astype(np.float32)
    for layer in (Linear(W), FactoredLinear(*(np.linalg.qr(W)[0][:, :4], W[:4]))):
        layer.window, layer.compression = window, ActivationCompression(ranks)
        y = layer.forward(x, train=True)
        near = np.ascontiguousarray(tucker_to_tensor(*layer._saved[0]))
        assert layer._saved[0].shape == x.shape
        dy = rng.standard_normal(y.shape).astype(np.float32)
        dx = layer.backward(dy)
        got = {n: p.grad for n, p in layer.named_parameters()}
        layer.compression = None
        for _, p in layer.named_parameters():
            p.grad = None
        layer.forward(near, train=True)
        assert relative_error(dx, layer.backward(dy)) < 1e-5
        for n, p in layer.named_parameters():
            assert relative_error(got[n], p.grad) < 1e-4, n


def test_whitened_start_on_patches(rng):
    """Truncation loses less of each layer's output on the calibration images, plain SVD less of the weight."""
    images = rng.standard_normal((4, 3, 32, 32)).astype(np.float32)
    name, lost = "layer2.0.conv1", {}
    for start, whiten in (("svd", None), ("whitened", [images])):
        model = RESNET.model()
        layer, seen = model.get_module(name), []
        W, M = layer.weight.data, input_covariances(model, [name], [images])[name]
        layer.forward = lambda x, *rest, seen=seen, own=layer.forward, **more: seen.append(x) or own(x, *rest, **more)
        model.forward(images)
        patches = ops.unfold(seen[0], layer.window).reshape(-1, W.shape[1]).astype(float)
        C = patches.T @ patches / len(patches)
        assert relative_error(M, W @ C @ W.T) < 1e-5
        del layer.forward
        wasi.factorize(model, rank=4, target_modules=(name,), whiten=whiten, verbose=False)
        off = W - model.get_module(name).merged_weight()
        lost[start] = (np.einsum("oi,ij,oj", off, C, off), np.linalg.norm(off))
    assert lost["whitened"][0] < lost["svd"][0] and lost["whitened"][1] > lost["svd"][1]


def test_fisher_start_on_patches(rng):
    """At equal ranks the loss's gradients see less of what is cut off than with the whitened start."""
    images, labels = rng.standard_normal((8, 3, 32, 32)).astype(np.float32), rng.integers(0, 5, 8)
    name, lost = "layer2.0.conv1", {}
    for start in ("whitened", "fisher"):
        model = RESNET.model()
        layer, seen = model.get_module(name), []
        W, D = layer.weight.data, curvatures(model, [name], [(images, labels)])[1][name]
        layer.forward = lambda x, *rest, seen=seen, own=layer.forward, **more: seen.append(x) or own(x, *rest, **more)
        model.forward(images, train=True)
        patches = ops.unfold(seen[0], layer.window).reshape(-1, W.shape[1]).astype(float)
        C = patches.T @ patches / len(patches)
        del layer.forward
        batches = {"whiten": [images]} if start == "whitened" else {"fisher": [(images, labels)]}
        wasi.factorize(model, rank=4, target_modules=(name,), verbose=False, **batches)
        off = W - model.get_module(name).merged_weight()
        lost[start] = np.trace(D @ off @ C @ off.T)
    assert lost["fisher"] < 0.98 * lost["whitened"]


def test_the_stem_keeps_what_the_policy_says(rng):
    images, _ = RESNET.batch(rng)
    kept = {}
    for policy in (ActivationPolicy(), ActivationPolicy(recompute=True), ActivationPolicy(saved_bits=8)):
        model = RESNET.model()
        model.set_policy(policy)
        model.forward(images, train=True)
        kept[policy.recompute, policy.saved_bits] = model.bn1.saved_bytes
    assert kept[True, None] == 0 and kept[False, 8] < 0.6 * kept[False, None]


def test_a_plan_compresses_the_inputs_that_nothing_else_keeps(rng):
    """Those of blocks without a downsampling; their bytes are those of the step, and what they save is what they are for."""
    images, labels = rng.integers(0, 256, (8, 3, 64, 64), np.uint8), rng.integers(0, 5, 8)
    settings = {"batch_size": 8, "recompute": False, "saved_bits": None, "gradient_bits": 32, "state_bits": 32}
    model = wasi.create_model(NAME, num_classes=5, img_size=64, depths=(4, 1), widths=(16, 16))
    exact = wasi.plan(model, [(images, labels)], "1GiB", method="dense", **settings)
    plan = wasi.plan(model, [(images, labels)], exact.peak_bytes - 200_000, method="asi", **settings)
    compressed = {layer.name for layer in plan.layers if layer.activation_ranks}
    assert compressed and compressed <= {f"layer1.{i}.conv1" for i in range(4)}
    plan.apply(model)
    arena = wasi.Arena()
    with arena:
        for _ in range(2):
            result = accumulate_gradient(model, images, labels)
    assert result.saved_bytes - images.nbytes == pytest.approx(plan.saved_bytes, rel=0.02)
    assert arena.stats()["peak_bytes"] < plan.peak_bytes < exact.peak_bytes
    with pytest.raises(ValueError, match="micro_batch: expected 'auto' or 8 in mode 'exact', as batch norm"):
        wasi.plan(model, [(images, labels)], "1GiB", method="dense", mode="exact", batch_size=8, micro_batch=4)


@pytest.mark.parametrize("method", ["dense", "wsi", "qwasi", "qlora", "svd-llm-lora"])
def test_save_load_and_merge_give_the_same_logits(rng, tmp_path, method):
    model = RESNET.model()
    images, labels = RESNET.batch(rng)
    apply_method(model, method, MethodOptions(rank=4, lora_rank=2), [(images, labels)], verbose=False)
    save_model(model, tmp_path / "m.safetensors", {"classes": ["a"]})
    again, extra = load_model(tmp_path / "m.safetensors")
    assert extra == {"classes": ["a"]} and again.config == model.config
    logits = model.forward(images)
    assert np.array_equal(logits, again.forward(images))
    assert relative_error(wasi.merge(again).forward(images), logits) < (0.1 if method.startswith("q") else 1e-4)
    assert relative_error(wasi.optimize_for_inference(model, images, 1, verbose=False).forward(images), logits) < 0.1


def test_a_merged_model_loads_into_pytorch(rng, torch, tmp_path):
    from safetensors.torch import load_file

    model = RESNET.model(True)
    images, _ = RESNET.batch(rng)
    save_model(wasi.merge(model), tmp_path / "m.safetensors")
    twin = torch_twin(torch, RESNET.model())
    twin.load_state_dict(load_file(tmp_path / "m.safetensors"))
    twin.eval()
    with torch.no_grad():
        assert relative_error(model.forward(images), twin(torch.from_numpy(images)).numpy()) < 1e-4


def published(model):
    """As torchvision and timm write it."""
    tensors = {n: published_shape(model, n, p.data).copy() for n, p in model.named_parameters()}
    return tensors | {"bn1.num_batches_tracked": np.array(3), "layer1.0.bn1.num_batches_tracked": np.array(3)}


def test_published_files(rng, tmp_path):
    from safetensors.numpy import save_file

    model = RESNET.model()
    images, _ = RESNET.batch(rng)
    save_file(published(model), tmp_path / "w.safetensors")
    again = wasi.create_model(NAME, **SMALL, weights=tmp_path / "w.safetensors")
    assert np.array_equal(model.forward(images), again.forward(images))
    other = wasi.create_model(NAME, **{**SMALL, "num_classes": 7})
    report = load_weights(other, tmp_path / "w.safetensors")
    assert sorted(report.replaced) == ["fc.bias", "fc.weight"] and report.unused == []


def test_files_that_do_not_fit_name_every_tensor(tmp_path):
    from safetensors.numpy import save_file

    model = RESNET.model()
    tensors = published(model)
    del tensors["bn1.running_var"], tensors["layer2.0.downsample.0.weight"]
    tensors["conv1.weight"] = np.zeros((6, 3, 3, 3), np.float32)
    tensors["layer1.0.conv1.weight"] = np.zeros((6, 54), np.float32)
    tensors["layer1.0.conv9.weight"] = np.zeros((1,), np.float32)
    save_file(tensors, tmp_path / "w.safetensors")
    with pytest.raises(WeightsError) as error:
        load_weights(model, tmp_path / "w.safetensors")
    for part in ("bn1.running_var: missing", "layer2.0.downsample.0.weight: missing",
                 "conv1.weight: expected shape (6, 3, 7, 7), got (6, 3, 3, 3)",
                 "layer1.0.conv1.weight: expected shape (6, 6, 3, 3), got (6, 54)"):
        assert part in str(error.value)
    del tensors["conv1.weight"], tensors["layer1.0.conv1.weight"]
    good = published(model) | {"layer1.0.conv9.weight": np.zeros(1, np.float32)}
    save_file(good, tmp_path / "w.safetensors")
    assert load_weights(model, tmp_path / "w.safetensors").unused == ["layer1.0.conv9.weight"]


def test_checkpoints_go_on_bit_for_bit(rng, tmp_path):
    from wasi.training.checkpoint import Checkpoint, Progress, save_checkpoint

    def step(model, optimizer):
        accumulate_gradient(model, images, labels)
        optimizer.step(0.01)

    images, labels = RESNET.batch(rng)
    model = RESNET.model()
    apply_method(model, "wasi", MethodOptions(rank=4), verbose=False)
    optimizer = Optimizer(model, "sgd", momentum=0.9)
    step(model, optimizer)
    save_checkpoint(tmp_path / "checkpoints" / "c.safetensors", model, {"optimizer": optimizer}, {"progress": vars(Progress())})
    step(model, optimizer)
    checkpoint = Checkpoint(tmp_path / "checkpoints" / "c.safetensors")
    again = checkpoint.empty_model()
    checkpoint.restore_model(again)
    other = Optimizer(again, "sgd", momentum=0.9)
    checkpoint.restore("optimizer", other)
    step(again, other)
    assert np.array_equal(model.forward(images), again.forward(images))


def test_bad_sizes_are_refused_by_name(rng):
    create = wasi.create_model
    with pytest.raises(ValueError, match="img_size: expected at least 32 pixels, which 4 stages reduce to one, got 31"):
        create("resnet18", img_size=31)
    with pytest.raises(ValueError, match="depths, widths: expected at least one block and its channels for each stage"):
        create(NAME, depths=(1, 2))
    with pytest.raises(ValueError, match=r"images: expected an array of shape \(B, 3, 32, 32\), got shape \(1, 3, 64, 64\)"):
        RESNET.model().forward(np.zeros((1, 3, 64, 64), np.float32))
    with pytest.raises(ValueError, match="batch norm: expected more than one number a channel in training"):
        create("resnet18", img_size=32, num_classes=2).forward(np.zeros((1, 3, 32, 32), np.float32), train=True)
    with pytest.raises(ValueError, match=r"target_modules: \['mlp'\] match none of the model's linear layers \(conv1, "):
        wasi.factorize(RESNET.model(), target_modules=("mlp",))
