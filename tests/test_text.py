"""Texts for training: sentences, windows, their loader, and training on them."""

import numpy as np
import pytest

import wasi
from wasi.models.llama import PADDING
from wasi.models.tokenizer import ByteTokenizer
from wasi.training.loop import TrainConfig, train
from wasi.training.text import TokenLoader, TokenSet, encode_lines, open_lines, open_sentences, open_windows


def write_sentences(folder, n=40, name="train.tsv"):
    """Sentences whose class is their last letter."""
    rng = np.random.default_rng(0)
    folder.mkdir(exist_ok=True)
    lines = []
    for i in range(n):
        text = "".join(rng.choice(list("abcd "), rng.integers(3, 15))).strip() + " x" + "yz"[i % 2]
        lines.append(f"{text}\t{'no' if i % 2 else 'yes'}")
    (folder / name).write_text("\n".join(lines) + "\n")
    return folder


def test_sentences(tmp_path):
    folder = write_sentences(tmp_path)
    write_sentences(tmp_path, 6, "dev.tsv")
    splits = open_sentences(folder, ByteTokenizer())
    assert {name: len(s) for name, s in splits.items()} == {"train": 40, "val": 6}
    train_set = splits["train"]
    assert train_set.classes == ("no", "yes") and train_set.labels[:2].tolist() == [1, 0]
    assert ByteTokenizer().decode(train_set.tokens[0]).endswith("xy")
    tokens, labels = train_set.batch(np.array([0, 1, 2]))
    assert tokens.dtype == labels.dtype == np.int64 and tokens.shape == (3, max(len(t) for t in train_set.tokens[:3]))
    for row, ids in zip(tokens, train_set.tokens):
        assert np.array_equal(row[: len(ids)], ids) and (row[len(ids) :] == PADDING).all()
    assert max(len(t) for t in open_sentences(folder, ByteTokenizer(), 5)["train"].tokens) == 5
    assert [len(s) for s in train_set.split(0.75)] == [30, 10] and len(train_set.subset(7)) == 7
    assert len(open_sentences(folder / "dev.tsv", ByteTokenizer())["train"]) == 6


def test_sentences_as_other_systems_write_them(tmp_path):
    """With a mark of the byte order, lines that end in two characters, and characters that end lines in Unicode alone."""
    text = "sentence\tlabel\r\none\x85and two\tyes\r\nthree\u2028four\tno\r\n"
    (tmp_path / "train.tsv").write_bytes(b"\xef\xbb\xbf" + text.encode())
    train_set = open_sentences(tmp_path, ByteTokenizer())["train"]
    assert train_set.classes == ("no", "yes") and not train_set.problems
    assert [ByteTokenizer().decode(ids) for ids in train_set.tokens] == ["one\x85and two", "three\u2028four"]
    (tmp_path / "lines.txt").write_bytes(b"\xef\xbb\xbf" + "a\x85b\r\n\r\n c\n".encode())
    assert open_lines(tmp_path / "lines.txt") == ["a\x85b", "c"]


def test_bad_sentences_are_listed_or_refused(tmp_path):
    (tmp_path / "train.tsv").write_text("sentence\tlabel\ngood one\t1\nno label\n\t0\nempty label\t \n\nlast\t0")
    train_set = open_sentences(tmp_path, ByteTokenizer())["train"]
    assert len(train_set) == 2 and [p.name for p in train_set.problems] == ["train.tsv:3", "train.tsv:4", "train.tsv:5"]
    (tmp_path / "one.tsv").write_text("good\t1\nas good\t1\n")
    with pytest.raises(ValueError, match="data: one.tsv has only one class, '1'; expected at least two"):
        open_sentences(tmp_path / "one.tsv", ByteTokenizer())
    (tmp_path / "dev.tsv").write_text("other\t2\n")
    with pytest.raises(ValueError, match="the val split has classes that the training split has not: 2"):
        open_sentences(tmp_path, ByteTokenizer())
    (tmp_path / "dev.tsv").write_text("nothing\n")
    with pytest.raises(ValueError, match="dev.tsv has no line of a sentence, a tab and a label"):
        open_sentences(tmp_path, ByteTokenizer())
    (tmp_path / "dev.tsv").write_bytes(b"\xff\xfe\t1\n")
    with pytest.raises(ValueError, match="dev.tsv is not UTF-8"):
        open_sentences(tmp_path, ByteTokenizer())
    with pytest.raises(FileNotFoundError, match="data: expected a .tsv file or a folder with train.tsv"):
        open_sentences(tmp_path / "none", ByteTokenizer())


def test_windows_cover_the_text_and_targets_are_next_tokens(tmp_path):
    text = "".join(chr(97 + i % 26) for i in range(1000)) + "\n"
    (tmp_path / "t.txt").write_text(text)
    splits = open_windows(tmp_path / "t.txt", ByteTokenizer(), 16)
    assert [len(s) for s in splits.values()] == [56, 6]
    inputs, targets = splits["train"].batch(np.array([0, 1]))
    assert inputs.shape == targets.shape == (2, 16) and np.array_equal(inputs[:, 1:], targets[:, :-1])
    assert inputs[1, 0] == targets[0, -1]
    assert ByteTokenizer().decode(inputs.reshape(-1)) == text[:32]
    with pytest.raises(ValueError, match="1001 tokens, too few for a window of 500 in the val split"):
        open_windows(tmp_path / "t.txt", ByteTokenizer(), 500)
    with pytest.raises(FileNotFoundError, match="data: expected a text file"):
        open_windows(tmp_path, ByteTokenizer(), 5)


def test_encoding_by_lines_loses_nothing(shared_data):
    tokenizer = wasi.load_tokenizer(shared_data("stories260k/tok512.bin"))
    text = "First Citizen:\nBefore we proceed\n\nany further"
    decoded = tokenizer.decode(encode_lines(text, tokenizer))
    assert [line.strip() for line in decoded.splitlines()] == text.splitlines()


def test_loader_repeats_and_resumes():
    tokens = TokenSet([np.arange(n) for n in range(2, 13)], np.arange(11), range(11))
    loader = TokenLoader(tokens, 4, shuffle=True, seed=3)
    first, second = list(loader), list(loader)
    assert [len(labels) for _, labels in first] == [4, 4, 3]
    assert sorted(np.concatenate([b for _, b in first])) == list(range(11))
    assert any(not np.array_equal(a[1], b[1]) for a, b in zip(first, second))
    again = TokenLoader(tokens, 4, shuffle=True, seed=3)
    next(iter(again))
    resumed = TokenLoader(tokens, 4, shuffle=True, seed=3)
    resumed.load_state_dict(again.state_dict())
    for got, want in zip(list(resumed), first[1:]):
        assert np.array_equal(got[0], want[0]) and np.array_equal(got[1], want[1])


def test_grouped_batches_hold_texts_of_about_one_length():
    lengths = np.random.default_rng(0).integers(1, 100, 70)
    tokens = TokenSet([np.zeros(n, np.int64) for n in lengths], np.arange(70), range(70))

    def epoch(**state):
        loader = TokenLoader(tokens, 8, shuffle=True, seed=1, group_by_length=True)
        loader.load_state_dict({"epoch": 2, "batch": 0, **state})
        return list(loader)

    batches = epoch()
    assert sorted(np.concatenate([labels for _, labels in batches])) == list(range(70)) and len(batches[-1][1]) == 6
    assert sum(ids.size for ids, _ in batches[:-1]) < 1.2 * sum(lengths[labels].sum() for _, labels in batches[:-1])
    widths = [ids.shape[1] for ids, _ in batches[:-1]]
    assert widths != sorted(widths)
    assert [labels.tolist() for _, labels in epoch(batch=5)] == [labels.tolist() for _, labels in batches[5:]]
    with pytest.raises(ValueError, match="group_by_length"):
        TokenLoader(tokens, 8, shuffle=True, seed=1).load_state_dict(
            TokenLoader(tokens, 8, shuffle=True, seed=1, group_by_length=True).state_dict())


def test_the_loop_trains_a_classifier_of_texts(tmp_path):
    splits = open_sentences(write_sentences(tmp_path, 64), ByteTokenizer())
    model = wasi.create_model("llama_micro", num_classes=2, vocab_size=259, depth=2)
    loaders = TokenLoader(splits["train"], 16, shuffle=True), TokenLoader(splits["train"], 32)
    result = train(model, *loaders, TrainConfig(epochs=8, lr=3e-3, optimizer="adamw", micro_batch=8), progress=False)
    assert result.val_accuracy > 0.9 and result.flops_per_image > 0


def test_the_loop_trains_a_language_model(tmp_path):
    (tmp_path / "t.txt").write_text("to be or not to be, that is the question\n" * 60)
    splits = open_windows(tmp_path / "t.txt", ByteTokenizer(), 32)
    model = wasi.create_model("llama_micro", vocab_size=259, depth=2)
    loaders = TokenLoader(splits["train"], 8, shuffle=True), TokenLoader(splits["val"], 4)
    result = train(model, *loaders, TrainConfig(epochs=4, lr=3e-3, optimizer="adamw"), progress=False)
    assert result.epochs[-1]["val_loss"] < 0.5 * np.log(259)
    assert 0.5 < result.val_accuracy <= 1
