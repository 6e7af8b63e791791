"""Learning rate as a function of the step."""

import math

SCHEDULES = ("constant", "cosine", "linear")


def learning_rate(step, lr, n_steps, schedule="cosine", n_warmup=0):
    """The rate of step 0, 1, ..., n_steps - 1.

    Warm-up: lr (step + 1) / n_warmup for the first n_warmup steps. After it, with t in [0, 1) the share done:
    "constant": lr; "linear": lr (1 - t); "cosine": lr (1 + cos(pi t)) / 2.

    >>> learning_rate(0, 1.0, 10, "cosine", n_warmup=5)
    0.2
    """
    if step < n_warmup:
        return lr * (step + 1) / n_warmup
    t = (step - n_warmup) / max(1, n_steps - n_warmup)
    if schedule == "constant":
        return lr
    if schedule == "linear":
        return lr * (1 - t)
    if schedule == "cosine":
        return lr * 0.5 * (1 + math.cos(math.pi * t))
    raise ValueError(f"schedule: expected one of {', '.join(SCHEDULES)}, got {schedule!r}")
