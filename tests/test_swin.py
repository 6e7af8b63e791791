"""The Swin transformer: against a float64 NumPy twin, finite differences and PyTorch."""

import numpy as np
import pytest
from small_models import SWIN, assert_same_loss_curve, gradients_of
from tables import relative_error

import wasi
from wasi.layers import ActivationCompression, FactoredLinear, WindowAttention
from wasi.layers.compression import Compressed
from wasi.models import load_weights, save_model
from wasi.models.factorize import input_covariances
from wasi.reference.swin import relative_bias
from wasi.training.step import accumulate_gradient

NAME, SMALL = SWIN.name, SWIN.sizes


def torch_twin(torch, model):
    import torch_swin

    c = model.config
    twin = torch_swin.Swin(c.embed_dim, c.depths, c.num_heads, c.patch_size, c.window_size, c.img_size, c.num_classes)
    state = {n: torch.from_numpy(p.data.reshape(theirs.shape)) for (n, p), theirs in
             zip(model.named_parameters(), (dict(twin.named_parameters())[n] for n, _ in model.named_parameters()))}
    twin.load_state_dict(state)
    return twin


@pytest.mark.parametrize("name, changes", [("swin_tiny_patch4_window7_224", {}), (NAME, SMALL)])
def test_logits_and_gradients_equal_pytorch(rng, torch, name, changes):
    model = SWIN.model() if changes else wasi.create_model(name, num_classes=5)
    S = model.config.img_size
    images, labels = rng.standard_normal((1, 3, S, S)).astype(np.float32), np.array([3])
    twin = torch_twin(torch, model)
    logits = twin(torch.from_numpy(images))
    torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels)).backward()
    assert relative_error(model.forward(images), logits.detach().numpy()) < 1e-4
    accumulate_gradient(model, images, labels)
    want = {n: p.grad.numpy() for n, p in twin.named_parameters()}
    assert set(want) == set(gradients_of(model))
    for n, g in gradients_of(model).items():
        assert relative_error(g, want[n].reshape(g.shape)) < 1e-4, n


def test_the_loss_curve_is_pytorchs(rng, torch):
    """Over 30 steps of SGD; of Swin-T in benchmarks/results/swin_curves.md."""
    model = wasi.create_model(NAME, **SMALL)
    twin = torch_twin(torch, model)
    assert_same_loss_curve(torch, rng, model, twin, n_steps=30, batch_size=8, lr=0.1, rel=1e-4)


def test_the_bias_table_is_read_as_published(rng):
    """timm's and torchvision's index: rows of the table by the distance of query and key."""
    model = SWIN.model()
    for _, layer in model.named_modules():
        if isinstance(layer, WindowAttention):
            assert np.array_equal(layer._bias(), relative_bias(layer.relative_position_bias_table.data, layer.window))


def test_windows_shrink_and_stop_moving_where_they_hold_the_grid():
    found = [(b.attn.window, b.attn.shift) for b in SWIN.model().blocks]
    assert found == [(4, 0), (4, 2), (4, 0), (2, 0), (2, 0)]
    tiny = wasi.create_model("swin_tiny_patch4_window7_224", seed=None)
    assert [b.attn.shift for b in tiny.blocks] == [0, 3, 0, 3, 0, 3, 0, 3, 0, 3, 0, 0]
    assert sum(p.data.size for _, p in tiny.named_parameters()) == 28_288_354  # as published


def test_inputs_are_compressed_with_four_modes(rng):
    """Every target's input is B x H x W x C, and is kept as a core with a factor for each mode; full ranks are exact."""
    images, labels = SWIN.batch(rng, 4)
    model, exact, whole = (SWIN.model(True) for _ in range(3))
    for net, ranks in ((model, (0.5, 0.5, 6)), (whole, (1.0, 1.0, 1.0))):
        for name in [n for n, m in net.named_modules() if isinstance(m, FactoredLinear)]:
            net.get_module(name).compression = ActivationCompression(ranks)
    model.forward(images, train=True)
    for name, layer in model.named_modules():
        if isinstance(layer, FactoredLinear):
            kept = layer._saved[0]
            assert isinstance(kept, Compressed) and kept.core.ndim == 4 and len(kept.factors) == 4, name
            grid = 8 >> int(name.split(".")[1])
            assert kept.core.shape[:3] == (2, grid // 2, grid // 2), name
    for net in (exact, whole):
        accumulate_gradient(net, images, labels)
    for name, g in gradients_of(exact).items():
        assert relative_error(gradients_of(whole)[name], g) < 1e-4, name


def test_whitened_start_on_four_dimensional_inputs(rng):
    """Truncation loses less of each layer's output on the calibration images, plain SVD less of the weight."""
    images = rng.standard_normal((8, 3, 16, 16)).astype(np.float32)
    name, lost = "layers.0.blocks.0.mlp.fc1", {}
    for start, whiten in (("svd", None), ("whitened", [images])):
        model = SWIN.model()
        W, C = model.get_module(name).weight.data, input_covariances(model, [name], [images])[name]
        wasi.factorize(model, rank=4, target_modules=(name,), whiten=whiten, verbose=False)
        off = W - model.get_module(name).merged_weight()
        lost[start] = (np.einsum("oi,ij,oj", off, C, off), np.linalg.norm(off))
    assert lost["whitened"][0] < lost["svd"][0] and lost["whitened"][1] > lost["svd"][1]


def test_published_flops():
    tiny = wasi.create_model("swin_tiny_patch4_window7_224", seed=None)
    assert tiny.training_flops(1).forward / 2 == pytest.approx(4.5e9, rel=0.01)  # the paper's FLOPs are multiplications


def test_the_faster_form_is_chosen_for_inference_at_the_rows_of_most_tiles(rng):
    model = SWIN.model(True, img_size=16)
    images, _ = SWIN.batch(rng, 10)  # 640 tokens in the first stage: MLPs walk them 512 at a time
    logits = model.forward(images)
    wasi.optimize_for_inference(model, images, rounds=1, verbose=False)
    assert relative_error(model.forward(images), logits) < 1e-5
    rows = {name: c.rows for c in model.inference_choices for name in c.layers}
    assert rows["layers.0.blocks.0.mlp.fc1"] == 512 and rows["layers.0.blocks.0.attn.qkv"] == 640


def torchvision_name(name):
    """The name of a tensor in torchvision's Swin transformers."""
    parts = name.split(".")
    if parts[0] == "patch_embed":
        return f"features.0.{0 if parts[1] == 'proj' else 2}.{parts[2]}"
    if parts[0] == "layers":
        s = int(parts[1])
        if parts[2] == "downsample":
            return f"features.{2 * s}.{'.'.join(parts[3:])}"
        return f"features.{2 * s + 1}.{'.'.join(parts[3:])}".replace("fc1", "0").replace("fc2", "3")
    return name.replace("head.fc", "head")


def authors_name(name):
    """The name in the files of the paper's authors and of timm before 0.9."""
    parts = name.split(".")
    if "downsample" in parts:
        parts[1] = str(int(parts[1]) - 1)
    return ".".join(parts).replace("head.fc", "head")


@pytest.mark.parametrize("rename", [str, torchvision_name, authors_name])
def test_published_names(rng, tmp_path, rename):
    from safetensors.numpy import save_file

    model = SWIN.model()
    tensors = {rename(n): p.data.reshape(-1, 3, 2, 2) if n == "patch_embed.proj.weight" else p.data
               for n, p in model.named_parameters()}
    tensors[rename("layers.0.blocks.1.attn.relative_position_index")] = np.zeros((16, 16), np.int64)
    save_file(tensors, tmp_path / "w.safetensors")
    again = wasi.create_model(NAME, **SMALL)
    report = load_weights(again, tmp_path / "w.safetensors")
    assert report.unused == [] and len(report.loaded) == len(tensors) - 1
    images, _ = SWIN.batch(rng)
    assert np.array_equal(model.forward(images), again.forward(images))


def test_tables_of_another_window_are_resized_and_a_new_head_stays(rng, tmp_path):
    model = SWIN.model()
    save_model(model, tmp_path / "m.safetensors")
    other = wasi.create_model(NAME, **{**SMALL, "window_size": 2, "num_classes": 7})
    report = load_weights(other, tmp_path / "m.safetensors")
    assert sorted(report.replaced) == ["head.fc.bias", "head.fc.weight"]
    assert report.resized == [f"layers.{s}.blocks.{i}.attn.relative_position_bias_table" for s, i in ((0, 0), (0, 1), (1, 0))]
    old, new = (m.blocks[0].attn.relative_position_bias_table.data for m in (model, other))
    assert new.shape == (9, 2) and np.allclose(new[4], old[24], atol=0.5)  # the centre stays near
    assert other.forward(SWIN.batch(rng)[0]).shape == (3, 7)


def test_the_cli_plans_one(tmp_path, capsys):
    from wasi.cli import main

    plan = ["--batch-size", "8", "--budget", "8MiB", "--limit", "32", "--ranks", "4,8", "--out", str(tmp_path / "plan.json")]
    assert main(["plan", "--model", NAME, "--method", "qwasi", *plan]) == 0
    assert "layers.1.blocks.0.mlp.fc2" in capsys.readouterr().out


def test_bad_sizes_are_refused_by_name(rng):
    create = wasi.create_model
    with pytest.raises(ValueError, match="img_size: expected a multiple of the patch size 4, got 226"):
        create("swin_tiny_patch4_window7_224", img_size=226)
    with pytest.raises(ValueError, match=r"img_size: windows of 7 do not divide the 64 x 64 tokens of stage 1 at 256 pixels; "
                                         "multiples of 224 fit, or another window_size"):
        create("swin_tiny_patch4_window7_224", img_size=256)
    with pytest.raises(ValueError, match=r"img_size: the 7 x 7 tokens of stage 3 cannot be merged 2 by 2 at 112 pixels"):
        create("swin_tiny_patch4_window7_224", img_size=112)
    assert create("swin_tiny_patch4_window7_224", img_size=256, window_size=8, seed=None).config.window_of(3) == 8
    for size in ("patch_size", "embed_dim", "window_size", "num_classes"):
        with pytest.raises(ValueError, match=f"{size}: expected at least 1, got 0"):
            create(NAME, **{size: 0})
    with pytest.raises(ValueError, match="mlp_ratio: expected one that gives the MLP a width, got 0.01"):
        create(NAME, mlp_ratio=0.01)
    with pytest.raises(ValueError, match="num_heads: expected divisors of the stages' channels, got 5 for 64"):
        create(NAME, num_heads=(2, 5))
    with pytest.raises(ValueError, match="depths, num_heads: expected at least one block and its heads for each stage"):
        create(NAME, depths=(2, 2, 2))
    with pytest.raises(ValueError, match=r"images: expected an array of shape \(B, 3, 16, 16\), got shape \(1, 3, 32, 32\)"):
        SWIN.model().forward(np.zeros((1, 3, 32, 32), np.float32))
