"""The decoder: against a float64 NumPy twin, finite differences and PyTorch."""

import functools

import numpy as np
import pytest
from gradcheck import directional_check
from small_models import DECODER, wide
from tables import assert_close, relative_error

import wasi
from wasi.layers import ActivationCompression, ActivationPolicy
from wasi.models.llama import PADDING, LlamaConfig, create_llama
from wasi.models.methods import METHODS, MethodOptions, apply_method
from wasi.reference.llama import llama_logits, llama_loss

small, SMALL = functools.partial(DECODER.model, False), DECODER.sizes


def shape_of(model):
    c = model.config
    return {"depth": c.depth, "n_heads": c.num_heads, "n_kv_heads": c.num_kv_heads, "eps": c.norm_eps, "theta": c.rope_theta}


def batch(rng, model, B=3, N=9):
    return rng.integers(0, model.config.vocab_size, (2, B, N))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_logits_match_the_twin(rng, n_threads, isa, tied, kv_heads):
    model = small(tied, num_kv_heads=kv_heads)
    tokens, _ = batch(rng, model)
    logits = model.forward(tokens)
    assert_close(logits, llama_logits(wide(model), tokens, **shape_of(model)), factor=5)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("recompute", [False, True])
def test_gradients_against_finite_differences(rng, tied, recompute):
    model = small(tied)
    model.set_policy(ActivationPolicy(recompute=recompute))
    tokens, targets = batch(rng, model)
    loss, dlogits, _ = model.loss(model.forward(tokens, train=True), targets)
    model.backward(dlogits)
    p = wide(model)
    names = list(p)
    assert loss == pytest.approx(llama_loss(p, tokens, targets, **shape_of(model)), rel=1e-5)
    gradients = [dict(model.named_parameters())[n].grad for n in names]
    assert all(g is not None for g in gradients)

    def value(arrays):
        return llama_loss(dict(zip(names, arrays)), tokens, targets, **shape_of(model))

    assert directional_check(value, list(p.values()), gradients, rng, n_directions=2, step=1e-5) < 1e-4


@pytest.mark.parametrize("bits, error", [(16, 0.02), (8, 0.05)])
def test_what_is_kept_in_few_bits(rng, bits, error):
    tokens, targets = rng.integers(0, 23, (2, 4, 9))
    gradients, saved = [], []
    for policy in (ActivationPolicy(), ActivationPolicy(saved_bits=bits)):
        model = small(scale=5.0)
        model.set_policy(policy)
        logits = model.forward(tokens, train=True)
        saved.append(model.total_saved_bytes)
        model.backward(model.loss(logits, targets)[1])
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    assert saved[1] < 0.7 * saved[0]
    for name, g in gradients[0].items():
        assert relative_error(gradients[1][name], g) < error, name


@pytest.mark.parametrize("tied, num_classes", [(True, None), (False, None), (False, 3)])
def test_gradients_match_torch(rng, torch, n_threads, tied, num_classes):
    import torch_llama

    model = small(tied, num_classes)
    tokens, targets = batch(rng, model)
    lengths = np.full(len(tokens), tokens.shape[1])
    if num_classes:
        lengths, targets = np.array([9, 4, 1]), np.array([0, 2, 1])
        for row, n in zip(tokens, lengths):
            row[n:] = PADDING
    oracle = torch_llama.Llama(model.config)
    oracle.load_state_dict({name: torch.tensor(p.data) for name, p in model.named_parameters()})
    oracle = oracle.double()
    want = oracle(torch.tensor(np.maximum(tokens, 0)), torch.tensor(lengths))
    torch.nn.functional.cross_entropy(want.flatten(0, -2), torch.tensor(targets).flatten()).backward()
    logits = model.forward(tokens, train=True)
    assert_close(logits, want.detach().numpy(), factor=5)
    model.backward(model.loss(logits, targets)[1])
    for name, p in oracle.named_parameters():
        assert relative_error(dict(model.named_parameters())[name].grad, p.grad.numpy()) < 2e-5, name


def test_padding_changes_nothing(rng):
    model = small(tied=False, num_classes=3)
    tokens, _ = batch(rng, model)
    tokens[1, 5:] = PADDING
    both = model.forward(tokens)
    assert_close(both[1], model.forward(tokens[1:2, :5].copy())[0])


def test_frozen_blocks_keep_nothing_and_get_no_gradient(rng):
    full, last = small(tied=False), small(tied=False)
    last.train_last(1)
    tokens, targets = batch(rng, full)
    parts = []
    for model in (full, last):
        logits = model.forward(tokens, train=True)
        model.backward(model.loss(logits, targets)[1], after=parts.append)
    assert parts[-3:] == [last.head, last.norm, last.blocks[2]]
    assert parts[:6] == [full.head, full.norm, *reversed(full.blocks), full.embed]
    want = dict(full.named_parameters())
    for name, p in last.named_parameters():
        if name.startswith(("blocks.2", "norm")):
            assert np.array_equal(p.grad, want[name].grad), name
        else:
            assert p.grad is None and not p.trainable, name
    last.forward(tokens, train=True)
    assert last.blocks[1].total_saved_bytes == last.embed.total_saved_bytes == 0 < last.blocks[2].total_saved_bytes
    with pytest.raises(ValueError, match="last_layers: expected 0 to 3, got 4"):
        last.train_last(4)


@pytest.mark.parametrize("pieces", [(1,) * 9, (5, 1, 3), (9,)])
def test_cache_gives_the_same_logits(rng, n_threads, pieces):
    model = small()
    tokens, _ = batch(rng, model)
    want = model.forward(tokens)
    caches = model.new_caches(3, 9)
    start = 0
    for n in pieces:
        logits = model.extend(tokens[:, start : start + n].copy(), caches)
        start += n
        assert_close(logits, want[:, start - 1], factor=5)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_it(rng, method):
    from wasi.training.optimizer import Optimizer
    from wasi.training.step import accumulate_gradient

    model = small(tied=False, scale=5.0)
    model.train_last(2)
    tokens, labels = batch(rng, model, B=4)
    frozen = {name: p.data.copy() for name, p in model.named_parameters() if not p.trainable}
    apply_method(model, method, MethodOptions(targets=("all",), rank=4, lora_rank=2), [(tokens, labels)], verbose=False)
    optimizer = Optimizer(model, clip_norm=1.0)
    losses = []
    for _ in range(12):
        losses.append(accumulate_gradient(model, tokens, labels, micro_batch=2).loss)
        optimizer.step(0.2)
    assert losses[-1] < losses[0]
    after = dict(model.named_parameters())
    assert all(np.array_equal(after[name].data, data) for name, data in frozen.items())
    assert model.training_flops(4).total > 0


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("storage", [{"layerwise": True}, {"gradient_bits": 16}])
def test_gradient_storage(rng, tied, storage):
    from wasi.training.optimizer import Optimizer
    from wasi.training.step import accumulate_gradient

    tokens, targets = rng.integers(0, 23, (2, 4, 9))
    losses = []
    for options in ({}, storage):
        model = wasi.factorize(small(tied), rank=6, target_modules=("all",), verbose=False)
        optimizer = Optimizer(model, **options)
        for _ in range(3):
            loss = accumulate_gradient(model, tokens, targets, 2 if "gradient_bits" in options else None,
                                       after=optimizer.after_backward(0.1)).loss
            optimizer.step(0.1)
        losses.append(loss)
    assert losses[1] == pytest.approx(losses[0], rel=1e-2 if "gradient_bits" in storage else 1e-6)


def test_inputs_that_linears_share_are_compressed_once(rng):
    alone, shared = (apply_method(small(), "asi", MethodOptions(("all",), activation_ranks=(0.5, 0.5, 8)), verbose=False)
                     for _ in range(2))
    for block in alone.blocks:
        for part in (block.attn, block.mlp):
            for name in ("k_proj", "v_proj", "up_proj"):
                if hasattr(part, name):
                    getattr(part, name).compression = ActivationCompression((0.5, 0.5, 8))
    tokens, targets = rng.integers(0, 23, (2, 4, 9))
    gradients, saved = [], []
    for model in (alone, shared):
        for _ in range(2):
            model.zero_grad()
            logits = model.forward(tokens, train=True)
            saved.append(model.total_saved_bytes)
            model.backward(model.loss(logits, targets)[1])
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    assert shared.blocks[0].attn.k_proj.compression is shared.blocks[0].attn.q_proj.compression
    assert saved[-1] < saved[0] and shared.training_flops(4).total < alone.training_flops(4).total
    for name, g in gradients[0].items():
        assert relative_error(gradients[1][name], g) < 1e-5, name


def test_factored_decoder_matches_the_twin(rng):
    model = wasi.factorize(small(), rank=6, target_modules=("all",), verbose=False)
    assert len(model.factorization) == 21
    tokens, _ = batch(rng, model)
    assert_close(model.forward(tokens), llama_logits(wide(model), tokens, **shape_of(model)), factor=5)


def test_bad_input_is_refused_by_name(rng):
    model = small()
    tokens, _ = batch(rng, model)
    with pytest.raises(TypeError, match=r"tokens: expected an int64 array of shape \(B, N\), got int32 \(3, 9\)"):
        model.forward(tokens.astype(np.int32))
    with pytest.raises(ValueError, match="tokens: expected at most the 12 of the model's context, got 13"):
        model.forward(np.zeros((1, 13), np.int64))
    tokens[2, 3] = 23
    with pytest.raises(ValueError, match="tokens: expected ids 0 to 22, got 23 in row 2 at place 3"):
        model.forward(tokens)
    tokens[2, 3] = PADDING
    with pytest.raises(ValueError, match="got -1 in row 2 at place 3: padding is for classifiers alone"):
        model.forward(tokens)
    with pytest.raises(ValueError, match="expected one or more ids in each row and padding only after them"):
        small(tied=False, num_classes=2).forward(tokens)
    with pytest.raises(ValueError, match="gelu_bits: expected None"):
        model.set_policy(ActivationPolicy(gelu_bits=4))
    for wrong, text in [({"num_kv_heads": 3}, "num_kv_heads: expected a divisor of num_heads 4, got 3"),
                        ({"embed_dim": 18}, "num_heads: expected a divisor of embed_dim 18, got 4"),
                        ({"embed_dim": 12}, "head_dim: expected an even number, got 3"),
                        ({"depth": 0}, "depth: expected at least 1, got 0"),
                        ({"num_classes": 2, "tied": True}, "num_classes: expected None, or at least 1 and a head")]:
        with pytest.raises(ValueError, match=text):
            LlamaConfig(**{**SMALL, **wrong})


def test_registered_names(rng):
    model = create_llama("llama_micro", num_classes=2, depth=1)
    assert model.forward(np.array([[1, 2, 3]])).shape == (1, 2)
    assert sum(np.prod(s) for s in create_llama("llama_micro").config.shapes().values()) == 260_032
