"""Where the time of a step goes: seconds, calls and GFLOP/s of each kernel of the C core."""

import math
import time
from dataclasses import dataclass

from wasi import _core
from wasi.layers.flops import asi_flops, attention_flops, wsi_update_flops
from wasi.linalg.wsi import RULES
from wasi.ops import Window


def _rows(x):
    return x.size // x.shape[-1]


def _linear_backward(dy, x, W, dW=None, db=None, need_dx=True, out=None):
    return 2 * _rows(dy) * W.size * (bool(need_dx) + (dW is not None))


def _factored_backward(dy, x, z, L, R, dL=None, dR=None, db=None, need_dx=True, out=None):
    return 2 * _rows(dy) * (L.size * (1 + (dL is not None)) + R.size * (bool(need_dx) + (dR is not None)))


def _conv_backward(dy, x, W, height, width, kernel, stride, padding, dW=None, db=None, need_dx=True, out=None):
    return _linear_backward(dy, x, W, dW, db, need_dx)


def _attention(qkv):
    return attention_flops(*qkv.shape[:2], qkv.shape[2] // 3)


def _windows(qkv, window):
    return attention_flops(_rows(qkv) // window**2, window**2, qkv.shape[-1] // 3)


# FLOPs of a call from its arguments; kernels that are not products of matrices have none.
_FLOPS = {
    "linear_forward": lambda x, W, *rest, **more: 2 * _rows(x) * W.size,
    "linear_backward": _linear_backward,
    "factored_forward": lambda x, L, R, *rest, **more: 2 * _rows(x) * (L.size + R.size),
    "factored_backward": _factored_backward,
    "quant_forward": lambda x, codes, s, r, c, *rest, **more: 2 * _rows(x) * r.size * c.size,
    "quant_backward": lambda dy, codes, s, r, c, *rest, **more: 2 * _rows(dy) * r.size * c.size,
    "conv_forward": lambda x, W, kernel, stride, padding, *rest, **more:
        2 * len(x) * math.prod(Window(kernel, stride, padding).grid(*x.shape[1:3])) * W.size,
    "conv_backward": _conv_backward,
    "attention_forward": lambda qkv, *rest, **more: _attention(qkv).forward,
    "attention_backward": lambda do, qkv, *rest, **more: _attention(qkv).backward,
    "window_attention_forward": lambda qkv, n_heads, window, *rest, **more: _windows(qkv, window).forward,
    "window_attention_backward": lambda do, qkv, o, lse, n_heads, window, *rest, **more: _windows(qkv, window).backward,
    "asi_step": lambda A, factors, *rest, **more: asi_flops(A.shape, [d if U is None else U.shape[1]
                                                                      for d, U in zip(A.shape, factors)]),
    "wsi_step": lambda L, R, dL, dR, rule, *rest, **more: wsi_update_flops(len(L), R.shape[1], len(R), RULES[rule]),
}


@dataclass
class KernelTime:
    """What the calls of one kernel took together."""

    name: str
    calls: int = 0
    seconds: float = 0.0
    flops: int = 0  # of its matrix products; 0 where it has none or they are not counted

    @property
    def gflops_per_second(self):
        return self.flops / self.seconds / 1e9 if self.seconds else 0.0


class Profile:
    """A context in which every call of the C core is timed, from whatever thread; one may be active at a time.

    kernels: KernelTime rows, the slowest first. seconds: from entry to exit. `str()` gives a table.

    >>> import numpy as np
    >>> from wasi import ops
    >>> with Profile() as profile:
    ...     y = ops.linear(np.ones((4, 8), np.float32), np.ones((2, 8), np.float32))
    >>> [(k.name, k.calls, k.flops) for k in profile.kernels]
    [('linear_forward', 1, 128)]
    """

    _active = False

    def __init__(self):
        self._kernels = {}
        self.seconds = 0.0

    def __enter__(self):
        if Profile._active:
            raise RuntimeError("Profile: another one is active")
        Profile._active = True
        self._originals = {name: f for name, f in vars(_core).items() if type(f) is type(_core.linear_forward)}
        for name, function in self._originals.items():
            setattr(_core, name, self._timed(name, function))
        self._start = time.perf_counter()
        return self

    def __exit__(self, *error):
        self.seconds += time.perf_counter() - self._start
        for name, function in self._originals.items():
            setattr(_core, name, function)
        Profile._active = False

    def _timed(self, name, function):
        flops = _FLOPS.get(name)

        def call(*args, **kwargs):
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                kernel = self._kernels.setdefault(name, KernelTime(name))
                kernel.seconds += time.perf_counter() - start
                kernel.calls += 1
                if flops:
                    kernel.flops += flops(*args, **kwargs)

        return call

    @property
    def kernels(self):
        return sorted(self._kernels.values(), key=lambda kernel: -kernel.seconds)

    @property
    def product_share(self):
        """Share of the time in kernels whose work is matrix products."""
        return sum(k.seconds for k in self.kernels if k.flops or k.name in ("wsi_gradient_norm2", "matmul_tucker")) / self.seconds

    def __str__(self):
        lines = [f"{'kernel':<26}{'calls':>8}{'seconds':>10}{'share':>8}{'GFLOP/s':>10}"]
        rest = KernelTime("outside the core", 1, self.seconds - sum(k.seconds for k in self.kernels))
        for k in [*self.kernels, rest]:
            rate = f"{k.gflops_per_second:.1f}" if k.flops else ""
            lines.append(f"{k.name:<26}{k.calls:>8}{k.seconds:>10.4f}{k.seconds / self.seconds:>8.1%}{rate:>10}")
        lines.append(f"{'total':<34}{self.seconds:>10.4f}{'products':>12} {self.product_share:.1%}")
        return "\n".join(lines)
