"""The `wasi` command: one module a subcommand, imported when it is asked for.

Each has DESCRIPTION, `add_arguments(parser)` and `run(args)`, which returns the exit status.
"""

import argparse
import importlib
import sys

COMMANDS = {
    "compare": "train by several methods over several seeds: accuracy against memory and time",
    "generate": "continue a text by a decoder of the Llama architecture",
    "plan": "choose ranks and policies for a memory budget, for `wasi train --plan`",
    "plot-ranks": "draw ranks by step and layer from a run folder",
    "plot-subspaces": "draw how far the factored layers' subspaces turn, from a run folder",
    "profile": "seconds of a training step or of inference by kernel",
    "train": "train or fine-tune a model; without arguments: the shipped sign-language digits, dense and wsi",
}


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Appends the default where there is one that the text does not explain itself."""

    def _get_help_string(self, action):
        return action.help if action.default in (None, False) else super()._get_help_string(action)


def build_parser(argv):
    """The parser for a command line, and the module of its command (None where it names none)."""
    parser = argparse.ArgumentParser(prog="wasi", description="Fine-tune, train and run transformers on a CPU in little memory.")
    commands = parser.add_subparsers(dest="command", required=True)
    module = None
    for name, text in COMMANDS.items():
        command = commands.add_parser(name, help=text, formatter_class=_HelpFormatter)
        if argv[:1] == [name]:
            module = importlib.import_module("wasi.cli." + name.replace("-", "_"))
            command.description = module.DESCRIPTION
            module.add_arguments(command)
    return parser, module


def main(argv=None):
    """Runs the command; returns its exit status. Errors in what the user gave are one line on stderr and status 2;
    Ctrl-C is status 130."""
    argv = sys.argv[1:] if argv is None else argv
    parser, module = build_parser(argv)
    args = parser.parse_args(argv)
    try:
        return module.run(args)
    except (ValueError, OSError, ArithmeticError) as error:
        print(f"wasi {args.command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"wasi {args.command}: interrupted", file=sys.stderr)
        return 130
