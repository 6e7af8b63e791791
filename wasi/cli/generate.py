"""`wasi generate`: continues a text by a decoder, or answers in a conversation."""

import sys

from wasi.cli import options
from wasi.cli.texts import open_any, open_tokenizer, tokenizer_folder
from wasi.models import generate
from wasi.models.chat import ChatTemplate, end_tokens


def run(args):
    options.set_machine(args)
    if args.system is not None and not args.chat:
        raise ValueError("--system: expected --chat with it")
    model, _ = open_any(args.weights)
    if model.architecture != "llama":
        raise ValueError(f"--weights: expected a decoder, got a model of architecture {model.architecture!r}")
    tokenizer = open_tokenizer(args.tokenizer, args.weights)
    folder = tokenizer_folder(args.tokenizer, args.weights)
    writer = Writer(model, tokenizer, end_tokens(tokenizer, folder), args)
    if args.chat:
        converse(writer, ChatTemplate(folder), args)
    else:
        ids = tokenizer.encode("Once upon a time" if args.prompt is None else args.prompt)
        writer.write(ids, prompt=ids)
    return 0


def converse(writer, template, args):
    """Answers --prompt, or without it each line of standard input, with what was said before in mind."""
    messages = [] if args.system is None else [{"role": "system", "content": args.system}]
    said = iter([args.prompt]) if args.prompt is not None else lines()
    for line in said:
        messages.append({"role": "user", "content": line})
        reply = writer.write(template.tokens(writer.tokenizer, messages))
        messages.append({"role": "assistant", "content": reply})


def lines():
    """Lines of standard input until it ends."""
    while True:
        try:
            line = input("> " if sys.stdin.isatty() else "")
        except EOFError:
            return
        if line.strip():
            yield line


class Writer:
    """Prints what a decoder generates as it comes, up to a token or a text that ends it."""

    def __init__(self, model, tokenizer, ends, args):
        self.model, self.tokenizer, self.ends, self.args = model, tokenizer, ends, args

    def write(self, tokens, prompt=()):
        """Prints the continuation of tokens after the text of `prompt`, ids that are printed with the first new one.

        Returns the continuation.
        """
        ids, written = list(prompt), 0
        first = len(self.tokenizer.decode(ids)) if ids else 0

        def text_of(ids):
            """The text, and whether an end came in it."""
            text = self.tokenizer.decode(ids)
            ends = [at for at in (text.find(stop, first) for stop in self.args.stop) if at >= 0]
            return text[: min(ends)] if ends else text, bool(ends)

        def show(end=False):
            nonlocal written
            text, stopped = text_of(ids)
            if end or stopped:
                ready = len(text)
            elif text.endswith("\N{REPLACEMENT CHARACTER}"):
                ready = written  # bytes of a character are still to come
            else:  # what may be the beginning of a stop text waits
                ready = len(text) - max((n for stop in self.args.stop for n in range(1, len(stop)) if text.endswith(stop[:n])),
                                        default=0)
            sys.stdout.write(text[written:ready])
            sys.stdout.flush()
            written = max(written, ready)
            return stopped

        def on_token(token):
            ids.append(token)
            return show()

        a = self.args
        generate(self.model, tokens, a.tokens, a.temperature, a.top_p, a.seed, self.ends, on_token)
        show(end=True)
        print()
        return text_of(ids)[0][first:]
