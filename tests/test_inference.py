import numpy as np
import pytest
from tables import relative_error

import wasi
from wasi.layers import FactoredLinear, Linear
from wasi.models import inference
from wasi.models.methods import METHODS, MethodOptions, apply_method
from wasi.training.optimizer import Optimizer
from wasi.training.step import accumulate_gradient

SMALL = {"img_size": 16, "embed_dim": 64, "depth": 2, "num_heads": 2, "num_classes": 3}
IMAGES = np.random.default_rng(0).integers(0, 256, (4, 3, 16, 16), np.uint8)


def model_of(method, rank):
    model = wasi.create_model("vit_micro_patch8_64", **SMALL)
    return apply_method(model, method, MethodOptions(("all",), rank=rank), verbose=False)


@pytest.mark.parametrize("method, tolerance", [("wsi", 1e-5), ("qwasi", 0.02), ("lora", 1e-5), ("qlora", 0.02), ("dense", 0)])
@pytest.mark.parametrize("faster", ["as it is", "merged"])
def test_whatever_is_chosen_computes_the_same_function(monkeypatch, method, tolerance, faster):
    """The choice is dictated here: what is faster depends on the machine."""
    monkeypatch.setattr(inference, "_compare", lambda *args: (1.0, 2.0) if faster == "as it is" else (1.0, 0.5))
    model = model_of(method, 4)
    want, kinds = model.forward(IMAGES), [type(m) for _, m in model.named_modules()]
    wasi.optimize_for_inference(model, IMAGES, verbose=False)
    assert relative_error(model.forward(IMAGES), want) <= tolerance
    targets = [m for n, m in model.named_modules() if n.endswith(("qkv", "proj", "fc1", "fc2"))]
    if faster == "merged" or method == "dense":
        assert all(type(m) is Linear for m in targets)
    else:
        assert [type(m) for _, m in model.named_modules()] == kinds
    assert sum(len(c.layers) for c in model.inference_choices) == (0 if method == "dense" else 8)


def test_no_round_is_no_choice():
    with pytest.raises(ValueError, match="rounds: expected at least 1, got 0"):
        wasi.optimize_for_inference(wasi.create_model("vit_micro_patch4_32"), IMAGES, rounds=0)


def test_small_ranks_stay_factored_and_full_ones_are_merged(capsys):
    """256 x 256 at rank 8 does 1/16 of the work, at rank 256 twice the work: no timer errs by so much."""
    for rank, merged in ((8, False), (256, True)):
        model = wasi.create_model("vit_micro_patch8_64", **SMALL | {"img_size": 64, "embed_dim": 256, "depth": 1})
        wasi.factorize(model, rank=rank, target_modules=("attn.proj",), verbose=False)
        wasi.optimize_for_inference(model, np.zeros((4, 3, 64, 64), np.uint8))
        layer = model.blocks[0].attn.proj
        assert isinstance(layer, Linear if merged else FactoredLinear)
        (choice,) = model.inference_choices
        assert choice.rows == 4 * 65 and choice.merged == merged
        assert f"256 x 256 rank {rank}" in capsys.readouterr().out


@pytest.mark.parametrize("method", METHODS)
def test_pytorch_loads_what_a_merged_model_saves(torch, tmp_path, rng, method):
    """A step by each method, merge, save: PyTorch's logits from the file equal ours."""
    from safetensors.torch import load_file
    from torch_models import create_model

    model = wasi.create_model("vit_tiny_patch16_224", num_classes=5, img_size=32, depth=2)
    images, labels = rng.integers(0, 256, (4, 3, 32, 32), np.uint8), rng.integers(0, 5, 4)
    apply_method(model, method, MethodOptions(("all",), rank=16), [(images, labels)], verbose=False)
    accumulate_gradient(model, images, labels)
    Optimizer(model).step(0.1)
    want = model.forward(images)
    wasi.save_model(wasi.merge(model), tmp_path / "m.safetensors")
    theirs = create_model("vit_tiny_patch16_224", 32, 5).eval()
    theirs.blocks = theirs.blocks[:2]
    theirs.load_state_dict(load_file(tmp_path / "m.safetensors"), strict=True)
    with torch.inference_mode():
        got = theirs(torch.from_numpy((images / 255 - 0.5) / 0.5).float()).numpy()
    assert relative_error(model.forward(images), got) < 1e-5
    assert relative_error(want, got) < (0.02 if method in ("qwasi", "qlora") else 1e-4)


def test_gradients_are_let_go_of_and_the_file_round_trips(tmp_path, monkeypatch):
    monkeypatch.setattr(inference, "_compare", lambda *args: (1.0, 0.5))
    model = model_of("qwasi", 4)
    for _, p in model.named_parameters():
        p.grad_buffer()
    wasi.optimize_for_inference(model, IMAGES, verbose=False)
    assert not any(p.gradient_bytes for _, p in model.named_parameters())
    wasi.save_model(model, tmp_path / "m.safetensors")
    assert np.array_equal(wasi.load_model(tmp_path / "m.safetensors")[0].forward(IMAGES), model.forward(IMAGES))
