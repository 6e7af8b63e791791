"""What the process really uses: resident memory as the operating system counts it, and arrays, by kind and by layer."""

import ctypes
from pathlib import Path

from wasi.layers import Parameter

_STATUS = Path("/proc/self/status")


def _status_bytes(field):
    for line in _STATUS.read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise OSError(f"{_STATUS} has no field {field}")


def rss_bytes():
    """Resident bytes of this process now."""
    return _status_bytes("VmRSS:")


def peak_rss_bytes():
    """Highest resident bytes of this process since it began or since `reset_peak_rss`."""
    return _status_bytes("VmHWM:")


def reset_peak_rss():
    """Starts the peak anew from the present; returns False where the system does not allow it."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def release_freed():
    """Gives the system back what was freed but is kept by the C library for later; returns False where that offers no way."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
    if trim is None:
        return False
    trim(0)
    return True


def count_bytes(model, optimizer, average=None):
    """Bytes of the arrays that a training step holds, by kind. After forward(train=True), activations are among them.

    Returns a dict: trained_bytes and frozen_bytes of weights (quantised and followed ones are frozen), gradient_bytes,
    optimizer_bytes, average_bytes (of a WeightAverage), saved_bytes (kept between forward and backward).
    """
    parameters = [p for _, p in model.named_parameters()]
    fixed = sum(module.fixed_bytes for _, module in model.named_modules())
    return {
        "trained_bytes": sum(p.data.nbytes for p in parameters if p.trainable),
        "frozen_bytes": sum(p.data.nbytes for p in parameters if not p.trainable) + fixed,
        "gradient_bytes": sum(p.gradient_bytes for p in parameters),
        "optimizer_bytes": optimizer.state_bytes,
        "average_bytes": average.nbytes if average else 0,
        "saved_bytes": model.total_saved_bytes,
    }


def bytes_by_layer(model, optimizer, saved, average=None):
    """Where the bytes of `count_bytes` are: a dict a module that has any of its own, in the model's order.

    saved: `BatchResult.saved` of a step. Each dict is that of `Module.weights_by_module` (without weights: kind alone), and
    gradient_bytes, optimizer_bytes, average_bytes, saved_bytes.
    """
    weights, states = {row["name"]: row for row in model.weights_by_module()}, optimizer.state_bytes_by_module()
    means = average.bytes_by_module() if average else {}
    rows = []
    for name, module in model.named_modules():
        none = {"name": name, "kind": type(module).__name__, "shape": [], "rank": None, "trained": 0, "trained_bytes": 0,
                "frozen_bytes": 0}
        if name in weights or saved.get(name):
            gradients = sum(p.gradient_bytes for p in vars(module).values() if isinstance(p, Parameter))
            rows.append({**weights.get(name, none), "gradient_bytes": gradients, "optimizer_bytes": states.get(name, 0),
                         "average_bytes": means.get(name, 0), "saved_bytes": saved.get(name, 0)})
    return rows


def counted_peak(model, optimizer, arena, image_bytes, average=None):
    """The most that arrays took at once: weights and their average, gradients, optimiser state, images, and the arena's peak."""
    held = count_bytes(model, optimizer, average)
    return sum(n for kind, n in held.items() if kind != "saved_bytes") + image_bytes + arena.stats()["peak_bytes"]


def mib(n_bytes):
    """Bytes as a number of MiB."""
    return n_bytes / 2**20
