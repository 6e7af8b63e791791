"""Files of wasi's own that say more of a model than they hold."""

import json
import os
import re
import tracemalloc

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import wasi
from wasi.models import WeightsError
from wasi.models.vit import VisionTransformer, ViTConfig

SMALL = {"embed_dim": 16, "num_heads": 2, "depth": 2, "num_classes": 3}
NAMES = {"vit": "vit_micro_patch4_32", "swin": "swin_micro_patch2_window4_32", "llama": "llama_micro"}
OVERRIDES = {"vit": SMALL, "swin": {"embed_dim": 16, "num_classes": 3}, "llama": {"vocab_size": 32, "depth": 2}}


def saved(path, architecture, change):
    """A small model's file whose description is changed."""
    wasi.save_model(wasi.create_model(NAMES[architecture], **OVERRIDES[architecture]), path)
    with wasi.models.weights.safe_open(path, "numpy") as file:
        header = json.loads(file.metadata()["wasi"])
    change(header)
    save_file(load_file(path), path, {"wasi": json.dumps(header)})
    return path


def peak_of(function, *args):
    """Bytes that a call allocates at most, and the WeightsError that it raises, as text."""
    tracemalloc.start()
    try:
        with pytest.raises(WeightsError) as caught:
            function(*args)
        return tracemalloc.get_traced_memory()[1], str(caught.value)
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("architecture, config, message", [
    ("vit", {"embed_dim": 10**6}, "cls_token: expected shape (1, 1, 1000000), got (1, 1, 16)"),
    ("vit", {"depth": 10**9}, "describes 1000000000 blocks, and has 32 tensors"),
    ("vit", {"depth": 3}, "blocks.2.norm1.weight: missing"),
    ("vit", {"img_size": 4 * 10**6}, "pos_embed: expected shape (1, 1000000000001, 16), got (1, 65, 16)"),
    ("vit", {"num_classes": 10**12}, "head.weight: expected shape (1000000000000, 16), got (3, 16)"),
    ("vit", {"embed_dim": 10**30}, "does not fit the model that it describes"),
    ("vit", {"embed_dim": "16"}, "embed_dim: expected a whole number, got '16'"),
    ("vit", {"mlp_ratio": float("inf")}, "mlp_ratio: expected a finite number, got inf"),
    ("vit", {"num_heads": 0}, "num_heads: expected a divisor of embed_dim 16, got 0"),
    ("vit", {"patch_size": 0}, "patch_size: expected at least 1, got 0"),
    ("vit", {"width": 3}, "TypeError: "),
    ("swin", {"depths": [2, 10**9]}, "describes 1000000002 blocks"),
    ("swin", {"depths": [2.0, 2]}, "depths: expected whole numbers, got [2.0, 2]"),
    ("swin", {"embed_dim": 10**6}, "patch_embed.proj.weight: expected shape (1000000, 12)"),
    ("llama", {"vocab_size": 10**12}, "embed.weight: expected shape (1000000000000, 64), got (32, 64)"),
    ("llama", {"depth": 10**9}, "describes 1000000000 blocks"),
    ("llama", {"hidden_dim": 10**10}, "mlp.gate_proj.weight: expected shape (10000000000, 64)"),
    ("llama", {"head_dim": 10**10}, "attn.q_proj.weight: expected shape"),
])
def test_a_small_file_of_a_huge_model_is_refused_before_anything_is_allocated(tmp_path, architecture, config, message):
    path = saved(tmp_path / "m.safetensors", architecture, lambda header: header["config"].update(config))
    peak, text = peak_of(wasi.load_model, path)
    assert message in text and "m.safetensors" in text and len(text) < 10_000
    assert peak < 2**21


@pytest.mark.parametrize("change, message", [
    (lambda h: h.pop("config"), "KeyError: 'config'"),
    (lambda h: h.update(config=[1]), "TypeError"),
    (lambda h: h.update(format_version="1"), "TypeError"),
    (lambda h: h.update(architecture="vgg"), "an architecture that this package does not know: 'vgg'"),
    (lambda h: h.update(layers=3), "TypeError|AttributeError"),
])
def test_a_damaged_description_is_named(tmp_path, change, message):
    _, text = peak_of(wasi.load_model, saved(tmp_path / "m.safetensors", "vit", change))
    assert re.search(message, text)


@pytest.fixture
def thin(tmp_path):
    """The file of a ViT whose linears have rank 1: 7 MB, where dense weights would be 120 GB."""
    config = ViTConfig(img_size=1, patch_size=1, embed_dim=50_000, depth=1, num_heads=1, num_classes=2)
    model = VisionTransformer(config, seed=None)
    for name in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"):
        O, I = model.blocks[0].get_module(name).weight.data.shape
        L, R = np.full((O, 1), O**-0.5, np.float32), np.ones((1, I), np.float32)
        model.set_module(f"blocks.0.{name}", wasi.layers.FactoredLinear(L, R, np.zeros(O, np.float32)))
    path = tmp_path / "thin.safetensors"
    wasi.save_model(model, path)
    return path


def test_a_factored_model_is_never_dense_while_it_is_loaded(thin):
    tracemalloc.start()
    try:
        model, _ = wasi.load_model(thin)
        assert tracemalloc.get_traced_memory()[1] < 3 * thin.stat().st_size
    finally:
        tracemalloc.stop()
    assert model.blocks[0].mlp.fc1.rank == 1 and model.blocks[0].mlp.fc1.L.data.flags.writeable


@pytest.mark.parametrize("name, array, message", [
    ("blocks.0.mlp.fc1.L", np.zeros((200_000, 0), np.float32), "blocks.0.mlp.fc1.weight: expected shape"),
    ("blocks.0.mlp.fc1.R", np.zeros((2, 50_000), np.float32), "blocks.0.mlp.fc1.weight: expected shape"),
    ("blocks.0.mlp.fc3.L", np.zeros((2, 2), np.float32), "blocks.0.mlp.fc3.L but not"),
])
def test_factors_that_do_not_fit_are_named(thin, name, array, message):
    with wasi.models.weights.safe_open(thin, "numpy") as file:
        metadata = file.metadata()
    save_file({**load_file(thin), name: array}, thin, metadata)
    peak, text = peak_of(wasi.load_model, thin)
    assert message in text and peak < 2 * thin.stat().st_size


def test_huge_updates_of_no_bytes_are_refused(tmp_path):
    path = saved(tmp_path / "m.safetensors", "vit", lambda h: h["layers"].update({"blocks.0.mlp.fc1": {"scale": 1.0}}))
    with wasi.models.weights.safe_open(path, "numpy") as file:
        metadata = file.metadata()
    empty = {"blocks.0.mlp.fc1.A": np.zeros((10**12, 0), np.float32), "blocks.0.mlp.fc1.B": np.zeros((64, 16), np.float32)}
    save_file({**load_file(path), **empty}, path, metadata)
    peak, text = peak_of(wasi.load_model, path)
    assert "updates of another shape than the weight of blocks.0.mlp.fc1" in text and peak < 2**21


def test_files_may_be_read_by_whom_the_umask_says(tmp_path):
    before = os.umask(0o027)
    try:
        wasi.save_model(wasi.create_model("vit_micro_patch4_32", num_classes=3), tmp_path / "a.safetensors")
    finally:
        os.umask(before)
    assert (tmp_path / "a.safetensors").stat().st_mode & 0o777 == 0o640
