"""The PyTorch rivals do what their names say: the variants that change nothing but memory give the plain gradient."""

import pytest

torch = pytest.importorskip("torch", reason="needs PyTorch, the oracle: pip install torch==2.13.0")

import rivals
from rivals import WasiFunction, WasiLinear, build, orth, set_spectrum, torch_inference, torch_step
from torch import nn
from torch_models import SIZES

pytestmark = pytest.mark.torch

MODEL = "vit_tiny_patch16_224"


@pytest.fixture(scope="module", autouse=True)
def small_problems():
    """Two blocks, one thread: problems of this size only wait for a second one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SIZES, "tiny", (192, 2, 3))
        yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def plain():
    return torch_step(MODEL, 32, 12, "plain")()


@pytest.mark.parametrize("variant, tolerance", [("checkpoint", 1e-5), ("micro8", 1e-5), ("bf16", 0.03)])
def test_same_gradient_as_plain(plain, variant, tolerance):
    assert torch_step(MODEL, 32, 12, variant)() == pytest.approx(plain, rel=tolerance)


def test_lora_starts_from_the_base_and_trains_nothing_else_but_the_head(plain):
    step = torch_step(MODEL, 32, 12, "lora8")
    assert step()["gradient_norm"] < plain["gradient_norm"]
    names = {name.split(".", 2)[-1] for name, p in build(MODEL, 32, "lora8").named_parameters() if p.requires_grad}
    assert names == {"weight", "bias", *(f"{name}.{factor}" for name in
                                         ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2") for factor in "AB")}
    layer = rivals.LoraLinear(nn.Linear(6, 4), 2)
    x = torch.randn(3, 6)
    assert torch.equal(layer(x), layer.linear(x))


def test_published_layer_at_full_rank_is_a_linear_layer():
    torch.manual_seed(0)
    B, N, I, O = 3, 5, 7, 6
    linear = nn.Linear(I, O).double()
    x, dy = torch.randn(B, N, I).double().requires_grad_(), torch.randn(B, N, O).double()
    want = torch.autograd.grad(linear(x), [x, linear.weight, linear.bias], dy)
    L = orth(torch.randn(O, O).double())
    U = [orth(torch.randn(n, n).double()) for n in (B, N, I)]
    y = WasiFunction.apply(x, linear.weight, linear.bias, L, L.T @ linear.weight, *U)
    assert torch.allclose(y, linear(x))
    for got, expected in zip(torch.autograd.grad(y, [x, linear.weight, linear.bias], dy), want):
        assert torch.allclose(got, expected)


def test_published_weight_gradient_is_that_of_the_compressed_input():
    torch.manual_seed(0)
    linear = nn.Linear(12, 9)
    layer = WasiLinear(linear, 0.8, width=12)
    x, dy = torch.randn(6, 5, 12), torch.randn(6, 5, 9)
    dW, = torch.autograd.grad(layer(x), [linear.weight], dy)
    assert [U.shape for U in layer.U] == [(6, 3), (5, 3), (12, 4)]
    compressed = x
    for mode, U in enumerate(layer.U):
        compressed = rivals.mode_product(compressed, U @ U.T, mode)
    assert torch.allclose(dW, torch.einsum("bno,bni->oi", dy, compressed), atol=1e-5)


def test_published_rank_keeps_the_explained_variance_and_its_signs():
    torch.manual_seed(0)
    linear = nn.Linear(40, 30)
    norm = linear.weight.norm().item()
    set_spectrum(linear.weight)
    s = torch.linalg.svdvals(linear.weight.detach())
    assert s.norm().item() == pytest.approx(norm, rel=1e-4)
    assert torch.allclose(s / s[0], torch.arange(1, 31) ** -0.5, atol=1e-4)
    layer = WasiLinear(linear, 0.8, width=12)
    explained = (s.square().cumsum(0) / s.square().sum()).tolist()
    assert explained[layer.rank - 2] < 0.8 <= explained[layer.rank - 1]
    U, S, V = torch.linalg.svd(linear.weight.detach())
    best = (U[:, : layer.rank] * S[: layer.rank]) @ V[: layer.rank]
    R = layer.iterate(torch.randn(4, 3, 40))
    assert torch.allclose(layer.L @ R, best, atol=1e-4)  # the new L and the old one's R


@pytest.mark.parametrize("variant, n_layers", [("published", 4), ("published-all", 8)])
def test_published_step(variant, n_layers):
    assert sum(isinstance(m, WasiLinear) for m in build(MODEL, 32, variant).modules()) == n_layers
    step = torch_step(MODEL, 32, 8, variant)
    assert step()["loss"] > step()["loss"] > 0


def test_inference_and_names():
    assert abs(torch_inference(MODEL, 2, 32)()["mean_logit"]) < 10
    with pytest.raises(ValueError, match="variant: expected one of plain, .*, got 'none'"):
        torch_step(MODEL, 32, 2, "none")


def test_measured_in_a_fresh_process():
    record = rivals.measure(MODEL, 32, 4, "plain", steps=1, warmup=0, threads=1)
    assert record["variant"] == "plain" and record["versions"]["torch"] == torch.__version__
    weights = 5.5 * 2**20 * 4  # ViT-Ti without the classes of ImageNet
    assert 2 * weights * 0.9 < record["peak_bytes"] < 2 * weights + 150 * 2**20  # weights and gradients at least
