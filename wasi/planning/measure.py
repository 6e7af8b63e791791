"""Measures, on calibration batches, what each choice of a layer costs in accuracy: no training, one forward and backward a batch.

Y = X W' is a layer's output on rows X of inputs, D its gradient, dX = D W the gradient that it passes on, G = D' X that of its
weight. A choice makes of them Y~, dX~ and G~, and its squared error is the mean of three relative ones,

    err^2 = (|Y - Y~|^2 / |Y|^2 + |dX - dX~|^2 / |dX|^2 + |G - G~|^2 / |G|^2) / 3.

* Rank K: W~ = L_K P_K, the K leading columns and rows of the start's factors; G~ is the projection of G on the tangent space at
  W~, which is the part that the WSI step follows: |G - G~|^2 = |(I - L L') G (I - Q Q')|^2, Q the row basis of P_K. All is nested
  in K, so one decomposition gives every rank. The gradient start is chosen on half of each batch and judged by the other half.
* Residual bits: W~ + quant(W - W~) in the place of W~ in Y~ and dX~, on a sample of rows at the middle one of the ranks; at the
  others in proportion to |W - W~|^2, since quantisation errors are white.
* Activation ranks: G~ = D' x~ with x~ the truncated HOSVD of the input, nested in the channels' rank; |G - G~|^2 is summed over
  batches. Errors of both kinds add up as squares.
* Few bits of GELU's derivative: a relative error of dX known from the code's levels.
* Few bits of all that blocks keep: |G - G~|^2 of one batch's gradients, with such blocks and with exact ones.
"""

import contextlib
from dataclasses import dataclass, field

import numpy as np

from wasi import linalg, ops
from wasi.layers import ActivationPolicy, Linear
from wasi.layers.compression import Compressed, add_weight_gradient
from wasi.models.factorize import Gram, all_frozen, gradient_scale, input_rows, weight_gradients

SAMPLE_ROWS = 512  # rows of inputs and gradients that are kept of each layer
RESIDUAL_ROWS = 128  # rows of these that quantisation errors are measured on
SHARES = (1.0, 0.5, 0.25)  # of batch and tokens
CHANNEL_SHARES = (1.0, 0.5, 0.25, 0.125)
# Root mean square error of GELU's derivative in so many bits over the root mean square derivative, for standard normal inputs.
GELU_ERROR = {None: 0.0, 4: 0.031, 2: 0.132}


@dataclass
class LayerErrors:
    """Squared errors of one layer's choices."""

    in_shape: tuple  # of the input of one sample: (tokens, ..., I), or (H, W, C) of a convolution
    tokens: tuple  # of its output, without the channels
    weights: dict = field(default_factory=dict)  # {(rank, bits): err^2}
    activations: dict = field(default_factory=dict)  # {(batch, tokens, channels): err^2}


class _Recorder(Linear):
    """Stands in for a dense linear: passes on what it would, and sums up what the errors are computed from."""

    def __init__(self, linear, n_rows, gram, halves, compressed):
        super().__init__(linear.weight.data, linear.bias and linear.bias.data)
        self._n_rows = n_rows  # to sample from each batch
        self._compressed = compressed
        self.gradient = np.zeros_like(linear.weight.data)
        self.first_half = np.zeros_like(linear.weight.data) if halves else None  # the gradient on half of each batch
        self.gram = Gram(linear) if gram else None
        self.inputs, self.gradients = [], []
        self.activation_errors, self.gradient_norm2 = {}, 0.0
        self.in_shape = self.tokens = None

    def forward(self, x, train=False, keep_input=True):
        self._saved = (x,)
        y = ops.linear(x, self.weight.data, self.bias.data if self.bias else None, window=self.window)
        if self.gram is not None:
            self.gram.add(x, y)
        return y

    def backward(self, dy, x=None, need_dx=True):
        (x,) = self._take_saved()
        self.in_shape, self.tokens = x.shape[1:], dy.shape[1:-1]
        grads = dy.reshape(-1, dy.shape[-1])
        keep = np.linspace(0, len(grads) - 1, min(len(grads), self._n_rows)).astype(int)
        self.gradients.append(grads[keep])
        first = 0
        for rows in input_rows(self, x):
            self.inputs.append(rows[keep[(first <= keep) & (keep < first + len(rows))] - first])
            first += len(rows)
        if self.first_half is not None:
            n = -(-len(x) // 2)
            ops.linear_backward(dy[:n], x[:n], self.weight.data, self.first_half, None, False, window=self.window)
        dx = ops.linear_backward(dy, x, self.weight.data, self.gradient, None, need_dx, window=self.window)
        if self._compressed:
            norm2, errors = activation_errors(x, dy, self.window)
            self.gradient_norm2 += norm2
            for key, error in errors.items():
                self.activation_errors[key] = self.activation_errors.get(key, 0.0) + error
        return dx


def activation_errors(x, dy, window=None):
    """|G|^2 and {(batch, tokens, channels): |G - G~|^2} of one batch for truncations of x (B, ..., I); dy (B, ..., O).

    window: of a convolution; its G (O, k k C) is taken as a row for each output and pixel, as it is linear in x's channels.
    """
    def gradient(core, bases):
        G = np.zeros((dy.shape[-1], I * (window.taps if window else 1)), np.float32)
        add_weight_gradient(G, dy, Compressed(core, tuple(bases)), window)
        return G.reshape(-1, I)

    I, norm = x.shape[-1], ops.sum_of_squares
    largest = [max(1, round(d * max(s for s in SHARES if s < 1))) for d in x.shape[:-1]] + [max(1, I // 2)]
    _, factors = linalg.tucker(x, ranks=largest, method="hosvd")
    G = gradient(x, [None] * x.ndim)
    U = np.eye(I, dtype=np.float32) if factors[-1] is None else factors[-1]
    GU, norm2, errors = G @ U, norm(G), {}
    for batch in SHARES:
        for tokens in SHARES:
            core, bases = x, [None] * x.ndim
            for mode, share in enumerate([batch, *[tokens] * (x.ndim - 2)]):
                K = max(1, round(share * x.shape[mode]))
                if K < x.shape[mode] and factors[mode] is not None:
                    bases[mode] = np.ascontiguousarray(factors[mode][:, :K])
                    core = linalg.mode_dot(core, bases[mode], mode, transpose=True)
            near = gradient(core, bases)
            MU = near @ U
            cross, square = (np.cumsum((a * MU).sum(0, dtype=np.float64)) for a in (GU, MU))
            for share in CHANNEL_SHARES:
                K = max(1, round(share * I))
                error = norm(G - near) if share == 1 else norm2 - 2 * cross[K - 1] + square[K - 1]
                errors[batch, tokens, I if share == 1 else K] = max(0.0, float(error))
    del errors[1.0, 1.0, I]
    return norm2, errors


def weight_errors(W, G, X, D, start, ranks, bits, source=None):
    """{(rank, bits): err^2} for factors of W (O, I). G: its gradient, X, D: rows of inputs and of output gradients.

    start: "svd"; "whitened", with source a `Gram`'s mean; or "gradient", with source the gradient that the factors start from.
    ranks: a function of the spectrum. bits: of 0, 4, 8; the gradient start has no 0, since its factors do not stand for W.
    """
    if start == "gradient":
        L, spectrum, Vt = linalg.truncated_svd(source)
        P, Q = gradient_scale(W) * Vt, Vt.T
    else:
        L, *_, spectrum = linalg.truncated_svd(W)[:2] if start == "svd" else linalg.whitened_svd(W, source)
        P = L.T @ W  # W = L P
        Q = linalg.orthonormalize(np.ascontiguousarray(P.T))
    m = len(P)
    output = np.cumsum(((X @ P.T).astype(np.float64) ** 2).sum(0)[::-1])[::-1]
    DL = D @ L
    passed = (DL.T @ DL).astype(np.float64) * (P @ P.T)
    passed = np.diag(np.cumsum(np.cumsum(passed[::-1, ::-1], 0), 1))[::-1]
    M = L.T @ G
    MQ, GQ = M @ Q, G @ Q
    inner = np.diag(np.cumsum(np.cumsum(MQ.astype(np.float64) ** 2, 0), 1))
    norm2 = ops.sum_of_squares(np.ascontiguousarray(G))
    lost = norm2 - np.cumsum((M.astype(np.float64) ** 2).sum(1)) - np.cumsum((GQ.astype(np.float64) ** 2).sum(0)) + inner

    x, d = (a[np.linspace(0, len(a) - 1, min(len(a), RESIDUAL_ROWS)).astype(int)] for a in (X, D))
    x_norm2, d_norm2 = (float((a.astype(np.float64) ** 2).sum()) for a in (x @ W.T, d @ W))
    covered = (P.astype(np.float64) * (2 * (L.T @ W) - P)).sum(1)
    rest_norm2 = ops.sum_of_squares(W) - np.append(0.0, np.cumsum(covered))
    ranks = ranks(spectrum)
    middle = ranks[len(ranks) // 2]
    rounding = {}  # by bits: relative errors of Y and dX, summed, at the middle rank
    for b in set(bits) - {0}:
        rest = W - L[:, :middle] @ P[:middle]
        rest -= ops.dequantize_residual(ops.quantize_residual(rest, b))
        rounding[b] = sum(_ratio(float((a.astype(np.float64) ** 2).sum()), n)
                          for a, n in ((x @ rest.T, x_norm2), (d @ rest, d_norm2)))
    errors = {}
    for K in ranks:
        tangent = _ratio(lost[K - 1], norm2)
        for b in bits:
            lost_ends = (rounding[b] * _ratio(rest_norm2[K], rest_norm2[middle]) if b
                         else sum(_ratio(a[K], a[0]) if m > K else 0.0 for a in (output, passed)))
            errors[K, b] = (lost_ends + tangent) / 3
    return errors


def _ratio(part, whole):
    return float(max(0.0, part) / whole) if whole > 0 else 0.0


def measure_errors(model, names, batches, ranks, starts, compressed=()):
    """LayerErrors by name of dense linears, on a list of (images, labels).

    ranks: a function (name, spectrum) -> the ranks to try; starts: {bits: start} of the factors to try; compressed: names of the
    layers whose compressed inputs are tried.
    Raises ArithmeticError where the loss or a gradient is not finite.
    """
    recorders = {name: _Recorder(model.get_module(name), -(-SAMPLE_ROWS // len(batches)), "whitened" in starts.values(),
                                 "gradient" in starts.values(), name in compressed)
                 for name in names}
    with all_frozen(model), model.replaced(recorders), _policy(model, ActivationPolicy()):
        for images, labels in batches:
            loss, dlogits, _ = model.loss(model.forward(images, train=True), labels)
            if not np.isfinite(loss):
                raise ArithmeticError("batches: the loss on the calibration batches is not finite")
            model.backward(dlogits)
    found = {}
    for name in names:
        r = recorders.pop(name)
        layer = found[name] = LayerErrors(r.in_shape, r.tokens)
        X, D = np.concatenate(r.inputs), np.concatenate(r.gradients)
        for start in dict.fromkeys(starts.values()):
            bits = [b for b in starts if starts[b] == start]
            source = r.gram.mean() if start == "whitened" else r.first_half if start == "gradient" else None
            G = r.gradient - r.first_half if start == "gradient" else r.gradient
            layer.weights.update(weight_errors(r.weight.data, G, X, D, start, lambda s, n=name: ranks(n, s), bits, source))
        layer.activations = {k: _ratio(e, r.gradient_norm2) / 3 for k, e in r.activation_errors.items()}
    return found


@contextlib.contextmanager
def _policy(model, policy):
    """A context within which all blocks have this policy."""
    before = [block.policy for block in model.blocks]
    model.set_policy(policy)
    try:
        yield
    finally:
        for block, own in zip(model.blocks, before):
            block.policy = own


def kept_errors(model, names, batch, bits):
    """{bits: {name: err^2}} of dense linears where blocks keep what they keep in so many bits (of 16, 8)."""
    def gradients(saved_bits):
        with _policy(model, ActivationPolicy(saved_bits=saved_bits)):
            return weight_gradients(model, names, [batch])

    exact, found = gradients(None) if bits else {}, {}
    for b in sorted(bits):
        near = gradients(b)
        found[b] = {name: _ratio(ops.sum_of_squares(near[name] - G), ops.sum_of_squares(G)) / 3 for name, G in exact.items()}
    return found
