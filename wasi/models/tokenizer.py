"""From text to token ids and back: llama2.c's tokenizer files, and any tokenizer.json through the `tokenizers` library."""

import heapq
import re
import struct
from pathlib import Path

MAX_TOKEN_BYTES = 4096  # of one token in a llama2.c file; those in use have below 100


class TokenizerError(ValueError):
    """A tokenizer file that cannot be used; the text says why."""


def load_tokenizer(path):
    """The tokenizer of a file: tokenizer.json (or a folder that holds one), or llama2.c's tokenizer.bin.

    Raises TokenizerError for files that are damaged and where the `tokenizers` library is missing; FileNotFoundError.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "tokenizer.json"
    if not path.is_file():
        raise FileNotFoundError(f"tokenizer: expected tokenizer.json or llama2.c's tokenizer file, got {str(path)!r}, "
                                "which is not a file")
    return JsonTokenizer(path) if path.suffix == ".json" else Llama2cTokenizer(path)


class Llama2cTokenizer:
    """Byte-pair merging by score with a fallback to bytes, as llama2.c does it (a SentencePiece model, flattened).

    The file: int32, the longest token's bytes; then for each id float32 score, int32 length, the bytes.
    """

    bos, eos = 1, 2

    def __init__(self, path):
        data = Path(path).read_bytes()
        self._tokens, self._scores = [], []
        at = 4
        while at < len(data):
            if at + 8 > len(data):
                raise TokenizerError(f"tokenizer: {Path(path).name} ends within token {len(self._tokens)}")
            score, length = struct.unpack_from("<fi", data, at)
            if not 0 <= length <= MAX_TOKEN_BYTES or at + 8 + length > len(data):
                raise TokenizerError(f"tokenizer: {Path(path).name} is truncated or not llama2.c's: token {len(self._tokens)} "
                                     f"says that it has {length} bytes")
            self._tokens.append(data[at + 8 : at + 8 + length])
            self._scores.append(score)
            at += 8 + length
        if len(self._tokens) < 259:
            raise TokenizerError(f"tokenizer: expected 3 control tokens, 256 bytes and more in {Path(path).name}, got "
                                 f"{len(self._tokens)} tokens")
        self._ids = {}
        for token, text in enumerate(self._tokens):
            self._ids.setdefault(text, token)

    def __len__(self):
        return len(self._tokens)

    def encode(self, text, bos=True):
        """The ids of a text, after the mark of the beginning unless bos is False."""
        ids = []
        for character in (" " + text if text else ""):
            piece = character.encode()
            ids += [self._ids[piece]] if piece in self._ids else [byte + 3 for byte in piece]
        return ([self.bos] if bos else []) + self._merged(ids)

    def _merged(self, ids):
        """The ids after the neighbours of the highest score, the leftmost first, have been merged until none can be.

        A heap of the pairs that can be, over a linked list: n log n, where a search for the best each time takes n^2.
        """
        n = len(ids)
        left, right = list(range(-1, n - 1)), list(range(1, n + 1))  # neighbours by position; a merged pair stays at its first
        heap = []

        def offer(i, j):
            merged = self._ids.get(self._tokens[ids[i]] + self._tokens[ids[j]])
            if merged is not None:
                heapq.heappush(heap, (-self._scores[merged], i, j, merged, ids[i], ids[j]))

        for i in range(n - 1):
            offer(i, i + 1)
        while heap:
            _, i, j, merged, first, second = heapq.heappop(heap)
            if ids[i] != first or ids[j] != second or right[i] != j:
                continue  # one of them has been merged since
            ids[i], ids[j], right[i] = merged, None, right[j]
            if right[j] < n:
                left[right[j]] = i
                offer(i, right[j])
            if left[i] >= 0:
                offer(left[i], i)
        return [token for token in ids if token is not None]

    def decode(self, ids):
        """The text of ids; control tokens have none, damaged UTF-8 becomes U+FFFD. Raises TokenizerError for ids of no token."""
        _check_ids(ids, len(self))
        pieces = []
        for token in ids:
            if token in (0, self.bos, self.eos):
                continue
            byte = re.fullmatch(rb"<0x([0-9A-F]{2})>", self._tokens[token])
            pieces.append(bytes([int(byte[1], 16)]) if byte else self._tokens[token])
        text = b"".join(pieces)
        return (text[1:] if len(ids) and ids[0] == self.bos and text.startswith(b" ") else text).decode(errors="replace")


class ByteTokenizer:
    """UTF-8 bytes as ids 3 to 258, after the control tokens: for models that start from random weights."""

    bos, eos = 1, 2

    def __len__(self):
        return 259

    def encode(self, text, bos=True):
        """The ids of a text, after the mark of the beginning unless bos is False."""
        return ([self.bos] if bos else []) + [byte + 3 for byte in text.encode()]

    def decode(self, ids):
        """The text of ids; control tokens have none, damaged UTF-8 becomes U+FFFD. Raises TokenizerError for ids of no token."""
        _check_ids(ids, len(self))
        return bytes(i - 3 for i in ids if i >= 3).decode(errors="replace")


def _check_ids(ids, n):
    for token in ids:
        if not 0 <= token < n:
            raise TokenizerError(f"tokenizer: expected ids 0 to {n - 1}, got {token}: the model has another tokenizer")


class JsonTokenizer:
    """A Hugging Face tokenizer.json. The marks of beginning and end are found by the names that Llama models give them."""

    def __init__(self, path):
        self._name = Path(path).name
        try:
            from tokenizers import Tokenizer
        except ImportError as error:
            raise TokenizerError("tokenizer: tokenizer.json needs the tokenizers library: pip install 'wasi[text]'") from error
        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception
            raise TokenizerError(f"tokenizer: {self._name} cannot be read ({error})") from error
        self.bos = self._first_of("<s>", "<|begin_of_text|>", "<bos>")
        self.eos = self._first_of("</s>", "<|end_of_text|>", "<|eot_id|>", "<eos>")

    def _first_of(self, *names):
        return next((i for i in map(self._tokenizer.token_to_id, names) if i is not None), None)

    def __len__(self):
        return self._tokenizer.get_vocab_size()

    def encode(self, text, bos=True):
        """The ids of a text, after the mark of the beginning (where the model has one) unless bos is False.

        Raises TokenizerError for a text that the file has no tokens for.
        """
        try:
            ids = self._tokenizer.encode(text, add_special_tokens=False).ids
        except Exception as error:
            if not isinstance(text, str):
                raise
            raise TokenizerError(f"tokenizer: {self._name} does not encode this text ({error})") from error
        return [self.bos, *ids] if bos and self.bos is not None else ids

    def decode(self, ids):
        """The text of ids; control tokens have none."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=True)
