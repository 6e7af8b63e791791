"""FLOPs and bytes of layers against counts by hand."""

import itertools

import numpy as np
import pytest

import wasi
from wasi import ops
from wasi.layers import ActivationCompression, ActivationPolicy, FactoredLinear, Linear
from wasi.layers.flops import Flops, asi_flops, hosvd_flops, tucker_gradient_flops
from wasi.layers.lora import LoraFactoredLinear, LoraLinear
from wasi.layers.published import SvdLinear, WsiDenseLinear
from wasi.models.methods import METHODS, MethodOptions, apply_method
from wasi.training.memory import count_bytes
from wasi.training.optimizer import Optimizer

O, I, K, M = 20, 12, 3, 10  # M rows as 2 x 5
SHAPE = (2, 5, I)


def factored(residual=None):
    return FactoredLinear(np.eye(O, K), np.ones((K, I)), np.zeros(O), residual)


def test_linear_layers():
    W = np.ones((O, I), np.float32)
    assert Linear(W).flops(SHAPE) == Flops(2 * M * I * O, 4 * M * I * O)
    assert Linear(W).flops(SHAPE, dx=False) == Flops(2 * M * I * O, 2 * M * I * O)
    thin = 2 * M * K * (I + O)
    step = K * K * (13 * I + 15 * O)
    assert factored().flops(SHAPE) == Flops(thin, 2 * thin, step)  # gl, dx and dR, dL
    assert factored().flops(SHAPE, prepared=True) == Flops(thin, 2 * thin + 2 * M * I * K, step)
    residual = ops.quantize_residual(W)
    assert factored(residual).flops(SHAPE) == Flops(thin + 2 * M * I * O, 2 * thin + 2 * M * I * O, step)
    assert factored(residual).flops(SHAPE, dx=False).backward == 2 * M * (O * K + K * I + O * K)
    lora = LoraLinear(W, None, K, 8.0, np.random.default_rng(0))
    assert lora.flops(SHAPE) == Flops(thin + 2 * M * I * O, 2 * thin + 2 * M * I * O)
    published = WsiDenseLinear(W, None, K)
    assert published.flops(SHAPE) == Flops(thin, thin + 2 * M * I * O, 4 * O * I * K + 4 * O * K * K)
    truncated = SvdLinear(W, None, K)
    assert truncated.flops(SHAPE) == Flops(thin, thin + 2 * M * I * O, 6 * O * I * I + 20 * I**3 + 2 * O * I * K)
    plain = FactoredLinear(np.ones((O, K)), np.ones((K, I)), plain=True)
    assert plain.flops(SHAPE) == Flops(thin, 2 * thin)
    on_factors = LoraFactoredLinear(np.ones((O, K), np.float32), np.ones((K, I), np.float32), None, 2, 1.0, None)
    updates = 2 * M * 2 * (I + K + K + O)
    assert on_factors.flops(SHAPE) == Flops(thin + updates, thin + 2 * updates)


def test_frozen_weights_have_no_gradient():
    layer = Linear(np.ones((O, I)))
    layer.weight.trainable = False
    assert layer.flops(SHAPE) == Flops(2 * M * I * O, 2 * M * I * O)


def test_compression():
    # Mode 2 alone, of 400 to 5: the direct iteration (two products), the basis, the core.
    assert asi_flops((2, 3, 400), (2, 3, 5)) == 4 * 2400 * 5 + 4 * 400 * 25 + 2 * 2400 * 5
    # Mode 1 alone, of 8 to 7: by the Gram matrix.
    assert asi_flops((100, 8, 9), (100, 7, 9)) == 7200 * 8 + 6 * 64 * 7 + 4 * 8 * 49 + 2 * 7200 * 7
    assert asi_flops((4, 5, 6), (4, 5, 6)) == 0
    assert hosvd_flops((2, 3, 8), (2, 3, 5)) == 48 * 8 + 9 * 512 + 2 * 48 * 5
    # g shrunk by the one cut mode, then g' core.
    assert tucker_gradient_flops((10, 6, 4), (2, 6, 4), 5) == 2 * 60 * 5 * 2 + 2 * 12 * 5 * 4
    layer = Linear(np.ones((5, 4)))
    layer.compression = ActivationCompression((2, 1.0, 1.0))
    assert layer.flops((10, 6, 4)).backward == 2 * 60 * 4 * 5 + asi_flops((10, 6, 4), (2, 6, 4)) + 1200 + 480


def test_the_cheapest_order_is_taken():
    sizes, ranks = (8, 10, 30), (4, 2, 5)

    def in_order(order):
        total, size = 0, 2400
        for n in order:
            d, k = sizes[n], ranks[n]
            total += min(4 * size * k, size * d + 6 * d * d * k) + 4 * d * k * k + 2 * size * k
            size = size * k // d
        return total

    assert asi_flops(sizes, ranks) == min(in_order(order) for order in itertools.permutations(range(3)))


def small_model():
    return wasi.create_model("vit_micro_patch8_64", img_size=16, embed_dim=32, depth=2, num_heads=2, num_classes=3)


def test_a_vit_by_hand():
    model, B, N, C, P = small_model(), 6, 5, 32, 4
    linears = 2 * B * N * C * C * 12
    patches, head = 2 * B * P * 192 * C, 2 * B * C * 3
    forward = patches + head + 2 * (linears + 4 * B * N * N * C)
    backward = patches + 2 * head + 2 * (2 * linears + 10 * B * N * N * C)
    assert model.training_flops(B) == Flops(forward, backward)
    assert model.training_flops(B, micro_batch=4).forward == forward  # rows do not interact
    model.set_policy(ActivationPolicy(recompute=True))
    again = 2 * (2 * B * N * C * C * 8 + 4 * B * N * N * C)  # all but fc2
    assert model.training_flops(B) == Flops(forward, backward + again)


@pytest.mark.parametrize("method", METHODS)
def test_bytes_of_every_method_are_those_of_its_arrays(method):
    model = small_model()
    images = np.random.default_rng(0).standard_normal((6, 3, 16, 16)).astype(np.float32)
    options = MethodOptions(rank=4, lora_rank=4)
    apply_method(model, method, options, [images] if method.startswith("svd-llm") else None, verbose=False)
    optimizer = Optimizer(model, "adamw")
    model.forward(images, train=True)
    counted = count_bytes(model, optimizer)
    parameters = [p for _, p in model.named_parameters()]
    trained = sum(p.data.nbytes for p in parameters if p.trainable)
    assert counted["trained_bytes"] == counted["gradient_bytes"] == trained
    assert counted["optimizer_bytes"] == 2 * trained
    dense = 4 * 4 * (32 * 128)  # the targets' weights
    frozen = sum(p.data.nbytes for p in parameters if not p.trainable)
    factors = 4 * 4 * 4 * (32 + 128)
    quantized = counted["frozen_bytes"] - frozen
    assert 0.5 * dense / 8 < quantized < dense / 4 if method.startswith("q") else quantized == (
        factors if method in ("wsi-dense", "svd") else 0)
    if method == "lora":
        assert frozen > dense
    assert counted["saved_bytes"] == model.total_saved_bytes > images.nbytes


def test_saved_bytes_of_a_dense_block_by_hand():
    model, B, N, C = small_model(), 6, 5, 32
    model.forward(np.zeros((B, 3, 16, 16), np.uint8), train=True)
    block, unit = model.blocks[0], 4 * B * N * C
    # The input with norm1 and with norm2, qkv 3, attention's output 1, the MLP's pre-activation 4; two numbers a row in each
    # norm, one a row and head in attention.
    assert block.total_saved_bytes == (1 + 3 + 1 + 1 + 4) * unit + 4 * B * N * (2 + 2 + 2)
    shared = block.norm1._saved[0]
    block.attn.qkv._saved = (shared,)  # kept twice, there once
    assert block.total_saved_bytes == 10 * unit + 4 * B * N * 6
