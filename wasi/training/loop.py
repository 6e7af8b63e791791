"""The training loop: batches in, a fine-tuned model, a log and curves out."""

import contextlib
import signal
import threading
import time
from dataclasses import asdict, dataclass

from tqdm.auto import tqdm

import wasi
from wasi.models import save_model
from wasi.training.memory import (
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
    layerwise: bool = False  # update each layer in backward: no full gradient exists; needs clip_norm and micro_batch None
    adapt_ranks: RankAdaptation | None = None  # how ranks follow the spectrum of the factors; None: they stay
    track_subspaces: int = 0  # every so many steps, log the angles by which the factored layers' subspaces have turned; 0: never

    def __post_init__(self):
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


class _Interrupt:
    """Turns Ctrl-C into a flag, so that a step ends whole and the run is saved. Main thread only."""

    def __enter__(self):
        self.asked = False
        self._main = threading.current_thread() is threading.main_thread()
        if self._main:
            self._before = signal.signal(signal.SIGINT, self._ask)
        return self

    def _ask(self, number, frame):
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True

    def __exit__(self, *error):
        if self._main:
            signal.signal(signal.SIGINT, self._before)


def train(model, train_loader, val_loader, config, folder=None, start_rss_bytes=None, progress=True, label="train",
          plan=None, data_rss_bytes=None):
    """Trains `model` in place and returns a TrainResult.

    train_loader, val_loader: re-iterable, with len(), giving (images uint8 (B, 3, S, S), labels int64 (B,)).
    folder: a RunFolder for steps.csv, ranks.csv and subspaces.csv where config asks for them, model.safetensors, curves.png and,
    in the end, result.json; or None.
    start_rss_bytes: resident bytes before the model was made, so that weights count too (default: now).
    plan: the Plan that the model was readied by, or None. It sizes the arena of the steps (half as much again as planned, for the
    gaps between blocks), and after the first steps planned and measured peak are printed.
    data_rss_bytes: resident bytes when the data were open and the model not yet made (default: start_rss_bytes).
    Raises FloatingPointError naming the step where the loss is not finite, ArithmeticError naming step and layer where a factor's
    rank has collapsed; the log up to there is kept. ValueError where config asks for ranks or subspaces of layers that the model
    does not have.
    """
    start_rss = rss_bytes() if start_rss_bytes is None else start_rss_bytes
    optimizer = Optimizer(model, config.optimizer, momentum=config.momentum, weight_decay=config.weight_decay,
                          clip_norm=config.clip_norm, gradient_bits=config.gradient_bits, layerwise=config.layerwise)
    ranks = RankController(config.adapt_ranks, optimizer) if config.adapt_ranks else None
    # Gradients too: with gradient_bits or layerwise they are made in the steps.
    arena = wasi.Arena(plan and (plan.gradient_bytes + plan.saved_bytes + plan.scratch_bytes) * 3 // 2 + 2**20)
    peak = 0
    n_steps = config.epochs * len(train_loader)
    records, seconds, step, saved_bytes, flops = [], [], 0, 0, float("nan")
    release_freed()  # what making the model and opening the data took beyond what they keep
    reset_peak_rss()
    with contextlib.ExitStack() as stack:
        def log_of(name, fields):
            return stack.enter_context(CsvLog(folder, name, fields))

        subspaces = SubspaceLog(model, log_of("subspaces.csv", SUBSPACE_FIELDS)) if config.track_subspaces else None
        log = log_of("steps.csv", STEP_FIELDS)
        if ranks:
            rank_log = log_of("ranks.csv", RANK_FIELDS)
            for name, rank in ranks.ranks.items():
                rank_log.write(step=0, layer=name, rank=rank)
        bar = stack.enter_context(tqdm(total=n_steps, desc=label, disable=not progress, unit="step"))
        interrupt = stack.enter_context(_Interrupt())
        for epoch in range(1, config.epochs + 1):
            epoch_start, loss_sum, n_correct, n = time.perf_counter(), 0.0, 0, 0
            for images, labels in train_loader:
                started = time.perf_counter()
                lr = learning_rate(step, config.lr, n_steps, config.schedule, config.n_warmup)
                try:
                    with arena:
                        batch = accumulate_gradient(model, images, labels, config.micro_batch, config.label_smoothing,
                                                    optimizer.after_backward(lr))
                        norm = optimizer.step(lr)
                except ArithmeticError as error:
                    raise type(error)(f"step {step}, lr {lr:.3g}: {error}") from error
                seconds.append(time.perf_counter() - started)
                if batch.saved_bytes > saved_bytes:
                    saved_bytes = batch.saved_bytes
                    flops = model.training_flops(batch.n, optimizer.rule, config.micro_batch).total / batch.n
                loss_sum += batch.loss * batch.n
                n_correct += batch.n_correct
                n += batch.n
                log.write(step=step, epoch=epoch, lr=lr, loss=batch.loss, accuracy=batch.accuracy, grad_norm=norm,
                          seconds=seconds[-1], peak_rss_mib=mib(peak_rss_bytes()))
                step += 1
                if step <= N_FIRST_STEPS:
                    peak = counted_peak(model, optimizer, arena, getattr(train_loader, "buffer_bytes", images.nbytes))
                if plan and step == min(N_FIRST_STEPS, n_steps):
                    grown = peak_rss_bytes() - (data_rss_bytes or start_rss)
                    tqdm.write(compare_with_plan(plan.peak_bytes, peak, step, grown))
                if ranks and step % config.adapt_ranks.every == 0 and step < n_steps:
                    for name, rank in ranks.update().items():
                        rank_log.write(step=step, layer=name, rank=rank)
                if subspaces and step % config.track_subspaces == 0:
                    subspaces.record(step)
                bar.update()
                bar.set_postfix(loss=f"{loss_sum / n:.3f}", refresh=False)
                if interrupt.asked:
                    break
            if interrupt.asked:
                break
            with arena:
                val = evaluate(model, val_loader, config.micro_batch)
            records.append({"epoch": epoch, "train_loss": loss_sum / n, "train_accuracy": n_correct / n,
                            "val_loss": val.loss, "val_accuracy": val.accuracy,
                            "seconds": time.perf_counter() - epoch_start})
            bar.set_postfix(loss=f"{loss_sum / n:.3f}", val=f"{100 * val.accuracy:.1f}%")
    result = TrainResult(
        epochs=records,
        val_accuracy=records[-1]["val_accuracy"] if records else float("nan"),
        seconds_per_step=sorted(seconds)[len(seconds) // 2] if seconds else float("nan"),
        peak_rss_bytes=peak_rss_bytes(),
        peak_rss_above_start_bytes=peak_rss_bytes() - start_rss,
        planned_peak_bytes=plan and plan.peak_bytes,
        counted_peak_bytes=peak,
        step_peak_bytes=arena.stats()["peak_bytes"],
        parameters=sum(p.data.size for _, p in model.named_parameters()),
        counted={**count_bytes(model, optimizer), "saved_bytes": saved_bytes},
        flops_per_image=flops,
        ranks={name: layer.rank for name, (layer, _) in optimizer.factored.items()},
        interrupted=interrupt.asked,
    )
    if folder:
        save_model(model, folder.path / "model.safetensors", {"classes": list(getattr(train_loader, "classes", []))})
        if records:
            plot_curves({label: (read_steps(folder.path / "steps.csv"), records)}, folder.path / "curves.png")
        # Last: where it lies, the run is whole.
        folder.write_json("result.json", {**asdict(result), "config": asdict(config), "environment": environment()})
    return result


def compare_with_plan(planned, counted, n_steps, rss):
    """A line for people: what was planned, what arrays took, what the process grew by since the model was made."""
    return (f"peak memory after {n_steps} steps: planned {mib(planned):.1f} MiB, measured {mib(counted):.1f} MiB in arrays "
            f"({100 * (counted / planned - 1):+.1f} %); the process grew by {mib(rss):.1f} MiB from before the model was made")
