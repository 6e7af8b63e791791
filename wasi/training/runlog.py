"""The run folder: configuration, one CSV row a step, one JSON record an epoch and a run, and the curves."""

import csv
import json
import os
import platform
import tempfile
from pathlib import Path

import numpy as np

import wasi

STEP_FIELDS = ("step", "epoch", "lr", "loss", "accuracy", "grad_norm", "seconds", "peak_rss_mib")
RANK_FIELDS = ("step", "layer", "rank")  # a row a layer at the start, then one a change
SUBSPACE_FIELDS = ("step", "layer", "rank", "against", "mean_degrees", "largest_degrees", "degrees")


class RunFolder:
    """A folder that one run writes to.

    Raises FileExistsError where it already holds a run, OSError where it cannot be written to.
    """

    def __init__(self, path):
        self.path = Path(path)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.path):
                pass
        except OSError as error:
            raise OSError(f"out: expected a folder that can be written to, got {str(path)!r} ({error.strerror})") from error
        if (self.path / "config.json").exists():
            raise FileExistsError(f"out: {str(path)!r} already holds a run; name another folder")

    def write_json(self, name, value):
        write_json(self.path / name, value)


def write_json(path, value):
    """Writes a JSON file that appears whole or not at all."""
    path = Path(path)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w") as file:
            json.dump(value, file, indent=1)
            file.write("\n")
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


class CsvLog:
    """A CSV file of a run folder, each row flushed as it is written. A context manager; folder None: writes nothing."""

    def __init__(self, folder, name, fields):
        self._file = open(folder.path / name, "w", newline="") if folder else None  # noqa: SIM115 (closed on exit)
        if self._file:
            self._writer = csv.DictWriter(self._file, fields)
            self._writer.writeheader()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        if self._file:
            self._file.close()

    def write(self, **row):
        if self._file:
            self._writer.writerow({k: f"{v:.7g}" if isinstance(v, float) else v for k, v in row.items()})
            self._file.flush()


def read_csv(path):
    """The rows of a CsvLog as dicts of text."""
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def environment():
    """What a result depends on besides its configuration."""
    return {
        "wasi": wasi.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "blas": wasi._core.blas_config(),
        "isa": wasi._core.get_isa(),
        "threads": wasi.get_num_threads(),
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


def read_result(path):
    """The result.json of a run folder as a dict, or None where no run has ended there on its own."""
    file = Path(path) / "result.json"
    if not file.exists():
        return None
    result = json.loads(file.read_text())
    return None if result["interrupted"] else result


def read_steps(path):
    """The columns of a steps.csv as float arrays by name."""
    rows = read_csv(path)
    return {field: np.array([float(row[field]) for row in rows]) for field in STEP_FIELDS}


def plot_curves(runs, path):
    """Draws loss by step and accuracy by epoch of several runs into a PNG.

    runs: {label: (columns of read_steps, list of epoch records)}.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    FigureCanvasAgg(figure)
    loss_axes, accuracy_axes = figure.subplots(1, 2)
    for label, (steps, epochs) in runs.items():
        width = max(1, len(steps["loss"]) // 50)
        smooth = np.convolve(steps["loss"], np.ones(width) / width, mode="valid")
        loss_axes.plot(steps["step"][width - 1 :], smooth, label=label)
        accuracy_axes.plot([e["epoch"] for e in epochs], [100 * e["val_accuracy"] for e in epochs], marker="o", label=label)
    loss_axes.set(xlabel="step", ylabel="training loss", title="Loss")
    accuracy_axes.set(xlabel="epoch", ylabel="top-1 %", title="Validation accuracy")
    for axes in (loss_axes, accuracy_axes):
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path, dpi=120)
