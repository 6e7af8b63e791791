"""How to train: everything that a run is told besides its model and its data."""

from dataclasses import dataclass

from wasi.names import MONITORS, SCHEDULES
from wasi.training.optimizer import check_optimizer
from wasi.training.ranks import RankAdaptation

# Fields with which a run may go on otherwise than it began: they change nothing of what is computed.
FREE_FIELDS = ("checkpoint_every", "keep", "tensorboard")


@dataclass(frozen=True)
class EarlyStopping:
    """Ends a run once `patience` epochs in a row have not bettered the best of them by more than min_delta."""

    patience: int = 5  # epochs
    min_delta: float = 0.0  # of what TrainConfig.monitor names
    restore_best: bool = True  # the run leaves the model of its best epoch, however it ends

    def __post_init__(self):
        if self.patience < 1:
            raise ValueError(f"patience: expected at least 1 epoch, got {self.patience}")
        if not self.min_delta >= 0:
            raise ValueError(f"min_delta: expected a number from 0, got {self.min_delta}")


@dataclass(frozen=True)
class ParamGroup:
    """How the optimiser treats the parameters whose name a pattern matches ("head.*", "*.norm1.*"; `fnmatch`).

    A layer's factors are stepped as one, by the name that its dense weight has: "blocks.0.mlp.fc1.weight".
    """

    pattern: str
    lr_scale: float = 1.0  # on the learning rate
    weight_decay: float | None = None  # instead of the run's; biases, norms, tokens and positions never decay

    def __post_init__(self):
        if not 0 < self.lr_scale < float("inf"):
            raise ValueError(f"lr_scale: expected a number above 0 (trainable = False freezes), got {self.lr_scale}")
        if self.weight_decay is not None and not self.weight_decay >= 0:
            raise ValueError(f"weight_decay: expected a number from 0 or None, got {self.weight_decay}")


@dataclass(frozen=True)
class TrainConfig:
    """How to train; what to train and on what is given to `train` beside it."""

    epochs: int = 2
    lr: float = 0.05
    optimizer: str = "sgd"  # "sgd" or "adamw"
    momentum: float = 0.0  # SGD's
    weight_decay: float = 0.0
    clip_norm: float | None = 1.0  # gradients of a larger norm are scaled down to it; None: never
    schedule: str = "cosine"  # "constant", "cosine", "linear" or "step"
    n_warmup: int = 0  # steps of linear warm-up
    label_smoothing: float = 0.0
    micro_batch: int | None = None  # gradient accumulation: samples in flight at once, of a batch; None: the whole batch
    gradient_bits: int = 32  # 16: sums the gradient over micro-batches in bfloat16, half its memory
    state_bits: int = 32  # 16: keeps momentum, or AdamW's first moments, as bfloat16 between steps
    layerwise: bool = False  # update each layer in backward: no full gradient exists; needs clip_norm and micro_batch None
    adapt_ranks: RankAdaptation | None = None  # how ranks follow the spectrum of the factors; None: they stay
    track_subspaces: int = 0  # every so many steps, log the angles by which the factored layers' subspaces have turned; 0: never
    checkpoint_every: int | None = None  # steps between checkpoints; None: one at each epoch's end; 0: none at all
    keep: int = 2  # checkpoints: the last so many, and that of the best epoch
    min_lr: float = 0.0  # where "cosine" and "linear" end
    milestones: tuple = ()  # of "step": epochs after which the rate is multiplied by gamma
    gamma: float = 0.1
    layer_lr_decay: float = 1.0  # in (0, 1]: each block's rate is that of the block above it times this; `block_depths`
    param_groups: tuple = ()  # ParamGroups; of those that match a name the first counts
    class_weights: tuple | None = None  # a number a class, for the training loss (`balanced_class_weights`)
    mixup: float = 0.0  # alpha of the Beta distribution of the shares in which images are blended; 0: none
    cutmix: float = 0.0  # alpha likewise of the areas that are pasted; with both, each batch draws one
    mix_prob: float = 1.0  # of a batch to be mixed
    ema: float | None = None  # in (0, 1): validate and leave the average of the weights that decays so a step; None: the last
    ema_every: int = 1  # steps between updates of the average
    monitor: str = "val_accuracy"  # what the best epoch is best by, "val_accuracy" or "val_loss"
    early_stopping: EarlyStopping | None = None
    tensorboard: bool = False  # write event files for TensorBoard to the run folder
    seed: int = 0  # of mixtures

    def __post_init__(self):
        check_optimizer(self.optimizer, self.clip_norm, self.gradient_bits, self.layerwise, self.state_bits)
        if self.checkpoint_every is not None and self.checkpoint_every < 0:
            raise ValueError(f"checkpoint_every: expected a number of steps, got {self.checkpoint_every}")
        if self.schedule not in SCHEDULES:
            raise ValueError(f"schedule: expected one of {', '.join(SCHEDULES)}, got {self.schedule!r}")
        if self.monitor not in MONITORS:
            raise ValueError(f"monitor: expected one of {', '.join(MONITORS)}, got {self.monitor!r}")
        for name, least in (("epochs", 1), ("keep", 1), ("n_warmup", 0), ("ema_every", 1), ("seed", 0), ("track_subspaces", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: expected at least {least}, got {getattr(self, name)}")
        if self.micro_batch is not None and self.micro_batch < 1:
            raise ValueError(f"micro_batch: expected at least 1 sample or None, got {self.micro_batch}")
        for name in ("lr", "weight_decay", "mixup", "cutmix", "min_lr"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name}: expected a number from 0, got {getattr(self, name)}")
        if self.layerwise and self.micro_batch is not None:
            raise ValueError("micro_batch: expected None with layerwise updates, which need a layer's whole gradient at once, "
                             f"got {self.micro_batch}")
        if (self.schedule == "step") != bool(self.milestones):
            raise ValueError(f"milestones: expected epochs with schedule 'step' and none without, got {self.milestones} with "
                             f"{self.schedule!r}")
        if any(a >= b for a, b in zip((0, *self.milestones), self.milestones)):
            raise ValueError(f"milestones: expected increasing epochs from 1, got {self.milestones}")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum: expected a number in [0, 1), got {self.momentum}")
        if not 0 < self.gamma <= 1:
            raise ValueError(f"gamma: expected a number above 0, up to 1, got {self.gamma}")
        if not 0 < self.layer_lr_decay <= 1:
            raise ValueError(f"layer_lr_decay: expected a number above 0, up to 1, got {self.layer_lr_decay}")
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing: expected a number in [0, 1), got {self.label_smoothing}")
        if not 0 <= self.mix_prob <= 1:
            raise ValueError(f"mix_prob: expected a probability, got {self.mix_prob}")
        if self.ema is not None and not 0 < self.ema < 1:
            raise ValueError(f"ema: expected a decay between 0 and 1 or None, got {self.ema}")
        if self.class_weights is not None and not all(0 < w < float("inf") for w in self.class_weights):
            raise ValueError(f"class_weights: expected numbers above 0, got {self.class_weights}")
