"""Learning rate as a function of the step, and of the place of a parameter in the model."""

import math
from fnmatch import fnmatchcase

from wasi.names import SCHEDULES


def learning_rate(step, lr, n_steps, schedule="cosine", n_warmup=0, min_lr=0.0, milestones=(), gamma=0.1):
    """The rate of step 0, 1, ..., n_steps - 1.

    Warm-up: lr (step + 1) / n_warmup for the first n_warmup steps. After it, with t in [0, 1) the share done and m = min_lr:
    "constant": lr; "linear": m + (lr - m) (1 - t); "cosine": m + (lr - m) (1 + cos(pi t)) / 2; "step": lr gamma^n, n of the
    milestones, counted in steps, being reached.

    >>> learning_rate(0, 1.0, 10, "cosine", n_warmup=5)
    0.2
    >>> learning_rate(7, 1.0, 10, "step", milestones=(5, 8))
    0.1
    """
    if step < n_warmup:
        return lr * (step + 1) / n_warmup
    t = (step - n_warmup) / max(1, n_steps - n_warmup)
    if schedule == "constant":
        return lr
    if schedule == "linear":
        return min_lr + (lr - min_lr) * (1 - t)
    if schedule == "cosine":
        return min_lr + (lr - min_lr) * 0.5 * (1 + math.cos(math.pi * t))
    if schedule == "step":
        return lr * gamma ** sum(step >= m for m in milestones)
    raise ValueError(f"schedule: expected one of {', '.join(SCHEDULES)}, got {schedule!r}")


def scheduled_rate(config, step, steps_per_epoch):
    """The rate that a TrainConfig gives a step."""
    return learning_rate(step, config.lr, config.epochs * steps_per_epoch, config.schedule, config.n_warmup, config.min_lr,
                         [m * steps_per_epoch for m in config.milestones], config.gamma)


def block_depths(model):
    """{parameter name: depth}: 0 before the first block, i in the ith, one more than the last after it.

    What lies between blocks goes with the one after it.
    """
    block_of = {id(p): i for i, block in enumerate(model.blocks, 1) for _, p in block.named_parameters()}
    names = [(name, block_of.get(id(p))) for name, p in model.named_parameters()]
    depths, after = {}, len(model.blocks) + 1
    for name, depth in reversed(names):
        after = depth or after
        depths[name] = after
    for name, depth in names:
        if depth is not None:
            break
        depths[name] = 0
    return depths


def optimizer_groups(model, layer_lr_decay=1.0, param_groups=()):
    """{parameter name: (factor on the learning rate, weight decay or None for the run's)}, of those that it is not (1, None) for.

    layer_lr_decay: to the power of how many blocks, and the head, lie above. Factors L and R go by the dense weight's name.
    Raises ValueError naming a pattern that matches nothing.
    """
    names = [dense_name(name) for name, _ in model.named_parameters()]
    unused = [g.pattern for g in param_groups if not any(fnmatchcase(name, g.pattern) for name in names)]
    if unused:
        raise ValueError(f"param_groups: {', '.join(unused)} match no parameter of the model")
    groups = {}
    for name, depth in block_depths(model).items():
        scale, decay = layer_lr_decay ** (len(model.blocks) + 1 - depth), None
        group = next((g for g in param_groups if fnmatchcase(dense_name(name), g.pattern)), None)
        if group is not None:
            scale, decay = scale * group.lr_scale, group.weight_decay
        if (scale, decay) != (1.0, None):
            groups[name] = scale, decay
    return groups


def dense_name(name):
    """What a parameter's name would be without factors: those of a weight, L and R, go by its name."""
    head, _, tail = name.rpartition(".")
    return f"{head}.weight" if tail in ("L", "R") else name
