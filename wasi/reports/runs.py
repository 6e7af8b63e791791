"""Reads run folders as they are: whole, cut off in their middle, of another version, or written by a stranger.

Nothing is trusted: what is missing or has another form than expected is left out, and `Run.absent` says so.
"""

import csv
import io
import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path

from wasi.training.runlog import RANK_FIELDS, STEP_FIELDS, SUBSPACE_FIELDS

LARGEST_FILE = 2**28  # bytes: some million steps
_FILES = ("config.json", "result.json", "epochs.json", "layers.json", "steps.csv", "ranks.csv", "subspaces.csv")
_EPOCH_FIELDS = ("epoch", "train_loss", "train_accuracy", "val_loss", "val_accuracy", "seconds")
_LAYER_FIELDS = ("trained", "trained_bytes", "frozen_bytes", "gradient_bytes", "optimizer_bytes", "average_bytes", "saved_bytes")


@dataclass
class Run:
    """What a run folder tells."""

    path: Path
    label: str
    config: dict = field(default_factory=dict)
    result: dict = field(default_factory=dict)  # empty where no run has ended
    plan: dict = field(default_factory=dict)
    epochs: list = field(default_factory=list)  # dicts of numbers
    steps: list = field(default_factory=list)  # dicts of numbers by STEP_FIELDS, NaN where a column is missing
    layers: list = field(default_factory=list)  # of layers.json
    layers_step: int | None = None  # the step after which they were counted
    ranks: list = field(default_factory=list)  # rows of ranks.csv
    subspaces: list = field(default_factory=list)  # rows of subspaces.csv
    classes: list = field(default_factory=list)  # of confusion.csv, whose rows are:
    confusion: list = field(default_factory=list)  # lists of samples by predicted class, one a true class
    absent: list = field(default_factory=list)  # sentences

    @property
    def method(self):
        return text(self.config, "method") or "unknown method"

    @property
    def of_language_model(self):
        """Whether perplexity says what it reached."""
        arguments = self.config.get("arguments")
        return isinstance(arguments, dict) and arguments.get("task") == "lm"

    @property
    def environment(self):
        """Of the result, or of the run's start."""
        return next((e for e in (self.result.get("environment"), self.config.get("environment")) if isinstance(e, dict)), {})

    @property
    def start_rss_bytes(self):
        """Resident bytes before the model was made, or None where they are not known."""
        peak, above = number(self.result, "peak_rss_bytes"), number(self.result, "peak_rss_above_start_bytes")
        return number(self.config, "start_rss_bytes") if None in (peak, above) else peak - above

    @property
    def counted_peak_bytes(self):
        """The most that arrays took at once: of the result, or of the steps that were made; or None."""
        return self._or_most("counted_peak_bytes", "counted_mib", 0)

    @property
    def measured_peak_bytes(self):
        """The process's peak above its start: of the result, or of the steps that were made; or None."""
        return self._or_most("peak_rss_above_start_bytes", "peak_rss_mib", self.start_rss_bytes)

    def _or_most(self, key, column, less):
        known, logged = number(self.result, key), [v for v in self.column(column) if math.isfinite(v)]
        return known if known is not None or not logged or less is None else round(max(logged) * 2**20) - less

    def column(self, name):
        return [row[name] for row in self.steps]


def number(record, *keys):
    """The finite number at that place of nested dicts, or None."""
    for key in keys:
        record = record.get(key) if isinstance(record, dict) else None
    good = isinstance(record, int | float) and not isinstance(record, bool) and abs(record) < 1e300 and math.isfinite(record)
    return record if good else None


def text(record, key):
    """The text at that key, or None."""
    value = record.get(key)
    return value if isinstance(value, str) else None


def find_runs(paths):
    """{label: folder} of the runs in these folders: each itself a run, or a folder of runs (`wasi train`, `wasi compare`).

    Raises FileNotFoundError naming a folder that holds none.
    """
    found = []
    for path in map(Path, paths):
        if not path.is_dir():
            raise FileNotFoundError(f"run: expected a run folder, got {str(path)!r}, which is not a folder")
        inside = [path] if _is_run(path) else sorted(
            folder for pattern in ("*", "*/*") for folder in path.glob(pattern) if folder.is_dir() and _is_run(folder))
        if not inside:
            raise FileNotFoundError(f"run: {str(path)!r} holds no run (none of {', '.join(_FILES)}, there or in its folders)")
        found += [(folder, "/".join([path.resolve().name, *folder.relative_to(path).parts])) for folder in inside]
    labels = [label for _, label in found]
    return {label if labels.count(label) == 1 else str(folder): folder for folder, label in found}


def _is_run(folder):
    return any((folder / name).is_file() for name in _FILES)


def read_run(path, label):
    """Reads one run folder into a Run."""
    run = Run(Path(path), label)
    run.config = _read_json(run, "config.json", "settings, command and environment at the start", dict) or {}
    run.result = _read_json(run, "result.json", "the run has not ended, or was killed: no final figures", dict) or {}
    if run.result.get("interrupted") is True:
        run.absent.append("the end of the run: it was interrupted (wasi train --resume goes on with it)")
    if (run.path / "plan.json").exists():
        run.plan = _read_json(run, "plan.json", "", dict) or {}
    epochs = run.result.get("epochs")
    if not isinstance(epochs, list):
        epochs = _read_json(run, "epochs.json", "no epoch has ended, or an older version wrote the run", list) or []
    run.epochs = [e for e in epochs if isinstance(e, dict) and all(number(e, k) is not None for k in _EPOCH_FIELDS)]
    if len(run.epochs) < len(epochs):
        run.absent.append(f"{len(epochs) - len(run.epochs)} epochs without all of {', '.join(_EPOCH_FIELDS)}")
    run.steps = _read_rows(run, "steps.csv", "no step was made", ("step", "loss"), STEP_FIELDS)
    layers = _read_json(run, "layers.json", "bytes by layer; written after the third step, not by older versions", dict) or {}
    run.layers_step, listed = number(layers, "step"), layers.get("layers")
    for row in listed if isinstance(listed, list) else []:
        row = {"average_bytes": 0, **row} if isinstance(row, dict) else row  # not written by older versions
        if isinstance(row, dict) and text(row, "name") is not None and all(number(row, k) is not None for k in _LAYER_FIELDS):
            shape = row.get("shape") if isinstance(row.get("shape"), list) else []
            run.layers.append({"name": row["name"], "kind": text(row, "kind") or "", "rank": number(row, "rank"),
                               "shape": [n for n in shape if isinstance(n, int)], **{k: row[k] for k in _LAYER_FIELDS}})
    for name, fields, numbers in (("ranks", RANK_FIELDS, ("step", "rank")),
                                  ("subspaces", SUBSPACE_FIELDS, ("step", "mean_degrees", "largest_degrees"))):
        if (run.path / f"{name}.csv").exists():
            setattr(run, name, _read_rows(run, f"{name}.csv", "", numbers, numbers, [f for f in fields if f not in numbers]))
    if (run.path / "confusion.csv").exists():
        _read_confusion(run)
    return run


def _read_confusion(run):
    """Takes in confusion.csv, or a line in `absent`."""
    try:
        (_, *names), *rows = list(csv.reader(io.StringIO(_text_of(run, "confusion.csv"), newline=""))) or [[""]]
        if not names or [row[:1] for row in rows] != [[name] for name in names] or not all(
                len(row) == 1 + len(names) and all(re.fullmatch(r"[0-9]{1,15}", cell) for cell in row[1:]) for row in rows):
            raise ValueError("not a square table of counts by class")
        run.classes, run.confusion = names, [[int(cell) for cell in row[1:]] for row in rows]
    except (OSError, ValueError, csv.Error) as error:
        run.absent.append(f"confusion.csv: cannot be read ({error})")


def _text_of(run, name):
    """The text of a file of a run folder."""
    with open(_small(run.path / name), errors="replace", newline="") as file:
        return file.read()


def _small(path):
    """The path. Raises ValueError where its file is larger than any that is read."""
    if path.stat().st_size > LARGEST_FILE:
        raise ValueError(f"larger than {LARGEST_FILE} bytes")
    return path


def _read_json(run, name, meaning, kind):
    """The JSON value of a file, or None with a line in `absent`."""
    try:
        value = json.loads(_small(run.path / name).read_bytes())
        if isinstance(value, kind):
            return value
        raise ValueError(f"not a JSON {'object' if kind is dict else 'list'}")
    except FileNotFoundError:
        run.absent.append(f"{name}: {meaning}")
    except (OSError, ValueError, RecursionError) as error:
        run.absent.append(f"{name}: cannot be read ({error})")
    return None


def _read_rows(run, name, meaning, needed, numbers, texts=()):
    """The rows of a CSV file whose `needed` columns are finite numbers; other numbers are NaN where they are not."""
    rows, n_bad = [], 0
    try:
        content = _text_of(run, name)
        for record in csv.DictReader(content.splitlines(keepends=True)):
            row = {k: _number_of(record.get(k)) for k in numbers} | {k: record.get(k) for k in texts}
            whole = None not in record and None not in record.values()
            if whole and all(math.isfinite(row[k]) for k in needed) and all(isinstance(row[k], str) for k in texts):
                rows.append(row)
            else:
                n_bad += 1
        if rows and not n_bad and not content.endswith("\n"):  # cut off in the last number
            rows.pop()
            n_bad = 1
    except FileNotFoundError:
        run.absent.append(f"{name}: {meaning}")
    except (OSError, ValueError, csv.Error) as error:
        run.absent.append(f"{name}: cannot be read ({error})")
    if n_bad:
        run.absent.append(f"{name}: {n_bad} rows that are cut off or not numbers")
    return rows


def _number_of(value):
    plain = isinstance(value, str) and re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d{1,3})?", value)
    return float(value) if plain and abs(float(value)) < 1e300 else math.nan
