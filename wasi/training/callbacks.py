"""What watches a run, and may end it: the protocol of `train`'s callbacks, and the ones that are built in."""

import os
import sys
import time
from dataclasses import asdict

from tqdm.auto import tqdm

from wasi.models.weights import check_numbers
from wasi.training.memory import mib, rss_bytes
from wasi.training.runlog import (
    RANK_FIELDS,
    STEP_FIELDS,
    SUBSPACE_FIELDS,
    CsvLog,
    reached,
    write_confusion,
)
from wasi.training.subspaces import SubspaceLog


class Callback:
    """Override what is of interest; `run` is the `wasi.training.loop.Run` under way. Callbacks are called in their order.

    `name` tells a callback's state from the others' in a checkpoint. `run.stop(reason)` ends the run after the epoch under way.
    An exception ends the run, and the checkpoints written before stay.
    """

    name = None  # default: the class's

    def on_train_begin(self, run):
        """Before the first step, of a run that goes on too: then after `load_state_dict`."""

    def on_step_end(self, run):
        """After an update. run.progress.step: updates made; run.batch, run.lr, run.grad_norm, run.seconds: of this one."""

    def on_epoch_end(self, run, record):
        """After the evaluation. record: what TrainResult.epochs will hold of the epoch; run.val: its Evaluation."""

    def on_train_end(self, run):
        """After the last step, and where an error or Ctrl-C ended the run before it."""

    def parts(self):
        """{name: object with state_dict and load_state_dict} of which a checkpoint keeps the state apart."""
        return {}

    def state_dict(self):
        """({name: float32 array}, numbers as of JSON): what a run that goes on needs. Called when a checkpoint is written."""
        return {}, {}

    def load_state_dict(self, arrays, numbers):
        """Goes on from there; not called where the checkpoint knows nothing of this callback."""


class CsvCallback(Callback):
    """Writes a CSV file of the run folder. A run that goes on cuts off the rows that came after its checkpoint."""

    def __init__(self, file, fields):
        self.name = file
        self._fields, self._n_bytes, self._log = fields, None, None

    def on_train_begin(self, run):
        self._log = CsvLog(run.folder, self.name, self._fields, self._n_bytes if run.folder else None)

    def on_train_end(self, run):
        self._log.close()

    def state_dict(self):
        return {}, {"n_bytes": self._log.sync()}

    def load_state_dict(self, arrays, numbers):
        check_numbers(self.name, numbers, ("n_bytes",))
        self._n_bytes = numbers["n_bytes"]


class StepLog(CsvCallback):
    """steps.csv: a row a step."""

    def __init__(self):
        super().__init__("steps.csv", STEP_FIELDS)

    def on_step_end(self, run):
        self._log.write(step=run.progress.step - 1, epoch=run.progress.epoch, lr=run.lr, loss=run.batch.loss,
                        accuracy=run.batch.accuracy, grad_norm=run.grad_norm, seconds=run.seconds,
                        peak_rss_mib=mib(run.peak_rss_bytes), rss_mib=mib(rss_bytes()), counted_mib=mib(run.counted_bytes))


class ConfusionLog(Callback):
    """confusion.csv: samples by true class (row) and predicted (column), of the last epoch, or the best that is restored."""

    def __init__(self, classes):
        self._classes = classes

    def on_epoch_end(self, run, record):
        stopping, best = run.config.early_stopping, run.progress.best
        if run.folder is None or run.val.confusion is None:
            return
        if stopping is None or not stopping.restore_best or best["epoch"] == record["epoch"]:
            write_confusion(run.folder.path / "confusion.csv", run.val.confusion, self._classes)


class RankLog(CsvCallback):
    """Lets the ranks follow the spectrum of the factors; ranks.csv: a row a layer at the start, then one a change."""

    def __init__(self, controller):
        super().__init__("ranks.csv", RANK_FIELDS)
        self.controller = controller

    def parts(self):
        return {"ranks": self.controller}

    def on_train_begin(self, run):
        super().on_train_begin(run)
        if run.progress.step == 0:
            self._write(run, self.controller.ranks)

    def on_step_end(self, run):
        step = run.progress.step
        if step % self.controller.adaptation.every == 0 and step < run.n_steps:
            self._write(run, self.controller.update())

    def _write(self, run, ranks):
        for name, rank in ranks.items():
            self._log.write(step=run.progress.step, layer=name, rank=rank)


class SubspaceCallback(CsvCallback):
    """subspaces.csv: every so many steps, the angles by which the factored layers' subspaces have turned."""

    def __init__(self, model, every):
        super().__init__("subspaces.csv", SUBSPACE_FIELDS)
        self.subspaces, self._every = SubspaceLog(model), every

    def parts(self):
        return {"subspaces": self.subspaces}

    def on_step_end(self, run):
        if run.progress.step % self._every == 0:
            for row in self.subspaces.record(run.progress.step):
                self._log.write(**row)


class AverageUpdate(Callback):
    """Takes the weights into their average (a WeightAverage), every so many steps."""

    def __init__(self, average, every):
        self._average, self._every = average, every

    def parts(self):
        return {"ema": self._average}

    def on_step_end(self, run):
        if run.progress.step % self._every == 0:
            self._average.update(run.arena)


class Patience(Callback):
    """Ends a run as an EarlyStopping says."""

    def __init__(self, stopping, monitor):
        self._stopping, self._monitor = stopping, monitor
        self.best, self.n_epochs = None, 0  # the best value so far, epochs since

    def on_epoch_end(self, run, record):
        value = record[self._monitor] * (-1 if self._monitor == "val_loss" else 1)
        if self.best is None or value > self.best + self._stopping.min_delta:
            self.best, self.n_epochs = value, 0
            return
        self.n_epochs += 1
        if self.n_epochs >= self._stopping.patience:
            run.stop(f"{self._monitor} has not bettered in {self.n_epochs} epochs")

    def state_dict(self):
        return {}, {"best": self.best, "n_epochs": self.n_epochs}

    def load_state_dict(self, arrays, numbers):
        check_numbers("early_stopping", numbers, ("n_epochs",), () if numbers["best"] is None else ("best",))
        self.best, self.n_epochs = numbers["best"], numbers["n_epochs"]


class ProgressBar(Callback):
    """A line an epoch on stderr; between them a bar of steps in terminals and notebooks, elsewhere (a log, a terminal without
    cursor movements) a line of text at most every `SECONDS_A_LINE`."""

    SECONDS_A_LINE = 60

    def __init__(self, label):
        self._label, self._bar = label, None

    def on_train_begin(self, run):
        if _draws_bars():
            self._bar = tqdm(total=run.n_steps, initial=run.progress.step, desc=self._label, unit="step")
        self._first, self._began = run.progress.step, time.monotonic()
        self._told = self._began

    def on_step_end(self, run):
        step = run.progress.step
        if self._bar is not None:
            self._bar.update()
            self._bar.set_postfix(loss=f"{run.progress.mean_loss:.3f}", refresh=False)
        elif time.monotonic() - self._told >= self.SECONDS_A_LINE:
            self._tell(f"step {step} of {run.n_steps}, loss {run.progress.mean_loss:.3f}{self._time_left(run)}")

    def on_epoch_end(self, run, record):
        self._tell(f"epoch {record['epoch']} of {run.config.epochs}: loss {record['train_loss']:.3f}, validation loss "
                   f"{record['val_loss']:.3f}, {reached(record, run.is_language_model)}, {record['seconds']:.1f} s"
                   f"{self._time_left(run)}")

    def on_train_end(self, run):
        if self._bar is not None:
            self._bar.close()

    def _tell(self, line):
        self._told = time.monotonic()
        tqdm.write(f"{self._label}: {line}", file=sys.stderr)
        sys.stderr.flush()

    def _time_left(self, run):
        """By the mean of the steps made since the run began or went on, validation included."""
        step = run.progress.step
        seconds = (time.monotonic() - self._began) / max(step - self._first, 1) * (run.n_steps - step)
        return f", about {_duration(seconds)} left" if step < run.n_steps else ""


def _draws_bars():
    """Whether a bar can be redrawn in place: in a notebook with widgets, or a terminal that moves its cursor."""
    in_notebook = any(c.__module__ == "tqdm.notebook" for c in tqdm.__mro__)
    return in_notebook or (sys.stderr.isatty() and os.environ.get("TERM") != "dumb")


def _duration(seconds):
    """Of a coarse estimate.

    >>> [_duration(s) for s in (9.6, 200, 9000)]
    ['10 s', '3 min', '2 h 30 min']
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


class TensorBoard(Callback):
    """Event files for TensorBoard, in the folder `tensorboard` of the run folder. Needs the package tensorboardX."""

    def __init__(self):
        try:
            from tensorboardX import SummaryWriter
        except ImportError as error:
            raise ImportError("tensorboard: expected the package tensorboardX: pip install 'wasi[tensorboard]'") from error
        self._make, self._writer = SummaryWriter, None

    def on_train_begin(self, run):
        if run.folder is None:
            raise ValueError("tensorboard: expected a run folder to write to, got None")
        self._writer = self._make(str(run.folder.path / "tensorboard"), purge_step=run.progress.step or None)
        self._writer.add_text("config", "\n".join(f"    {k}: {v}" for k, v in asdict(run.config).items()))

    def on_step_end(self, run):
        values = {"loss": run.batch.loss, "accuracy": run.batch.accuracy, "lr": run.lr, "grad_norm": run.grad_norm,
                  "peak_rss_mib": mib(run.peak_rss_bytes)}
        for name, value in values.items():
            self._writer.add_scalar(f"train/{name}", value, run.progress.step)

    def on_epoch_end(self, run, record):
        for name, value in record.items():
            if name.startswith("val_") and value is not None:
                self._writer.add_scalar(f"val/{name.removeprefix('val_')}", value, run.progress.step)
        self._writer.flush()

    def on_train_end(self, run):
        if self._writer is not None:
            self._writer.close()
