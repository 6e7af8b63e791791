"""What a training step really takes, measured with the very layers of a plan at a few samples.

A step's memory is affine in the samples in flight at each of its moments. So two small runs under an arena, with the peaks of
forward and of each part's backward told apart, give it for any batch, whatever the layers do inside. Only the scratch of
compressing activations is not, since the cheapest order of its products depends on sizes, nor that of convolutions, whose tiles
have a largest size: there the last word is a run of full size, once it is known about to fit. Weights, optimiser state and
gradients that last lie outside the arena; gradients that come and go in backward lie in it.
"""

from dataclasses import replace
from typing import NamedTuple

import numpy as np

import wasi
from wasi import linalg, ops
from wasi.layers import FactoredLinear
from wasi.layers.flops import Flops
from wasi.models.plan import apply_policies
from wasi.planning.cost import FLOAT


class StepBytes(NamedTuple):
    """Arena bytes of a step."""

    saved: int  # held between forward and backward
    peak: int  # the most at once, saved included


class Probe:
    """Measures steps of `model` on repetitions of one calibration batch; the model is as before after each.

    sites: {name: Site} of the layers that a plan treats. averaged: whether an average of the weights is kept.
    """

    def __init__(self, model, images, labels, sites, rule, averaged):
        self._model = model
        self._images, self._labels = images, labels
        self._sites = sites
        self._rule, self._averaged = rule, averaged
        self._rng = np.random.default_rng(0)
        self._known, self._steps, self._means = {}, {}, {}

    def step(self, choices, way, limit=np.inf):
        """StepBytes of the Way's micro-batch. With compressed inputs or convolutions exact, where the extrapolated
        peak is at most `limit` bytes."""
        compressed, n_samples = _compressed(choices), way.micro_batch
        exact = compressed or any(self._model.get_module(name).window for name in self._sites)
        if n_samples <= 8:
            (found,), update = self._runs(choices, way, [n_samples])
        else:
            small = -(-n_samples // 4) if compressed else 4
            more = n_samples - 2 * small
            (a, b), update = self._runs(choices, way, [small, 2 * small])
            found = [of_b + -(-(of_b - of_a) * more // small) for of_a, of_b in zip(a, b)]
            if exact and max(found) <= limit:
                (found,), update = self._runs(choices, way, [n_samples])
        return StepBytes(found[0], max(*found, update))

    def _runs(self, choices, way, sizes):
        """What `_run` gives for these sizes, each run once, and the bytes of the update that follows."""
        key = (tuple(choices.values()), replace(way, micro_batch=0))
        missing = [size for size in ("update", *sizes) if (*key, size) not in self._known]
        if missing:
            with _Dressed(self._model, self._sites, choices, way, self._rng):
                for size in missing:
                    self._known[*key, size] = (
                        max(self._update_bytes(self._model, way), self._average_bytes()) if size == "update" else
                        self._run(size, way, n_steps=2 if _compressed(choices) else 1))
        return [self._known[*key, size] for size in sizes], self._known[*key, "update"]

    def flops(self, choices, way, batch_size):
        """The Flops of a step of the whole model, and {name: Flops} of the planned layers."""
        n, rest = divmod(batch_size, way.micro_batch)
        sizes = [way.micro_batch] * n + [rest] * (rest > 0)
        with _Dressed(self._model, self._sites, choices, way, self._rng):
            whole = self._model.training_flops(batch_size, self._rule, way.micro_batch)
            layers = {}
            for name, site in self._sites.items():
                again = way.recompute and site.follows_gelu
                parts = [self._model.get_module(name).flops((size, *site.in_shape), self._rule, prepared=again)
                         for size in sizes]
                layers[name] = Flops(sum(p.forward for p in parts), sum(p.backward for p in parts), parts[0].update)
        return whole, layers

    def _run(self, size, way, n_steps):
        """Bytes held between forward and backward, and the peaks of the step's parts, in the last of so many steps.

        In the second step warm starts are there.
        """
        index = np.arange(size) % len(self._images)
        images, labels = self._images[index], self._labels[index]
        arena = wasi.Arena()
        for _ in range(n_steps):
            peaks = []

            def end_of_part():
                peaks.append(arena.stats()["peak_bytes"])  # noqa: B023 (called within the turn)
                arena.reset_stats()

            def after(part):
                end_of_part()  # noqa: B023
                self._after_backward(part, way)
                end_of_part()  # noqa: B023

            with arena:
                arena.reset_stats()
                logits = self._model.forward(images, train=True)
                saved = arena.stats()["current_bytes"] - logits.nbytes
                _, dlogits, _ = self._model.loss(logits, labels)
                del logits
                end_of_part()
                self._model.backward(dlogits, after)
                end_of_part()
                del dlogits
        return [saved, *peaks]

    def _after_backward(self, part, way):
        """Does with a part's gradients what the optimiser does."""
        if way.layerwise:
            np.empty(self._update_bytes(part, way), np.uint8)
        for _, p in part.named_parameters():
            if way.layerwise:
                p.grad = None
            elif p.packed is not None:
                p.pack_gradient()

    def _update_bytes(self, part, way):
        """The optimiser's scratch: a triangle for each factored layer, and the largest update of one, widened to float32."""
        factored = [m for _, m in part.named_modules() if isinstance(m, FactoredLinear)]
        of_factors = {id(p) for m in factored for p in (m.L, m.R)}
        matrices = [p.data.size for _, p in part.named_parameters()
                    if p.trainable and p.data.ndim == 2 and id(p) not in of_factors]
        widened = FLOAT * ((way.gradient_bits == 16) + (way.state_bits == 16 and self._rule != "sgd"))
        updates = [widened * size for size in matrices]
        updates += [widened * K * (O + I) + self._wsi_step_bytes(O, I, K) for O, I, K in _largest(factored)]
        return 8 * sum(m.rank**2 for m in factored) + max(updates, default=0)

    def _wsi_step_bytes(self, O, I, K):
        """What a step of factors of these sizes takes beside them."""
        if (O, I, K) not in self._steps:
            L, R = self._factors(O, I, K)
            state = linalg.WsiState(O, I, K, self._rule)
            dL, dR = np.zeros_like(L), np.zeros_like(R)
            arena = wasi.Arena()
            with arena:
                linalg.wsi_step(L, R, dL, dR, 0.0, state=state)
            self._steps[O, I, K] = arena.stats()["peak_bytes"]
        return self._steps[O, I, K]

    def _average_bytes(self):
        """The scratch of taking the weights into their average: that of its largest update."""
        if not self._averaged:
            return 0
        factored = [m for _, m in self._model.named_modules() if isinstance(m, FactoredLinear) and m.L.trainable]
        of_factors = {id(p) for m in factored for p in (m.L, m.R)}
        plain = [FLOAT * p.data.size for _, p in self._model.named_parameters() if p.changes and id(p) not in of_factors]
        return max([*plain, *(self._wsi_mean_bytes(*sizes) for sizes in _largest(factored))], default=0)

    def _wsi_mean_bytes(self, O, I, K):
        """What a mean of factors of these sizes takes at most: of such as lie nowhere near each other."""
        if (O, I, K) not in self._means:
            both = *self._factors(O, I, K), *self._factors(O, I, K)
            arena = wasi.Arena()
            with arena:
                linalg.wsi_mean(*both, 0.9)
            self._means[O, I, K] = arena.stats()["peak_bytes"]
        return self._means[O, I, K]

    def _factors(self, O, I, K):
        """Random ones: L orthonormal, R."""
        L = linalg.orthonormalize(self._rng.standard_normal((O, K), np.float32))
        return L, self._rng.standard_normal((K, I), np.float32)


def _largest(factored):
    """(O, I, K) of the layers of largest rank among those of each shape."""
    ranks = {}
    for m in sorted(factored, key=lambda m: m.rank):
        ranks[m.out_features, m.in_features] = m.rank
    return [(*shape, K) for shape, K in ranks.items()]


def _compressed(choices):
    return any(c.activation_ranks is not None for c in choices.values())


class _Dressed:
    """The model with layers of the chosen ranks in place, of random numbers, and gradients allocated; undone at the end."""

    def __init__(self, model, sites, choices, way, rng):
        self._model, self._sites, self._choices, self._way, self._rng = model, sites, choices, way, rng

    def __enter__(self):
        self._remember()
        try:
            self._dress()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _remember(self):
        model = self._model
        self._layers = {name: model.get_module(name) for name in self._choices}
        self._policies = [block.policy for block in model.blocks]
        self._compressions = {name: layer.compression for name, layer in self._layers.items()}
        self._arrays = [(p, p.data, p.grad, p.packed) for _, p in model.named_parameters()]

    def _dress(self):
        model, residuals = self._model, {}
        for name, choice in self._choices.items():
            site, old = self._sites[name], self._layers[name]
            if choice.rank is not None:
                O, I, K = site.out_features, site.in_features, choice.rank
                if choice.bits and (O, I, choice.bits) not in residuals:
                    residuals[O, I, choice.bits] = ops.quantize_residual(np.zeros((O, I), np.float32), choice.bits)
                L = self._rng.standard_normal((O, K), np.float32)
                R = self._rng.standard_normal((K, I), np.float32) * np.float32(I**-0.5)
                model.set_module(name, FactoredLinear(L, R, old.bias and old.bias.data,
                                                      residuals.get((O, I, choice.bits))))
        apply_policies(model, [_Named(name, c.activation_ranks, c.gelu_bits) for name, c in self._choices.items()],
                       self._way.recompute, self._way.saved_bits)
        for _, p in model.named_parameters():
            p.grad = p.packed = None
            if p.trainable and not self._way.layerwise:
                p.make_gradient(self._way.gradient_bits)

    def __exit__(self, *error):
        for name, layer in self._layers.items():
            layer.compression = self._compressions[name]
            self._model.set_module(name, layer)
        for block, policy in zip(self._model.blocks, self._policies):
            block.policy = policy
        for p, data, grad, packed in self._arrays:
            p.data, p.grad, p.packed = data, grad, packed  # data: running statistics move with every step
        for _, module in self._model.named_modules():
            module._saved = None


class _Named(NamedTuple):
    """What `apply_policies` reads of a LayerPlan."""

    name: str
    activation_ranks: tuple | None
    gelu_bits: int | None
