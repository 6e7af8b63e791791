"""Exported models: PyTorch loads them as they are, ONNX Runtime runs them, both with wasi's logits."""

import importlib
import json
import os
import re
from dataclasses import asdict

import numpy as np
import pytest
from safetensors.numpy import load_file
from tables import relative_error

import wasi
from wasi.cli import main
from wasi.models import load_llama
from wasi.models.exporting import export, export_tensors
from wasi.models.methods import MethodOptions, apply_method
from wasi.models.published_names import TORCHVISION, our_name
from wasi.training.checkpoint import Progress, save_checkpoint

METHODS = ["dense", "wsi", "qwasi", "lora", "svd-llm-lora"]
VIT = {"img_size": 32, "patch_size": 16, "embed_dim": 48, "depth": 2, "num_heads": 3, "num_classes": 7}


def make(name, method="dense", targets=("all",), **changes):
    """A model with weights that all matter."""
    model, rng = wasi.create_model(name, **changes), np.random.default_rng(0)
    for name, p in model.named_parameters():
        noise = 0.05 * rng.standard_normal(p.data.shape, np.float32)
        p.data = p.data + (np.abs(noise) if name.endswith("running_var") else noise)
    S = getattr(model.config, "img_size", 0)
    batch = rng.integers(0, 256, (4, 3, S, S), np.uint8), rng.integers(0, 7, 4)
    apply_method(model, method, MethodOptions(targets=targets, rank=12, lora_rank=4),
                 [batch] if method == "svd-llm-lora" else None, verbose=False)
    for _, module in model.named_modules():
        module.exact = True
        if hasattr(module, "B"):  # LoRA's updates start at zero
            module.B.data += 0.05 * rng.standard_normal(module.B.data.shape, np.float32)
    return model


def vit(method="dense"):
    return make("vit_tiny_patch16_224", method, **VIT)


def swin(method="dense"):
    return make("swin_tiny_patch4_window7_224", method, img_size=32, window_size=4, embed_dim=24, depths=(2, 2), num_heads=(2, 4),
                num_classes=7)


def resnet(method="dense"):
    return make("resnet18", method, img_size=32, depths=(1, 1, 1), widths=(12, 16, 24), num_classes=7, targets=("conv",))


def decoder(method="dense", **changes):
    return make("llama_micro", method, depth=2, **changes)


def images(model, n=3):
    S = model.config.img_size
    return np.random.default_rng(1).standard_normal((n, 3, S, S), np.float32)


def loaded_by_torch(torch, model, path):
    """The logits of the plain PyTorch model that takes the file's tensors, all of them."""
    import torch_models
    import torch_resnet
    import torch_swin

    c = model.config
    if model.architecture == "vit":
        theirs = torch_models.ViT(c.embed_dim, c.depth, c.num_heads, c.patch_size, c.img_size, c.num_classes)
    elif model.architecture == "resnet":
        theirs = torch_resnet.ResNet(c.depths, c.widths, c.num_classes)
    else:
        theirs = torch_swin.Swin(c.embed_dim, c.depths, c.num_heads, c.patch_size, c.window_size, c.img_size, c.num_classes)
    theirs.load_state_dict(torch_models.load_file(path), strict=True)
    with torch.no_grad():
        return theirs.eval()(torch.from_numpy(images(model))).numpy()


@pytest.mark.torch
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("build", [vit, swin, resnet])
def test_pytorch_loads_a_timm_export_as_it_is(torch, tmp_path, build, method):
    model = build(method)
    before = model.forward(images(model))
    export(model, tmp_path / "m.safetensors", "timm", classes=list("abcdefg"))
    assert np.array_equal(model.forward(images(model)), before)  # and the model is as it was
    assert np.abs(loaded_by_torch(torch, model, tmp_path / "m.safetensors") - before).max() < 1e-4
    assert json.loads(wasi.models.weights.TensorFile(tmp_path / "m.safetensors").metadata["classes"])[2] == "c"


@pytest.mark.torch
def test_pytorch_loads_two_linears_in_place_of_one(torch, tmp_path):
    from torch_models import ViT, load_file

    model = vit("wsi")
    export(model, tmp_path / "m.safetensors", "timm", factored=True)
    tensors = load_file(tmp_path / "m.safetensors")
    theirs = ViT(48, 2, 3, 16, 32, 7)
    for name in {name.removesuffix(".0.weight") for name in tensors if name.endswith(".0.weight")}:
        K, I = tensors[f"{name}.0.weight"].shape
        O = len(tensors[f"{name}.1.weight"])
        theirs.set_submodule(name, torch.nn.Sequential(torch.nn.Linear(I, K, bias=False), torch.nn.Linear(K, O)))
    theirs.load_state_dict(tensors, strict=True)
    with torch.no_grad():
        got = theirs(torch.from_numpy(images(model))).numpy()
    assert np.abs(got - model.forward(images(model))).max() < 1e-4
    assert sum(t.numel() for t in tensors.values()) < sum(a.size for a in export_tensors(model).values())
    whole = export_tensors(vit("qwasi"), factored=True)  # a residual cannot be two linears
    assert not any(name.endswith(".0.weight") for name in whole)


@pytest.mark.parametrize("build", [vit, swin])
def test_torchvision_names_are_those_that_are_read(tmp_path, build):
    model = build("wsi")
    export(model, tmp_path / "m.safetensors", "torchvision")
    tensors = load_file(tmp_path / "m.safetensors")
    computed = {name for name in tensors if name.endswith("relative_position_index")}
    assert len(computed) == (0 if build is vit else 4)
    read_again = wasi.create_model("vit_tiny_patch16_224", **VIT) if build is vit else swin()
    wasi.load_weights(read_again, tmp_path / "m.safetensors")
    assert relative_error(read_again.forward(images(model)), model.forward(images(model))) < 1e-5
    pairs = TORCHVISION[model.architecture]
    assert {our_name(name, pairs) for name in tensors.keys() - computed} == export_tensors(model).keys()


def import_or_skip(name):
    """A module, where it is there and fits this PyTorch; else the test is skipped."""
    try:
        return importlib.import_module(name)
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"needs {name}: {error}")


@pytest.mark.torch
def test_pytorch_loads_two_convolutions_in_place_of_one(torch, tmp_path):
    from torch_models import load_file
    from torch_resnet import ResNet

    model = resnet("wsi")
    export(model, tmp_path / "m.safetensors", "torchvision", factored=True)
    tensors, theirs = load_file(tmp_path / "m.safetensors"), ResNet((1, 1, 1), (12, 16, 24), 7)
    for name in {name.removesuffix(".0.weight") for name in tensors if name.endswith("conv1.0.weight")}:
        for conv in (name, name.replace("conv1", "conv2"), name.replace("conv1", "downsample.0")):
            if f"{conv}.0.weight" in tensors:
                old, K = theirs.get_submodule(conv), len(tensors[f"{conv}.0.weight"])
                theirs.set_submodule(conv, torch.nn.Sequential(
                    torch.nn.Conv2d(old.in_channels, K, old.kernel_size, old.stride, old.padding, bias=False),
                    torch.nn.Conv2d(K, old.out_channels, 1, bias=False)))
    theirs.load_state_dict(tensors, strict=True)
    with torch.no_grad():
        got = theirs.eval()(torch.from_numpy(images(model))).numpy()
    assert np.abs(got - model.forward(images(model))).max() < 1e-4


@pytest.mark.torch
@pytest.mark.parametrize("build", [vit, swin])
def test_torchvision_loads_its_export(torch, tmp_path, build):
    models = import_or_skip("torchvision.models")
    model = build("wsi")
    export(model, tmp_path / "m.safetensors", "torchvision")
    if build is vit:
        theirs = models.VisionTransformer(32, 16, 2, 3, 48, 192, num_classes=7)
    else:
        theirs = models.SwinTransformer([4, 4], 24, [2, 2], [2, 4], [4, 4], num_classes=7)
    theirs.load_state_dict({name: torch.from_numpy(a) for name, a in load_file(tmp_path / "m.safetensors").items()}, strict=True)
    with torch.no_grad():
        got = theirs.eval()(torch.from_numpy(images(model))).numpy()
    assert np.abs(got - model.forward(images(model))).max() < 1e-4


@pytest.mark.parametrize("num_classes", [None, 3])
def test_decoders_are_exported_as_hugging_face_has_them(tmp_path, num_classes):
    model = decoder("qwasi", num_classes=num_classes)
    classes = None if num_classes is None else ["no", "maybe", "yes"]
    export(model, tmp_path / "m", "hugging-face", classes=classes)
    tokens = np.random.default_rng(0).integers(0, 512, (2, 9))
    assert np.abs(load_llama(tmp_path / "m").forward(tokens) - model.forward(tokens)).max() < 1e-4
    settings = json.loads((tmp_path / "m" / "config.json").read_text())
    assert settings.get("id2label") == (None if classes is None else {"0": "no", "1": "maybe", "2": "yes"})
    export(decoder("wsi"), tmp_path / "two", "hugging-face", factored=True)
    names = load_file(tmp_path / "two" / "model.safetensors")
    assert {"model.layers.0.mlp.up_proj.0.weight", "model.layers.1.self_attn.q_proj.1.weight"} <= names.keys()


@pytest.mark.torch
@pytest.mark.slow
@pytest.mark.parametrize("num_classes", [None, 3])
def test_transformers_loads_its_export(torch, tmp_path, num_classes):
    import_or_skip("transformers.models.llama.modeling_llama")
    import transformers

    model = decoder("wsi", num_classes=num_classes)
    export(model, tmp_path / "m", "hugging-face")
    kind = transformers.AutoModelForCausalLM if num_classes is None else transformers.AutoModelForSequenceClassification
    theirs = kind.from_pretrained(tmp_path / "m")
    theirs.config.pad_token_id = 0
    tokens = np.random.default_rng(0).integers(1, 512, (2, 9))
    with torch.no_grad():
        got = theirs(torch.from_numpy(tokens)).logits.numpy()
    assert np.abs(got - model.forward(tokens)).max() < 1e-4


@pytest.mark.torch
@pytest.mark.parametrize("build", [vit, swin])
def test_transformers_loads_models_of_images(torch, tmp_path, build):
    import_or_skip("transformers.models.llama.modeling_llama")
    import transformers

    model = build("wsi")
    export(model, tmp_path / "m", "hugging-face", classes=list("abcdefg"))
    theirs, told = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "m", output_loading_info=True)
    assert not told["missing_keys"] and not told["unexpected_keys"] and theirs.config.id2label[2] == "c"
    with torch.no_grad():
        got = theirs.eval()(torch.from_numpy(images(model))).logits.numpy()
    assert np.abs(got - model.forward(images(model))).max() < 1e-4
    pixels = transformers.AutoImageProcessor.from_pretrained(tmp_path / "m")
    assert list(pixels.image_std) == list(model.config.std)


@pytest.mark.parametrize("build", [vit, swin])
def test_names_of_hugging_face(tmp_path, build):
    model = build("wsi")
    export(model, tmp_path / "m", "hugging-face")
    tensors = load_file(tmp_path / "m" / "model.safetensors")
    block = "vit.encoder.layer.1" if build is vit else "swin.encoder.layers.0.blocks.1"
    inner = "attention" if build is vit else "self"
    whole = model.blocks[1].attn.qkv.merged_weight()
    assert np.array_equal(tensors[f"{block}.attention.{inner}.key.weight"], np.split(whole, 3)[1])
    assert {"classifier.bias", f"{block}.layernorm_after.weight", f"{block}.output.dense.bias"} <= tensors.keys()
    assert len(tensors) == len(export_tensors(model)) + 2 * 2 * len(model.blocks)
    with pytest.raises(ValueError, match="factored: expected False for hugging-face"):
        export(model, tmp_path / "n", "hugging-face", factored=True)


def run_onnx(path, x):
    runtime = pytest.importorskip("onnxruntime", reason="needs onnxruntime: pip install onnxruntime")
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(["logits"], {session.get_inputs()[0].name: x})[0]


@pytest.mark.parametrize("opset", [17, 20])
@pytest.mark.parametrize("factored", [False, True])
@pytest.mark.parametrize("method", ["dense", "wsi", "qwasi", "lora"])
@pytest.mark.parametrize("build", [vit, swin, resnet])
def test_onnx_runtime_runs_image_models(tmp_path, build, method, factored, opset):
    onnx = pytest.importorskip("onnx", reason="needs onnx: pip install onnx")
    model = build(method)
    export(model, tmp_path / "m.onnx", "onnx", factored, opset, classes=["a", "b"])
    for n in (1, 3):
        x = images(model, n)
        assert np.abs(run_onnx(tmp_path / "m.onnx", x) - model.forward(x)).max() < 1e-4
    made = onnx.load(tmp_path / "m.onnx")
    assert made.opset_import[0].version == opset
    assert made.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert {p.key: p.value for p in made.metadata_props}["classes"] == '["a", "b"]'
    n_products, whole = (sum(node.op_type in ("MatMul", "Conv") for node in m.graph.node)
                         for m in (made, wasi.models.onnx.onnx_model(build())))
    n_targets = 8 if build is resnet else 4 * len(model.blocks)
    assert n_products == whole + (n_targets if factored and method == "wsi" else 0)


@pytest.mark.parametrize("changes", [{}, {"tied": False}, {"num_classes": 3}])
@pytest.mark.parametrize("factored", [False, True])
def test_onnx_runtime_runs_decoders(tmp_path, changes, factored):
    pytest.importorskip("onnx", reason="needs onnx: pip install onnx")
    model = decoder("wsi", **changes)
    export(model, tmp_path / "m.onnx", "onnx", factored)
    for shape in ((1, 1), (3, 17)):  # both axes are open
        tokens = np.random.default_rng(0).integers(0, 512, shape)
        assert np.abs(run_onnx(tmp_path / "m.onnx", tokens) - model.forward(tokens)).max() < 1e-4


def test_frozen_bfloat16_is_exported_as_float32(tmp_path):
    whole = decoder()
    export(whole, tmp_path / "m", "hugging-face")
    model = load_llama(tmp_path / "m", last_layers=1)
    for name, module in list(model.named_modules()):
        if name.startswith("blocks.0.") and hasattr(module, "out_features") and hasattr(module, "weight"):
            model.set_module(name, wasi.layers.frozen.Bf16Linear(wasi.ops.bf16_round(module.weight.data)))
    export(model, tmp_path / "again", "hugging-face")
    assert load_file(tmp_path / "again" / "model.safetensors").keys() == load_file(tmp_path / "m" / "model.safetensors").keys()
    tokens = np.array([[3, 1, 2]])
    assert relative_error(load_llama(tmp_path / "again").forward(tokens), model.forward(tokens)) < 1e-5


def test_what_cannot_be_exported_is_refused_by_name(tmp_path, monkeypatch):
    model, path = vit("wsi"), tmp_path / "m.safetensors"
    formats = "format: expected 'timm' or 'torchvision' or 'hugging-face' or 'onnx' for the architecture 'vit', got 'pickle'"
    for other, format, message in [(model, "pickle", formats), (decoder(), "timm", "expected 'hugging-face' or")]:
        with pytest.raises(ValueError, match=message):
            export(other, path, format)
    with pytest.raises(ValueError, match="factored: expected False for torchvision"):
        export(model, path, "torchvision", factored=True)
    with pytest.raises(FileNotFoundError, match="path: .*absent.m.safetensors' cannot be written"):
        export(model, tmp_path / "absent" / "m.safetensors", "timm")
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="path: .* cannot be written"):
        export(model, tmp_path / "file" / "m.safetensors", "timm")
    path.write_text("mine")
    with pytest.raises(FileExistsError, match="path: .*m.safetensors' is there already"):
        export(model, path, "timm")
    full = OSError(28, "No space left on device")
    monkeypatch.setattr(os, "fsync", lambda handle: (_ for _ in ()).throw(full))
    with pytest.raises(OSError, match="cannot be written .No space left on device"):
        export(model, path, "timm", overwrite=True)
    monkeypatch.undo()
    assert path.read_text() == "mine" and sorted(p.name for p in tmp_path.iterdir()) == ["file", "m.safetensors"]
    export(model, path, "timm", overwrite=True)
    assert "head.weight" in load_file(path)


def test_what_onnx_cannot_hold_is_refused_by_name(tmp_path, monkeypatch):
    pytest.importorskip("onnx", reason="needs onnx: pip install onnx")
    import wasi.models.onnx

    for opset in (16, 1000):
        with pytest.raises(ValueError, match=rf"opset: expected 17 to \d+, got {opset}"):
            export(vit(), tmp_path / "m.onnx", "onnx", opset=opset)
    monkeypatch.setattr(wasi.models.onnx, "LARGEST", 10000)
    with pytest.raises(ValueError, match="model: expected at most 10000 bytes of weights, which is what an ONNX file can hold"):
        export(vit(), tmp_path / "m.onnx", "onnx")
    assert not list(tmp_path.iterdir())


def test_without_the_onnx_library_the_error_says_what_to_install(tmp_path, monkeypatch, capfd):
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    with pytest.raises(ImportError, match="needs the onnx library: pip install onnx"):
        export(vit(), tmp_path / "m.onnx", "onnx")
    wasi.save_model(vit(), tmp_path / "own.safetensors")
    assert main(["export", str(tmp_path / "own.safetensors"), str(tmp_path / "m.onnx")]) == 2
    assert capfd.readouterr().err == "wasi export: exporting to ONNX needs the onnx library: pip install onnx\n"


def test_the_command_exports_and_describes_files_and_run_folders(tmp_path, capfd):
    model = vit("qwasi")
    (tmp_path / "run").mkdir()
    wasi.save_model(model, tmp_path / "run" / "model.safetensors", {"classes": list("abcdefg")})
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "m.safetensors")]) == 0
    assert capfd.readouterr().out == f"written to {tmp_path / 'm.safetensors'}, as timm\n"
    again = wasi.create_model("vit_tiny_patch16_224", weights=tmp_path / "m.safetensors", **VIT)
    assert relative_error(again.forward(images(model)), model.forward(images(model))) < 1e-5
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "m.safetensors")]) == 2
    assert "is there already" in capfd.readouterr().err
    assert main(["export", str(tmp_path), str(tmp_path / "n.safetensors")]) == 2
    assert "model: expected a file, or a run folder with model.safetensors or checkpoints" in capfd.readouterr().err
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "n"), "--format", "hugging-face", "--factored"]) == 2
    assert "factored: expected False for hugging-face" in capfd.readouterr().err
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "n"), "--format", "hugging-face"]) == 0
    assert json.loads((tmp_path / "n" / "config.json").read_text())["id2label"]["6"] == "g"
    capfd.readouterr()

    assert main(["info", str(tmp_path / "run")]) == 0
    told = capfd.readouterr().out
    assert "architecture vit: img_size 32" in told and "7 classes: a, b, c, d, e, f, g" in told
    assert re.search(r"blocks.0.attn.qkv +FactoredLinear +144 x 48 +12 +4 +9,360 +2,448 +9,792", told)
    assert re.search(r"trained: [\d,]+ of [\d,]+ parameters \(\d+\.\d %\), [\d,]+ bytes; frozen: [\d,]+ bytes", told)
    save_checkpoint(tmp_path / "run" / "checkpoints" / "step-00000004.safetensors", model, {},
                    {"progress": asdict(Progress(4, 2))})
    (tmp_path / "run" / "model.safetensors").unlink()
    assert main(["info", str(tmp_path / "run")]) == 0
    assert "checkpoint: after step 4, in epoch 2\n" in capfd.readouterr().out
    assert main(["info", str(tmp_path / "m.safetensors")]) == 0
    assert re.search(r"head.weight +F32  7 x 48\n", capfd.readouterr().out)
    assert main(["info", str(tmp_path / "none.safetensors")]) == 2


def test_summaries_count_what_is_there(capfd):
    for method in METHODS:
        model = vit(method)
        rows = model.weights_by_module()
        parameters = [p for _, p in model.named_parameters()]
        fixed = sum(m.fixed_bytes for _, m in model.named_modules())
        assert sum(r["trained_bytes"] + r["frozen_bytes"] for r in rows) == sum(p.data.nbytes for p in parameters) + fixed
        assert sum(r["trained"] for r in rows) == sum(p.data.size for p in parameters if p.trainable)
        table = model.summary().splitlines()
        assert len(table) == len(rows) + 2 and len({len(line) for line in table}) == 1
    layer = {r["name"]: r for r in vit("qwasi").weights_by_module()}["blocks.1.mlp.fc1"]
    assert (layer["kind"], layer["shape"], layer["rank"], layer["bits"]) == ("FactoredLinear", [192, 48], 12, 4)
    assert (layer["parameters"], layer["trained"]) == (192 * 48 + 12 * 240 + 192, 12 * 240 + 192)
