"""What a training step really takes, measured with the very layers of a plan at a few samples.

A step's memory is affine in the samples in flight: the arrays of each of its moments are. So two small runs under an arena
give it for any batch, whatever the layers do inside. Only the scratch of compressing activations is not, since the cheapest
order of its products depends on sizes: there the last word is a run of full size, once it is known about to fit. Weights,
gradients and optimiser state lie outside the arena.
"""

from typing import NamedTuple

import numpy as np

import wasi
from wasi import linalg, ops
from wasi.layers import FactoredLinear
from wasi.layers.flops import Flops
from wasi.models.plan import apply_policies


class StepBytes(NamedTuple):
    """Arena bytes of a step."""

    saved: int  # held between forward and backward
    peak: int  # the most at once, saved included


class Probe:
    """Measures steps of `model` on repetitions of one calibration batch; the model is as before after each.

    sites: {name: Site} of the layers that a plan treats.
    """

    def __init__(self, model, images, labels, sites, rule):
        self._model = model
        self._images, self._labels = images, labels
        self._sites = sites
        self._rule = rule
        self._rng = np.random.default_rng(0)
        self._known = {}

    def step(self, choices, recompute, n_samples, limit=np.inf):
        """StepBytes of `n_samples` in flight. Compressed inputs: exact where the extrapolated peak is at most `limit` bytes."""
        compressed = any(c.activation_ranks is not None for c in choices.values())
        if n_samples <= 8:
            return self._runs(choices, recompute, [n_samples])[0]
        small = -(-n_samples // 4) if compressed else 4
        more = n_samples - 2 * small
        runs = self._runs(choices, recompute, [small, 2 * small])
        found = StepBytes(*(b + -(-(b - a) * more // small) for a, b in zip(*runs)))
        if compressed and found.peak <= limit:
            return self._runs(choices, recompute, [n_samples])[0]
        return found

    def _runs(self, choices, recompute, sizes):
        """StepBytes of runs of these sizes, each made once."""
        key = (tuple(choices.values()), recompute)
        missing = [size for size in sizes if (*key, size) not in self._known]
        if missing:
            with _Dressed(self._model, self._sites, choices, recompute, self._rng):
                update = self._update_bytes()
                for size in missing:
                    saved, peak = self._run(size)
                    self._known[*key, size] = StepBytes(saved, max(peak, update))
        return [self._known[*key, size] for size in sizes]

    def flops(self, choices, recompute, batch_size, micro_batch):
        """The Flops of a step of the whole model, and {name: Flops} of the planned layers."""
        n, rest = divmod(batch_size, micro_batch)
        sizes = [micro_batch] * n + [rest] * (rest > 0)
        with _Dressed(self._model, self._sites, choices, recompute, self._rng):
            whole = self._model.training_flops(batch_size, self._rule, micro_batch)
            layers = {}
            for name, site in self._sites.items():
                again = recompute and site.follows_gelu
                parts = [self._model.get_module(name).flops((size, *site.tokens, site.in_features), self._rule, prepared=again)
                         for size in sizes]
                layers[name] = Flops(sum(p.forward for p in parts), sum(p.backward for p in parts), parts[0].update)
        return whole, layers

    def _run(self, size):
        """The second of two steps, when warm starts are there."""
        index = np.arange(size) % len(self._images)
        images, labels = self._images[index], self._labels[index]
        arena = wasi.Arena()
        for _ in range(2):
            with arena:
                arena.reset_stats()
                logits = self._model.forward(images, train=True)
                saved = arena.stats()["current_bytes"] - logits.nbytes
                _, dlogits, _ = self._model.loss(logits, labels)
                del logits
                self._model.backward(dlogits)
                peak = arena.stats()["peak_bytes"]
                del dlogits
        return StepBytes(saved, peak)

    def _update_bytes(self):
        """The optimiser's scratch: a triangle for each factored layer, and the largest step of one."""
        factored = [m for _, m in self._model.named_modules() if isinstance(m, FactoredLinear)]
        if not factored:
            return 0
        arena = wasi.Arena()
        triangles = 8 * sum(m.rank**2 for m in factored)
        most = 0
        largest = {}
        for m in sorted(factored, key=lambda m: m.rank):
            largest[m.out_features, m.in_features] = m
        for (O, I), m in largest.items():
            L, R = linalg.orthonormalize(m.L.data), m.R.data.copy()
            state = linalg.WsiState(O, I, m.rank, self._rule)
            dL, dR = np.zeros_like(L), np.zeros_like(R)
            with arena:
                arena.reset_stats()
                linalg.wsi_step(L, R, dL, dR, 0.0, state=state)
                most = max(most, arena.stats()["peak_bytes"])
        return triangles + most


class _Dressed:
    """The model with layers of the chosen ranks in place, of random numbers, and gradients allocated; undone at the end."""

    def __init__(self, model, sites, choices, recompute, rng):
        self._model, self._sites, self._choices, self._recompute, self._rng = model, sites, choices, recompute, rng

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
        self._gradients = [(p, p.grad) for _, p in model.named_parameters()]

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
                       self._recompute)
        for _, p in model.named_parameters():
            p.grad = None
            p.grad_buffer()

    def __exit__(self, *error):
        for name, layer in self._layers.items():
            layer.compression = self._compressions[name]
            self._model.set_module(name, layer)
        for block, policy in zip(self._model.blocks, self._policies):
            block.policy = policy
        for p, grad in self._gradients:
            p.grad = grad
        for _, module in self._model.named_modules():
            module._saved = None


class _Named(NamedTuple):
    """What `apply_policies` reads of a LayerPlan."""

    name: str
    activation_ranks: tuple | None
    gelu_bits: int | None
