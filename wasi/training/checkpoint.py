"""Checkpoints: all that a run needs to go on bit for bit, in one safetensors file that appears whole or not at all.

A file holds what `save_model` writes, so `wasi.load_model` reads it too, and besides: optimiser, warm-start subspaces of
compressed activations, factors followed by the published methods, averaged weights, rank controller, what callbacks remember,
position in the data, sums of the running epoch, the plan. Arrays lie under `optimizer.`, `compression.`, `followed.`, `ema.`,
`subspaces.` and `callback.`; all else is JSON in the metadata, as are checksums.
Files are data from anywhere: nothing is unpickled, sizes and checksums are verified before anything is taken over.
"""

import json
import math
import re
import zlib
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from wasi.layers import ActivationCompression, ActivationPolicy
from wasi.layers.linear import LinearBase
from wasi.layers.published import DenseWeightLinear, SvdLinear, WsiDenseLinear
from wasi.models.factory import empty_model, open_model, restore_model
from wasi.models.plan import Plan
from wasi.models.weights import (
    PARTIAL,
    WeightsError,
    check_arrays,
    check_numbers,
    model_tensors,
    write_tensors,
)
from wasi.training.config import TrainConfig
from wasi.training.runlog import environment

FORMAT_VERSION = 2  # 1: logs beside the parts, of which callbacks are some now; moments by number, not by letter
FOLDER = "checkpoints"  # of a run folder

_PUBLISHED = {"wsi-dense": WsiDenseLinear, "svd": SvdLinear}
# What a file that is damaged in its metadata makes the code that takes it over raise.
_MALFORMED = (AttributeError, IndexError, KeyError, MemoryError, OverflowError, RecursionError, TypeError, ValueError)


class CheckpointError(ValueError):
    """A checkpoint that is damaged, or of another run than the one that is to go on."""


@dataclass
class Progress:
    """How far a run is."""

    step: int = 0  # updates made
    epoch: int = 1  # the one that is under way
    done: int = 0  # batches of it; all of them where its evaluation is still to come
    loss_sum: float = 0.0  # over the samples of those batches
    n_correct: float = 0
    n: int = 0  # samples
    epoch_seconds: float = 0.0
    records: list = field(default_factory=list)  # of the epochs that ended
    best: dict | None = None  # epoch, step, val_accuracy and val_loss of the best of them
    saved_bytes: int = 0  # the most so far, as are these
    counted_peak_bytes: int = 0
    step_peak_bytes: int = 0
    peak_rss_bytes: int = 0
    flops_per_image: float = math.nan
    stopped: str | None = None  # why the run ends with this epoch

    @property
    def mean_loss(self):
        return self.loss_sum / self.n

    def add(self, batch):
        """An update has been made from a batch (`BatchResult`)."""
        self.loss_sum += batch.loss * batch.n
        self.n_correct += batch.n_correct
        self.n += batch.n
        self.step += 1
        self.done += 1

    def record(self, val, seconds):
        """What is told of the epoch under way, which took so long; val: its Evaluation."""
        return {"epoch": self.epoch, "train_loss": self.mean_loss, "train_accuracy": self.n_correct / self.n,
                "val_loss": val.loss, "val_accuracy": val.accuracy, "val_top5": val.top5, "seconds": seconds}

    def end_epoch(self, record, monitor="val_accuracy"):
        """The epoch has been evaluated; returns whether it is the best so far, by accuracy and then by loss, or by loss alone."""
        def goodness(of):
            return (of["val_accuracy"], -of["val_loss"]) if monitor == "val_accuracy" else (-of["val_loss"],)

        self.records.append(record)
        self.epoch, self.done, self.loss_sum, self.n_correct, self.n, self.epoch_seconds = self.epoch + 1, 0, 0.0, 0, 0, 0.0
        found = {k: record[k] for k in ("epoch", "val_accuracy", "val_loss")}
        if self.best is not None and goodness(found) <= goodness(self.best):
            return False
        self.best = {**found, "step": self.step}
        return True


def checkpoint_path(folder, step):
    """Where a run folder keeps the checkpoint of that step."""
    return Path(folder) / FOLDER / f"step-{step:08d}.safetensors"


def list_checkpoints(folder):
    """{step: path} of a run folder's checkpoints, from the oldest to the newest."""
    found = {}
    for path in sorted((Path(folder) / FOLDER).glob("step-*.safetensors")):
        digits = path.name.removeprefix("step-").removesuffix(".safetensors")
        if digits.isdecimal():
            found[int(digits)] = path
    return dict(sorted(found.items()))


def save_checkpoint(path, model, parts, state):
    """Writes a checkpoint of a model, of parts {name: object with state_dict()} and of what else there is to say (JSON).

    Raises OSError where it cannot be written; an earlier file of that name is then as it was.
    """
    tensors, metadata = model_tensors(model)
    arrays, about = _model_state(model)
    tensors |= arrays
    numbers = {}
    for name, part in parts.items():
        arrays, numbers[name] = part.state_dict()
        tensors |= {f"{name}.{tail}": array for tail, array in arrays.items()}
    state = {"format_version": FORMAT_VERSION, "environment": environment(), **state, "model": about, "parts": numbers}
    metadata["checkpoint"] = json.dumps(state)
    checksums = {name: zlib.crc32(np.ascontiguousarray(array)) for name, array in tensors.items()}
    metadata["crc32"] = json.dumps({**checksums, "metadata": _metadata_checksum(metadata)})
    try:
        path.parent.mkdir(exist_ok=True)
        write_tensors(path, tensors, metadata)
    except OSError as error:
        raise OSError(f"checkpoint: {path} cannot be written ({error.strerror}); those before it are whole") from error


def prune_checkpoints(folder, step, keep, best_step):
    """Deletes all but the last `keep` up to that step, and the best one.

    Later ones are of a run that did not go on from there; partial ones are of processes that were killed while writing.
    """
    there = list_checkpoints(folder)
    kept = {s for s in there if s <= step}
    kept = set(sorted(kept)[-keep:]) | {best_step}
    for s, path in there.items():
        if s not in kept:
            path.unlink()
    for path in (Path(folder) / FOLDER).glob(f".*{PARTIAL}"):
        path.unlink()


def newest_checkpoint(folder):
    """The newest Checkpoint of a run folder that is whole; its `skipped` lists what is wrong with newer ones.

    Raises CheckpointError where there is none.
    """
    skipped = []
    for path in reversed(list_checkpoints(folder).values()):
        try:
            checkpoint = Checkpoint(path)
        except (OSError, ValueError) as error:
            skipped.append(str(error))
            continue
        checkpoint.skipped = skipped
        return checkpoint
    if skipped:
        raise CheckpointError(f"resume: none of the checkpoints in {str(folder)!r} can be used: {'; '.join(skipped)}")
    raise CheckpointError(f"resume: {str(folder)!r} holds no checkpoint: the run ended before its first; remove "
                          "the folder and start it anew")


class Checkpoint:
    """A checkpoint file, opened and verified. state: its JSON, with `progress` and what the run was.

    Raises CheckpointError, naming the file, where it is damaged, was not saved by wasi, or has a newer format than this package
    reads; FileNotFoundError.
    """

    def __init__(self, path):
        self.path, self.skipped = Path(path), []
        try:
            self._file, self._header = open_model(path)
            if "checkpoint" not in self._file.metadata:
                raise CheckpointError("it holds a model alone")
            self.state = json.loads(self._file.metadata["checkpoint"])
            checksums = json.loads(self._file.metadata["crc32"])
            if checksums["metadata"] != _metadata_checksum(self._file.metadata):
                raise CheckpointError("damaged: metadata")
            if self.state["format_version"] > FORMAT_VERSION:
                raise CheckpointError(f"format version {self.state['format_version']}; this package reads "
                                      f"up to {FORMAT_VERSION}")
            damaged = [name for name in self._file.names if zlib.crc32(self._file.raw(name)) != checksums[name]]
            if damaged:
                raise CheckpointError(f"damaged: {', '.join(damaged)}")
            if self.state["format_version"] == 1:
                self.state["parts"] |= {f"callback.{name}": {"n_bytes": n} for name, n in self.state["logs"].items()}
            for name in ("environment", "parts"):
                if not isinstance(self.state[name], dict):
                    raise CheckpointError(f"{name}: expected an object")
            if self.state.get("plan"):  # an older one, as this package writes it
                self.state["plan"] = json.loads(json.dumps(Plan.of_record(self.state["plan"]).record()))
            self.progress = Progress(**self.state["progress"])
            _check_progress(self.progress)
        except FileNotFoundError:
            raise
        except _MALFORMED as error:
            raise self._error(error) from error

    def _error(self, error):
        text = str(error) if isinstance(error, (CheckpointError, WeightsError)) else f"{type(error).__name__}: {error}"
        return CheckpointError(f"checkpoint {self.path.name}: {text}")

    def empty_model(self):
        """A model of the right configuration for `restore_model` to fill."""
        try:
            return empty_model(self._header)
        except _MALFORMED as error:
            raise self._error(error) from error

    def restore_model(self, model):
        """Gives a model of the same configuration the checkpoint's layers, weights, and what they start the next step from.

        Raises CheckpointError for another model, naming what differs.
        """
        header = self._header
        try:
            mine = {"architecture": model.architecture, **json.loads(json.dumps(asdict(model.config)))}
            differs = _differences({"architecture": header["architecture"], **header["config"]}, mine)
            if differs:
                raise CheckpointError(f"of another model: {'; '.join(differs)}")
            _set_followed(model, self.state["model"]["followed"], self.arrays("followed"))
            restore_model(model, self._file, header)
            _set_model_state(model, self.state["model"], self.arrays("compression"))
        except _MALFORMED as error:
            raise self._error(error) from error

    def restore(self, name, part):
        """Lets one of the parts that `save_checkpoint` was given go on where it stood. Raises CheckpointError."""
        try:
            part.load_state_dict(self.arrays(name), self.state["parts"][name])
        except _MALFORMED as error:
            raise self._error(error) from error

    def restore_loader(self, loader):
        """Lets a loader go on where it stood; one without state has nothing to restore. Raises CheckpointError."""
        if hasattr(loader, "load_state_dict"):
            try:
                loader.load_state_dict(self.state["loader"])
            except _MALFORMED as error:
                raise self._error(error) from error

    def summary(self):
        """A line for people: where the run goes on, and what may keep it from the same bits."""
        p, there, here = self.progress, self.state["environment"], environment()
        lines = [f"not used: {problem}" for problem in self.skipped]
        lines.append(f"goes on after step {p.step}, in epoch {p.epoch}, from {self.path.name}")
        other = [f"{k} {there.get(k)}, not {here[k]}" for k in ("threads", "matmul_precision", "isa", "blas", "numpy", "wasi")
                 if there.get(k) != here[k]]
        if other:
            lines.append(f"saved with {'; '.join(other)}: results may differ in rounding from those of an uninterrupted run")
        return "\n".join(lines)

    def arrays(self, prefix):
        """{rest of the name: array} of the tensors under a prefix."""
        found = {name.removeprefix(prefix + "."): self._file.raw(name) for name in self._file.names
                 if name.startswith(prefix + ".")}
        if prefix == "optimizer" and self.state["format_version"] == 1:
            found = {re.sub(r"\.0$", ".m", re.sub(r"\.1$", ".v", name)): array for name, array in found.items()}
        return found

    def check(self, **expected):
        """Raises CheckpointError naming everything of the state that is not what this run has."""
        differs = []
        for key, mine in expected.items():
            mine, theirs = json.loads(json.dumps(mine)), self.state.get(key)
            if key == "config" and isinstance(theirs, dict):  # what a version before an option knew did as its default does
                theirs = {**{k: v for k, v in json.loads(json.dumps(asdict(TrainConfig()))).items() if k in mine}, **theirs}
            if key == "plan" and isinstance(theirs, dict):  # in the present format
                theirs = json.loads(json.dumps(Plan.of_record(theirs).record()))
            if isinstance(mine, dict) and isinstance(theirs, dict):
                differs += _differences(theirs, mine)
            elif mine != theirs:
                differs.append(f"another {key}")
        if differs:
            raise CheckpointError(f"checkpoint {self.path.name}: of a run with {'; '.join(differs)}")


def _check_progress(p):
    """Raises WeightsError or CheckpointError unless a Progress read from a file can be gone on with."""
    check_numbers("progress", vars(p), ("step", "epoch", "done", "n", "saved_bytes", "counted_peak_bytes", "step_peak_bytes",
                                        "peak_rss_bytes"), ("loss_sum", "n_correct", "epoch_seconds"))
    for i, record in enumerate(p.records):
        check_numbers(f"progress: record {i}", record, ("epoch",), ("train_loss", "train_accuracy", "val_loss", "val_accuracy",
                                                                    "seconds"))
        if record.get("val_top5") is not None:
            check_numbers(f"progress: record {i}", record, (), ("val_top5",))
    if p.best is not None:
        check_numbers("progress: best", p.best, ("epoch", "step"), ("val_accuracy", "val_loss"))
    best = 0 if p.best is None else p.best["epoch"]
    for name, good in (("best", (best >= 1) == bool(p.records) and best <= len(p.records)), ("n", p.n > 0 or p.done == 0),
                       ("stopped", p.stopped is None or isinstance(p.stopped, str)),
                       ("flops_per_image", type(p.flops_per_image) in (int, float))):
        if not good:
            raise CheckpointError(f"progress: {name}: got {getattr(p, name)!r}, which does not fit the rest")


def _differences(theirs, mine):
    return [f"{k} {theirs.get(k)!r}, not {mine.get(k)!r}" for k in sorted(mine.keys() | theirs.keys())
            if mine.get(k) != theirs.get(k)]


def _metadata_checksum(metadata):
    return zlib.crc32((metadata["wasi"] + metadata["checkpoint"]).encode())


def _model_state(model):
    """({name: array}, record) of what `save_model` leaves out: what a next step starts from, and how layers are trained."""
    arrays, followed, compression = {}, {}, {}
    for name, module in model.named_modules():
        if isinstance(module, DenseWeightLinear):
            followed[name] = next(kind for kind, cls in _PUBLISHED.items() if type(module) is cls)
            arrays |= {f"followed.{name}.{side}": a for side, a in zip(("left", "right"), module.factors)}
        if isinstance(module, LinearBase) and module.compression is not None:
            compression[name] = {"ranks": module.compression.ranks, "method": module.compression.method}
            arrays |= {f"compression.{name}.{mode}": a for mode, a in enumerate(module.compression.state())}
    frozen = [name for name, p in model.named_parameters() if not p.trainable]
    policies = [asdict(block.policy) for block in model.blocks]
    return arrays, {"followed": followed, "compression": compression, "frozen": frozen, "policies": policies}


def _set_followed(model, followed, arrays):
    """Puts the published methods' layers where the checkpoint has them; their weights come after."""
    there = {name for name, module in model.named_modules() if isinstance(module, DenseWeightLinear)}
    if there - followed.keys():
        raise CheckpointError(f"of another method: {', '.join(sorted(there - followed.keys()))} follow a dense weight here alone")
    shapes = {}
    for name in followed:
        (O, I), K = model.get_module(name).weight.data.shape, arrays[f"{name}.left"].shape[-1]
        shapes |= {f"{name}.left": (O, K), f"{name}.right": (K, I)}
    check_arrays("followed factors", arrays, shapes)
    for name, kind in followed.items():
        layer = model.get_module(name)
        factors = arrays[f"{name}.left"], arrays[f"{name}.right"]
        model.set_module(name, _PUBLISHED[kind](layer.weight.data, layer.bias and layer.bias.data, None, factors))


def _set_model_state(model, record, arrays):
    modules = dict(model.named_modules())
    for module in modules.values():
        if isinstance(module, LinearBase):
            module.compression = None
    for name, about in record["compression"].items():
        own = {tail: a for tail, a in arrays.items() if tail.rpartition(".")[0] == name}
        modes = [own.pop(f"{name}.{mode}") for mode in range(len(own))]
        check_arrays("compression", dict(enumerate(modes)), {mode: a.shape for mode, a in enumerate(modes) if a.ndim == 2})
        check_numbers(f"compression of {name}", dict(enumerate(about["ranks"])), (), range(len(about["ranks"])))
        modules[name].compression = ActivationCompression(tuple(about["ranks"]), about["method"])
        modules[name].compression.set_state(modes)
    frozen = set(record["frozen"])
    for name, p in model.named_parameters():
        p.trainable = name not in frozen
    for block, policy in zip(model.blocks, record["policies"], strict=True):
        block.policy = ActivationPolicy(**policy)
