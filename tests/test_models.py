"""What holds for the models of every architecture."""

import json
from dataclasses import asdict

import numpy as np
import pytest
from gradcheck import directional_check
from small_models import DECODER, RESNET, SWIN, VIT, gradients_of, wide
from tables import relative_error

import wasi
from wasi.layers import ActivationPolicy
from wasi.models import WeightsError, find_targets, load_model, load_weights, save_model
from wasi.models.methods import METHODS, MethodOptions, apply_method
from wasi.models.weights import published_shape, write_tensors
from wasi.profiling import Profile
from wasi.training.optimizer import Optimizer
from wasi.training.step import accumulate_gradient, evaluate

SMALL = {"vit": VIT, "swin": SWIN, "resnet": RESNET, "decoder": DECODER}


def of_each(arguments="small", **values):
    """Runs a test with the small model of each architecture that is named, and with the values that it is given."""
    rows = [pytest.param(SMALL[name], *own, id=name) for name, own in values.items()]
    return pytest.mark.parametrize(arguments, rows)


@of_each("small, step, error", vit=(1e-6, 1e-4), swin=(1e-6, 1e-4), resnet=(1e-8, 1e-3))
@pytest.mark.parametrize("factored", [False, True])
@pytest.mark.parametrize("recompute", [False, True])
def test_every_gradient_against_float64_finite_differences(rng, n_threads, small, step, error, factored, recompute):
    model = small.model(factored)
    model.set_policy(ActivationPolicy(recompute=recompute))
    images, labels = small.batch(rng)
    arrays = wide(model)
    result = accumulate_gradient(model, images, labels, label_smoothing=0.1)
    gradients = gradients_of(model)
    assert all(g is not None for g in gradients.values())

    def loss(values):
        return small.twin_loss(model, dict(zip(arrays, values)), images, labels, 0.1)

    assert result.loss == pytest.approx(loss(arrays.values()), rel=1e-5)
    for name in gradients:
        only = [gradients[n] if n == name else None for n in arrays]
        assert directional_check(loss, list(arrays.values()), only, rng, n_directions=1, step=step) < error, name


@of_each(vit=(), swin=(), resnet=())
def test_logits_match_the_numpy_twin_in_every_instruction_set(rng, isa, small):
    model = small.model(factored=True)
    images, _ = small.batch(rng)
    assert relative_error(model.forward(images), small.twin_logits(model, images)) < 1e-5


@of_each(vit=(), swin=(), decoder=())
def test_micro_batches_give_the_same_gradient(rng, small):
    """Of models without batch norm, whose statistics are a micro-batch's."""
    model = small.model(factored=True)
    inputs, targets = small.batch(rng, 7)
    accumulate_gradient(model, inputs, targets)
    whole = {n: p.grad.copy() for n, p in model.named_parameters()}
    model.zero_grad()
    accumulate_gradient(model, inputs, targets, micro_batch=3)
    for name, p in model.named_parameters():
        assert relative_error(p.grad, whole[name]) < 5e-5, name


@of_each(vit=(), swin=())
def test_layerwise_updates_give_the_same_step(rng, small):
    images, labels = small.batch(rng, 5)
    found = []
    for layerwise in (False, True):
        model = small.model(factored=True)
        optimizer = Optimizer(model, layerwise=layerwise)
        accumulate_gradient(model, images, labels, after=optimizer.after_backward(0.02))
        optimizer.step(0.02)
        found.append(model.forward(images))
    assert relative_error(found[1], found[0]) < 1e-5


@of_each("small, share, n, changes", vit=(0.8, 7, {}), swin=(0.6, 8, {"depths": (4, 2, 2)}),
         resnet=(0.8, 32, {"depths": (8, 1), "widths": (16, 16)}))
def test_recomputed_blocks_give_the_same_gradient_from_less(rng, small, share, n, changes):
    """And the same running statistics, which recomputation does not move again."""
    images, labels = small.batch(rng, n)
    found, peaks = [], []
    for recompute in (False, True):
        model = small.model(factored="depths" not in changes, **changes)
        model.set_policy(ActivationPolicy(recompute=recompute))
        for _, p in model.named_parameters():
            p.grad_buffer()
        arena = wasi.Arena()
        with arena:
            accumulate_gradient(model, images, labels)
        found.append([p.grad if p.trainable else p.data for _, p in model.named_parameters()])
        peaks.append(arena.stats()["peak_bytes"])
    for a, b in zip(*found):
        assert np.array_equal(a, b) or relative_error(a, b) < 1e-6
    assert peaks[1] < share * peaks[0]


@of_each("small, near, share", swin=({16: 1e-2, 8: 5e-2}, 0.7), resnet=({16: 0.05, 8: 0.2}, 0.9))
@pytest.mark.parametrize("factored", [False, True])
@pytest.mark.parametrize("bits", [16, 8])
def test_what_blocks_keep_in_few_bits(rng, small, near, share, bits, factored):
    images, labels = small.batch(rng)
    found, kept = [], []
    for saved_bits in (None, bits):
        model = wasi.create_model(small.name, **small.sizes)
        if factored:
            wasi.factorize(model, **small.factors, verbose=False)
        model.set_policy(ActivationPolicy(saved_bits=saved_bits))
        kept.append(accumulate_gradient(model, images, labels).saved_bytes)
        found.append(np.concatenate([g.ravel() for g in gradients_of(model).values()]))
    assert 0 < relative_error(found[1], found[0]) < near[bits] and kept[1] < share * kept[0]


@of_each(vit=(), swin=(), resnet=(), decoder=())
def test_same_bits_for_the_same_thread_count_and_nothing_is_kept(rng, n_threads, small):
    inputs, targets = small.batch(rng)
    runs = []
    for _ in range(2):
        model = small.model(factored=True)
        accumulate_gradient(model, inputs, targets)
        assert model.total_saved_bytes == 0
        runs.append(gradients_of(model))
    assert all(np.array_equal(runs[0][n], runs[1][n]) for n in runs[0])
    evaluate(model, [(inputs, targets)])
    assert model.total_saved_bytes == 0
    logits = model.forward(inputs, train=True)
    assert model.total_saved_bytes > 0
    model.backward(np.ones_like(logits))
    assert model.total_saved_bytes == 0
    with pytest.raises(RuntimeError, match="nothing was kept"):
        model.backward(np.ones_like(logits))


@of_each(swin=(), resnet=())
@pytest.mark.parametrize("factored, recompute", [(False, False), (True, False), (False, True)])
def test_flops_are_those_of_the_kernels(rng, small, factored, recompute):
    model = small.model(factored)
    model.set_policy(ActivationPolicy(recompute=recompute))
    images, labels = small.batch(rng, 2)
    with Profile() as profile:
        accumulate_gradient(model, images, labels)
    flops = model.training_flops(2)
    assert sum(k.flops for k in profile.kernels) == pytest.approx(flops.forward + flops.backward, rel=0.02)


@of_each("small, options", swin=({"targets": ("all",), "rank": 4, "lora_rank": 2},),
         resnet=({"rank": 6, "lora_rank": 2, "alpha": 6},))
@pytest.mark.parametrize("method", METHODS)
def test_every_method_learns_a_batch(rng, small, options, method):
    sizes = {"num_classes": 5} if small is RESNET else small.sizes
    model = wasi.create_model(small.name, **sizes)
    images, labels = small.batch(rng, 8)
    apply_method(model, method, MethodOptions(**options), [(images, labels)], verbose=False)
    optimizer = Optimizer(model, "adamw")
    losses = []
    for _ in range(15):
        losses.append(accumulate_gradient(model, images, labels).loss)
        optimizer.step(5e-3)
    assert losses[-1] < 0.9 * losses[0]


@of_each("small, depth", vit=("depth",), swin=("depths",), resnet=("depths",), decoder=("depth",))
def test_sizes_are_whole_numbers_of_any_kind(small, depth):
    """NumPy's too, which no JSON can hold: a file's header can."""
    size = "max_length" if small is DECODER else "img_size"
    sizes = {**small.sizes, "num_classes": np.int64(3), size: np.int32(small.sizes[size]), "norm_eps": np.float32(1e-5)}
    config, several = type(small.model().config), isinstance(small.sizes[depth], tuple)
    made = config(**sizes)
    assert made == config(**json.loads(json.dumps(asdict(made))))
    for name, bad in ((size, 32.0), (size, "32"), (size, None), (depth, 2.0), (depth, (1, 1.5)), ("norm_eps", "1"),
                      (depth, 2 if several else (2, 2))):
        with pytest.raises(TypeError, match=f"{name}: expected "):
            config(**{**small.sizes, name: bad})
    with pytest.raises(ValueError, match="norm_eps: expected a finite number, got nan"):
        config(norm_eps=np.nan)


@of_each(vit=(), swin=(), resnet=())
@pytest.mark.parametrize("factored", [False, True])
def test_save_and_load_give_the_same_logits(rng, tmp_path, small, factored):
    model = small.model(factored)
    images, _ = small.batch(rng)
    save_model(model, tmp_path / "m.safetensors", {"classes": ["a", "b"]})
    again, extra = load_model(tmp_path / "m.safetensors")
    assert extra == {"classes": ["a", "b"]} and again.config == model.config
    assert np.array_equal(model.forward(images), again.forward(images))
    assert [p.name for p in tmp_path.iterdir()] == ["m.safetensors"]


@of_each("small, kernel", vit=("patch_embed.proj.weight",), swin=("patch_embed.proj.weight",), resnet=("layer2.0.conv1.weight",))
def test_all_that_is_wrong_with_a_file_is_named_at_once(tmp_path, small, kernel):
    """What is missing, no floating number, or of another shape, of as many numbers even; the model stays as it was."""
    model = small.model()
    before = {n: p.data.copy() for n, p in model.named_parameters()}
    tensors = {n: published_shape(model, n, a) for n, a in before.items()}
    missing, whole, short = [n for n in tensors if n.endswith("bias")][:3]
    O, C, *window = tensors[kernel].shape
    wrong = {missing: "missing", whole: "expected F32, F16, BF16, F64, got I64",
             short: f"expected shape {tensors[short].shape}, got ({len(tensors[short]) - 1},)",
             kernel: f"expected shape {(O, C, *window)}, got {(C, O, *window)}"}
    tensors |= {whole: tensors[whole].astype(np.int64), short: tensors[short][:-1], kernel: tensors[kernel].swapaxes(0, 1)}
    del tensors[missing]
    tensors |= {"their.weight": tensors[whole], "their.bias": tensors[whole]}
    write_tensors(tmp_path / "w.safetensors", tensors, {})
    with pytest.raises(WeightsError) as error:
        load_weights(model, tmp_path / "w.safetensors")
    *told, other = str(error.value).partition("does not fit the model: ")[2].split("; ")
    assert other == "2 tensors of other names, such as their.bias"
    assert sorted(told) == sorted(f"{name}: {what}" for name, what in wrong.items())
    assert all(np.array_equal(p.data, before[n]) for n, p in model.named_parameters())


@of_each("small, budget, options", swin=("2MiB", {"target_modules": ("all",)}), resnet=("4MiB", {}))
def test_a_plan_keeps_its_budget_and_leaves_the_model_alone(rng, small, budget, options):
    S, sizes = small.sizes["img_size"], {"num_classes": 5} if small is RESNET else small.sizes
    batch = rng.integers(0, 256, (8, 3, S, S), np.uint8), rng.integers(0, 5, 8)
    model = wasi.create_model(small.name, **sizes)
    before = {n: p.data.copy() for n, p in model.named_parameters()}
    plan = wasi.plan(model, [batch], budget, method="qwasi", batch_size=8, **options)
    assert small is not RESNET or plan.micro_batch == 8  # of batch norms the statistics would be others
    assert all(np.array_equal(p.data, before[n]) for n, p in model.named_parameters())
    assert [layer.name for layer in plan.layers] == find_targets(model, options.get("target_modules"))
    plan.apply(model, [batch])
    arena = wasi.Arena()
    with arena:
        accumulate_gradient(model, *batch, plan.micro_batch)
    assert arena.stats()["peak_bytes"] < plan.peak_bytes <= wasi.models.plan.parse_bytes(budget)


@of_each("small, kernel", swin=("window_attention_backward",), resnet=("conv_backward",))
def test_the_cli_trains_and_profiles_one(tmp_path, capsys, small, kernel):
    from wasi.cli import main

    words = ["--model", small.name, "--method", "wasi", "--targets", "all", "--rank", "8", "--epochs", "1", "--limit", "64"]
    assert main(["train", *words, "--limit-val", "32", "--quiet", "--out", str(tmp_path / "run")]) == 0
    assert "| wasi |" in capsys.readouterr().out
    assert main(["profile", "--model", small.name, "--method", "qwasi", "--batch-size", "4", "--steps", "1"]) == 0
    assert kernel in capsys.readouterr().out
