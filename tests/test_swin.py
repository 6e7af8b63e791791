"""The Swin transformer: against a float64 NumPy twin, finite differences and PyTorch."""

import numpy as np
import pytest
from gradcheck import directional_check
from tables import relative_error

import wasi
from wasi.layers import ActivationCompression, ActivationPolicy, FactoredLinear, WindowAttention
from wasi.layers.compression import Compressed
from wasi.models import load_model, load_weights, save_model
from wasi.models.factorize import input_covariances
from wasi.models.methods import METHODS, MethodOptions, apply_method
from wasi.profiling import Profile
from wasi.reference.swin import relative_bias, swin_logits, swin_loss
from wasi.training.optimizer import Optimizer
from wasi.training.step import accumulate_gradient, evaluate

# Grids of 8, 4, 2 and windows of 4: shifted ones, one window for all, a window that shrinks to the grid.
SMALL = {"img_size": 16, "embed_dim": 12, "depths": (2, 1, 2), "num_heads": (2, 3, 4), "num_classes": 5}
NAME = "swin_micro_patch2_window4_32"


def small_model(factored=False, **changes):
    model = wasi.create_model(NAME, **{**SMALL, **changes})
    rng = np.random.default_rng(1)
    for _, p in model.named_parameters():  # away from the zeros and ones of a fresh model, so that every path matters
        p.data += (0.3 * rng.standard_normal(p.data.shape)).astype(np.float32)
    if factored:
        wasi.factorize(model, variance=0.8, target_modules=("all", "reduction"), verbose=False)
    return model


def small_batch(rng, n=3):
    return rng.standard_normal((n, 3, 16, 16)).astype(np.float32), rng.integers(0, 5, n)


def shape_of(c):
    return {"patch": c.patch_size, "depths": c.depths, "n_heads": c.num_heads, "window": c.window_size}


def wide(model):
    return {n: p.data.astype(np.float64) for n, p in model.named_parameters()}


def gradients_of(model):
    return {n: p.grad for n, p in model.named_parameters()}


@pytest.mark.parametrize("factored", [False, True])
@pytest.mark.parametrize("recompute", [False, True])
def test_every_gradient_against_float64_finite_differences(rng, n_threads, factored, recompute):
    model = small_model(factored)
    model.set_policy(ActivationPolicy(recompute=recompute))
    images, labels = small_batch(rng)
    result = accumulate_gradient(model, images, labels, label_smoothing=0.1)
    gradients, arrays = gradients_of(model), wide(model)
    assert all(g is not None for g in gradients.values())

    def loss(values):
        p = dict(zip(arrays, values))
        return swin_loss(p, images.astype(np.float64), labels, 0.1, **shape_of(model.config))

    assert result.loss == pytest.approx(loss(arrays.values()), rel=1e-6)
    for name in arrays:
        only = [g if n == name else None for n, g in gradients.items()]
        assert directional_check(loss, list(arrays.values()), only, rng, n_directions=1) < 1e-4, name


def test_logits_match_the_numpy_twin_in_every_instruction_set(rng, isa):
    model = small_model(True)
    images, _ = small_batch(rng)
    assert relative_error(model.forward(images), swin_logits(wide(model), images.astype(float), **shape_of(model.config))) < 1e-5


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
    model = small_model() if changes else wasi.create_model(name, num_classes=5)
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


def test_the_bias_table_is_read_as_published(rng):
    """timm's and torchvision's index: rows of the table by the distance of query and key."""
    model = small_model()
    for _, layer in model.named_modules():
        if isinstance(layer, WindowAttention):
            assert np.array_equal(layer._bias(), relative_bias(layer.relative_position_bias_table.data, layer.window))


def test_windows_shrink_and_stop_moving_where_they_hold_the_grid():
    found = [(b.attn.window, b.attn.shift) for b in small_model().blocks]
    assert found == [(4, 0), (4, 2), (4, 0), (2, 0), (2, 0)]
    tiny = wasi.create_model("swin_tiny_patch4_window7_224", seed=None)
    assert [b.attn.shift for b in tiny.blocks] == [0, 3, 0, 3, 0, 3, 0, 3, 0, 3, 0, 0]
    assert sum(p.data.size for _, p in tiny.named_parameters()) == 28_288_354  # as published


def test_micro_batches_and_layerwise_updates_give_the_same_step(rng):
    images, labels = small_batch(rng, 5)
    found = []
    for micro, layerwise in ((None, False), (2, False), (None, True)):
        model = small_model(True)
        optimizer = Optimizer(model, layerwise=layerwise)
        accumulate_gradient(model, images, labels, micro, after=optimizer.after_backward(0.1))
        optimizer.step(0.1)
        found.append(model.forward(images))
    assert relative_error(found[1], found[0]) < 1e-4 and relative_error(found[2], found[0]) < 1e-5


def test_same_bits_for_the_same_thread_count_and_nothing_is_kept(rng, n_threads):
    images, labels = small_batch(rng)
    runs = []
    for _ in range(2):
        model = small_model(True)
        accumulate_gradient(model, images, labels)
        assert model.total_saved_bytes == 0
        runs.append(gradients_of(model))
    assert all(np.array_equal(runs[0][n], runs[1][n]) for n in runs[0])
    evaluate(model, [(images, labels)])
    assert model.total_saved_bytes == 0
    with pytest.raises(RuntimeError, match="nothing was kept"):
        model.backward(np.ones((3, 5), np.float32))


@pytest.mark.parametrize("method", METHODS)
def test_every_method_learns_a_batch(rng, method):
    model = wasi.create_model(NAME, **SMALL)
    images, labels = small_batch(rng, 6)
    calibration = [(images, labels)]
    apply_method(model, method, MethodOptions(("all",), rank=4, lora_rank=2), calibration, verbose=False)
    optimizer = Optimizer(model, "adamw")
    losses = []
    for _ in range(12):
        losses.append(accumulate_gradient(model, images, labels).loss)
        optimizer.step(5e-3)
    assert losses[-1] < 0.9 * losses[0]


def test_inputs_are_compressed_with_four_modes(rng):
    """Every target's input is B x H x W x C, and is kept as a core with a factor for each mode; full ranks are exact."""
    images, labels = small_batch(rng, 4)
    model, exact, whole = (small_model(True) for _ in range(3))
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
        model = small_model()
        W, C = model.get_module(name).weight.data, input_covariances(model, [name], [images])[name]
        wasi.factorize(model, rank=4, target_modules=(name,), whiten=whiten, verbose=False)
        off = W - model.get_module(name).merged_weight()
        lost[start] = (np.einsum("oi,ij,oj", off, C, off), np.linalg.norm(off))
    assert lost["whitened"][0] < lost["svd"][0] and lost["whitened"][1] > lost["svd"][1]


def test_flops_are_those_of_the_kernels(rng):
    for factored in (False, True):
        model = small_model(factored)
        images, labels = small_batch(rng, 2)
        with Profile() as profile:
            accumulate_gradient(model, images, labels)
        flops = model.training_flops(2)
        assert sum(k.flops for k in profile.kernels) == pytest.approx(flops.forward + flops.backward, rel=0.02)
    tiny = wasi.create_model("swin_tiny_patch4_window7_224", seed=None)
    assert tiny.training_flops(1).forward / 2 == pytest.approx(4.5e9, rel=0.01)  # the paper's FLOPs are multiplications


def test_recomputed_blocks_need_less(rng):
    images, labels = small_batch(rng, 8)
    peaks = []
    for recompute in (False, True):
        model = small_model(depths=(4, 2, 2))
        model.set_policy(ActivationPolicy(recompute=recompute))
        for _, p in model.named_parameters():
            p.grad_buffer()
        arena = wasi.Arena()
        with arena:
            accumulate_gradient(model, images, labels)
        peaks.append(arena.stats()["peak_bytes"])
    assert peaks[1] < 0.6 * peaks[0]


@pytest.mark.parametrize("bits, near", [(16, 1e-2), (8, 5e-2)])
def test_blocks_keep_images_of_tokens_in_few_bits(rng, bits, near):
    images, labels = small_batch(rng)
    found, kept = [], []
    for saved_bits in (None, bits):
        model = wasi.create_model(NAME, **SMALL)
        model.set_policy(ActivationPolicy(saved_bits=saved_bits))
        kept.append(accumulate_gradient(model, images, labels).saved_bytes)
        found.append(np.concatenate([g.ravel() for g in gradients_of(model).values()]))
    assert 0 < relative_error(found[1], found[0]) < near and kept[1] < 0.7 * kept[0]


def test_a_plan_keeps_its_budget(rng):
    images, labels = rng.integers(0, 256, (8, 3, 16, 16), np.uint8), rng.integers(0, 5, 8)
    model = wasi.create_model(NAME, **SMALL)
    plan = wasi.plan(model, [(images, labels)], "2MiB", method="qwasi", batch_size=8, target_modules=("all",))
    plan.apply(model, [(images, labels)])
    arena = wasi.Arena()
    with arena:
        accumulate_gradient(model, images, labels, plan.micro_batch)
    assert arena.stats()["peak_bytes"] < plan.peak_bytes <= 2 * 2**20


def test_the_faster_form_is_chosen_for_inference_at_the_rows_of_most_tiles(rng):
    model = small_model(True, img_size=16)
    images, _ = small_batch(rng, 10)  # 640 tokens in the first stage: MLPs walk them 512 at a time
    logits = model.forward(images)
    wasi.optimize_for_inference(model, images, rounds=1, verbose=False)
    assert relative_error(model.forward(images), logits) < 1e-5
    rows = {name: c.rows for c in model.inference_choices for name in c.layers}
    assert rows["layers.0.blocks.0.mlp.fc1"] == 512 and rows["layers.0.blocks.0.attn.qkv"] == 640


@pytest.mark.parametrize("factored", [False, True])
def test_save_and_load_give_the_same_logits(rng, tmp_path, factored):
    model = small_model(factored)
    images, _ = small_batch(rng)
    save_model(model, tmp_path / "m.safetensors", {"classes": ["a"]})
    again, extra = load_model(tmp_path / "m.safetensors")
    assert extra == {"classes": ["a"]} and again.config == model.config
    assert np.array_equal(model.forward(images), again.forward(images))


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

    model = small_model()
    tensors = {rename(n): p.data.reshape(-1, 3, 2, 2) if n == "patch_embed.proj.weight" else p.data
               for n, p in model.named_parameters()}
    tensors[rename("layers.0.blocks.1.attn.relative_position_index")] = np.zeros((16, 16), np.int64)
    save_file(tensors, tmp_path / "w.safetensors")
    again = wasi.create_model(NAME, **SMALL)
    report = load_weights(again, tmp_path / "w.safetensors")
    assert report.unused == [] and len(report.loaded) == len(tensors) - 1
    images, _ = small_batch(rng)
    assert np.array_equal(model.forward(images), again.forward(images))


def test_tables_of_another_window_are_resized_and_a_new_head_stays(rng, tmp_path):
    model = small_model()
    save_model(model, tmp_path / "m.safetensors")
    other = wasi.create_model(NAME, **{**SMALL, "window_size": 2, "num_classes": 7})
    report = load_weights(other, tmp_path / "m.safetensors")
    assert sorted(report.replaced) == ["head.fc.bias", "head.fc.weight"]
    assert report.resized == [f"layers.{s}.blocks.{i}.attn.relative_position_bias_table" for s, i in ((0, 0), (0, 1), (1, 0))]
    old, new = (m.blocks[0].attn.relative_position_bias_table.data for m in (model, other))
    assert new.shape == (9, 2) and np.allclose(new[4], old[24], atol=0.5)  # the centre stays near
    assert other.forward(small_batch(rng)[0]).shape == (3, 7)


def test_the_cli_trains_profiles_and_plans_one(tmp_path, capsys):
    from wasi.cli import main

    words = ["--model", NAME, "--method", "wasi", "--targets", "all", "--rank", "8", "--epochs", "1", "--limit", "64"]
    assert main(["train", *words, "--limit-val", "32", "--quiet", "--out", str(tmp_path / "run")]) == 0
    assert "| wasi |" in capsys.readouterr().out
    assert main(["profile", "--model", NAME, "--method", "qwasi", "--batch-size", "2", "--steps", "1"]) == 0
    assert "window_attention_backward" in capsys.readouterr().out
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
    with pytest.raises(ValueError, match="window_size: expected at least 1, got 0"):
        create(NAME, window_size=0)
    with pytest.raises(ValueError, match="num_heads: expected divisors of the stages' channels, got 5 for 64"):
        create(NAME, num_heads=(2, 5))
    with pytest.raises(ValueError, match="depths, num_heads: expected at least one block and its heads for each stage"):
        create(NAME, depths=(2, 2, 2))
    with pytest.raises(ValueError, match=r"images: expected an array of shape \(B, 3, 16, 16\), got shape \(1, 3, 32, 32\)"):
        small_model().forward(np.zeros((1, 3, 32, 32), np.float32))
