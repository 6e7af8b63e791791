"""Good arguments for every function of the C core, and from them bad ones and calls without memory.

    python tests/stress/bindings.py                    each binding 50,000 times, good and failing in turn: memory and references
    python tests/stress/bindings.py --allocations      every k-th allocation of each good call made to fail
    python tests/stress/bindings.py --calls 2000 rope  one of them

`test_bindings.py` runs all of it on fewer calls. A function of the core that has no row here fails that test.
"""

import argparse
import gc
import itertools
import os
import sys
import time
from pathlib import Path

import numpy as np
from failing import Allocations

import wasi
from wasi import _core
from wasi.training.memory import rss_bytes

rng = np.random.default_rng(0)


def f32(*shape):
    return rng.standard_normal(shape, dtype=np.float32)


def zeros(*shape):
    return np.zeros(shape, np.float32)


def orthonormal(rows, columns):
    return np.linalg.qr(rng.standard_normal((rows, columns)))[0].astype(np.float32)


x, W, b, L, R = f32(5, 7), f32(6, 7), f32(6), orthonormal(6, 3), f32(3, 7)
dy, gradient_L, gradient_R = f32(5, 6), zeros(6, 3), zeros(3, 7)
qkv = f32(2, 5, 24)
o, lse = _core.attention_forward(qkv, 2)
windows = f32(2, 4, 4, 24)
wo, wlse = _core.window_attention_forward(windows, 2, 2)
q, k, v = f32(2, 3, 4, 8), f32(2, 5, 2, 8), f32(2, 5, 2, 8)
go, glse = _core.attention_gqa_forward(q, k, v)
image, kernel = f32(2, 6, 5, 3), f32(4, 27)
pooled, tap = _core.max_pool_forward(image, 2, 2, 0)
mean, rstd = _core.batch_norm_statistics(image)
mask = _core.batch_norm_forward(image, mean, rstd, np.ones(3, np.float32), f32(3), None, True, True)[1]
_, row_mean, row_rstd = _core.layer_norm_forward(x, f32(7), f32(7), 1e-5)
_, rms = _core.rms_norm_forward(x, f32(7), 1e-5)
codes, group_scales, r, c = _core.quantize(f32(6, 64), 4, 32)
encoded = _core.gelu_encode(f32(5, 8), 4)[1]
stored = _core.store_rows(x)
tokens, table = rng.integers(0, 9, (2, 5)), f32(9, 4)
tall = f32(12, 5)
cube, factors = f32(4, 5, 6), [orthonormal(4, 2), None, orthonormal(6, 3)]
core = _core.asi_step(cube, [None if U is None else U.copy() for U in factors])
angles = f32(5, 4)

# Name: arguments, by position; a dict at the end holds keywords. They are copied before each call.
CALLS = {
    "get_num_threads": [()], "get_isa": [()], "blas_config": [()], "get_bfloat16_products": [()],
    "set_num_threads": [(1,)], "set_isa": [(_core.get_isa(),)], "set_bfloat16_products": [(False,)],
    "gelu_forward": [(x,), (x, zeros(5, 7))],
    "bias_gelu_forward": [(x, f32(7)), (x, f32(7), zeros(5, 7))],
    "gelu_backward": [(x, x), (x, x, zeros(5, 7))],
    "gelu_encode": [(f32(5, 8),), (f32(5, 8), 2, f32(8), zeros(5, 8))],
    "gelu_decode_backward": [(f32(5, 8), encoded, 4), (f32(5, 8), encoded, 4, zeros(5, 8))],
    "silu_forward": [(x,), (x, zeros(5, 7))],
    "silu_backward": [(x, x), (x, x, zeros(5, 7))],
    "swiglu_forward": [(x, x), (x, x, zeros(5, 7))],
    "swiglu_backward": [(x, x, x), (x, x, x, zeros(5, 7), zeros(5, 7))],
    "attention_forward": [(qkv, 2), (qkv, 2, 0.5, True, f32(2, 5, 5), f32(1, 5, 5), zeros(2, 5, 8))],
    "attention_backward": [(o, qkv, o, lse, 2),
                           (o, qkv, o, lse, 2, 0.5, True, f32(2, 5, 5), f32(1, 5, 5), zeros(2, 5, 5), zeros(2, 5, 24))],
    "attention_gqa_forward": [(q, k, v), (q, k, v, 0.5, True, 2, {"out": zeros(2, 3, 4, 8)})],
    "attention_gqa_backward": [(go, q, k, v, go, glse),
                               (go, q, k, v, go, glse, {"dq": zeros(*q.shape), "dk": zeros(*k.shape), "dv": zeros(*v.shape)})],
    "window_attention_forward": [(windows, 2, 2), (windows, 2, 2, 1, 0.5, f32(2, 4, 4), zeros(2, 4, 4, 8))],
    "window_attention_backward": [(wo, windows, wo, wlse, 2, 2),
                                  (wo, windows, wo, wlse, 2, 2, 1, 0.5, f32(2, 4, 4), zeros(2, 4, 4), zeros(2, 4, 4, 24))],
    "batch_norm_statistics": [(image,)],
    "batch_norm_forward": [(image, mean, rstd, f32(3), f32(3)),
                           (image, mean, rstd, f32(3), f32(3), image, True, True, zeros(2, 6, 5, 3))],
    "batch_norm_backward": [(image, image, mean, rstd, f32(3), f32(3)),
                            (image, image, mean, rstd, f32(3), f32(3), zeros(3), zeros(3), True, True, zeros(2, 6, 5, 3))],
    "mask_gradient": [(image, mask), (image, mask, zeros(2, 6, 5, 3))],
    "bf16_round": [(x,), (x, np.zeros((5, 7), np.uint16))],
    "bf16_expand": [(_core.bf16_round(x),), (_core.bf16_round(x), zeros(5, 7))],
    "bf16_add_": [(_core.bf16_round(x), x)],
    "bf16_linear_forward": [(x, _core.bf16_round(W)), (x, _core.bf16_round(W), zeros(5, 6))],
    "bf16_linear_backward": [(dy, _core.bf16_round(W)), (dy, _core.bf16_round(W), zeros(5, 7))],
    "conv_forward": [(image, kernel, 3, 2, 1), (image, kernel, 3, 1, 1, f32(4), zeros(2, 6, 5, 4))],
    "conv_backward": [(f32(2, 6, 5, 4), image, kernel, 6, 5, 3, 1, 1),
                      (f32(2, 6, 5, 4), image, kernel, 6, 5, 3, 1, 1, zeros(4, 27), zeros(4), True, zeros(2, 6, 5, 3)),
                      (f32(2, 6, 5, 4), None, kernel, 6, 5, 3, 1, 1)],
    "conv_unfold": [(image, 3, 2, 1)],
    "conv_fold": [(_core.conv_unfold(image, 3, 2, 1), 6, 5, 3, 2, 1),
                  (_core.conv_unfold(image, 3, 2, 1), 6, 5, 3, 2, 1, zeros(2, 6, 5, 3))],
    "max_pool_forward": [(image, 2, 2, 0)],
    "max_pool_backward": [(pooled, tap, 6, 5, 2, 2, 0)],
    "embedding_forward": [(tokens, table), (tokens, table, zeros(2, 5, 4))],
    "embedding_backward": [(f32(2, 5, 4), tokens, zeros(9, 4))],
    "rope": [(f32(2, 3, 2, 8), angles, angles), (f32(2, 3, 2, 8), angles, angles, 1, True)],
    "linear_forward": [(x, W), (x, W, b, zeros(5, 6))],
    "linear_backward": [(dy, x, W), (dy, x, W, zeros(6, 7), zeros(6), True, zeros(5, 7)), (dy, None, W, None, None, False)],
    "factored_forward": [(x, L, R), (x, L, R, b, zeros(5, 6))],
    "factored_backward": [(dy, x, f32(5, 3), L, R), (dy, x, f32(5, 3), L, R, gradient_L, gradient_R, zeros(6), True, zeros(5, 7)),
                          (dy, None, None, L, R)],
    "layer_norm_forward": [(x, f32(7), f32(7), 1e-5), (x, f32(7), f32(7), 1e-5, zeros(5, 7))],
    "add_layer_norm_forward": [(x, x, f32(7), f32(7), 1e-5), (x, x, f32(7), f32(7), 1e-5, zeros(5, 7), zeros(5, 7))],
    "layer_norm_apply": [(x, row_mean, row_rstd, f32(7), f32(7)), (x, row_mean, row_rstd, f32(7), f32(7), zeros(5, 7))],
    "layer_norm_backward": [(x, x, row_mean, row_rstd, f32(7)),
                            (x, x, row_mean, row_rstd, f32(7), zeros(7), zeros(7), zeros(5, 7), f32(5, 7))],
    "rms_norm_forward": [(x, f32(7), 1e-5), (x, f32(7), 1e-5, zeros(5, 7))],
    "rms_norm_apply": [(x, rms, f32(7)), (x, rms, f32(7), zeros(5, 7))],
    "rms_norm_backward": [(x, x, rms, f32(7)), (x, x, rms, f32(7), zeros(7), zeros(5, 7), f32(5, 7))],
    "cross_entropy": [(x, rng.integers(0, 7, 5)), (x, rng.integers(0, 7, 5), 0.1, True, np.ones(7, np.float32), zeros(5, 7)),
                      (x, np.full((5, 7), 1 / 7, np.float32)), (x, rng.integers(0, 7, 5), 0.0, False)],
    "store_rows": [(x,)],
    "restore_rows": [stored],
    "sgd_update": [(x, x, None, 0.1), (x, x, x, 0.1, 0.9, 0.01, True, 0.5)],
    "adamw_update": [(x, x, x, np.abs(x), 0.1, 0.9, 0.999, 1e-8, 0.01, 1)],
    "sum_of_squares": [(x,)], "all_finite": [(x,)],
    "add": [(x, x), (x, x, zeros(5, 7))],
    "scale_": [(x, 0.5)], "axpy_": [(x, 0.5, x)],
    "extract_patches": [(f32(2, 3, 8, 8), 4), (np.zeros((2, 3, 8, 8), np.uint8), 4, [0.5] * 3, [0.2] * 3, zeros(2, 4, 48))],
    "fold_patches": [(f32(2, 4, 48), 4), (f32(2, 4, 16), 4, 1)],
    "assemble_tokens": [(f32(2, 4, 6), f32(1, 1, 6), f32(1, 5, 6)), (f32(2, 4, 6), None, f32(1, 4, 6))],
    "assemble_tokens_backward": [(f32(2, 5, 6),), (f32(2, 5, 6), zeros(1, 1, 6), zeros(1, 5, 6))],
    "merge_patches": [(f32(2, 4, 6, 3),)], "merge_patches_backward": [(f32(2, 2, 3, 12),)],
    "knapsack": [(np.array([5.0, 2, 1, 7, 3]), np.array([0.0, 4, 9, 1, 6]), np.array([0, 3, 5]), 10.0)],
    "orthonormalize": [(tall,), (tall, zeros(12, 5)), (tall.astype(np.float64),)],
    "truncated_svd": [(tall, 3), (tall.T.copy(), None, 0.9), (tall.astype(np.float64), 2)],
    "whitened_svd": [(tall, np.eye(5), 3), (tall, np.eye(5), None, 0.9, 1e-3)],
    "complement": [(f32(12, 2), orthonormal(12, 3), 3, 0)],
    "diff_norm": [(tall, f32(12, 2), f32(2), f32(2, 5))],
    "frobenius_norm": [(tall,)],
    "gram_range": [(tall, zeros(5, 3), 2, 2, 1.0, 0)],
    "gram_svd": [(tall, 2)],
    "range": [(tall, f32(5, 3), zeros(12, 3)),
              (tall, f32(5, 3), zeros(12, 3), zeros(5, 3), zeros(5, 3), 2, 2, True, False, True, 1.0, 0, False)],
    "range_start": [(tall, zeros(5, 3), zeros(12, 3), True, 1.0, 0)],
    "ritz": [(f32(12, 3), orthonormal(5, 3), False, 2)],
    "asi_step": [(cube, factors), (cube, factors, 5, 2, 1, zeros(2, 5, 3))],
    "matmul_tucker": [(zeros(3, 6), f32(4, 5, 3), core, factors)],
    "mode_dot": [(cube, f32(2, 5), 1), (cube, f32(5, 2), 1, True, zeros(4, 2, 6))],
    "mode_svd": [(cube, 1)],
    "wsi_gradient_norm2": [(L, R, f32(6, 3), f32(3, 7))],
    "wsi_step": [(L, R, f32(6, 3), f32(3, 7), 0, 0.01),
                 (L, R, f32(6, 3), f32(3, 7), 2, 0.01,
                  {"mA": zeros(3, 7), "mB": zeros(6, 3), "vA": zeros(3, 7), "vB": zeros(6, 3)})],
    "quantize": [(f32(6, 64), 4, 32), (f32(6, 64), 8, 32)],
    "dequantize": [(codes, group_scales, r, c, 32)],
    "quant_forward": [(f32(5, 64), codes, group_scales, r, c, 32),
                      (f32(5, 64), codes, group_scales, r, c, 32, b, zeros(5, 6), True, True)],
    "quant_backward": [(dy, codes, group_scales, r, c, 32), (dy, codes, group_scales, r, c, 32, zeros(5, 64), True, True)],
}


def names():
    """Every function of the core."""
    return sorted(n for n in dir(_core) if not n.startswith("_") and callable(getattr(_core, n)) and n != "Arena")


def _copy(value):
    if isinstance(value, list):
        return [_copy(item) for item in value]
    return value.copy() if isinstance(value, np.ndarray) else value


def split(row):
    """(arguments, keywords), copied."""
    row = tuple(row)
    keywords = row[-1] if row and isinstance(row[-1], dict) else {}
    return [_copy(a) for a in row[: len(row) - bool(keywords)]], {key: _copy(a) for key, a in keywords.items()}


def _spoilt(value):
    """Values that a good one may be exchanged for."""
    yield from (None, "x", object(), -1, 2**70, float("nan"))
    if isinstance(value, np.ndarray):
        yield value.astype(np.complex64 if value.dtype != np.complex64 else np.float32)
        yield value.astype(value.dtype.newbyteorder())
        yield value[None] if value.ndim < 30 else value[0]
        yield value.reshape(-1)
        yield np.empty((0, *value.shape[1:]), value.dtype)
        yield np.empty((*value.shape[:-1], value.shape[-1] + 1), value.dtype) if value.ndim else value
        yield np.asfortranarray(value) if value.ndim > 1 else np.empty(2 * value.size, value.dtype)[::2]
        yield np.frombuffer(b"\0" + value.tobytes(), np.uint8)[1:].view(value.dtype).reshape(value.shape)  # unaligned
        fixed = value.copy()
        fixed.flags.writeable = False
        yield fixed
        if value.dtype.kind == "f" and value.size:
            for number in (np.nan, np.inf, 3e38, 0, 1e-42):
                yield np.full_like(value, number)
        if value.dtype.kind in "iu" and value.size:
            yield np.full_like(value, np.iinfo(value.dtype).max)
            yield np.full_like(value, np.iinfo(value.dtype).min)
        if value.ndim:
            yield np.broadcast_to(np.zeros(1, value.dtype), (2**31 + 8, *value.shape[1:]))
    elif isinstance(value, list):
        yield []
        yield value + value
        yield [value[0]] * len(value)
    elif isinstance(value, int) and not isinstance(value, bool):
        yield from (0, value + 1, 2**31 - 1, 2**31, 2**62, -(2**63))
    elif isinstance(value, float):
        yield from (0.0, float("inf"), -1.0, 1e300)


def bad_calls(name):
    """(arguments, keywords), each with one thing of a good call exchanged, left out or added; some of them may be good too."""
    for row in CALLS[name]:
        arguments, keywords = split(row)
        for i, value in enumerate(arguments):
            for other in _spoilt(value):
                if name in _ITERATING and type(other) is int and other > 2**20:
                    continue  # iterations: they are made, as asked
                yield [*arguments[:i], other, *arguments[i + 1 :]], keywords
        for key, value in keywords.items():
            for other in _spoilt(value):
                yield arguments, {**keywords, key: other}
        yield arguments[:-1], keywords
        yield [*arguments, None, None, None, None, None, None, None, None, None], keywords
        yield arguments, {**keywords, "unheard_of": 1}
        if len(arguments) > 1 and isinstance(arguments[0], np.ndarray):
            yield [arguments[0], *[arguments[0] if isinstance(a, np.ndarray) else a for a in arguments[1:]]], keywords  # aliases


def resized_calls(name):
    """(arguments, keywords): every size of a good call 0, 1 and 17 times what it is, wherever it stands in shapes and numbers."""
    for row in CALLS[name]:
        arguments, keywords = split(row)
        values = [a for value in (*arguments, *keywords.values()) for a in (value if isinstance(value, list) else [value])]
        for size in {n for a in values if isinstance(a, np.ndarray) for n in a.shape}:
            for other in (0, 1, 17 * size):
                yield ([_resized(a, size, other) for a in arguments],
                       {key: _resized(a, size, other) for key, a in keywords.items()})


def _resized(value, size, other):
    if isinstance(value, list):
        return [_resized(item, size, other) for item in value]
    if isinstance(value, np.ndarray) and size in value.shape:
        return np.zeros([other if n == size else n for n in value.shape], value.dtype)
    return other if type(value) is int and value == size else value


def _names_of(name):
    """The names of a function's arguments, by position."""
    return [part.split("=")[0].strip() for part in getattr(_core, name).__doc__.partition("(")[2].partition(")")[0].split(",")]


def _places(name, row):
    """(name, place) of each array of a good call; a place is what `_at` takes."""
    arguments, keywords = split(row)
    named = [*zip(_names_of(name), range(len(arguments))), *((key, key) for key in keywords)]
    for label, key in named:
        value = _at((arguments, keywords), (key,))
        if isinstance(value, np.ndarray):
            yield label, (key,)
        elif isinstance(value, list):
            yield from ((f"{label}[{n}]", (key, n)) for n, item in enumerate(value) if isinstance(item, np.ndarray))


def _at(call, place):
    value = call[isinstance(place[0], str)][place[0]]
    return value if len(place) == 1 else value[place[1]]


def _put(call, place, value):
    holder = call[isinstance(place[0], str)]
    if len(place) == 2:
        holder, place = holder[place[0]], place[1:]
    holder[place[0]] = value


def _writes(name, row, place):
    """Whether a function wants that argument writable."""
    call = split(row)
    _at(call, place).flags.writeable = False
    try:
        getattr(_core, name)(*call[0], **call[1])
    except ValueError as error:
        return "writable" in str(error)
    return False


def _share(call, first, second, shift):
    """Gives two arrays of a call the same memory, the second's `shift` elements behind; what it held is what they hold."""
    a, b_ = _at(call, first), _at(call, second)
    step = shift * max(a.itemsize, b_.itemsize)
    starts = max(0, -step), max(0, step)
    memory = np.zeros(max(a.nbytes, b_.nbytes) + abs(step) + 8, np.uint8)
    for place, array, start in zip((first, second), (a, b_), starts):
        view = memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
        view[...] = array
        _put(call, place, view)


def sharing_calls(name):
    """(what is shared, call, the same call without sharing, places of what is written), for each two arrays of which one is
    written; 0, 1 and -1 elements apart, and half of the larger."""
    for row in CALLS[name]:
        places = list(_places(name, row))
        written = [entry for entry in places if _writes(name, row, entry[1])]
        for i, (label, place) in enumerate(written):
            for other, second in [*written[i + 1 :], *(entry for entry in places if entry not in written)]:
                sizes = [_at(split(row), p).size for p in (place, second)]
                shifts = {0, 1, -1, max(sizes) // 2 * (1 if sizes[0] >= sizes[1] else -1)}
                for shift in sorted(shifts):
                    call = split(row)
                    _share(call, place, second, shift)
                    alone = tuple(split((*call[0], call[1]) if call[1] else call[0]))
                    yield (label, other, shift), call, alone, [p for _, p in written if p in (place, second)]


def run_sharing(name, labels, call, alone, written):
    """Whether a call with shared memory is refused, by both names; where it is not, its results are those without sharing."""
    try:
        want = getattr(_core, name)(*alone[0], **alone[1])
    except REFUSALS:  # what one array held is nothing that the other may hold
        want = None
    try:
        got = getattr(_core, name)(*call[0], **call[1])
    except REFUSALS as error:
        if isinstance(error, ValueError) and "overlap" in str(error):
            assert all(label.partition("[")[0] in str(error) for label in labels[:2]), f"{name}: {labels}: {error}"
            return True
        if want is None:
            return False
        raise
    for place in [] if (name, *labels[:2]) in _REPLACED else written:
        np.testing.assert_array_equal(_at(call, place), _at(alone, place), f"{name}: {labels}")
    for a, b_ in zip(_flat(got), _flat(want), strict=True):
        np.testing.assert_array_equal(a, b_, f"{name}: {labels}")
    return False


REFUSALS = (TypeError, ValueError, ArithmeticError, MemoryError, RuntimeError, LookupError)
_REPLACED = {("bias_gelu_forward", "h", "out")}  # in place: only the result remains
_ITERATING = {"asi_step", "gram_range", "range"}
# Settings for the whole process, which the calls of others would see.
_SETTINGS = {"set_num_threads", "set_isa", "set_bfloat16_products"}


def run_bad(name, arguments, keywords):
    """Whether the call is refused; anything but a Python error of REFUSALS comes through."""
    try:
        with wasi.Arena(2**28):  # results of a size that a hostile number asks for are not to be had
            getattr(_core, name)(*arguments, **keywords)
    except REFUSALS:
        return True
    return False


def restore():
    wasi.set_num_threads(1)
    _core.set_isa(_ISA)
    _core.set_bfloat16_products(False)


_ISA = _core.get_isa()
# Objects of the interpreter that may come without a leak: its caches. A leak is one in every call, or in every n-th.
MOST_BLOCKS = 100
# Resident bytes that a few hundred calls may add: AddressSanitizer keeps freed blocks for a while.
MOST_BYTES = 2**23 if "libasan" in os.environ.get("LD_PRELOAD", "") else 2**20


def soak(name, n_calls):
    """Calls a function n_calls times, good and bad in turn; returns (growth of RSS in bytes, of references to what was passed,
    of the interpreter's blocks) over the second half."""
    function, rows = getattr(_core, name), [split(row) for row in CALLS[name]]
    bad = [call for call in bad_calls(name) if name not in _SETTINGS]
    passed = [a for args, keywords in [*rows, *bad] for a in [*args, *keywords.values()] if isinstance(a, np.ndarray)]
    cycle_good, cycle_bad, state = itertools.cycle(rows), itertools.cycle(bad or rows), []
    for i in range(n_calls):
        args, keywords = next(cycle_good if i % 2 else cycle_bad)
        try:  # noqa: SIM105 (contextlib.suppress makes objects of its own)
            function(*args, **keywords)
        except REFUSALS:
            pass
        if i + 1 in (n_calls // 2, n_calls):
            args = keywords = None
            gc.collect()
            state.append((rss_bytes(), sum(sys.getrefcount(a) for a in passed), sys.getallocatedblocks()))
    return tuple(after - before for before, after in zip(*state))


def fail_each_allocation(name):
    """Makes the first, second, ... allocation of arrays fail in each good call; returns how many were made to.

    The call must raise MemoryError, leave nothing allocated, and give after that what it gave before.
    """
    failed = 0
    for row in CALLS[name]:
        args, keywords = split(row)
        want = getattr(_core, name)(*args, **keywords)
        for k in itertools.count():
            args, keywords = split(row)
            with Allocations(k) as made:
                try:
                    getattr(_core, name)(*args, **keywords)
                except MemoryError:
                    failed += 1
                else:
                    if made.n > k:
                        raise AssertionError(f"{name}: allocation {k} failed, and the call did not")
                    break
            if made.live:
                raise AssertionError(f"{name}: allocation {k} failed, and {made.live} blocks stayed")
        args, keywords = split(row)
        got = getattr(_core, name)(*args, **keywords)
        for a, b_ in zip(_flat(got), _flat(want), strict=True):
            np.testing.assert_array_equal(a, b_)
    return failed


def _flat(value):
    return [item for part in value for item in _flat(part)] if isinstance(value, tuple) else [value]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=names())
    parser.add_argument("--calls", type=int, default=50_000)
    parser.add_argument("--allocations", action="store_true")
    args = parser.parse_args()
    wasi.set_num_threads(1)
    if args.allocations:
        print(f"{sum(map(fail_each_allocation, args.names))} allocations made to fail in {len(args.names)} functions")
        return 0
    worst, began = 0, time.monotonic()
    for name in args.names:
        grown, references, blocks = soak(name, args.calls)
        bad = (grown > 256 * 1024 and args.calls >= 10_000) or references != 0 or abs(blocks) > MOST_BLOCKS
        worst |= bad
        print(f"{name:<28}{len(CALLS[name]):>3} good {len(list(bad_calls(name))):>4} bad  RSS {grown / 1024:+.0f} KiB, "
              f"references {references:+d}, blocks {blocks:+d}{'  <--' if bad else ''}", flush=True)
        restore()
    print(f"{len(args.names)} functions, {args.calls} calls each, {time.monotonic() - began:.0f} s")
    return int(worst)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    sys.exit(main())
