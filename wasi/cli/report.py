"""`wasi report`: one HTML page of run folders."""

import argparse
import shlex
from pathlib import Path

from wasi.cli import build_parser, options
from wasi.reports import find_runs, read_run, report_page
from wasi.training.runlog import write_text


def run(args):
    runs = [read_run(folder, label) for label, folder in find_runs(args.runs).items()]
    out = Path(args.out or (Path(args.runs[0]) if len(args.runs) == 1 else Path()) / "report.html")
    if not out.parent.is_dir():
        raise FileNotFoundError(f"out: expected a file in a folder that is there, got {str(out)!r}")
    page = report_page(runs, {r.label: command_of(r.config.get("arguments")) for r in runs})
    try:
        write_text(out, page)
    except OSError as error:
        raise OSError(f"out: expected a file that can be written, got {str(out)!r} ({error.strerror})") from error
    print(f"written to {out}")
    return 0


def command_of(arguments):
    """The `wasi train` command line of a run's arguments, without those that have their default; None where there are none."""
    if not isinstance(arguments, dict):
        return None
    defaults = vars(build_parser(["train"]).parse_args(["train"]))
    changed = argparse.Namespace(**{name: value for name, value in arguments.items() if value != defaults.get(name)})
    return shlex.join(["wasi", *options.words_of(changed)])
