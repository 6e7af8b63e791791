"""Published decoders: stories260K beside a float64 twin that reads its file on its own, Hugging Face's files, bad files."""

import json
import struct

import numpy as np
import pytest
from safetensors.numpy import save_file
from tables import assert_close

import wasi
from wasi.models import WeightsError, load_llama, save_hugging_face
from wasi.models.llama import Llama, LlamaConfig, random_arrays
from wasi.models.llama_files import hugging_face_name, read_llama2c
from wasi.models.methods import MethodOptions, apply_method
from wasi.reference.llama import llama_logits
from wasi.training.text import open_windows

CONFIG = LlamaConfig(vocab_size=19, embed_dim=16, hidden_dim=24, depth=2, num_heads=4, num_kv_heads=2, max_length=32)
SETTINGS = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 19, "hidden_size": 16,
            "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
            "max_position_embeddings": 32, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu",
            "tie_word_embeddings": False, "rope_scaling": None}


def twin_of_llama2c(path):
    """float64 parameters and shape of a llama2.c file, read in the order of llama2.c's run.c."""
    with open(path, "rb") as file:
        dim, hidden, depth, heads, kv_heads, vocabulary, _ = struct.unpack("<7i", file.read(28))
        kv = dim // heads * kv_heads

        def take(*shape):
            return np.fromfile(file, "<f4", int(np.prod(shape))).reshape(shape).astype(np.float64)

        p = {"embed.weight": take(vocabulary, dim)}
        layout = {"norm1": (dim,), "attn.q_proj": (dim, dim), "attn.k_proj": (kv, dim), "attn.v_proj": (kv, dim),
                  "attn.o_proj": (dim, dim), "norm2": (dim,), "mlp.gate_proj": (hidden, dim), "mlp.down_proj": (dim, hidden),
                  "mlp.up_proj": (hidden, dim)}
        for name, shape in layout.items():
            p |= {f"blocks.{i}.{name}.weight": W for i, W in enumerate(take(depth, *shape))}
        p["norm.weight"] = take(dim)
    return p, {"depth": depth, "n_heads": heads, "n_kv_heads": kv_heads, "interleaved": True}


def test_greedy_text_equals_the_twin(shared_data, n_threads):
    path = shared_data("stories260k/stories260K.bin")
    model, tokenizer = load_llama(path), wasi.load_tokenizer(shared_data("stories260k/tok512.bin"))
    p, shape = twin_of_llama2c(path)
    prompt = tokenizer.encode("Once upon a time")
    new = wasi.generate(model, prompt, 100)
    # The twin's greedy text is this one if, after each of its beginnings, the twin's most probable token is the next.
    logits = llama_logits(p, np.array([prompt + new[:-1]]), **shape)[0, len(prompt) - 1 :]
    assert len(new) == 100 and new == logits.argmax(-1).tolist()
    assert tokenizer.decode(prompt + new).startswith("Once upon a time, there was a little girl named Lily.")


def test_sampling_follows_the_seed_and_top_p(shared_data):
    model = load_llama(shared_data("stories260k/stories260K.bin"))
    greedy = wasi.generate(model, [1, 403], 30)
    hot = [wasi.generate(model, [1, 403], 30, temperature=1.0, seed=s) for s in (0, 0, 1)]
    assert hot[0] == hot[1] != hot[2] and greedy not in hot
    assert wasi.generate(model, [1, 403], 30, temperature=1.0, top_p=1e-6, seed=3) == greedy
    for cold in (1e-3, 1e-300):
        assert wasi.generate(model, [1, 403], 30, temperature=cold, seed=3) == greedy
    assert wasi.generate(model, [1, 403], 30, stop={greedy[4]}) == greedy[: greedy.index(greedy[4])]
    assert len(wasi.generate(model, [1] * 510, 30)) == 2  # the context is full


def test_sampled_frequencies():
    from wasi.models.generation import sample

    rng, logits = np.random.default_rng(0), np.log(np.float32([0.5, 0.1, 0.3, 0.1]))
    counts = np.bincount([sample(logits, 1.0, 1.0, rng) for _ in range(4000)], minlength=4) / 4000
    assert np.abs(counts - [0.5, 0.1, 0.3, 0.1]).max() < 0.03
    counts = np.bincount([sample(logits, 1.0, 0.75, rng) for _ in range(4000)], minlength=4) / 4000
    assert np.abs(counts - [0.625, 0, 0.375, 0]).max() < 0.03
    counts = np.bincount([sample(logits, 0.5, 1.0, rng) for _ in range(4000)], minlength=4) / 4000
    assert np.abs(counts - np.array([25, 1, 9, 1]) / 36).max() < 0.03


def test_perplexity_is_that_of_the_twin(shared_data):
    path = shared_data("stories260k/stories260K.bin")
    tokenizer = wasi.load_tokenizer(shared_data("stories260k/tok512.bin"))
    tokens = tokenizer.encode("One day, a little dog saw a big red ball in the park.")
    p, shape = twin_of_llama2c(path)
    logits = llama_logits(p, np.array([tokens[:16]]), **shape)[0]
    logits -= np.log(np.exp(logits).sum(-1, keepdims=True))
    want = np.exp(-logits[np.arange(16), tokens[1:17]].mean())
    assert wasi.models.perplexity(load_llama(path), tokens[:17], 16) == pytest.approx(want, rel=1e-5)
    with pytest.raises(ValueError, match="tokens: expected at least 17"):
        wasi.models.perplexity(load_llama(path), tokens[:16], 16)


def test_a_whitened_start_keeps_more_of_a_published_decoder(shared_data, tmp_path):
    """Held-out perplexity after truncation at three thresholds, both starts at the ranks of the plain one."""
    path = shared_data("stories260k/stories260K.bin")
    (tmp_path / "t.txt").write_text(shared_data("tinyshakespeare.txt").read_text()[:60_000])
    splits = open_windows(tmp_path / "t.txt", wasi.load_tokenizer(shared_data("stories260k/tok512.bin")), 128)
    calibration = [splits["train"].subset(32).batch(np.arange(32))]
    held_out = np.concatenate([window[:-1] for window in splits["val"].tokens[:16]])
    dense, lost = wasi.models.perplexity(load_llama(path), held_out, 128), []
    for variance in (0.99, 0.95, 0.9):
        plain = wasi.factorize(load_llama(path), variance, target_modules=("all",), verbose=False)
        ranks = {layer.name: layer.rank for layer in plain.factorization}
        whitened = wasi.factorize(load_llama(path), rank_pattern=ranks, whiten=calibration, target_modules=("all",),
                                  verbose=False)
        lost.append([wasi.models.perplexity(model, held_out, 128) / dense for model in (plain, whitened)])
    assert all(whitened < plain for plain, whitened in lost) and max(whitened for _, whitened in lost) < 1.3
    assert lost[0][0] < lost[1][0] < lost[2][0] > 2


def test_generate_refuses_bad_input(shared_data):
    model = load_llama(shared_data("stories260k/stories260K.bin"))
    with pytest.raises(ValueError, match="tokens: expected a prompt of 1 to 511 tokens, .* got 512"):
        wasi.generate(model, [1] * 512, 1)
    with pytest.raises(ValueError, match="tokens: expected a prompt of 1 to 511 tokens"):
        wasi.generate(model, [], 1)
    for bad in (512, -1, -2):
        with pytest.raises(ValueError, match=f"tokens: expected ids 0 to 511, got {bad} in row 0 at place 1"):
            wasi.generate(model, [1, bad], 1)
    for bad in ([1.5], [[1, 2]], ["a"], [2**70]):
        with pytest.raises(TypeError, match="tokens: expected a list of ids, got "):
            wasi.generate(model, bad, 1)
    for bad in ({"temperature": -1}, {"temperature": np.nan}, {"top_p": 0}, {"top_p": 1.5}, {"n_tokens": -1}):
        with pytest.raises(ValueError, match=f"{next(iter(bad))}: expected"):
            wasi.generate(model, [1], **{"n_tokens": 1, **bad})
    model.norm.weight.data[0] = np.inf
    with pytest.raises(FloatingPointError, match="the logits are not finite"):
        wasi.generate(model, [1], 1)
    with pytest.raises(ValueError, match="expected a language model, got a classifier"):
        wasi.generate(wasi.create_model("swin_micro_patch2_window4_32"), [1], 1)
    with pytest.raises(ValueError, match="expected a language model, got a classifier"):
        wasi.generate(load_llama(shared_data("stories260k/stories260K.bin"), num_classes=2), [1], 1)


def llama2c_bytes(header, n_numbers):
    return struct.pack("<7i", *header) + np.random.default_rng(0).standard_normal(n_numbers).astype("<f4").tobytes()


GOOD = (8, 12, 2, 2, 1, 11, 6)
N_GOOD = 11 * 8 + 2 * (8 + 64 + 32 + 32 + 64 + 8 + 3 * 96) + 8 + 6 * 4


@pytest.mark.parametrize("untied", [False, True])
def test_llama2c_layout(tmp_path, untied):
    path = tmp_path / "model.bin"
    path.write_bytes(llama2c_bytes((*GOOD[:5], -11, 6) if untied else GOOD, N_GOOD + 88 * untied))
    config, tensors = read_llama2c(path)
    assert config.tied is not untied and set(tensors) == set(config.shapes())
    assert load_llama(path).forward(np.array([[1, 2, 3]])).shape == (1, 3, 11)


@pytest.mark.parametrize("header, n_numbers", [
    (GOOD, N_GOOD - 1), (GOOD, N_GOOD + 1), (GOOD, 0), ((2**31 - 8, 2**31 - 1, 2**31 - 1, 1, 1, 2**31 - 1, 2**31 - 1), 10),
    ((-8, 12, 2, 2, 1, 11, 6), N_GOOD), ((0,) * 7, 0), ((8, 12, 2, 3, 1, 11, 6), N_GOOD), ((8, 12, 2, 2, 2**30, 11, 6), N_GOOD),
    ((8, 12, 2**30, 2, 1, 11, 6), N_GOOD), ((8, 12, 2, 2, 1, -(2**31), 6), N_GOOD)])
def test_hostile_llama2c_headers(tmp_path, header, n_numbers):
    path = tmp_path / "model.bin"
    path.write_bytes(llama2c_bytes(header, n_numbers))
    with pytest.raises(WeightsError, match="model.bin is (truncated or )?not a llama2.c checkpoint"):
        load_llama(path)


def test_short_and_damaged_llama2c_files(tmp_path):
    path = tmp_path / "model.bin"
    path.write_bytes(b"\0" * 27)
    with pytest.raises(WeightsError, match="27 bytes, fewer than the header"):
        load_llama(path)
    data = bytearray(llama2c_bytes(GOOD, N_GOOD))
    data[28:32] = np.float32(np.nan).tobytes()
    path.write_bytes(data)
    with pytest.raises(WeightsError, match="'embed.weight' of model.bin holds NaN"):
        load_llama(path)


def hugging_face_tensors(config, seed=0):
    model = Llama(config, random_arrays(seed))
    return model, {hugging_face_name(n, config.num_classes is not None): p.data for n, p in model.named_parameters()}


def raw_safetensors(path, tensors):
    """tensors: {name: (dtype, shape, bytes)}, also of types that NumPy lacks."""
    header, at = {}, 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + len(data)]}
        at += len(data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(data for _, _, data in tensors.values()))


def folder_of(tmp_path, tensors, **settings):
    tmp_path.mkdir(exist_ok=True)
    (tmp_path / "config.json").write_text(json.dumps(SETTINGS | settings))
    save_file(tensors, tmp_path / "model.safetensors")
    return tmp_path


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_hugging_face_folder(tmp_path, dtype):
    model, tensors = hugging_face_tensors(CONFIG)
    if dtype == "bfloat16":
        folder_of(tmp_path, {})
        raw_safetensors(tmp_path / "model.safetensors", {n: ("BF16", a.shape, (a.view(np.uint32) >> 16).astype("<u2").tobytes())
                                                         for n, a in tensors.items()})
        want = {n: (a.view(np.uint32) & 0xFFFF0000).view(np.float32) for n, a in tensors.items()}
    else:
        folder_of(tmp_path, {n: a.astype(dtype) for n, a in tensors.items()})
        want = {n: a.astype(dtype).astype(np.float32) for n, a in tensors.items()}
    for path in (tmp_path, tmp_path / "model.safetensors"):
        loaded = load_llama(path)
        assert loaded.config == model.config
        for name, p in loaded.named_parameters():
            assert np.array_equal(p.data, want[hugging_face_name(name)]), name


def test_shards_ties_and_classifiers(tmp_path):
    model, tensors = hugging_face_tensors(CONFIG)
    folder_of(tmp_path, {})
    (tmp_path / "model.safetensors").unlink()
    names = sorted(tensors)
    for number, part in enumerate((names[:7], names[7:])):
        save_file({n: tensors[n] for n in part}, tmp_path / f"{number}.safetensors")
    weight_map = {n: f"{int(i >= 7)}.safetensors" for i, n in enumerate(names)}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    tokens = np.array([[3, 1, 2]])
    assert np.array_equal(load_llama(tmp_path).forward(tokens), model.forward(tokens))
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../model.safetensors"}}))
    with pytest.raises(WeightsError, match="outside its folder"):
        load_llama(tmp_path)

    tied = folder_of(tmp_path / "tied", {n: a for n, a in tensors.items() if n != "lm_head.weight"}, tie_word_embeddings=True)
    assert load_llama(tied).head is None
    new = load_llama(tied, num_classes=3, seed=5)
    assert new.forward(tokens).shape == (1, 3)
    classifier, tensors = hugging_face_tensors(LlamaConfig(**{**CONFIG.__dict__, "num_classes": 4}))
    path = folder_of(tmp_path / "classifier", tensors, architectures=["LlamaForSequenceClassification"],
                     id2label={str(i): f"LABEL_{i}" for i in range(4)})
    assert np.array_equal(load_llama(path).forward(tokens), classifier.forward(tokens))
    assert load_llama(path, num_classes=2).forward(tokens).shape == (1, 2)


def test_everything_wrong_is_named_at_once(tmp_path):
    _, tensors = hugging_face_tensors(CONFIG)
    del tensors["model.norm.weight"]
    tensors["lm_head.weight"] = tensors["lm_head.weight"][:, :8].copy()
    tensors["model.embed_tokens.weight"] = np.zeros((19, 16), np.int64)
    folder_of(tmp_path, tensors)
    with pytest.raises(WeightsError) as error:
        load_llama(tmp_path)
    for text in ("model.norm.weight: missing", "lm_head.weight: expected shape (19, 16), got (19, 8)",
                 "model.embed_tokens.weight: expected F32, F16, BF16, F64, got I64"):
        assert text in str(error.value)


@pytest.mark.parametrize("settings, text", [
    ({"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}, "expected the architecture llama .* got model_type 'gpt2'"),
    ({"architectures": ["MistralForCausalLM"]}, "expected the architecture llama"),
    ({"hidden_size": 10**12}, "hidden_size: expected a positive whole number"),
    ({"hidden_size": "16"}, "hidden_size: expected a positive whole number, got '16'"),
    ({"vocab_size": None, "rope_theta": -1.0}, "vocab_size: expected .* rope_theta: expected a positive number, got -1.0"),
    ({"rope_scaling": {"rope_type": "yarn", "factor": 4}}, "rope_scaling: expected none"),
    ({"hidden_act": "gelu"}, "hidden_act: expected 'silu', got 'gelu'"),
    ({"attention_bias": True}, "attention_bias: expected False, got True"),
    ({"architectures": ["LlamaForSequenceClassification"], "num_labels": "2"}, "num_labels: expected .* whole number, got '2'"),
    ({"num_hidden_layers": 2**30}, "config.json says 1073741824 layers, and the file has 21 tensors"),
    ({"num_attention_heads": 5}, "num_heads: expected a divisor|num_kv_heads: expected a divisor"),
    ({"hidden_size": 2**20, "num_attention_heads": 4}, r"expected shape \(19, 1048576\), got \(19, 16\)")])
def test_settings_that_are_refused(tmp_path, settings, text):
    folder_of(tmp_path, hugging_face_tensors(CONFIG)[1], **settings)
    with pytest.raises(WeightsError, match=text):
        load_llama(tmp_path)


def test_damaged_files(tmp_path):
    path = folder_of(tmp_path, hugging_face_tensors(CONFIG)[1]) / "model.safetensors"
    good = path.read_bytes()
    size = struct.unpack("<Q", good[:8])[0]
    header = json.loads(good[8 : 8 + size])
    first, second = sorted(header, key=lambda n: header[n]["data_offsets"])[:2]
    overlap = json.loads(json.dumps(header))
    overlap[second]["data_offsets"] = header[first]["data_offsets"]
    huge = json.loads(json.dumps(header))
    huge[first]["shape"] = [2**40, 2**40]

    def with_header(changed):
        text = json.dumps(changed).encode()
        return struct.pack("<Q", len(text)) + text + good[8 + size :]

    for bad in (good[:-1], good[:100], b"", good[:7], struct.pack("<Q", 2**62) + good[8:], with_header(overlap),
                with_header(huge), struct.pack("<Q", 4) + b"nope"):
        path.write_bytes(bad)
        with pytest.raises(WeightsError, match="model.safetensors is truncated or not one"):
            load_llama(tmp_path)
    path.write_bytes(good)
    (tmp_path / "config.json").write_text("[" * 100_000)
    with pytest.raises(WeightsError, match="config.json is not JSON"):
        load_llama(tmp_path)
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(WeightsError, match="expected an object of settings, got list"):
        load_llama(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match="expected config.json beside"):
        load_llama(tmp_path)


@pytest.mark.parametrize("method", ["dense", "wsi", "qwasi", "qlora"])
def test_own_files(tmp_path, method):
    model = wasi.create_model("llama_micro", num_classes=3, depth=2)
    apply_method(model, method, MethodOptions(targets=("all",), rank=8), verbose=False)
    wasi.save_model(model, tmp_path / "m.safetensors", {"classes": ["a", "b", "c"]})
    loaded, extra = wasi.load_model(tmp_path / "m.safetensors")
    tokens = np.array([[3, 1, 2, -1], [4, 5, 6, 7]])
    assert extra == {"classes": ["a", "b", "c"]} and np.array_equal(loaded.forward(tokens), model.forward(tokens))


def test_create_model_knows_decoders():
    assert "tinyllama_1.1b" in wasi.list_models()
    with pytest.raises(ValueError, match="img_size, weights: expected None for llama_micro"):
        wasi.create_model("llama_micro", img_size=32)


def test_commands(shared_data, capsys):
    from wasi.cli import main

    assert main(["info", str(shared_data("stories260k/stories260K.bin"))]) == 0
    assert capsys.readouterr().out.endswith("\n47 tensors, 260,032 numbers; not written by wasi\n")

    words = ["generate", "--weights", str(shared_data("stories260k/stories260K.bin")), "--tokens", "20", "--tokenizer",
             str(shared_data("stories260k/tok512.bin"))]
    assert main(words) == 0
    assert capsys.readouterr().out.startswith("Once upon a time, there was a little girl named Lily.")
    assert main([*words, "--prompt", "The dog", "--temperature", "0.8", "--top-p", "0.9", "--seed", "3"]) == 0
    assert capsys.readouterr().out.startswith("The dog")
    assert main([*words, "--prompt", "word " * 600]) == 2
    assert "expected a prompt of 1 to 511 tokens" in capsys.readouterr().err
    assert main(words[:3]) == 2
    assert "--tokenizer: expected it, or tokenizer.json or tokenizer.bin in" in capsys.readouterr().err


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", ["F32", "BF16"])
def test_frozen_matrices_stay_in_the_file(tmp_path, rng, tied, dtype):
    from wasi.layers.frozen import Bf16Embedding, Bf16Linear

    _, tensors = hugging_face_tensors(CONFIG)
    if tied:
        del tensors["lm_head.weight"]
    tensors = {n: (a.view(np.uint32) & 0xFFFF0000).view(np.float32) for n, a in tensors.items()}
    folder_of(tmp_path, {}, tie_word_embeddings=tied)
    raw = {n: a.tobytes() if dtype == "F32" else (a.view(np.uint32) >> 16).astype("<u2").tobytes() for n, a in tensors.items()}
    raw_safetensors(tmp_path / "model.safetensors", {n: (dtype, a.shape, raw[n]) for n, a in tensors.items()})
    model, whole = load_llama(tmp_path, last_layers=1), load_llama(tmp_path)
    if dtype == "BF16":
        assert isinstance(model.embed, Bf16Embedding) and isinstance(model.blocks[0].attn.q_proj, Bf16Linear)
    else:
        assert not model.embed.weight.data.flags.writeable and not model.blocks[0].mlp.up_proj.weight.data.flags.writeable
    whole.train_last(1)
    tokens, targets = rng.integers(0, 19, (2, 3, 8))
    gradients = []
    for m in (model, whole):
        logits = m.forward(tokens, train=True)
        m.backward(m.loss(logits, targets)[1])
        gradients.append({n: p.grad for n, p in m.named_parameters() if p.trainable})
    assert gradients[0].keys() == gradients[1].keys() and any("blocks.1" in n for n in gradients[0])
    for name, g in gradients[0].items():
        assert_close(g, gradients[1][name], factor=5)
    logits = model.forward(tokens)
    wasi.save_model(model, tmp_path / "own.safetensors")
    loaded, _ = wasi.load_model(tmp_path / "own.safetensors")
    assert np.array_equal(loaded.forward(tokens), logits)
    assert wasi.generate(loaded, [1, 2], 5) == wasi.generate(whole, [1, 2], 5)
    with pytest.raises(ValueError, match="last_layers: expected 0 to 2, got 3"):
        load_llama(tmp_path, last_layers=3)
    options = MethodOptions(("all",), rank=2, freeze=("stem",))  # which is frozen as it is
    qwasi = apply_method(load_llama(tmp_path, last_layers=1), "qwasi", options, verbose=False)
    assert {n.split(".")[1] for n, p in qwasi.named_parameters() if p.trainable and n.startswith("blocks.")} == {"1"}
    wasi.merge(model)
    assert all(p.trainable and p.data.flags.writeable for _, p in model.named_parameters())
    assert_close(model.forward(tokens), logits, factor=5)


@pytest.mark.parametrize("num_classes", [None, 3])
def test_merged_decoders_are_published_again(tmp_path, num_classes):
    model = wasi.create_model("llama_micro", num_classes, depth=2)
    apply_method(model, "qwasi", MethodOptions(targets=("all",), rank=8), verbose=False)
    with pytest.raises(ValueError, match="expected dense layers alone, .* blocks.0.attn.k_proj.weight"):
        save_hugging_face(model, tmp_path / "m")
    wasi.merge(model)
    save_hugging_face(model, tmp_path / "m")
    loaded, tokens = load_llama(tmp_path / "m"), np.array([[3, 1, 2]])
    assert loaded.config == model.config and np.array_equal(loaded.forward(tokens), model.forward(tokens))
