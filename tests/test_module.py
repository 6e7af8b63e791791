"""The tree of modules."""

import pytest

import wasi
from wasi.layers import Linear


def test_stand_ins_go_when_their_context_ends():
    model = wasi.create_model("vit_micro_patch8_64")
    own = model.get_module("blocks.1.mlp.fc1")
    other = Linear(own.weight.data)
    with model.replaced({"blocks.1.mlp.fc1": other}):
        assert model.blocks[1].mlp.fc1 is other
    assert model.blocks[1].mlp.fc1 is own
    with pytest.raises(ZeroDivisionError), model.replaced({"blocks.1.mlp.fc1": other}):
        raise ZeroDivisionError
    assert model.blocks[1].mlp.fc1 is own
    with pytest.raises(AttributeError), model.replaced({"blocks.1.mlp.fc1": other, "blocks.1.mlp.fc3": other}):
        pass
    assert model.blocks[1].mlp.fc1 is own


@pytest.mark.parametrize("name", ["vit_micro_patch8_64", "swin_micro_patch2_window4_32", "llama_micro"])
def test_configurations_know_the_shapes_of_their_models(name):
    model = wasi.create_model(name, num_classes=3)
    assert model.config.shapes() == {name: p.data.shape for name, p in model.named_parameters()}
