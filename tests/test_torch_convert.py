"""wasi.torch: PyTorch models with WASI layers compute, train and load as nn.Linear and as wasi's own layers do."""

import copy
import io
import subprocess
import sys

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install torch==2.13.0")

import torch.nn.functional as F
from tables import LINEAR_SHAPES, relative_error
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch_models import ViT

import wasi
import wasi.torch
from wasi import layers, ops
from wasi.models.factorize import allocated_ranks
from wasi.models.methods import apply_method
from wasi.models.plan import PlanError
from wasi.torch import WSI, FactoredLinear, Linear, MethodOptions, convert, merge, restore
from wasi.training.optimizer import Optimizer
from wasi.training.step import accumulate_gradient

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Problems of this size only wait for a second one."""
    before = torch.get_num_threads(), wasi.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before[0])
    wasi.set_num_threads(before[1])


def linear(O, I, seed=0):
    torch.manual_seed(seed)
    return nn.Linear(I, O)


def mlp(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(24, 48), nn.GELU(), nn.Linear(48, 24))


def converted(model, method="wsi", targets=("0", "2"), **options):
    return convert(model, method, MethodOptions(targets=targets, **options), verbose=False)


def gradients(model, x, **arguments):
    """Output, and gradients of the input and the parameters, for a loss with a random slope."""
    model.zero_grad()
    x = x.clone().requires_grad_()
    y = model(x, **arguments)
    y.backward(torch.randn(y.shape, generator=torch.Generator().manual_seed(1)))
    return y.detach(), x.grad, {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.parametrize("rows, O, I", LINEAR_SHAPES)
def test_full_rank_gradients_are_those_of_linear(rows, O, I, n_threads):
    plain = linear(O, I)
    x = torch.randn(rows, I)
    y, dx, grads = gradients(plain, x)
    for method in ("dense", "wsi"):
        model = converted(nn.Sequential(copy.deepcopy(plain)), method, ("0",), rank=min(O, I))
        wasi.set_num_threads(n_threads)
        y2, dx2, grads2 = gradients(model, x)
        assert relative_error(y2, y) < 1e-5 and relative_error(dx2, dx) < 1e-5
        assert relative_error(grads2["0.bias"], grads["bias"]) < 1e-5
        if method == "dense":
            assert relative_error(grads2["0.weight"], grads["weight"]) < 1e-5
        else:  # dL = dW R', dR = L' dW
            L, R = model[0].L.detach(), model[0].R.detach()
            assert relative_error(grads2["0.L"], grads["weight"] @ R.T) < 1e-5
            assert relative_error(grads2["0.R"], L.T @ grads["weight"]) < 1e-5


@pytest.mark.parametrize("shape", [(9, 24), (4, 5, 24), (2, 3, 4, 24)])
@pytest.mark.parametrize("ranks", [None, (0.5, 0.5, 8), (1.0, 1.0, 1.0)])
@pytest.mark.parametrize("bits", [0, 4, 8])
def test_truncated_layers_compute_as_wasis_own(shape, ranks, bits, rng):
    W, b = rng.standard_normal((40, 24), np.float32), rng.standard_normal(40, np.float32)
    plain = nn.Linear(24, 40)
    plain.weight.data, plain.bias.data = torch.from_numpy(W), torch.from_numpy(b)
    model = converted(nn.Sequential(plain), "qwasi" if bits else "wsi", ("0",), rank=6, bits=bits or 4, activation_ranks=ranks)
    U, s, Vt = wasi.linalg.truncated_svd(W, rank=6)
    L, R = U, s[:, None] * Vt
    own = layers.FactoredLinear(L, R, b, ops.quantize_residual(W - L @ R, bits) if bits else None)
    own.compression = ranks and layers.ActivationCompression(ranks)
    for seed in range(2):  # the second step starts warm
        x = np.random.default_rng(seed).standard_normal(shape, np.float32)
        y, dx, grads = gradients(model, torch.from_numpy(x))
        dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).numpy()
        assert np.array_equal(y, own.forward(x, train=True))
        for p in (own.L, own.R, own.bias):
            p.clear_gradient()
        assert np.array_equal(dx, own.backward(dy))
        assert np.array_equal(grads["0.L"], own.L.grad) and np.array_equal(grads["0.R"], own.R.grad)
        assert np.array_equal(grads["0.bias"], own.bias.grad)


def test_compressed_dense_gradients_are_those_of_the_compressed_input(rng):
    plain = linear(16, 24)
    model = converted(nn.Sequential(copy.deepcopy(plain)), "asi", ("0",), activation_ranks=(0.5, 0.5, 8))
    x = rng.standard_normal((6, 7, 24), np.float32)
    y, dx, grads = gradients(model, torch.from_numpy(x))
    own = layers.Linear(plain.weight.detach().numpy(), plain.bias.detach().numpy())
    own.compression = layers.ActivationCompression((0.5, 0.5, 8))
    assert np.array_equal(y, own.forward(x, train=True))
    own.backward(torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).numpy())
    assert np.array_equal(grads["0.weight"], own.weight.grad)
    assert list(model.state_dict()) == ["0.weight", "0.bias"]  # the names that a plain model has
    assert relative_error(dx, gradients(plain, torch.from_numpy(x))[1]) < 1e-5


@pytest.mark.parametrize("method", ["asi", "wsi", "wasi", "qwasi"])
def test_what_is_frozen_gets_no_gradient_and_keeps_nothing(method):
    x = torch.randn(4, 5, 24)
    for trained in ((), ("bias",), ("L",), ("R", "bias"), ("weight",)):
        model = converted(mlp(), method, rank=4)
        full = gradients(model, x)[2]
        model = converted(mlp(), method, rank=4)
        for name, p in model.named_parameters():
            p.requires_grad_(name.rpartition(".")[2] in trained)
        y = model(x.clone().requires_grad_())
        y.backward(torch.randn(y.shape, generator=torch.Generator().manual_seed(1)))
        for name, p in model.named_parameters():
            assert (p.grad is not None) == p.requires_grad
            assert p.grad is None or relative_error(p.grad, full[name]) < 1e-6
    with torch.autograd.graph.saved_tensors_hooks(lambda t: pytest.fail("kept"), lambda t: t):
        model.requires_grad_(False)(x)


def test_several_forwards_before_backward_do_not_share_memory():
    model, twin = (converted(mlp(), "wasi", rank=4, activation_ranks=(0.5, 0.5, 4)) for _ in range(2))
    x, y = torch.randn(2, 4, 5, 24)
    a, b = model(x), model(y)
    (a.sum() + b.sum()).backward()
    twin(x).sum().backward()
    twin(y).sum().backward()
    for p, q in zip(model.parameters(), twin.parameters()):
        assert relative_error(p.grad, q.grad) < 1e-5


def test_linears_of_one_input_share_its_factors():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.query, self.key = linear(24, 24, 1), linear(24, 24, 2)

        def forward(self, x):
            return self.query(x) * self.key(x)

    def kept(model):
        addresses = set()
        with torch.autograd.graph.saved_tensors_hooks(lambda t: addresses.add((t.data_ptr(), t.numel())) or t, lambda t: t):
            model(torch.randn(8, 6, 24) * 2)
        return sum(n for _, n in addresses)

    both = converted(Attention(), "asi", ("query", "key"), activation_ranks=(0.5, 0.5, 8))
    core_and_factors = 4 * 3 * 8 + 8 * 4 + 6 * 3 + 24 * 8
    assert kept(both) == core_and_factors + 2 * 24 * 25 + 2 * 8 * 6 * 24  # weights, biases; what the product keeps
    x = torch.randn(8, 6, 24)
    both(x)
    before = x._wasi_compressed
    x.add_(1)  # another input in the same memory
    both(x)
    assert x._wasi_compressed is not before


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("method", ["dense", "wsi", "qwasi"])
def test_checkpointing_gives_the_same_gradients(method, reentrant):
    model = converted(mlp(), method, rank=6)
    x = torch.randn(4, 5, 24)
    plain = gradients(model, x)
    again = gradients(lambda_module(model, lambda x: checkpoint(model, x, use_reentrant=reentrant)), x)
    assert torch.equal(plain[0], again[0]) and torch.equal(plain[1], again[1])
    assert all(torch.equal(plain[2][name], again[2][f"inner.{name}"]) for name in plain[2])


def test_checkpointing_frees_compressed_inputs_too():
    model = converted(mlp(), "wasi", rank=6, activation_ranks=(0.5, 0.5, 8))
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        y = checkpoint(model, torch.randn(4, 5, 24).requires_grad_(), use_reentrant=False)
    assert sum(kept) <= 4 * 5 * 24
    y.sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in model.parameters())


def lambda_module(inner, function):
    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return function(x)

    return Wrapped()


def test_without_gradients_nothing_is_compressed():
    model = converted(mlp(), "wasi", rank=4)
    x = torch.randn(4, 5, 24)
    with torch.no_grad():
        y = model(x)
    with torch.inference_mode():
        assert torch.equal(model(x), y)
    assert model[0].compression._factors is None and not y.requires_grad


def test_copies_are_independent_and_states_load():
    model = converted(mlp(), "qwasi", rank=4)
    model(torch.randn(3, 4, 24)).sum().backward()
    twin = copy.deepcopy(model)
    x = torch.randn(3, 4, 24)
    assert torch.equal(twin(x), model(x))
    with torch.no_grad():
        twin[0].L.mul_(2)
    assert not torch.equal(twin(x), model(x))

    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    assert torch.equal(restore(mlp(1), state)(x), model(x))
    fresh = converted(mlp(1), "qwasi", rank=4)
    fresh.load_state_dict(state)
    assert torch.equal(fresh(x), model(x))
    state = {key: value for key, value in state.items() if key != "2.bias"}
    with pytest.raises(RuntimeError, match="Missing key.*2.bias"):
        restore(mlp(1), state)
    with pytest.raises(ValueError, match="state_dict: 0: expected a linear of 48 x 24 in the model, got one of 40 x 24"):
        restore(nn.Sequential(nn.Linear(24, 40)), state)


def test_merge_gives_linears_of_the_same_function():
    for method in ("asi", "wsi", "wasi", "qwasi"):
        model = converted(mlp().eval(), method, rank=6)
        for layer in model[::2]:
            layer.exact = True
        x = torch.randn(3, 5, 24)
        y = model(x)
        assert all(not layer.training and layer.name for layer in model[::2])
        merge(model)
        assert [type(layer) for layer in model] == [nn.Linear, nn.GELU, nn.Linear]
        assert relative_error(model(x).detach(), y.detach()) < 1e-5 and not model[0].training
        assert list(model.state_dict()) == list(mlp().state_dict())
    layer = converted(nn.Sequential(linear(8, 8)), "wsi", ("0",), rank=3)[0]
    assert type(merge(layer)) is nn.Linear


def test_other_tensors_are_refused_by_name_or_cast_as_documented():
    model = converted(mlp(), "wsi", rank=4)
    x = torch.randn(5, 4, 24).transpose(0, 1)  # not contiguous: copied
    assert torch.equal(model(x), model(x.contiguous()))
    for other in (x.double(), x.half(), x.bfloat16(), x.to("meta")):
        with pytest.raises(TypeError, match=r"the input of 0: expected a float32 tensor on the CPU, got \w+ on (cpu|meta)"):
            model(other)
    with pytest.raises(TypeError, match="the input of 0: expected a float32 tensor on the CPU, got sparse_coo"):
        model(torch.eye(24).to_sparse())
    with pytest.raises(ValueError, match=r"the input of 0: expected shape \(..., 24\), got \(3, 23\)"):
        model(torch.zeros(3, 23))
    model.double()
    with pytest.raises(TypeError, match="L of 0: expected a float32 tensor on the CPU, got float64 on cpu"):
        model(x)
    model.float()
    with torch.autocast("cpu", torch.bfloat16):
        assert model(x.bfloat16()).dtype == torch.float32
    assert model(torch.zeros(0, 24)).shape == (0, 24) and model(torch.zeros(24)).shape == (24,)
    y = model(x.clone().requires_grad_())
    with torch.no_grad():
        model[0].R.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_targets_that_cannot_be_converted_are_refused_and_leave_the_model_alone():
    model = mlp()
    model.tied = nn.Embedding(48, 24)
    model.tied.weight = model[0].weight
    before = dict(model.named_modules())
    cases = [
        ({"method": "lora"}, "method: expected a wasi.Plan or one of dense, asi, amc, wsi, wasi, qwasi, got 'lora'"),
        ({"targets": ("fc9",)}, r"target_modules: \['fc9'\] match none of the model's linear layers \(0, 2\)"),
        ({"targets": ("all-linear",)}, "0: its weight is shared with tied.weight; expected it among exclude_modules"),
        ({"targets": ("2",), "rank": 25}, r"rank: expected 1 to 24 for 2 \(24 x 48\), got 25"),
        ({"targets": ("2",), "freeze": ("0",)}, "freeze: expected none, as requires_grad_"),
        ({"targets": ("2",), "variance": 0}, r"variance: expected a share in \(0, 1\], got 0"),
        ({"targets": ("2",), "start": "whitened"}, "calibration: expected losses for the start 'whitened', got None"),
        ({"targets": ("2",), "start": "gradient"}, "start: expected 'svd', 'whitened' or 'fisher' for a method without resid"),
        ({"targets": ("2",), "start": "magic"}, "start: expected one of svd, whitened, fisher, gradient, got 'magic'"),
        ({"targets": ("2",), "share": 2}, r"share: expected a number in \(0, 1\], got 2"),
        ({"targets": ("2",), "method": "qwasi", "bits": 5}, "bits: expected 4 or 8, got 5"),
        ({"targets": ("2",), "method": "asi", "activation_ranks": (2, 0)}, "activation_ranks: expected three shares"),
    ]
    for options, message in cases:
        with pytest.raises(ValueError, match=message):
            converted(model, **options)
        assert dict(model.named_modules()) == before
    converted(model, "dense", ("0",))  # keeps the weight as it is, so that may be shared
    with pytest.raises(TypeError, match="0.weight: expected a float32 tensor on the CPU, got float64"):
        converted(mlp().double())
    broken = mlp()
    broken[2].weight.data[0, 0] = torch.nan
    with pytest.raises(ValueError, match="2.weight: holds NaN or Inf"):
        converted(broken)
    assert type(broken[0]) is nn.Linear
    hooked = mlp()
    hooked[0].register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match="0: expected a layer without hooks"):
        converted(hooked)
    frozen = mlp()
    frozen[0].weight.requires_grad_(False)
    assert type(converted(frozen, targets=("all-linear",), rank=4)[0]) is nn.Linear


def test_shared_layers_stay_shared_and_subclasses_stay():
    model = mlp()
    model.again = model[0]
    converted(model, targets=("0",), rank=4)
    assert model.again is model[0] and isinstance(model[0], FactoredLinear)
    encoder = nn.TransformerEncoderLayer(24, 4, 48, batch_first=True)
    convert(encoder, "wsi", MethodOptions(targets=("all-linear",), rank=24), verbose=False)
    assert isinstance(encoder.linear1, FactoredLinear) and isinstance(encoder.self_attn.out_proj, nn.Linear)
    x = torch.randn(2, 5, 24)
    encoder.eval()
    y = encoder(x)
    with torch.inference_mode():  # PyTorch's fast path, which reads linear1.weight
        assert relative_error(encoder(x), y.detach()) < 1e-5


def test_factors_start_where_calibration_says(rng):
    plain, batches = mlp(), [torch.randn(16, 24) * torch.linspace(0.1, 3, 24) for _ in range(3)]

    def losses(model):
        return (model(x).square().mean() for x in batches)

    model = copy.deepcopy(plain)
    convert(model, "wsi", MethodOptions(targets=("0",), rank=5), calibration=losses(model), verbose=False)
    C = sum((x.double().T @ x.double()).numpy() for x in batches) / 48
    L, R, _ = wasi.linalg.whitened_svd(plain[0].weight.detach().numpy(), C, rank=5)
    assert relative_error(model[0].merged_weight(), L @ R) < 1e-5

    model = copy.deepcopy(plain)
    convert(model, "qwasi", MethodOptions(targets=("0",), rank=5, bits=8), calibration=losses(model), verbose=False)
    G = sum(torch.autograd.grad(loss, plain[0].weight)[0] for loss in losses(plain)).numpy()
    U = np.linalg.svd(G)[0][:, :5]
    assert relative_error(model[0].L.detach() @ model[0].L.detach().T, U @ U.T) < 1e-3
    assert relative_error(model[0].merged_weight(), plain[0].weight.detach()) < 0.01
    assert all(p.grad is None for p in model.parameters())

    model = copy.deepcopy(plain)
    convert(model, "wsi", MethodOptions(targets=("0", "2"), share=0.5), calibration=losses(model), verbose=False)
    covariances, slopes = {}, {}
    for name, inputs in (("0", batches), ("2", [plain[1](plain[0](x)) for x in batches])):
        outputs = [plain[int(name)](x) for x in inputs]
        ends = [torch.autograd.grad((plain[2](plain[1](y)) if name == "0" else y).square().mean(), y)[0] for y in outputs]
        covariances[name], slopes[name] = (sum((x.double().T @ x.double()).detach().numpy() for x in a) / 48
                                           for a in (inputs, ends))
    weights = {name: plain[int(name)].weight.detach().numpy() for name in covariances}
    spectra = {name: wasi.linalg.fisher_svd(W, covariances[name], slopes[name])[2] for name, W in weights.items()}
    ranks = allocated_ranks(spectra, {name: W.shape for name, W in weights.items()}, 0.5)
    for name, W in weights.items():
        L, R, _ = wasi.linalg.fisher_svd(W, covariances[name], slopes[name], rank=ranks[name])
        assert model[int(name)].L.shape[1] == ranks[name]
        assert relative_error(model[int(name)].merged_weight(), L @ R) < 1e-4
    with pytest.raises(ValueError, match="calibration: expected losses of batches that reach 0, computed as they are asked for"):
        model = copy.deepcopy(plain)
        convert(model, "wsi", MethodOptions(targets=("0",), rank=5), calibration=list(losses(model)), verbose=False)


CONFIG = {"img_size": 16, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 5}


def twins(seed=0):
    """A ViT of wasi and one of PyTorch with the same weights."""
    own = wasi.create_model("vit_micro_patch8_64", seed=seed, **CONFIG)
    rng = np.random.default_rng(seed)
    for _, p in own.named_parameters():
        p.data += 0.05 * rng.standard_normal(p.data.shape, np.float32)
    theirs = ViT(32, 2, 2, 8, 16, 5)
    theirs.load_state_dict({name: torch.tensor(p.data).reshape(theirs.get_parameter(name).shape)
                            for name, p in own.named_parameters()})
    return own, theirs


@pytest.mark.parametrize("kind, momentum, lr", [("sgd", 0.0, 0.05), ("sgd", 0.9, 0.02), ("adamw", 0.0, 0.002)])
@pytest.mark.parametrize("method", ["dense", "asi", "wsi", "wasi", "qwasi"])
def test_a_converted_vit_trains_as_wasis_own(method, kind, momentum, lr):
    own, theirs = twins()
    options = MethodOptions(targets=("all",), rank=8, activation_ranks=None if method != "wasi" else (0.5, 0.8, 16))
    apply_method(own, method, options, verbose=False)
    own.set_policy(layers.ActivationPolicy())  # GELU exact, as PyTorch's is
    convert(theirs, method, options, verbose=False)
    for model in (own, theirs):
        for _, module in model.named_modules():
            module.exact = True  # rounding to 8 bits, in qwasi, blows up the last bit's differences
    settings = {"kind": kind, "momentum": momentum, "weight_decay": 0.01, "clip_norm": 1.0}
    ours = Optimizer(own, **settings)
    exempt = {p for name, p in theirs.named_parameters() if p.ndim < 2 or name in ("pos_embed", "cls_token")}
    groups = [{"params": [p for p in theirs.parameters() if p not in exempt]}, {"params": list(exempt), "weight_decay": 0.0}]
    optimizer = WSI(theirs, groups, lr=lr, **settings)
    rng = np.random.default_rng(0)
    for step in range(12):
        images, labels = rng.standard_normal((8, 3, 16, 16), np.float32), rng.integers(0, 5, 8)
        loss = accumulate_gradient(own, images, labels).loss
        norm = ours.step(lr)
        logits = theirs(torch.from_numpy(images))
        got = F.cross_entropy(logits, torch.from_numpy(labels))
        optimizer.zero_grad()
        got.backward()
        optimizer.step()
        assert got.item() == pytest.approx(loss, rel=2e-4), step
        assert optimizer.gradient_norm == pytest.approx(norm, rel=5e-3), step


def test_a_plan_for_wasis_model_is_carried_out_on_pytorchs(rng):
    own, theirs = twins()
    batches = [(rng.integers(0, 256, (8, 3, 16, 16), np.uint8), rng.integers(0, 5, 8))]
    plan = wasi.plan(own, batches, "1MiB", method="wasi", target_modules=("all",))
    convert(theirs, plan, verbose=False,
            calibration=(theirs(torch.from_numpy(i.astype(np.float32) / 128 - 1)).square().sum() for i, _ in batches))
    for layer in plan.layers:
        got = theirs.get_submodule(layer.name)
        if layer.rank is not None:
            assert got.rank == layer.rank
        assert (getattr(got, "compression", None) is not None) == (layer.activation_ranks is not None)
        act = theirs.get_submodule(layer.name.rpartition(".")[0]).act if "mlp" in layer.name else None
        assert layer.gelu_bits is None or act.bits == layer.gelu_bits
    with pytest.raises(PlanError, match=r"blocks.0.\S+: the model has no nn.Linear of that name"):
        convert(mlp(), plan)
    with pytest.raises(ValueError, match="options, gelu_bits: expected None with a plan"):
        convert(mlp(), plan, MethodOptions())


def test_gelu_keeps_few_bits(rng):
    plain = mlp()
    model = convert(copy.deepcopy(plain), "dense", MethodOptions(targets=("0",)), gelu_bits=4, verbose=False)
    x = torch.randn(50, 24)
    assert repr(model[1]) == "Gelu(bits=4)" and torch.allclose(model(x), plain(x), atol=1e-6)
    exact, got = gradients(plain, x)[1], gradients(model, x)[1]
    assert 1e-3 < relative_error(got, exact) < 0.1
    h = model[0](x).detach().numpy()
    g, codes = ops.gelu_encode(h, 4)
    dy = rng.standard_normal(h.shape, np.float32)
    t = torch.from_numpy(h).requires_grad_()
    model[1](t).backward(torch.from_numpy(dy))
    assert np.array_equal(t.grad, ops.gelu_decode_backward(dy, codes, 4))
    assert type(merge(model)[1]) is nn.GELU
    for bits, message in ((3, "gelu_bits: expected 2 or 4, got 3"),):
        with pytest.raises(ValueError, match=message):
            convert(copy.deepcopy(plain), "dense", MethodOptions(targets=("0",)), gelu_bits=bits)
    tanh = nn.Sequential(nn.Linear(24, 24), nn.GELU("tanh"))
    with pytest.raises(ValueError, match="gelu_bits: expected a model with nn.GELU modules, got none"):
        convert(tanh, "dense", MethodOptions(targets=("0",)), gelu_bits=4)
    assert type(tanh[0]) is nn.Linear


def test_training_keeps_less():
    def kept(model):
        sizes = {}
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.setdefault(t.data_ptr(), t.nbytes) and t, lambda t: t):
            model(torch.randn(16, 3, 16, 16)).sum()
        return sum(sizes.values())

    plain, theirs = twins()[1], twins()[1]
    convert(theirs, "wasi", MethodOptions(targets=("all",), rank=8, activation_ranks=(0.5, 0.5, 8)), verbose=False)
    compressed = kept(theirs)
    assert compressed < 0.75 * kept(plain)
    theirs = twins()[1]
    options = MethodOptions(targets=("all",), rank=8, activation_ranks=(0.5, 0.5, 8))
    convert(theirs, "wasi", options, gelu_bits=4, verbose=False)
    assert kept(theirs) < 0.85 * compressed


def trained(model, optimizer, steps, seed=0, scheduler=None):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        x = torch.randn(8, 24, generator=generator)
        optimizer.zero_grad()
        (model(x) - x).square().mean().backward()
        optimizer.step()
        if scheduler:
            scheduler.step()
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_the_optimizer_resumes_from_its_state(kind):
    def make():
        model = converted(mlp(), "wsi", rank=6)
        optimizer = WSI(model, lr=0.05, kind=kind, momentum=0.9)
        return model, optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)

    model, optimizer, scheduler = make()
    trained(model, optimizer, 3, scheduler=scheduler)
    state = model.state_dict(), optimizer.state_dict(), scheduler.state_dict()
    file = io.BytesIO()
    torch.save(state, file)
    want = trained(model, optimizer, 3, 1, scheduler)
    file.seek(0)
    model, optimizer, scheduler = make()
    for part, state in zip((model, optimizer, scheduler), torch.load(file, weights_only=True)):
        part.load_state_dict(state)
    assert torch.equal(trained(model, optimizer, 3, 1, scheduler), want)
    assert optimizer.param_groups[0]["lr"] == 0.05 / 8
    L = model[0].L.detach()
    assert relative_error(L.T @ L, torch.eye(6)) < 1e-5


def test_any_optimizer_of_pytorch_trains_the_factors():
    model = converted(mlp(), "wsi", rank=6)
    start = (model(torch.eye(24)) - torch.eye(24)).square().mean().item()
    trained(model, torch.optim.AdamW(model.parameters(), lr=0.01), 60)
    assert (model(torch.eye(24)) - torch.eye(24)).square().mean().item() < start
    W = model[0].merged_weight()
    WSI(model)  # takes up what is no longer orthonormal
    assert relative_error(model[0].merged_weight(), W) < 1e-5
    L = model[0].L.detach()
    assert relative_error(L.T @ L, torch.eye(6)) < 1e-5


def test_frozen_factors_stay_with_the_optimizer():
    model = converted(mlp(), "wsi", rank=6)
    model[0].L.requires_grad_(False)
    before = model[0].L.detach().clone(), model[0].R.detach().clone()
    trained(model, WSI(model, lr=0.05), 2)
    assert torch.equal(model[0].L, before[0]) and not torch.equal(model[0].R, before[1])


def test_bad_optimizer_settings_are_refused():
    model = converted(mlp(), "wsi", rank=6)
    for settings, message in [({"kind": "lion"}, "kind: expected one of sgd, adamw, got 'lion'"), ({"lr": -1}, "lr: expected a"),
                              ({"momentum": 1.0}, "momentum: expected a number from 0 to below 1, got 1.0"),
                              ({"clip_norm": 0}, "clip_norm: expected a positive norm or None, got 0")]:
        with pytest.raises(ValueError, match=message):
            WSI(model, **settings)
    with pytest.raises(ValueError, match="params: expected L and R of 0 in one group, got them in two"):
        WSI(model, [{"params": [model[0].L]}, {"params": [model[0].R]}])
    with pytest.raises(TypeError, match="2.bias: expected a float32 tensor on the CPU, got float64"):
        model[2].bias.data = model[2].bias.data.double()
        WSI(model)
    model[2].bias.data = model[2].bias.data.float()
    optimizer = WSI(model)
    model(torch.full((2, 24), torch.inf)).sum().backward()
    with pytest.raises((FloatingPointError, ArithmeticError)):
        optimizer.step()


def test_without_pytorch_the_error_says_what_to_install():
    code = "import sys; sys.modules['torch'] = None; import wasi; wasi.torch"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True)
    assert "ImportError: wasi.torch needs PyTorch: pip install torch" in done.stderr
    code = "import sys, wasi, wasi.cli; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-P", "-c", code]).returncode == 0


def test_our_threads_are_set_to_pytorchs():
    wasi.set_num_threads(2)
    converted(mlp(), "wsi", rank=4)
    assert wasi.get_num_threads() == torch.get_num_threads() == 1
    assert isinstance(converted(mlp(), "dense")[0], Linear)
