import numpy as np
import pytest
from tables import relative_error

import wasi
from wasi import linalg
from wasi.layers import ActivationCompression, ActivationPolicy, FactoredLinear, Linear
from wasi.layers.lora import LoraLinear
from wasi.models.methods import MethodOptions, apply_method
from wasi.training.optimizer import Optimizer
from wasi.training.step import accumulate_gradient


def smooth_input(rng, shape):
    """An activation with decaying spectra in every mode, and a little noise."""
    x = 0.01 * rng.standard_normal(shape)
    for k in range(6):
        term = np.ones(())
        for d in shape:
            term = np.multiply.outer(term, rng.standard_normal(d))
        x += term * 0.5**k
    return x.astype(np.float32)


KINDS = ["dense", "factored", "lora"]


def make_layer(rng, kind, O=20, I=24, K=5):
    b = rng.standard_normal(O).astype(np.float32)
    if kind == "dense":
        return Linear(rng.standard_normal((O, I)), b)
    if kind == "lora":
        layer = LoraLinear(rng.standard_normal((O, I)).astype(np.float32), b, K, 8.0, rng)
        layer.B.data[:] = rng.standard_normal((O, K))
        return layer
    L = linalg.orthonormalize(rng.standard_normal((O, K)).astype(np.float32))
    return FactoredLinear(L, rng.standard_normal((K, I)), b)


def gradients_after_forward(layer, dy):
    for _, p in layer.named_parameters():
        p.grad = None
    dx = layer.backward(dy)
    return {"x": dx, **{n: p.grad for n, p in layer.named_parameters() if p.trainable}}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", ["asi", "hosvd"])
@pytest.mark.parametrize("shape", [(8, 10, 24), (4, 5, 6, 24)])
def test_truncated_gradients_are_those_of_the_compressed_input(rng, n_threads, kind, method, shape):
    layer, x = make_layer(rng, kind), smooth_input(rng, shape)
    dy = rng.standard_normal((*shape[:-1], 20)).astype(np.float32)
    layer.compression = ActivationCompression((0.5, 0.5, 7), method)
    layer.forward(x, train=True)
    kept = layer._saved[0]
    stood_for = np.ascontiguousarray(linalg.tucker_to_tensor(kept.core, kept.factors))
    assert 1e-3 < relative_error(stood_for, x) < 0.5
    assert layer.saved_bytes < x.nbytes / 2
    got = gradients_after_forward(layer, dy)
    layer.compression = None
    layer.forward(stood_for, train=True)
    want = gradients_after_forward(layer, dy)
    for name in want:
        assert relative_error(got[name], want[name]) < 1e-5, name


@pytest.mark.parametrize("kind", KINDS)
def test_full_rank_gives_the_exact_gradient(rng, kind):
    layer, x = make_layer(rng, kind), smooth_input(rng, (6, 7, 24))
    dy = rng.standard_normal((6, 7, 20)).astype(np.float32)
    layer.forward(x, train=True)
    want = gradients_after_forward(layer, dy)
    layer.compression = ActivationCompression((1.0, 1.0, 1.0))
    layer.forward(x, train=True)
    got = gradients_after_forward(layer, dy)
    for name in want:
        assert relative_error(got[name], want[name]) < 1e-5, name


def test_warm_steps_track_a_drifting_input(rng):
    """After a few steps one iteration a step is as good as the full decomposition, within 5 %."""
    compression, x = ActivationCompression((0.5, 0.5, 6)), smooth_input(rng, (16, 12, 24))
    for _ in range(10):
        x = (x + 0.02 * smooth_input(rng, x.shape)).astype(np.float32)
        kept = compression.compress(x)
    ours = linalg.tucker_error(x, kept.core, list(kept.factors))
    best = linalg.tucker_error(x, *linalg.tucker(x, ranks=kept.core.shape))
    assert ours < 1.05 * best


def test_a_smaller_batch_restarts_the_batch_mode_alone(rng):
    compression = ActivationCompression((0.5, 0.5, 6))
    compression.compress(smooth_input(rng, (16, 12, 24)))
    tokens = compression._factors[1].copy()
    kept = compression.compress(smooth_input(rng, (3, 12, 24)))
    assert kept.core.shape == (2, 6, 6) and kept.factors[0].shape == (3, 2)
    assert tokens.shape == kept.factors[1].shape
    assert compression.compress(smooth_input(rng, (1, 12, 24))).factors[0] is None


@pytest.mark.parametrize("method", ["asi", "wasi", "qwasi", "lora"])
def test_full_ranks_train_as_without_compression(rng, method):
    images, labels = rng.standard_normal((6, 3, 16, 16)).astype(np.float32), rng.integers(0, 5, 6)
    losses = []
    for ranks in (None, (1.0, 1.0, 1.0)):
        model = wasi.create_model("vit_micro_patch8_64", img_size=16, embed_dim=32, depth=2, num_heads=2, num_classes=5)
        base = {"asi": "dense", "wasi": "wsi"}.get(method, method) if ranks is None else method
        apply_method(model, base, MethodOptions(("all",), rank=8, activation_ranks=ranks), verbose=False)
        model.set_policy(ActivationPolicy())
        optimizer = Optimizer(model, clip_norm=1.0)
        run = []
        for _ in range(8):
            run.append(accumulate_gradient(model, images, labels).loss)
            optimizer.step(0.1)
        losses.append(run)
    assert relative_error(losses[1], losses[0]) < 1e-4


@pytest.mark.parametrize("kind", ["dense", "factored"])
def test_frozen_layers_pass_gradients_on_through_a_compressed_input(rng, kind):
    x, dy = (rng.standard_normal((6, 5, n)).astype(np.float32) for n in (24, 16))
    W = rng.standard_normal((16, 24)).astype(np.float32)
    U, s, Vt = wasi.linalg.truncated_svd(W, rank=4)
    layer = Linear(W) if kind == "dense" else FactoredLinear(U, s[:, None] * Vt)
    layer.compression = ActivationCompression((0.5, 0.5, 6))
    for _, p in layer.named_parameters():
        p.trainable = False
    layer.forward(x, train=True)
    assert relative_error(layer.backward(dy), dy @ (W if kind == "dense" else (U * s) @ Vt)) < 1e-5
    assert all(p.grad is None for _, p in layer.named_parameters())


def test_compression_lowers_what_a_step_keeps(rng):
    images = rng.standard_normal((16, 3, 32, 32)).astype(np.float32)
    saved = {}
    for method in ("wsi", "wasi"):
        model = wasi.create_model("vit_micro_patch8_64", img_size=32, num_classes=5)
        activation_ranks = (0.5, 0.5, 16) if method == "wasi" else None
        apply_method(model, method, MethodOptions(("all",), rank=16, activation_ranks=activation_ranks), verbose=False)
        model.forward(images, train=True)
        saved[method] = sum(m.saved_bytes for _, m in model.named_modules())
        model.backward(np.ones((16, 5), np.float32))
    assert saved["wasi"] < 0.75 * saved["wsi"]


def test_bad_ranks_are_refused():
    for bad in ((0.5, 0.5), (0, 0.5, 0.5), (0.5, 1.5, 8)):
        with pytest.raises(ValueError, match="activation_ranks: expected three shares"):
            ActivationCompression(bad)


@pytest.mark.parametrize("method", ["asi", "amc", "wasi"])
def test_batches_smaller_than_the_batch_rank_between_larger_ones(rng, method):
    """A last batch of 5 under a batch rank of 8 has the exact gradient where the other modes are whole, and training goes on."""
    batches = [(rng.standard_normal((n, 3, 16, 16)).astype(np.float32), rng.integers(0, 5, n)) for n in (12, 5, 12)]
    models = []
    for name in (method, "wsi" if method == "wasi" else "dense"):
        model = wasi.create_model("vit_micro_patch8_64", img_size=16, embed_dim=32, depth=2, num_heads=2, num_classes=5)
        models.append(apply_method(model, name, MethodOptions(("all",), rank=8, activation_ranks=(8, 1.0, 1.0) if name == method
                                                              else None), verbose=False))
        model.set_policy(ActivationPolicy())
    compressed, exact = models
    for images, labels in batches:
        for model in models:
            model.zero_grad()
        pairs = [(p, q) for (_, p), (_, q) in zip(compressed.named_parameters(), exact.named_parameters())]
        for p, q in pairs:
            q.data[:] = p.data
        losses = [accumulate_gradient(model, images, labels).loss for model in models]
        assert losses[0] == pytest.approx(losses[1], rel=1e-6)
        errors = [relative_error(p.grad, q.grad) for p, q in pairs]
        assert max(errors) < 1e-4 if len(images) == 5 else 1e-2 < max(errors) < 1
        Optimizer(compressed, clip_norm=1.0).step(0.1)
