"""The `wasi` command: one module a subcommand, imported when it runs, with `run(args)`, which returns the exit status.

What each takes is in `arguments`.
"""

import argparse
import importlib
import os
import sys
import warnings

import wasi
from wasi.cli import arguments

COMMANDS = {
    "compare": "train by several methods over several seeds: accuracy against memory and time",
    "evaluate": "loss, top-1, top-5 and each class's recall and precision of a trained model",
    "export": "write a model for PyTorch's libraries or as ONNX",
    "generate": "continue a text by a decoder of the Llama architecture",
    "info": "what a model file holds: layers, ranks, parameters, bytes",
    "plan": "choose ranks and policies for a memory budget, for `wasi train --plan`",
    "plot-ranks": "draw ranks by step and layer from a run folder",
    "plot-subspaces": "draw how far the factored layers' subspaces turn, from a run folder",
    "predict": "the classes of images or sentences, as CSV",
    "profile": "seconds of a training step or of inference by kernel",
    "report": "write one HTML page of one or several runs, for reading offline",
    "train": "train or fine-tune a model; without arguments: the shipped sign-language digits, dense and wsi",
}


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Appends the default where there is one that the text does not explain itself."""

    def _get_help_string(self, action):
        return action.help if action.default in (None, False) else super()._get_help_string(action)


def build_parser(argv):
    """The parser for a command line."""
    parser = argparse.ArgumentParser(prog="wasi", description="Fine-tune, train and run vision transformers, residual networks "
                                     "and small decoders on a CPU in little memory.")
    parser.add_argument("--version", action="version", version=f"wasi {wasi.__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in COMMANDS.items():
        command = commands.add_parser(name, help=text, formatter_class=_HelpFormatter)
        if argv[:1] == [name]:
            add = getattr(arguments, name.replace("-", "_"))
            command.description = add.__doc__
            add(command)
    return parser


def main(argv=None):
    """Runs the command; returns its exit status. Errors in what the user gave are one line on stderr and status 2;
    Ctrl-C is status 130."""
    argv = sys.argv[1:] if argv is None else argv
    warnings.filterwarnings("ignore", "Image size")  # Pillow's, of images that are refused and named here
    args = build_parser(argv).parse_args(argv)
    try:
        return importlib.import_module("wasi.cli." + args.command.replace("-", "_")).run(args)
    except BrokenPipeError:  # who reads, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left in buffers
        return 0
    except (ValueError, OSError, ArithmeticError, ImportError) as error:
        print(f"wasi {args.command}: {error}", file=sys.stderr)
        return 2
    except MemoryError as error:
        print(f"wasi {args.command}: out of memory {f'({error})' if str(error) else ''}".rstrip(), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"wasi {args.command}: interrupted", file=sys.stderr)
        return 130
