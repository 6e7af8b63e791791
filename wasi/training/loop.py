"""The training loop: batches in, a fine-tuned model, a log and curves out."""

import contextlib
import itertools
import time
from dataclasses import asdict, dataclass

import numpy as np
from tqdm.auto import tqdm

import wasi
from wasi.models import save_model
from wasi.training.augment import mix
from wasi.training.callbacks import (
    AverageUpdate,
    Callback,
    ConfusionLog,
    Patience,
    ProgressBar,
    RankLog,
    StepLog,
    SubspaceCallback,
    TensorBoard,
)
from wasi.training.checkpoint import (
    Checkpoint,
    Progress,
    checkpoint_path,
    prune_checkpoints,
    save_checkpoint,
)
from wasi.training.config import FREE_FIELDS, EarlyStopping, ParamGroup, TrainConfig
from wasi.training.ema import Snapshot, WeightAverage
from wasi.training.interrupt import Abandoned, Interrupt, as_before
from wasi.training.memory import (
    bytes_by_layer,
    count_bytes,
    counted_peak,
    mib,
    peak_rss_bytes,
    release_freed,
    reset_peak_rss,
    rss_bytes,
)
from wasi.training.optimizer import Optimizer
from wasi.training.ranks import RankController
from wasi.training.runlog import environment, plot_curves, read_steps
from wasi.training.schedule import optimizer_groups, scheduled_rate
from wasi.training.step import accumulate_gradient, evaluate

__all__ = ["Callback", "EarlyStopping", "ParamGroup", "Run", "TrainConfig", "TrainResult", "train"]

N_FIRST_STEPS = 3  # after these the peak of a run is known
MIX_STREAM = 1  # random streams are (seed, number of the stream, step)


@dataclass
class TrainResult:
    """What a run reached. Memory is the process's, counted by the operating system."""

    epochs: list  # a dict an epoch: epoch, train_loss, train_accuracy, val_loss, val_accuracy, val_top5, seconds
    val_accuracy: float  # of the model that the run leaves: after the last epoch, or, restored, after the best
    val_loss: float
    seconds_per_step: float  # median
    peak_rss_bytes: int  # highest during training
    peak_rss_above_start_bytes: int  # the same less what was resident when the run began
    planned_peak_bytes: int | None  # what the plan said of counted_peak_bytes
    counted_peak_bytes: int  # the most that arrays took at once in the first steps, weights and all
    step_peak_bytes: int  # highest in arrays that steps made: activations and scratch, without weights, optimiser, average
    parameters: int
    counted: dict  # bytes by kind, as `count_bytes` gives them at the end; saved_bytes: the most over the steps
    flops_per_image: float  # of a training step, by `model.training_flops`
    ranks: dict  # of the layers that the WSI step trains, at the end, by name
    interrupted: bool  # Ctrl-C ended it early
    best: dict | None  # epoch, step, val_accuracy and val_loss of the best epoch; its checkpoint is kept
    stopped: str | None  # why a callback ended it before its last epoch


class Run:
    """A run under way, as callbacks see it.

    model, optimizer, config, folder (or None), progress (`Progress`), steps_per_epoch, n_steps (of the whole run), average
    (`WeightAverage` or None), arena (of the steps), step_seconds (a number a step so far); of the last step: batch
    (`BatchResult`), lr, grad_norm, seconds, counted_bytes (the most that arrays took at once so far); val: the last `Evaluation`.
    """

    def __init__(self, model, config, folder, progress, steps_per_epoch, plan=None):
        self.model, self.config, self.folder, self.progress = model, config, folder, progress
        self.steps_per_epoch, self.n_steps = steps_per_epoch, config.epochs * steps_per_epoch
        self.optimizer = Optimizer(model, config.optimizer, momentum=config.momentum, weight_decay=config.weight_decay,
                                   clip_norm=config.clip_norm, gradient_bits=config.gradient_bits, layerwise=config.layerwise,
                                   state_bits=config.state_bits,
                                   groups=optimizer_groups(model, config.layer_lr_decay, config.param_groups))
        self.average = WeightAverage(model, config.ema) if config.ema else None
        # Gradients too: with gradient_bits or layerwise they are made in the steps.
        sized = plan and (plan.ema or not config.ema)  # by a plan that knows of an average, where there is one
        self.arena = wasi.Arena((plan.gradient_bytes + plan.saved_bytes + plan.scratch_bytes) * 3 // 2 + 2**20 if sized else None)
        self.step_seconds, self.epoch_start, self.best_weights = [], None, None
        self.batch = self.lr = self.grad_norm = self.seconds = self.counted_bytes = self.val = None

    def stop(self, reason):
        """Ends the run once the epoch under way has been evaluated, or at once where that has been done; reason: for people."""
        self.progress.stopped = reason

    @property
    def peak_rss_bytes(self):
        """Highest resident bytes of the process so far."""
        return max(self.progress.peak_rss_bytes, peak_rss_bytes())

    @property
    def step_peak_bytes(self):
        """Highest in arrays that steps made so far."""
        return max(self.progress.step_peak_bytes, self.arena.stats()["peak_bytes"])

    @property
    def is_language_model(self):
        """Whether it is judged by its perplexity: its model tells no classes apart."""
        return getattr(self.model.config, "num_classes", 0) is None

    @property
    def saves(self):
        """Whether it writes checkpoints."""
        return self.folder is not None and self.config.checkpoint_every != 0

    @property
    def restores_best(self):
        """Whether it leaves the model of its best epoch."""
        return self.config.early_stopping is not None and self.config.early_stopping.restore_best

    def averaged_weights(self):
        """A context in which the model has the averaged weights, where they are wanted."""
        return self.average.applied() if self.average else contextlib.nullcontext()


def train(model, train_loader, val_loader, config, folder=None, start_rss_bytes=None, progress=True, label="train",
          plan=None, data_rss_bytes=None, resume=None, callbacks=()):
    """Trains `model` in place and returns a TrainResult.

    train_loader, val_loader: re-iterable, with len(), giving what the model takes and what its loss compares with: (images uint8
    (B, 3, S, S), labels int64 (B,)), or of a decoder (tokens, targets) as `wasi.training.text.TokenSet.batch` has them.
    folder: a RunFolder for steps.csv, epochs.json, layers.json, confusion.csv (of the last epoch, or the best that is restored),
    ranks.csv, subspaces.csv and event files where config asks for them, checkpoints, model.safetensors, curves.png and, in the
    end, result.json; or None.
    start_rss_bytes: resident bytes before the model was made, so that weights count too (default: now).
    plan: the Plan that the model was readied by, or None. It sizes the arena of the steps (half as much again as planned, for the
    gaps between blocks), and after the first steps planned and measured peak are printed.
    data_rss_bytes: resident bytes when the data were open and the model not yet made (default: start_rss_bytes).
    resume: a Checkpoint (`wasi.training.checkpoint.newest_checkpoint(folder.path)`) of a run with this config on these data, or
    None. The model, of the same configuration, takes its layers and weights from there; all that follows is bit for bit what the
    run would have given uninterrupted, if threads and instruction set are the same. Loaders without `state_dict` must repeat
    themselves. Ctrl-C writes a checkpoint and returns: an unfinished forward or backward pass is given up and done again later.
    callbacks: `wasi.training.callbacks.Callback`s, called after the built-in ones; what they remember is in the checkpoints.
    With config.ema, model is left with the averaged weights, and these are what is evaluated; checkpoints hold both.
    Raises CheckpointError naming what differs where `resume` is of another model, data set or configuration, OSError where a
    checkpoint cannot be written, FloatingPointError naming the step where the loss is not finite, ArithmeticError naming step
    and layer where a factor's rank has collapsed (the log up to there is kept), ValueError where config asks for ranks,
    subspaces, class weights or mixtures of what the model does not have, ImportError where tensorboardX is missing.
    """
    start_rss = rss_bytes() if start_rss_bytes is None else start_rss_bytes
    class_weights = _check_targets(config, model)
    identity = _identity(config, train_loader, val_loader, plan)
    now = Progress()
    if resume is not None:
        resume.check(**identity)
        resume.restore_model(model)
        now = resume.progress
        resume.restore_loader(train_loader)
    run = Run(model, config, folder, now, len(train_loader), plan)
    classes = list(getattr(getattr(train_loader, "dataset", train_loader), "classes", ()))
    watching = [*_built_in(run, label if progress else None, classes), *callbacks]
    parts = _parts(run, watching)
    with contextlib.ExitStack() as stack:
        if resume is not None:
            _restore_parts(resume, parts)
        for callback in watching:
            callback.on_train_begin(run)
            stack.callback(callback.on_train_end, run)
        if resume is not None and folder:
            run.step_seconds = list(read_steps(folder.path / "steps.csv")["seconds"])
        release_freed()  # what making the model and opening the data took beyond what they keep
        reset_peak_rss()
        interrupt = stack.enter_context(Interrupt())
        run.epoch_start = time.perf_counter() - now.epoch_seconds
        try:
            while now.epoch <= config.epochs and not now.stopped:
                for images, labels in _remaining(train_loader, now.done):
                    interrupt.check()
                    _update(run, images, labels, class_weights, interrupt)
                    _count(run, getattr(train_loader, "buffer_bytes", images.nbytes))
                    if now.step == min(N_FIRST_STEPS, run.n_steps):
                        _tell_of_memory(run, plan, data_rss_bytes)
                    for callback in watching:
                        callback.on_step_end(run)
                    if run.saves and config.checkpoint_every and now.step % config.checkpoint_every == 0:
                        _save(run, train_loader, parts, identity)
                interrupt.check()
                record, is_best = _validate(run, val_loader, interrupt)
                if folder:
                    folder.write_json("epochs.json", now.records)
                for callback in watching:
                    callback.on_epoch_end(run, record)
                if run.saves and (config.checkpoint_every is None or is_best):
                    _save(run, train_loader, parts, identity)
        except Abandoned:
            model.zero_grad()
            model.drop_saved()
            if run.saves:
                _save(run, train_loader, parts, identity)
    if now.stopped and progress:
        tqdm.write(f"stopped after epoch {now.epoch - 1}: {now.stopped}")
    result = _result(run, start_rss, plan, interrupt.asked)
    if folder:
        if not (interrupt.asked and run.saves):  # else the checkpoint is the model, and nothing keeps the user waiting
            save_model(model, folder.path / "model.safetensors", {"classes": classes})
            if now.records:
                plot_curves({label: (read_steps(folder.path / "steps.csv"), now.records)}, folder.path / "curves.png",
                            run.is_language_model)
        # Last: where it lies, the run is whole.
        folder.write_json("result.json", {**asdict(result), "config": asdict(config), "environment": environment()})
    return result


# --- a step and an epoch ----------------------------------------------------------------------------------------------------


def _update(run, images, labels, class_weights, interrupt):
    """One update of the model by a batch. Raises Abandoned where Ctrl-C comes before it; the model is then as it was."""
    model, config, now = run.model, run.config, run.progress
    started = time.perf_counter()
    run.lr = scheduled_rate(config, now.step, run.steps_per_epoch)
    if config.mixup or config.cutmix:
        rng = np.random.default_rng((config.seed, MIX_STREAM, now.step))
        images, labels = mix(images, labels, model.config.num_classes, rng, config.mixup, config.cutmix, config.mix_prob)
    try:
        with run.arena:
            with as_before(model), interrupt.abandonable(not config.layerwise):
                run.batch = accumulate_gradient(model, images, labels, config.micro_batch, config.label_smoothing,
                                                run.optimizer.after_backward(run.lr), class_weights)
            run.grad_norm = run.optimizer.step(run.lr)
    except ArithmeticError as error:
        raise type(error)(f"step {now.step}, lr {run.lr:.3g}: {error}") from error
    run.seconds = time.perf_counter() - started
    run.step_seconds.append(run.seconds)
    now.add(run.batch)


def _count(run, image_bytes):
    """Takes the last step's memory and FLOPs into the run's figures. image_bytes: of the batch and what it was made from."""
    now, batch = run.progress, run.batch
    if batch.saved_bytes > now.saved_bytes:
        now.saved_bytes = batch.saved_bytes
        now.flops_per_image = run.model.training_flops(batch.n, run.optimizer.rule, run.config.micro_batch).total / batch.n
    run.counted_bytes = counted_peak(run.model, run.optimizer, run.arena, image_bytes, run.average)
    if now.step <= N_FIRST_STEPS:
        now.counted_peak_bytes = run.counted_bytes


def _tell_of_memory(run, plan, data_rss_bytes):
    """Writes layers.json, and prints planned and measured peak where there is a plan."""
    step = run.progress.step
    if run.folder:
        layers = bytes_by_layer(run.model, run.optimizer, run.batch.saved, run.average)
        run.folder.write_json("layers.json", {"step": step, "layers": layers})
    if plan:
        grown = None if data_rss_bytes is None else peak_rss_bytes() - data_rss_bytes
        planned = plan.peak_bytes + (run.average.nbytes if run.average and not plan.ema else 0)
        tqdm.write(compare_with_plan(planned, run.progress.counted_peak_bytes, step, grown))


def compare_with_plan(planned, counted, n_steps, rss):
    """A line for people: what was planned, what arrays took, and, where it is known, what the process grew by since the model
    was made."""
    grown = "" if rss is None else f"; the process grew by {mib(rss):.1f} MiB from before the model was made"
    return (f"peak memory after {n_steps} steps: planned {mib(planned):.1f} MiB, measured {mib(counted):.1f} MiB in arrays "
            f"({100 * (counted / planned - 1):+.1f} %){grown}")


def _validate(run, val_loader, interrupt):
    """Evaluates the epoch under way and ends it; returns its record and whether it is the best so far."""
    now = run.progress
    with run.averaged_weights():
        with run.arena, interrupt.abandonable():
            run.val = evaluate(run.model, val_loader, run.config.micro_batch)
        record = now.record(run.val, time.perf_counter() - run.epoch_start)
        is_best = now.end_epoch(record, run.config.monitor)
        if is_best and run.restores_best and not run.saves:
            run.best_weights = Snapshot(run.model)
    run.epoch_start = time.perf_counter()
    return record, is_best


def _save(run, train_loader, parts, identity):
    """Writes a checkpoint and drops those that config.keep has no room for."""
    now, config = run.progress, run.config
    now.epoch_seconds = time.perf_counter() - run.epoch_start
    now.step_peak_bytes, now.peak_rss_bytes = run.step_peak_bytes, run.peak_rss_bytes
    state = {**identity, "progress": asdict(now), "loader": _loader_state(train_loader, now.done)}
    save_checkpoint(checkpoint_path(run.folder.path, now.step), run.model, parts, state)
    prune_checkpoints(run.folder.path, now.step, config.keep, now.best and now.best["step"])


# --- the end ----------------------------------------------------------------------------------------------------------------


def _result(run, start_rss_bytes, plan, interrupted):
    """Leaves the model with the weights that are wanted and returns the TrainResult."""
    now, model = run.progress, run.model
    counted = {**count_bytes(model, run.optimizer, run.average), "saved_bytes": now.saved_bytes}
    left = now.records[-1] if now.records else {}
    if run.restores_best and not interrupted and now.best["epoch"] < now.epoch - 1 and _restore_best(run):
        left = now.records[now.best["epoch"] - 1]
    elif run.average:
        run.average.swap()
    seconds, peak_rss = sorted(run.step_seconds), run.peak_rss_bytes
    return TrainResult(
        epochs=now.records,
        val_accuracy=left.get("val_accuracy", float("nan")),
        val_loss=left.get("val_loss", float("nan")),
        seconds_per_step=seconds[len(seconds) // 2] if seconds else float("nan"),
        peak_rss_bytes=peak_rss,
        peak_rss_above_start_bytes=peak_rss - start_rss_bytes,
        planned_peak_bytes=plan and plan.peak_bytes,
        counted_peak_bytes=now.counted_peak_bytes,
        step_peak_bytes=run.step_peak_bytes,
        parameters=sum(p.data.size for _, p in model.named_parameters()),
        counted=counted,
        flops_per_image=now.flops_per_image,
        ranks={name: model.get_module(name).rank for name in run.optimizer.factored},
        interrupted=interrupted,
        best=now.best,
        stopped=now.stopped,
    )


def _restore_best(run):
    """Gives the model the weights of its best epoch; returns whether they are there: a run that goes on may have lost them."""
    if run.best_weights is not None:
        run.best_weights.restore(run.model)
        return True
    path = run.folder and checkpoint_path(run.folder.path, run.progress.best["step"])
    if path is None or not path.is_file():
        return False
    best = Checkpoint(path)
    best.restore_model(run.model)
    if run.average:
        average = WeightAverage(run.model, run.config.ema)
        best.restore("ema", average)
        average.swap()
    return True


# --- what a run begins with and goes on from --------------------------------------------------------------------------------


def _check_targets(config, model):
    """The class weights as an array or None. Raises ValueError for options of the loss that the model has no use for."""
    n_classes = getattr(model.config, "num_classes", None)
    if (config.mixup or config.cutmix) and model.architecture == "llama":
        raise ValueError("mixup, cutmix: expected 0 for a model of texts")
    if config.class_weights is None:
        return None
    if len(config.class_weights) != n_classes:
        raise ValueError(f"class_weights: expected {n_classes or 'none for a language model'}, got {len(config.class_weights)}")
    return np.array(config.class_weights, np.float32)


def _built_in(run, label, classes):
    """The callbacks that a configuration asks for, in the order in which they are called. label: of the bar; None: no bar."""
    config, wanted = run.config, []
    if config.adapt_ranks:
        wanted.append(RankLog(RankController(config.adapt_ranks, run.optimizer)))
    if run.average:
        wanted.append(AverageUpdate(run.average, config.ema_every))
    if config.track_subspaces:
        wanted.append(SubspaceCallback(run.model, config.track_subspaces))
    wanted += [StepLog(), ConfusionLog(classes)]
    if config.early_stopping:
        wanted.append(Patience(config.early_stopping, config.monitor))
    if config.tensorboard:
        wanted.append(TensorBoard())
    return [*wanted, ProgressBar(label)] if label is not None else wanted


def _parts(run, callbacks):
    """{name: what a checkpoint must remember}. Raises ValueError for callbacks of one name."""
    parts = {"optimizer": run.optimizer}
    for callback in callbacks:
        name = f"callback.{callback.name or type(callback).__name__}"
        if name in parts:
            raise ValueError(f"callbacks: expected names of their own, got two {name.removeprefix('callback.')!r}")
        parts |= {name: callback, **callback.parts()}
    return parts


def _restore_parts(resume, parts):
    """Gives the parts what the checkpoint remembers of them; a callback that it does not know begins anew."""
    for name, part in parts.items():
        if name in resume.state["parts"] or not name.startswith("callback."):
            resume.restore(name, part)
    tqdm.write(resume.summary())


def _identity(config, train_loader, val_loader, plan):
    """What a run must share with the checkpoint that it goes on from."""
    settings = {k: v for k, v in asdict(config).items() if k not in FREE_FIELDS}

    def fingerprint(loader):
        return getattr(getattr(loader, "dataset", None), "fingerprint", lambda: None)()

    return {"config": settings, "training data": fingerprint(train_loader), "validation data": fingerprint(val_loader),
            "number of batches": len(train_loader), "plan": plan and plan.record()}


def _loader_state(loader, done):
    """The loader's place after `done` batches of an epoch, whatever it has handed out beyond; None for one without state."""
    if not hasattr(loader, "state_dict"):
        return None
    state = loader.state_dict()
    return {**state, "batch": done} if done < len(loader) else state


def _remaining(loader, done):
    """The batches of the epoch that are left after `done`."""
    if done == len(loader):
        return ()
    return loader if done == 0 or hasattr(loader, "load_state_dict") else itertools.islice(loader, done, None)
