import numpy as np
import pytest
from tables import relative_error

import wasi
from wasi.layers import FactoredLinear, Linear
from wasi.models import inference
from wasi.models.methods import MethodOptions, apply_method

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


def test_gradients_are_let_go_of_and_the_file_round_trips(tmp_path, monkeypatch):
    monkeypatch.setattr(inference, "_compare", lambda *args: (1.0, 0.5))
    model = model_of("qwasi", 4)
    for _, p in model.named_parameters():
        p.grad_buffer()
    wasi.optimize_for_inference(model, IMAGES, verbose=False)
    assert not any(p.gradient_bytes for _, p in model.named_parameters())
    wasi.save_model(model, tmp_path / "m.safetensors")
    assert np.array_equal(wasi.load_model(tmp_path / "m.safetensors")[0].forward(IMAGES), model.forward(IMAGES))
