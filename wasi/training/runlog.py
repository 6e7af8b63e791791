"""The run folder: configuration, one CSV row a step, one JSON record an epoch and a run, and the curves."""

import csv
import fcntl
import io
import json
import math
import os
import platform
import tempfile
from pathlib import Path

import numpy as np

import wasi
from wasi.drawing import new_figure, save_png, series_style, whole_ticks
from wasi.models.weights import atomic_file

STEP_FIELDS = ("step", "epoch", "lr", "loss", "accuracy", "grad_norm", "seconds", "peak_rss_mib", "rss_mib",
               "counted_mib")  # the last two: resident after the step; the most that arrays took at once so far
RANK_FIELDS = ("step", "layer", "rank")  # a row a layer at the start, then one a change
SUBSPACE_FIELDS = ("step", "layer", "rank", "against", "mean_degrees", "largest_degrees", "degrees")


class RunFolder:
    """A folder that one run writes to, and one process at a time: the lock ends with the process, or with the object.

    resume: the run goes on; otherwise the folder must not hold one yet.
    Raises FileExistsError where it already holds a run, FileNotFoundError where it holds none to resume, BlockingIOError naming
    the process where another one writes to it, OSError where it cannot be written to.
    """

    def __init__(self, path, resume=False):
        self.path = Path(path)
        if resume and not (self.path / "config.json").is_file():
            raise FileNotFoundError(f"resume: {str(path)!r} holds no run (config.json is missing)")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.path):
                pass
        except OSError as error:
            raise OSError(f"out: expected a folder that can be written to, got {str(path)!r} ({error.strerror})") from error
        if not resume and (self.path / "config.json").exists():
            raise FileExistsError(f"out: {str(path)!r} already holds a run; name another folder, or let it go on by --resume")
        self._lock = open(self.path / ".lock", "a+")  # noqa: SIM115 (open as long as this object lives)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._lock.seek(0)
            raise BlockingIOError(f"out: {str(path)!r} is in use by process {self._lock.read().strip() or '?'}") from error
        self._lock.truncate(0)
        self._lock.write(f"{os.getpid()}\n")
        self._lock.flush()

    def write_json(self, name, value):
        write_json(self.path / name, value)


def write_json(path, value):
    """Writes a JSON file that appears whole or not at all."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def write_text(path, text):
    """Writes a file that appears whole or not at all."""
    with atomic_file(path) as file:
        file.write(text.encode())


class CsvLog:
    """A CSV file of a run folder, each row flushed as it is written. A context manager; folder None: writes nothing.

    n_bytes: goes on after the first so many bytes of the file; the rest is cut off. Raises ValueError where it is shorter.
    """

    def __init__(self, folder, name, fields, n_bytes=None):
        self._file = None
        if folder is None:
            return
        path = folder.path / name
        if n_bytes is not None:
            size = path.stat().st_size
            if size < n_bytes:
                raise ValueError(f"resume: {name}: expected the {n_bytes} bytes that it had at the checkpoint, got {size}")
            os.truncate(path, n_bytes)
        self._file = open(path, "w" if n_bytes is None else "a", newline="")  # noqa: SIM115 (closed on exit)
        # A file begun by another version goes on with the columns that it has.
        header = fields if n_bytes is None else _header(path)
        self._writer = csv.DictWriter(self._file, header, restval="", extrasaction="ignore")
        if n_bytes is None:
            self._writer.writeheader()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()

    def close(self):
        if self._file:
            self._file.close()

    def sync(self):
        """Brings the rows to the disk; returns the file's bytes, 0 where there is none."""
        if self._file is None:
            return 0
        self._file.flush()
        os.fsync(self._file.fileno())
        return os.fstat(self._file.fileno()).st_size

    def write(self, **row):
        if self._file:
            self._writer.writerow({k: f"{v:.7g}" if isinstance(v, float) else v for k, v in row.items()})
            self._file.flush()


def _header(path):
    """The first row of a CSV file; an empty one where there is none."""
    with open(path, newline="") as file:
        return next(csv.reader(file), [])


def per_class(confusion):
    """A dict a class: samples, recall (the class's accuracy) and precision, None where nothing is to be divided by.

    confusion: (classes, classes) whole numbers, samples of each true class (row) by predicted class (column).
    """
    right, samples, predicted = np.diag(confusion), confusion.sum(1), confusion.sum(0)
    return [{"samples": int(s), "recall": r / s if s else None, "precision": r / p if p else None}
            for r, s, p in zip(right.tolist(), samples.tolist(), predicted.tolist())]


def write_confusion(path, confusion, classes):
    """Writes samples by true class (row) and predicted class (column) to a CSV file, which appears whole or not at all.

    confusion: (classes, classes) integers; classes: their names; what has none, as a model may tell more classes apart than the
    data have, goes by its number.
    """
    names = [*classes, *range(len(classes), len(confusion))]
    text = io.StringIO(newline="")
    csv.writer(text).writerows([["true", *names], *([name, *row] for name, row in zip(names, confusion.tolist()))])
    write_text(path, text.getvalue())


def read_csv(path):
    """The rows of a CsvLog as dicts of text. Raises ValueError, naming the file, where it is none."""
    try:
        with open(path, newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a log of a run ({error})") from error


def environment():
    """What a result depends on besides its configuration."""
    return {
        "wasi": wasi.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "blas": wasi._core.blas_config(),
        "isa": wasi._core.get_isa(),
        "threads": wasi.get_num_threads(),
        "matmul_precision": wasi.get_matmul_precision(),
        "machine": platform.machine(),
        "cpu": _cpu_model(),
    }


def _cpu_model():
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or "unknown"


def read_record(path, kinds, command):
    """The JSON object that a command wrote to a file; kinds: {key: type} of what it must have.

    Raises ValueError, naming the file, where it is no such object; FileNotFoundError.
    """
    try:
        record = json.loads(Path(path).read_text(encoding="utf-8"))
        if all(isinstance(record[key], kind) for key, kind in kinds.items()):
            return record
    except (LookupError, RecursionError, TypeError, ValueError):
        pass
    raise ValueError(f"{path}: not written by {command}")


def read_config(path):
    """The config.json of a run folder, with `method` and the dict `arguments`. Raises as `read_record`."""
    return read_record(Path(path) / "config.json", {"method": str, "arguments": dict}, "wasi train")


def read_result(path):
    """The result.json of a run folder as a dict, or None where no run has ended there on its own.

    Raises ValueError, naming the file, where it is none.
    """
    file = Path(path) / "result.json"
    if not file.exists():
        return None
    try:
        result = json.loads(file.read_text(encoding="utf-8"))
        return None if result["interrupted"] else result
    except (LookupError, RecursionError, TypeError, ValueError) as error:
        raise ValueError(f"{file}: not the result of a run ({type(error).__name__}: {error})") from error


def perplexity(record):
    """exp of the validation loss of a run's result, or of one of its epochs."""
    loss = record["val_loss"] if "val_loss" in record else record["epochs"][-1]["val_loss"]  # not in results of older versions
    return math.exp(min(loss, 700.0))


def reached(record, language):
    """What a run, or an epoch of it, reached, for people. record: as of `perplexity`; language: whether of a language model."""
    return f"perplexity {perplexity(record):.2f}" if language else f"top-1 {100 * record['val_accuracy']:.1f} %"


def read_steps(path):
    """The columns of a steps.csv as float arrays by name; NaN where the version that wrote it had no such column.

    Raises ValueError, naming the file, where it is none.
    """
    rows = read_csv(path)
    try:
        return {field: np.array([float(row.get(field) or "nan") for row in rows]) for field in STEP_FIELDS}
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: not a log of steps ({error})") from error


def draw_loss(axes, runs, series=None):
    """Draws training loss by step, smoothed over a fiftieth of the run.

    runs: as `plot_curves` takes them. series: {label: index of its style} (default: one each).
    """
    for i, (label, (steps, _)) in _numbered(runs, series):
        width = max(1, len(steps["loss"]) // 50)
        smooth = np.convolve(steps["loss"], np.ones(width) / width, mode="valid")
        axes.plot(steps["step"][width - 1 :], smooth, label=label, **{**series_style(i), "marker": ""})
    whole_ticks(axes)
    axes.set(xlabel="step", ylabel="training loss", title="Loss")


def draw_accuracy(axes, runs, series=None):
    """Draws validation accuracy by epoch. runs, series: as `draw_loss` takes them."""
    _draw_epochs(axes, runs, series, lambda epoch: 100 * epoch["val_accuracy"])
    axes.set(ylabel="top-1 %", title="Validation accuracy")


def draw_perplexity(axes, runs, series=None):
    """Draws validation perplexity by epoch. runs, series: as `draw_loss` takes them."""
    _draw_epochs(axes, runs, series, perplexity)
    axes.set(ylabel="perplexity", title="Validation perplexity")


def _draw_epochs(axes, runs, series, value_of):
    for i, (label, (_, epochs)) in _numbered(runs, series):
        axes.plot([e["epoch"] for e in epochs], [value_of(e) for e in epochs], label=label, **series_style(i))
    whole_ticks(axes)
    axes.set(xlabel="epoch")


def _numbered(runs, series):
    return [(series[label] if series else i, (label, run)) for i, (label, run) in enumerate(runs.items())]


def plot_curves(runs, path, language=False):
    """Draws loss by step and accuracy, or of language models perplexity, by epoch of several runs into a PNG.

    runs: {label: (columns of read_steps, list of epoch records)}.
    """
    with new_figure(10, 4, 1, 2) as (figure, ((left, right),)):
        draw_loss(left, runs)
        (draw_perplexity if language else draw_accuracy)(right, runs)
        right.legend()
        save_png(figure, path)
