"""Texts as token ids for training: sentences with class labels, and windows of a long text for language modelling.

    tokenizer = load_tokenizer("tok512.bin")
    splits = open_sentences("SST2/", tokenizer)          # or open_windows("tinyshakespeare.txt", tokenizer, 128)
    for tokens, labels in TokenLoader(splits["train"], 32, shuffle=True):   # int64 (B, N), rows filled up with -1; int64 (B,)
"""

import hashlib
from pathlib import Path

import numpy as np

from wasi.models.llama import PADDING
from wasi.training.dataset import Problem
from wasi.training.loader import BATCH_STREAM, Loader

SORTED_BATCHES = 50  # of which texts of about one length are put together
SPLITS = {"train": "train", "dev": "val", "val": "val", "validation": "val", "test": "test"}


class TokenSet:
    """Token ids of texts with a class each, or of equal windows whose next tokens are the targets (labels None).

    Attributes: tokens (list of 1-D int64 arrays), labels (int64 or None), classes (tuple of names), problems (list of Problem).
    """

    def __init__(self, tokens, labels=None, classes=(), problems=()):
        self.tokens = tokens
        self.labels = None if labels is None else np.asarray(labels, np.int64)
        self.classes = tuple(classes)
        self.problems = problems

    def __len__(self):
        return len(self.tokens)

    def __repr__(self):
        return f"TokenSet({len(self)} {'windows' if self.labels is None else 'texts'}, {len(self.problems)} problems)"

    def take(self, indices):
        """The TokenSet of these, in this order."""
        labels = None if self.labels is None else self.labels[indices]
        return TokenSet([self.tokens[i] for i in indices], labels, self.classes, self.problems)

    def subset(self, n, seed=0):
        """A random TokenSet of n, in the order of this one."""
        if not 1 <= n <= len(self):
            raise ValueError(f"n: expected 1 to {len(self)}, got {n}")
        return self.take(np.sort(np.random.default_rng(seed).choice(len(self), n, replace=False)))

    def split(self, fraction, seed=0):
        """Two random TokenSets, about `fraction` of this one and the rest; each in the order of this one."""
        n = round(fraction * len(self))
        if not 1 <= n < len(self):
            raise ValueError(f"fraction: {fraction} of {len(self)} leaves one side empty")
        order = np.random.default_rng(seed).permutation(len(self))
        return self.take(np.sort(order[:n])), self.take(np.sort(order[n:]))

    def fingerprint(self):
        """Text that tells this set from others: of all its tokens, labels and classes."""
        digest = hashlib.sha256(repr((self.classes, None if self.labels is None else self.labels.tolist())).encode())
        for tokens in self.tokens:
            digest.update(np.ascontiguousarray(tokens, np.int64))
            digest.update(b".")
        return digest.hexdigest()[:32]

    def batch(self, indices):
        """(tokens (B, N) filled up with PADDING, labels (B,)), or (windows (B, N), their next tokens (B, N)); int64."""
        rows = [self.tokens[i] for i in indices]
        tokens = np.full((len(rows), max(map(len, rows))), PADDING, np.int64)
        for row, ids in zip(tokens, rows):
            row[: len(ids)] = ids
        if self.labels is not None:
            return tokens, self.labels[indices]
        return np.ascontiguousarray(tokens[:, :-1]), np.ascontiguousarray(tokens[:, 1:])


class TokenLoader(Loader):
    """Iterates over batches of a TokenSet; order, epochs and resumption as of `Loader`. Made by the caller's thread.

    group_by_length: shuffled texts share batches with texts of about their length, so that rows are hardly filled up; the
    batches still come in random order.
    """

    def __init__(self, dataset, batch_size, shuffle=False, seed=0, drop_last=False, group_by_length=False):
        super().__init__(dataset, batch_size, None, shuffle, seed, drop_last, n_workers=0)
        self.group_by_length = group_by_length
        self._longest = max(map(len, dataset.tokens))

    @property
    def buffer_bytes(self):
        return 2 * 2 * 8 * self.batch_size * self._longest

    def _stream(self):
        return {**super()._stream(), "group_by_length": self.group_by_length}

    def _chunks(self, epoch):
        chunks = super()._chunks(epoch)
        if not (self.shuffle and self.group_by_length):
            return chunks
        lengths, n = np.array([len(t) for t in self.dataset.tokens]), self.batch_size
        whole = [c for c in chunks if len(c) == n]
        sorted_chunks = []
        for start in range(0, len(whole), SORTED_BATCHES):
            together = np.concatenate(whole[start : start + SORTED_BATCHES])
            together = together[np.argsort(lengths[together], kind="stable")]
            sorted_chunks += [together[i : i + n] for i in range(0, len(together), n)]
        np.random.default_rng((self.seed, epoch, BATCH_STREAM)).shuffle(sorted_chunks)
        return sorted_chunks + chunks[len(whole) :]

    def _make(self, indices, epoch, stop):
        return self.dataset.batch(indices)


def open_sentences(path, tokenizer, max_length=None):
    """TokenSets by split of a folder of TSV files (train.tsv, dev.tsv or val.tsv, test.tsv), or {"train": ...} of one such file.

    A line is `sentence<TAB>label`; such a first line is a heading. Of longer sentences the first max_length tokens
    are taken. Lines without text or label are left out and listed in `problems`.
    Raises FileNotFoundError, ValueError where a file has no usable line, "train" one class only, or another split a class more.
    """
    path = Path(path)
    files = [path] if path.is_file() else sorted(f for f in path.glob("*.tsv") if f.stem in SPLITS)
    if not files:
        raise FileNotFoundError(f"data: expected a .tsv file or a folder with train.tsv, got {str(path)!r}")
    read = {("train" if path.is_file() else SPLITS[file.stem]): _read_tsv(file) for file in files}
    if "train" not in read:
        raise FileNotFoundError(f"data: {str(path)!r} has no train.tsv")
    classes = sorted({label for _, label in read["train"][0]})
    if len(classes) < 2:
        raise ValueError(f"data: {path.name} has only one class, {classes[0]!r}; expected at least two")
    splits = {}
    for split, (rows, problems) in read.items():
        other = sorted({label for _, label in rows} - set(classes))
        if other:
            raise ValueError(f"data: the {split} split has classes that the training split has not: {', '.join(other)}")
        tokens = [np.array(tokenizer.encode(text)[:max_length], np.int64) for text, _ in rows]
        splits[split] = TokenSet(tokens, [classes.index(label) for _, label in rows], classes, problems)
    return splits


def _read_tsv(file):
    """([(sentence, label)], problems) of a file."""
    rows, problems = [], []
    for number, line in enumerate(_text_of(file).split("\n"), 1):
        text, tab, label = line.rpartition("\t")
        if (text, label) == ("sentence", "label") and number == 1:
            continue
        if tab and text.strip() and label.strip():
            rows.append((text.strip(), label.strip()))
        elif line.strip():
            problems.append(Problem(f"{file.name}:{number}", "expected a sentence, a tab and a label"))
    if not rows:
        raise ValueError(f"data: {file.name} has no line of a sentence, a tab and a label")
    return rows, problems


def open_lines(path):
    """The lines of a text file that are not empty, without the space around them. Raises OSError, ValueError."""
    return [line.strip() for line in _text_of(Path(path)).split("\n") if line.strip()]


def open_windows(path, tokenizer, length, held_out=0.1):
    """{"train": TokenSet, "val": TokenSet} of a text file, cut into windows of `length` tokens; the last share is held out.

    Raises FileNotFoundError, ValueError where the text is too short for a window on each side.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"data: expected a text file, got {str(path)!r}")
    tokens = np.array(encode_lines(_text_of(path), tokenizer), np.int64)
    cut = round((1 - held_out) * len(tokens))
    sets = {}
    for split, part in (("train", tokens[:cut]), ("val", tokens[cut:])):
        n = (len(part) - 1) // length
        if n < 1:
            raise ValueError(f"data: {path.name} has {len(tokens)} tokens, too few for a window of {length} in the {split} split")
        sets[split] = TokenSet([part[i * length : (i + 1) * length + 1] for i in range(n)])
    return sets


def encode_lines(text, tokenizer):
    """Ids of a long text, encoded line by line, without marks of the beginning."""
    ids = []
    for line in text.splitlines(keepends=True):
        ids += tokenizer.encode(line, bos=False)
    return ids


def _text_of(path):
    """The text of a file, without a mark of its byte order; lines end in \\n, however they did."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"data: {path.name} is not UTF-8 text ({error})") from error
