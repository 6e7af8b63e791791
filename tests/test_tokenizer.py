import struct

import pytest

from wasi.models import TokenizerError, load_tokenizer
from wasi.models.tokenizer import ByteTokenizer

TEXTS = ["Once upon a time, there was a dog.", "  two  spaces\nand a line", "naïve Σ 語 \U0001f600", "", " x"]


@pytest.mark.parametrize("text", TEXTS)
def test_llama2c_round_trip(shared_data, text):
    tokenizer = load_tokenizer(shared_data("stories260k/tok512.bin"))
    ids = tokenizer.encode(text)
    assert ids[0] == tokenizer.bos and len(tokenizer) == 512 and tokenizer.decode(ids) == text
    assert tokenizer.encode(text, bos=False) == ids[1:]


def test_llama2c_ids(shared_data):
    tokenizer = load_tokenizer(shared_data("stories260k/tok512.bin"))
    assert tokenizer.encode("Once upon a time") == [1, 403, 407, 261, 378]
    assert tokenizer.encode("é", bos=False)[1:] == [3 + b for b in "é".encode()] or len(tokenizer.encode("é", bos=False)) == 2
    assert tokenizer.decode([1, 3 + 0xE2, 3 + 0x82]) == "\N{REPLACEMENT CHARACTER}"  # the start of a character


def test_ids_of_another_tokenizer_are_refused(shared_data):
    for tokenizer in (ByteTokenizer(), load_tokenizer(shared_data("stories260k/tok512.bin"))):
        n = len(tokenizer)
        for token in (n, -1):
            with pytest.raises(TokenizerError, match=f"expected ids 0 to {n - 1}, got {token}: the model has another tokenizer"):
                tokenizer.decode([5, token])


def test_damaged_llama2c_files(shared_data, tmp_path):
    data = shared_data("stories260k/tok512.bin").read_bytes()
    path = tmp_path / "tok.bin"
    for bad in (data[:-1], data[: len(data) // 2], data[:4] + struct.pack("<fi", 0.0, 2**31 - 1) + data[12:],
                data[:4] + struct.pack("<fi", 0.0, -5) + data[12:], b"", data[:3], data[:40]):
        path.write_bytes(bad)
        with pytest.raises(TokenizerError, match="tokenizer: "):
            load_tokenizer(path)
    with pytest.raises(FileNotFoundError, match="tokenizer: expected"):
        load_tokenizer(tmp_path / "none.bin")


def test_tokenizer_json(tmp_path):
    tokenizers = pytest.importorskip("tokenizers", reason="needs the tokenizers library: pip install 'wasi[text]'")
    made = tokenizers.Tokenizer(tokenizers.models.BPE(byte_fallback=True))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    made.decoder = tokenizers.decoders.Metaspace()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=60, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False)
    made.train_from_iterator(["the cat sat on the mat", "the dog sat on the cat"], trainer)
    made.save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(tmp_path)
    ids = tokenizer.encode("the cat sat")
    assert ids[0] == tokenizer.bos == 1 and tokenizer.eos == 2 and tokenizer.decode(ids) == "the cat sat"
    assert tokenizer.encode("the cat sat", bos=False) == ids[1:]
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(TokenizerError, match="tokenizer.json cannot be read"):
        load_tokenizer(tmp_path)


def test_merging_is_that_of_a_search_for_the_best_pair_each_time(tmp_path, rng):
    pieces = [b"<unk>", b"<s>", b"</s>", *(b"<0x%02X>" % i for i in range(256)), b" ", b"a", b"b", b"c"]
    pieces += sorted({bytes(rng.choice(list(b" abc"), rng.integers(2, 6))) for _ in range(120)})
    scores = rng.integers(0, 9, len(pieces))  # many ties
    path = tmp_path / "tokenizer.bin"
    path.write_bytes(struct.pack("<i", 5) + b"".join(struct.pack("<fi", s, len(p)) + p for s, p in zip(scores, pieces)))
    tokenizer, by_text = load_tokenizer(path), {p: i for i, p in reversed(list(enumerate(pieces)))}
    for n in (1, 2, 3, 10, 100, 100):
        text = "".join(rng.choice(list(" abcé"), n))
        ids = [i for c in " " + text for i in ([by_text[c.encode()]] if c.encode() in by_text else [b + 3 for b in c.encode()])]
        while pairs := [(-scores[by_text[m]], i, by_text[m]) for i, m in
                        enumerate(pieces[a] + pieces[b] for a, b in zip(ids, ids[1:])) if m in by_text]:
            _, i, merged = min(pairs)
            ids[i : i + 2] = [merged]
        assert tokenizer.encode(text, bos=False) == ids
