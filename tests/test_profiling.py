import re

import numpy as np
import pytest

import wasi
from wasi import _core, ops
from wasi.cli import main
from wasi.models.methods import METHODS, MethodOptions, apply_method
from wasi.profiling import _FLOPS, Profile
from wasi.training.optimizer import Optimizer
from wasi.training.step import accumulate_gradient

SMALL = {"img_size": 16, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 3}


def test_every_call_is_counted_once_and_the_core_is_left_as_it_was(rng):
    before = dict(vars(_core))
    x, L, R = (rng.standard_normal(shape, np.float32) for shape in ((5, 7), (9, 3), (3, 7)))
    with Profile() as profile:
        for _ in range(4):
            y, z = ops.factored_linear(x, L, R)
        ops.factored_linear_backward(y, x, z, L, R, np.zeros_like(L), np.zeros_like(R))
        with pytest.raises(ValueError):
            ops.linear(x, L)
    assert vars(_core) == before
    counts = {k.name: (k.calls, k.flops) for k in profile.kernels}
    assert counts["factored_forward"] == (4, 4 * 2 * 5 * 3 * (9 + 7))
    assert counts["factored_backward"] == (1, 2 * 2 * 5 * 3 * (9 + 7))
    assert counts["linear_forward"][0] == 1
    assert 0 < sum(k.seconds for k in profile.kernels) <= profile.seconds


@pytest.mark.parametrize("method", METHODS)
def test_the_flops_of_a_step_are_those_that_the_layers_predict(rng, method):
    """Forward and backward; the update's K x K algebra and the decompositions are counted elsewhere."""
    model = wasi.create_model("vit_micro_patch8_64", **SMALL)
    images, labels = rng.integers(0, 256, (4, 3, 16, 16), np.uint8), np.zeros(4, np.int64)
    calibration = [(images, labels)] if method.startswith("svd-llm") else None
    apply_method(model, method, MethodOptions(("all",), rank=8, activation_ranks=None), calibration, verbose=False)
    optimizer = Optimizer(model)
    accumulate_gradient(model, images, labels)
    with Profile() as profile:
        accumulate_gradient(model, images, labels)
    counted = sum(k.flops for k in profile.kernels)
    flops = model.training_flops(4, optimizer.rule, None)
    if method in ("asi", "amc", "wasi"):  # their gradients are contracted by matmul_tucker, which is not counted
        assert counted < flops.forward + flops.backward
    elif method not in ("wsi-dense", "svd"):
        assert counted == pytest.approx(flops.forward + flops.backward, rel=0.02)


def test_profiles_do_not_nest_and_names_are_the_cores():
    with Profile(), pytest.raises(RuntimeError, match="another one is active"), Profile():
        pass
    with Profile():  # the failed one left the first one's exit in order
        pass
    assert all(hasattr(_core, name) for name in _FLOPS)


@pytest.mark.parametrize("words", [["--method", "wsi", "--micro-batch", "2", "--recompute", "--saved-bits", "8"],
                                   ["--method", "qwasi", "--inference"], ["--method", "svd-llm"]])
def test_the_command_prints_a_table_that_adds_up(capsys, words):
    assert main(["profile", "--model", "vit_micro_patch4_32", "--batch-size", "4", "--steps", "1", *words]) == 0
    text = capsys.readouterr().out
    shares = [float(s) for s in re.findall(r"([\d.]+)%(?:\s|$)", text.split("total")[0])]
    assert sum(shares) == pytest.approx(100, abs=1)
    assert "factored_forward" in text and ("factored_backward" in text) == ("--inference" not in words)
    assert re.search(r"s a step, [\d.]+ images/s", text)
    assert main(["profile", "--model", "vit_micro_patch4_32", "--steps", "0", *words]) == 2
    assert capsys.readouterr().err == "wasi profile: --steps: expected at least 1, got 0\n"
