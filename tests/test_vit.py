import numpy as np
import pytest
from gradcheck import directional_check
from tables import relative_error

import wasi
from wasi.layers import ActivationPolicy
from wasi.models import load_model, load_weights, save_model
from wasi.reference.vit import vit_logits, vit_loss
from wasi.training.step import accumulate_gradient, evaluate

SMALL = {"img_size": 16, "embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": 5}


def small_model(rng, factored):
    model = wasi.create_model("vit_micro_patch8_64", **SMALL)
    for _, p in model.named_parameters():  # away from the zeros and ones of a fresh model, so that every path matters
        p.data += (0.3 * rng.standard_normal(p.data.shape)).astype(np.float32)
    if factored:
        wasi.factorize(model, variance=0.8, target_modules=("all",), verbose=False)
    return model


def small_batch(rng, n=3):
    return rng.standard_normal((n, 3, 16, 16)).astype(np.float32), rng.integers(0, 5, n)


def shape_of(config):
    return {"patch": config.patch_size, "depth": config.depth, "n_heads": config.num_heads}


@pytest.mark.parametrize("factored", [False, True])
def test_every_gradient_against_float64_finite_differences(rng, n_threads, factored):
    model = small_model(rng, factored)
    images, labels = small_batch(rng)
    result = accumulate_gradient(model, images, labels, label_smoothing=0.1)
    names = [n for n, _ in model.named_parameters()]
    arrays = [p.data.astype(np.float64) for _, p in model.named_parameters()]
    gradients = [p.grad for _, p in model.named_parameters()]
    assert all(g is not None for g in gradients)

    def loss(values):
        return vit_loss(dict(zip(names, values)), images.astype(np.float64), labels, 0.1, **shape_of(model.config))

    assert result.loss == pytest.approx(loss(arrays), rel=1e-6)
    for i, name in enumerate(names):
        only = [g if j == i else None for j, g in enumerate(gradients)]
        assert directional_check(loss, arrays, only, rng, n_directions=2) < 1e-4, name


def test_micro_batches_give_the_same_gradient(rng):
    model = small_model(rng, True)
    images, labels = small_batch(rng, 7)
    accumulate_gradient(model, images, labels)
    whole = {n: p.grad.copy() for n, p in model.named_parameters()}
    model.zero_grad()
    accumulate_gradient(model, images, labels, micro_batch=3)
    for name, p in model.named_parameters():
        assert relative_error(p.grad, whole[name]) < 2e-5, name


def test_recomputed_blocks_give_the_same_gradient_from_less(rng):
    images, labels = small_batch(rng, 7)
    gradients, peaks = [], []
    for recompute in (False, True):
        model = small_model(np.random.default_rng(1), True)
        model.set_policy(ActivationPolicy(recompute=recompute))
        for _, p in model.named_parameters():
            p.grad_buffer()
        arena = wasi.Arena()
        with arena:
            accumulate_gradient(model, images, labels)
        gradients.append([p.grad for _, p in model.named_parameters()])
        peaks.append(arena.stats()["peak_bytes"])
    for a, b in zip(*gradients):
        assert np.array_equal(a, b) or relative_error(a, b) < 1e-6
    assert peaks[1] < 0.8 * peaks[0]


def test_same_bits_for_the_same_thread_count(rng, n_threads):
    images, labels = small_batch(rng)
    runs = []
    for _ in range(2):
        model = small_model(np.random.default_rng(1), True)
        accumulate_gradient(model, images, labels)
        runs.append({n: p.grad for n, p in model.named_parameters()})
    for name in runs[0]:
        assert np.array_equal(runs[0][name], runs[1][name]), name


def test_nothing_is_kept_after_backward_or_inference(rng):
    model = small_model(rng, True)
    images, labels = small_batch(rng)
    model.forward(images)
    assert sum(m.saved_bytes for _, m in model.named_modules()) == 0
    model.forward(images, train=True)
    assert sum(m.saved_bytes for _, m in model.named_modules()) > 0
    model.backward(np.ones((3, 5), np.float32))
    assert sum(m.saved_bytes for _, m in model.named_modules()) == 0
    with pytest.raises(RuntimeError, match="nothing was kept"):
        model.backward(np.ones((3, 5), np.float32))


def test_no_dense_weight_sized_array_in_a_factored_step(rng):
    """The largest block that the step asks for is an activation, far smaller than O x I."""
    model = wasi.create_model("vit_micro_patch8_64", img_size=16, embed_dim=1024, depth=1, num_heads=16, num_classes=4)
    wasi.factorize(model, rank=8, target_modules=("all",), verbose=False)
    from wasi.training.optimizer import Optimizer

    optimizer = Optimizer(model, "sgd")
    images, labels = rng.standard_normal((2, 3, 16, 16)).astype(np.float32), np.array([0, 3])
    arena = wasi.Arena()
    with arena:
        accumulate_gradient(model, images, labels)
        optimizer.step(0.1)
    assert arena.stats()["largest_bytes"] < 4 * 1024 * 1024 / 2  # the smallest O x I of the targets, halved


@pytest.mark.parametrize("factored", [False, True])
def test_save_and_load_give_the_same_logits(rng, tmp_path, factored):
    model = small_model(rng, factored)
    images, _ = small_batch(rng)
    save_model(model, tmp_path / "m.safetensors", {"classes": ["a", "b"]})
    again, extra = load_model(tmp_path / "m.safetensors")
    assert extra == {"classes": ["a", "b"]}
    assert np.array_equal(model.forward(images), again.forward(images))
    assert [p.name for p in tmp_path.iterdir()] == ["m.safetensors"]


def torch_vit(path, img_size=None):
    from torch_models import create_model, load_weights

    return load_weights(create_model("vit_tiny_patch16_224", img_size), path)


def test_pretrained_logits_equal_pytorch(rng, shared_data, torch):
    path = shared_data("vit_tiny_patch16_224.safetensors")
    images = rng.standard_normal((2, 3, 224, 224)).astype(np.float32)
    with torch.no_grad():
        want = torch_vit(path)(torch.from_numpy(images)).numpy()
    got = wasi.create_model("vit_tiny_patch16_224", weights=path).forward(images)
    assert relative_error(got, want) < 1e-4


def test_pretrained_gradients_equal_autograd(rng, shared_data, torch):
    path = shared_data("vit_tiny_patch16_224.safetensors")
    images = rng.standard_normal((2, 3, 224, 224)).astype(np.float32)
    labels = np.array([3, 700])
    theirs = torch_vit(path)
    torch.nn.functional.cross_entropy(theirs(torch.from_numpy(images)), torch.from_numpy(labels)).backward()
    ours = wasi.create_model("vit_tiny_patch16_224", weights=path)
    accumulate_gradient(ours, images, labels)
    want = {n: p.grad.numpy() for n, p in theirs.named_parameters()}
    for name, p in ours.named_parameters():
        assert relative_error(p.grad, want[name].reshape(p.grad.shape)) < 1e-4, name


def test_positions_are_resized_as_pytorch_does(shared_data, torch):
    path = shared_data("vit_tiny_patch16_224.safetensors")
    for size in (112, 288):
        ours = wasi.create_model("vit_tiny_patch16_224", img_size=size, weights=path)
        theirs = torch_vit(path, img_size=size)
        assert relative_error(ours.pos_embed.data, theirs.pos_embed.detach().numpy()) < 1e-5


def test_logits_match_the_numpy_twin_in_every_instruction_set(rng, isa):
    model = small_model(rng, True)
    images, _ = small_batch(rng)
    p = {n: q.data.astype(np.float64) for n, q in model.named_parameters()}
    assert relative_error(model.forward(images), vit_logits(p, images.astype(float), **shape_of(model.config))) < 1e-5


def test_evaluate_counts_samples_not_batches(rng):
    model = small_model(rng, False)
    images, labels = small_batch(rng, 5)
    whole = evaluate(model, [(images, labels)])
    parts = evaluate(model, [(images[:4], labels[:4]), (images[4:], labels[4:])])
    assert parts.loss == pytest.approx(whole.loss, rel=1e-6)
    assert (parts.n_correct, parts.n) == (whole.n_correct, 5)


def test_bad_input_is_refused_by_name(rng, tmp_path, shared_data):
    with pytest.raises(ValueError, match="name: expected one of .*vit_tiny_patch16_224.*got 'vit_huge'"):
        wasi.create_model("vit_huge")
    with pytest.raises(ValueError, match="img_size: expected a multiple of the patch size 16, got 100"):
        wasi.create_model("vit_tiny_patch16_224", img_size=100)
    model = small_model(rng, False)
    with pytest.raises(ValueError, match=r"images: expected an array of shape \(B, 3, 16, 16\), got shape \(2, 3, 8, 8\)"):
        model.forward(np.zeros((2, 3, 8, 8), np.float32))
    with pytest.raises(FloatingPointError, match="loss is not finite"):
        accumulate_gradient(model, np.full((1, 3, 16, 16), np.nan, np.float32), np.array([0]))
    with pytest.raises(ValueError, match=r"target_modules: \['mpl'\] match none"):
        wasi.factorize(model, target_modules=("mpl",))
    with pytest.raises(ValueError, match=r"variance: expected a share in \(0, 1\], got 90"):
        wasi.factorize(model, variance=90)
    with pytest.raises(ValueError, match="rank: expected 1 to 24 for blocks.0.mlp.fc1"):
        wasi.factorize(model, rank=25)


def test_bad_weight_files_are_refused_by_name(rng, tmp_path):
    model = small_model(rng, False)
    good = tmp_path / "good.safetensors"
    save_model(model, good)
    before = {n: p.data.copy() for n, p in model.named_parameters()}
    with pytest.raises(FileNotFoundError, match="weights: expected a safetensors file"):
        load_weights(model, tmp_path / "none.safetensors")
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(good.read_bytes()[:-100])
    with pytest.raises(ValueError, match="cut.safetensors is truncated or not one"):
        load_weights(model, cut)
    other = wasi.create_model("vit_micro_patch8_64", **{**SMALL, "embed_dim": 12, "depth": 3})
    with pytest.raises(ValueError, match=r"blocks.0.norm1.weight: expected shape \(12,\), got \(24,\)(.|\n)*"
                                         r"blocks.2.norm1.weight: missing"):
        load_weights(other, good)
    model.head.weight.data[0, 0] = np.nan
    poisoned = tmp_path / "nan.safetensors"
    save_model(model, poisoned)
    with pytest.raises(ValueError, match="tensor 'head.weight' of nan.safetensors holds NaN or Inf"):
        load_weights(small_model(rng, False), poisoned)
    model.head.weight.data[0, 0] = before["head.weight"][0, 0]
    for n, p in model.named_parameters():
        assert np.array_equal(p.data, before[n])


def test_torchvision_names(rng, tmp_path):
    from safetensors.numpy import save_file

    model = small_model(rng, False)
    renamed = {}
    for name, p in model.named_parameters():
        parts = name.split(".")
        if parts[0] == "blocks":
            tail = ".".join(parts[2:])
            tail = {"attn.qkv.weight": "self_attention.in_proj_weight", "attn.qkv.bias": "self_attention.in_proj_bias"}.get(
                tail, tail.replace("attn.proj", "self_attention.out_proj").replace("norm", "ln_")
                .replace("fc1", "0").replace("fc2", "3"))
            theirs = f"encoder.layers.encoder_layer_{parts[1]}.{tail}"
        else:
            theirs = {"cls_token": "class_token", "pos_embed": "encoder.pos_embedding"}.get(
                name, name.replace("patch_embed.proj", "conv_proj").replace("head", "heads.head"))
            theirs = f"encoder.ln.{parts[1]}" if parts[0] == "norm" else theirs
        renamed[theirs] = p.data.reshape(-1, 3, 8, 8) if theirs == "conv_proj.weight" else p.data
    save_file(renamed, tmp_path / "tv.safetensors")
    again = wasi.create_model("vit_micro_patch8_64", weights=tmp_path / "tv.safetensors", **SMALL)
    images, _ = small_batch(rng)
    assert np.array_equal(model.forward(images), again.forward(images))
