"""The training loop: batches in, a fine-tuned model, a log and curves out."""

import contextlib
import itertools
import signal
import threading
import time
from dataclasses import asdict, dataclass

from tqdm.auto import tqdm

import wasi
from wasi.layers.linear import LinearBase
from wasi.models import save_model
from wasi.training.checkpoint import Progress, checkpoint_path, prune_checkpoints, save_checkpoint
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
from wasi.training.ranks import RankAdaptation, RankController
from wasi.training.runlog import (
    RANK_FIELDS,
    STEP_FIELDS,
    SUBSPACE_FIELDS,
    CsvLog,
    environment,
    plot_curves,
    read_steps,
)
from wasi.training.schedule import learning_rate
from wasi.training.step import accumulate_gradient, evaluate
from wasi.training.subspaces import SubspaceLog

N_FIRST_STEPS = 3  # after these the peak of a run is known


@dataclass(frozen=True)
class TrainConfig:
    """How to train; what to train and on what is given to `train` beside it."""

    epochs: int = 2
    lr: float = 0.05
    optimizer: str = "sgd"  # "sgd" or "adamw"
    momentum: float = 0.0  # SGD's
    weight_decay: float = 0.0
    clip_norm: float | None = 1.0  # gradients of a larger norm are scaled down to it; None: never
    schedule: str = "cosine"  # "constant", "cosine" or "linear"
    n_warmup: int = 0  # steps of linear warm-up
    label_smoothing: float = 0.0
    micro_batch: int | None = None  # samples in flight at once; None: the whole batch
    gradient_bits: int = 32  # 16: sums the gradient over micro-batches in bfloat16, half its memory
    state_bits: int = 32  # 16: keeps momentum, or AdamW's first moments, as bfloat16 between steps
    layerwise: bool = False  # update each layer in backward: no full gradient exists; needs clip_norm and micro_batch None
    adapt_ranks: RankAdaptation | None = None  # how ranks follow the spectrum of the factors; None: they stay
    track_subspaces: int = 0  # every so many steps, log the angles by which the factored layers' subspaces have turned; 0: never
    checkpoint_every: int | None = None  # steps between checkpoints; None: one at each epoch's end; 0: none at all
    keep: int = 2  # checkpoints: the last so many, and that of the best epoch

    def __post_init__(self):
        if self.checkpoint_every is not None and self.checkpoint_every < 0:
            raise ValueError(f"checkpoint_every: expected a number of steps, got {self.checkpoint_every}")
        if self.keep < 1:
            raise ValueError(f"keep: expected at least 1 checkpoint, got {self.keep}")
        if self.layerwise and self.micro_batch is not None:
            raise ValueError("micro_batch: expected None with layerwise updates, which need a layer's whole gradient at once, "
                             f"got {self.micro_batch}")


@dataclass
class TrainResult:
    """What a run reached. Memory is the process's, counted by the operating system."""

    epochs: list  # a dict an epoch: epoch, train_loss, train_accuracy, val_loss, val_accuracy, seconds
    val_accuracy: float  # after the last epoch
    seconds_per_step: float  # median
    peak_rss_bytes: int  # highest during training
    peak_rss_above_start_bytes: int  # the same less what was resident when the run began
    planned_peak_bytes: int | None  # what the plan said of counted_peak_bytes
    counted_peak_bytes: int  # the most that arrays took at once in the first steps, weights and all
    step_peak_bytes: int  # highest in arrays that steps made: activations and scratch, without weights and optimiser
    parameters: int
    counted: dict  # bytes by kind, as `count_bytes` gives them at the end; saved_bytes: the most over the steps
    flops_per_image: float  # of a training step, by `model.training_flops`
    ranks: dict  # of the layers that the WSI step trains, at the end, by name
    interrupted: bool  # Ctrl-C ended it early
    best: dict | None  # epoch, step, val_accuracy and val_loss of the best epoch; its checkpoint is kept


class _Abandoned(BaseException):
    """Ctrl-C came while what runs can be left and done again."""


class _Interrupt:
    """Turns Ctrl-C into a flag, so that an update ends whole and the run is saved. Main thread only.

    Within `abandonable()` it raises _Abandoned at once. A second Ctrl-C is a KeyboardInterrupt.
    """

    def __enter__(self):
        self.asked = self._raises = False
        self._main = threading.current_thread() is threading.main_thread()
        if self._main:
            self._before = signal.signal(signal.SIGINT, self._ask)
        return self

    def _ask(self, number, frame):
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        if self._raises:
            raise _Abandoned

    @contextlib.contextmanager
    def abandonable(self, on=True):
        """Lets Ctrl-C end the block by _Abandoned."""
        self._raises = on
        try:
            yield
        finally:
            self._raises = False

    def __exit__(self, *error):
        if self._main:
            signal.signal(signal.SIGINT, self._before)


def train(model, train_loader, val_loader, config, folder=None, start_rss_bytes=None, progress=True, label="train",
          plan=None, data_rss_bytes=None, resume=None):
    """Trains `model` in place and returns a TrainResult.

    train_loader, val_loader: re-iterable, with len(), giving (images uint8 (B, 3, S, S), labels int64 (B,)).
    folder: a RunFolder for steps.csv, ranks.csv and subspaces.csv where config asks for them, checkpoints, model.safetensors,
    curves.png and, in the end, result.json; or None.
    start_rss_bytes: resident bytes before the model was made, so that weights count too (default: now).
    plan: the Plan that the model was readied by, or None. It sizes the arena of the steps (half as much again as planned, for the
    gaps between blocks), and after the first steps planned and measured peak are printed.
    data_rss_bytes: resident bytes when the data were open and the model not yet made (default: start_rss_bytes).
    resume: a Checkpoint (`wasi.training.checkpoint.newest_checkpoint(folder.path)`) of a run with this config on these data, or
    None. The model, of the same configuration, takes its layers and weights from there; all that follows is bit for bit what the
    run would have given uninterrupted, if threads and instruction set are the same. Loaders without `state_dict` must repeat
    themselves. Ctrl-C writes a checkpoint and returns: an unfinished forward or backward pass is given up and done again later.
    Raises CheckpointError naming what differs where `resume` is of another model, data set or configuration, OSError where a
    checkpoint cannot be written, FloatingPointError naming the step where the loss is not finite, ArithmeticError naming step
    and layer where a factor's rank has collapsed (the log up to there is kept), ValueError where config asks for ranks or
    subspaces of layers that the model does not have.
    """
    start_rss = rss_bytes() if start_rss_bytes is None else start_rss_bytes
    identity = _identity(config, train_loader, val_loader, plan)
    run = Progress()
    if resume is not None:
        resume.check(**identity)
        resume.restore_model(model)
        run = resume.progress
        resume.restore_loader(train_loader)
    optimizer = Optimizer(model, config.optimizer, momentum=config.momentum, weight_decay=config.weight_decay,
                          clip_norm=config.clip_norm, gradient_bits=config.gradient_bits, layerwise=config.layerwise,
                          state_bits=config.state_bits)
    ranks = RankController(config.adapt_ranks, optimizer) if config.adapt_ranks else None
    # Gradients too: with gradient_bits or layerwise they are made in the steps.
    arena = wasi.Arena(plan and (plan.gradient_bytes + plan.saved_bytes + plan.scratch_bytes) * 3 // 2 + 2**20)
    n_steps = config.epochs * len(train_loader)
    seconds, logs = [], {}
    with contextlib.ExitStack() as stack:
        def log_of(name, fields):
            n_bytes = resume.state["logs"][name] if resume is not None and folder else None
            logs[name] = stack.enter_context(CsvLog(folder, name, fields, n_bytes))
            return logs[name]

        subspaces = SubspaceLog(model, log_of("subspaces.csv", SUBSPACE_FIELDS)) if config.track_subspaces else None
        log = log_of("steps.csv", STEP_FIELDS)
        rank_log = log_of("ranks.csv", RANK_FIELDS) if ranks else None
        parts = {"optimizer": optimizer, **({"ranks": ranks} if ranks else {}), **({"subspaces": subspaces} if subspaces else {})}
        if resume is not None:
            for name, part in parts.items():
                resume.restore(name, part)
            seconds = list(read_steps(folder.path / "steps.csv")["seconds"]) if folder else []
            tqdm.write(resume.summary())
        elif ranks:
            for name, rank in ranks.ranks.items():
                rank_log.write(step=0, layer=name, rank=rank)

        release_freed()  # what making the model and opening the data took beyond what they keep
        reset_peak_rss()

        def save():
            run.epoch_seconds = time.perf_counter() - epoch_start
            run.step_peak_bytes = max(run.step_peak_bytes, arena.stats()["peak_bytes"])
            run.peak_rss_bytes = max(run.peak_rss_bytes, peak_rss_bytes())
            state = {**identity, "progress": asdict(run), "loader": _loader_state(train_loader, run.done),
                     "logs": {name: log.sync() for name, log in logs.items()}}
            save_checkpoint(checkpoint_path(folder.path, run.step), model, parts, state)
            prune_checkpoints(folder.path, run.step, config.keep, run.best and run.best["step"])

        bar = stack.enter_context(tqdm(total=n_steps, initial=run.step, desc=label, disable=not progress, unit="step"))
        interrupt = stack.enter_context(_Interrupt())
        saving = folder is not None and config.checkpoint_every != 0
        epoch_start = time.perf_counter() - run.epoch_seconds
        try:
            while run.epoch <= config.epochs:
                for images, labels in _remaining(train_loader, run.done):
                    if interrupt.asked:
                        raise _Abandoned
                    started = time.perf_counter()
                    lr = learning_rate(run.step, config.lr, n_steps, config.schedule, config.n_warmup)
                    try:
                        with arena:
                            with _warm_subspaces(model), interrupt.abandonable(not config.layerwise):
                                batch = accumulate_gradient(model, images, labels, config.micro_batch, config.label_smoothing,
                                                            optimizer.after_backward(lr))
                            norm = optimizer.step(lr)
                    except ArithmeticError as error:
                        raise type(error)(f"step {run.step}, lr {lr:.3g}: {error}") from error
                    seconds.append(time.perf_counter() - started)
                    if batch.saved_bytes > run.saved_bytes:
                        run.saved_bytes = batch.saved_bytes
                        run.flops_per_image = model.training_flops(batch.n, optimizer.rule, config.micro_batch).total / batch.n
                    run.loss_sum += batch.loss * batch.n
                    run.n_correct += batch.n_correct
                    run.n += batch.n
                    counted = counted_peak(model, optimizer, arena, getattr(train_loader, "buffer_bytes", images.nbytes))
                    log.write(step=run.step, epoch=run.epoch, lr=lr, loss=batch.loss, accuracy=batch.accuracy, grad_norm=norm,
                              seconds=seconds[-1], peak_rss_mib=mib(peak_rss_bytes()), rss_mib=mib(rss_bytes()),
                              counted_mib=mib(counted))
                    run.step += 1
                    run.done += 1
                    if run.step <= N_FIRST_STEPS:
                        run.counted_peak_bytes = counted
                    if folder and run.step == min(N_FIRST_STEPS, n_steps):
                        folder.write_json("layers.json", {"step": run.step,
                                                          "layers": bytes_by_layer(model, optimizer, batch.saved)})
                    if plan and run.step == min(N_FIRST_STEPS, n_steps):
                        grown = peak_rss_bytes() - (data_rss_bytes or start_rss)
                        tqdm.write(compare_with_plan(plan.peak_bytes, run.counted_peak_bytes, run.step, grown))
                    if ranks and run.step % config.adapt_ranks.every == 0 and run.step < n_steps:
                        for name, rank in ranks.update().items():
                            rank_log.write(step=run.step, layer=name, rank=rank)
                    if subspaces and run.step % config.track_subspaces == 0:
                        subspaces.record(run.step)
                    bar.update()
                    bar.set_postfix(loss=f"{run.loss_sum / run.n:.3f}", refresh=False)
                    if saving and config.checkpoint_every and run.step % config.checkpoint_every == 0:
                        save()
                if interrupt.asked:
                    raise _Abandoned
                with arena, interrupt.abandonable():
                    val = evaluate(model, val_loader, config.micro_batch)
                bar.set_postfix(loss=f"{run.loss_sum / run.n:.3f}", val=f"{100 * val.accuracy:.1f}%")
                is_best = run.end_epoch({
                    "epoch": run.epoch, "train_loss": run.loss_sum / run.n, "train_accuracy": run.n_correct / run.n,
                    "val_loss": val.loss, "val_accuracy": val.accuracy, "seconds": time.perf_counter() - epoch_start})
                epoch_start = time.perf_counter()
                if folder:
                    folder.write_json("epochs.json", run.records)
                if saving and (config.checkpoint_every is None or is_best):
                    save()
        except _Abandoned:
            model.zero_grad()
            model.drop_saved()
            if saving:
                save()
    records, peak_rss = run.records, max(run.peak_rss_bytes, peak_rss_bytes())
    result = TrainResult(
        epochs=records,
        val_accuracy=records[-1]["val_accuracy"] if records else float("nan"),
        seconds_per_step=sorted(seconds)[len(seconds) // 2] if seconds else float("nan"),
        peak_rss_bytes=peak_rss,
        peak_rss_above_start_bytes=peak_rss - start_rss,
        planned_peak_bytes=plan and plan.peak_bytes,
        counted_peak_bytes=run.counted_peak_bytes,
        step_peak_bytes=max(run.step_peak_bytes, arena.stats()["peak_bytes"]),
        parameters=sum(p.data.size for _, p in model.named_parameters()),
        counted={**count_bytes(model, optimizer), "saved_bytes": run.saved_bytes},
        flops_per_image=run.flops_per_image,
        ranks={name: layer.rank for name, (layer, _) in optimizer.factored.items()},
        interrupted=interrupt.asked,
        best=run.best,
    )
    if folder:
        if not (interrupt.asked and saving):  # else the checkpoint is the model, and nothing keeps the user waiting
            save_model(model, folder.path / "model.safetensors", {"classes": list(getattr(train_loader, "classes", []))})
            if records:
                plot_curves({label: (read_steps(folder.path / "steps.csv"), records)}, folder.path / "curves.png")
        # Last: where it lies, the run is whole.
        folder.write_json("result.json", {**asdict(result), "config": asdict(config), "environment": environment()})
    return result


def _identity(config, train_loader, val_loader, plan):
    """What a run must share with the checkpoint that it goes on from."""
    settings = {k: v for k, v in asdict(config).items() if k not in ("checkpoint_every", "keep")}

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


@contextlib.contextmanager
def _warm_subspaces(model):
    """Gives compressed activations back the subspaces that they started from where the block is abandoned."""
    compressions = [m.compression for _, m in model.named_modules() if isinstance(m, LinearBase) and m.compression is not None]
    before = [[a.copy() for a in c.state()] for c in compressions]
    try:
        yield
    except _Abandoned:
        for compression, arrays in zip(compressions, before):
            compression.set_state(arrays)
        raise


def compare_with_plan(planned, counted, n_steps, rss):
    """A line for people: what was planned, what arrays took, what the process grew by since the model was made."""
    return (f"peak memory after {n_steps} steps: planned {mib(planned):.1f} MiB, measured {mib(counted):.1f} MiB in arrays "
            f"({100 * (counted / planned - 1):+.1f} %); the process grew by {mib(rss):.1f} MiB from before the model was made")
