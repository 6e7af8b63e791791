"""`wasi generate`: continues a text by a decoder."""

import sys
from pathlib import Path

from wasi.cli import options
from wasi.cli.texts import open_tokenizer
from wasi.models import generate, load_llama, load_model
from wasi.models.weights import TensorFile


def run(args):
    options.set_machine(args)
    weights = Path(args.weights)
    model = open_decoder(weights)
    tokenizer = open_tokenizer(args.tokenizer, weights)
    ids = tokenizer.encode(args.prompt)
    written = ""

    def show(text, end=False):
        nonlocal written
        if end or not text.endswith("\N{REPLACEMENT CHARACTER}"):  # else bytes of a character are still to come
            sys.stdout.write(text[len(written) :])
            sys.stdout.flush()
            written = text

    def on_token(token):
        ids.append(token)
        show(tokenizer.decode(ids))

    show(tokenizer.decode(ids))
    generate(model, list(ids), args.tokens, args.temperature, args.top_p, args.seed, {tokenizer.bos, tokenizer.eos}, on_token)
    show(tokenizer.decode(ids), end=True)
    print()
    return 0


def open_decoder(weights):
    """The decoder of a file or folder: wasi's own by its metadata, else published weights."""
    if weights.is_file() and weights.suffix != ".bin" and "wasi" in TensorFile(weights).metadata:
        model, _ = load_model(weights)
        if model.architecture != "llama":
            raise ValueError(f"--weights: expected a decoder, got a model of architecture {model.architecture!r}")
        return model
    return load_llama(weights)
