import numpy as np
import pytest
from small_models import VIT
from tables import relative_error

import wasi
from wasi.models import load_weights, save_model
from wasi.training.optimizer import Optimizer
from wasi.training.step import accumulate_gradient, evaluate


def test_no_dense_weight_sized_array_in_a_factored_step(rng):
    """The largest block that the step asks for is an activation, far smaller than O x I."""
    model = wasi.create_model("vit_micro_patch8_64", img_size=16, embed_dim=512, depth=1, num_heads=8, num_classes=4)
    wasi.factorize(model, rank=8, target_modules=("all",), verbose=False)
    optimizer = Optimizer(model, "sgd")
    images, labels = rng.standard_normal((2, 3, 16, 16)).astype(np.float32), np.array([0, 3])
    arena = wasi.Arena()
    with arena:
        accumulate_gradient(model, images, labels)
        optimizer.step(0.1)
    assert arena.stats()["largest_bytes"] < 4 * 512 * 512 / 2  # the smallest O x I of the targets, halved


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


def test_evaluate_counts_samples_not_batches(rng):
    model = VIT.model()
    images, labels = VIT.batch(rng, 5)
    whole = evaluate(model, [(images, labels)])
    parts = evaluate(model, [(images[:4], labels[:4]), (images[4:], labels[4:])])
    assert parts.loss == pytest.approx(whole.loss, rel=1e-6)
    assert (parts.n_correct, parts.n) == (whole.n_correct, 5)


def test_bad_input_is_refused_by_name(rng, tmp_path, shared_data):
    with pytest.raises(ValueError, match="name: expected one of .*vit_tiny_patch16_224.*got 'vit_huge'"):
        wasi.create_model("vit_huge")
    with pytest.raises(ValueError, match="img_size: expected a multiple of the patch size 16, got 100"):
        wasi.create_model("vit_tiny_patch16_224", img_size=100)
    model = VIT.model()
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
    model = VIT.model()
    good = tmp_path / "good.safetensors"
    save_model(model, good)
    before = {n: p.data.copy() for n, p in model.named_parameters()}
    with pytest.raises(FileNotFoundError, match="weights: expected a safetensors file"):
        load_weights(model, tmp_path / "none.safetensors")
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(good.read_bytes()[:-100])
    with pytest.raises(ValueError, match="cut.safetensors is truncated or not one"):
        load_weights(model, cut)
    other = wasi.create_model("vit_micro_patch8_64", **{**VIT.sizes, "embed_dim": 12, "depth": 3})
    with pytest.raises(ValueError, match=r"blocks.0.norm1.weight: expected shape \(12,\), got \(24,\)(.|\n)*"
                                         r"blocks.2.norm1.weight: missing"):
        load_weights(other, good)
    model.head.weight.data[0, 0] = np.nan
    poisoned = tmp_path / "nan.safetensors"
    save_model(model, poisoned)
    with pytest.raises(ValueError, match="tensor 'head.weight' of nan.safetensors holds NaN or Inf"):
        load_weights(VIT.model(), poisoned)
    model.head.weight.data[0, 0] = before["head.weight"][0, 0]
    for n, p in model.named_parameters():
        assert np.array_equal(p.data, before[n])


def test_torchvision_names(rng, tmp_path):
    from safetensors.numpy import save_file

    model = VIT.model()
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
    again = wasi.create_model("vit_micro_patch8_64", weights=tmp_path / "tv.safetensors", **VIT.sizes)
    images, _ = VIT.batch(rng)
    assert np.array_equal(model.forward(images), again.forward(images))
