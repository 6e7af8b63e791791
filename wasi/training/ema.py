"""An exponential moving average of a model's weights: of the products where weights are held as factors."""

import contextlib

import numpy as np

from wasi import linalg
from wasi.layers import FactoredLinear
from wasi.layers.lora import LoraLinear
from wasi.layers.published import DenseWeightLinear
from wasi.models.weights import check_arrays, check_numbers


class _Factors:
    """A layer's trained factors (L, R), wherever it has them."""

    def __init__(self, layer):
        self._layer = layer

    @property
    def parameters(self):
        """Those that are averaged as factors, not on their own."""
        if isinstance(self._layer, FactoredLinear):
            return self._layer.L, self._layer.R
        return (self._layer.B, self._layer.A) if isinstance(self._layer, LoraLinear) else ()

    @property
    def scale(self):
        """Of the product in the weight."""
        return getattr(self._layer, "scale", 1.0)

    def get(self):
        return tuple(p.data for p in self.parameters) or self._layer.factors

    def set(self, L, R):
        if not self.parameters:
            self._layer.factors = L, R
        for p, data in zip(self.parameters, (L, R)):
            p.data = data


class WeightAverage:
    """M <- d M + (1 - d) W for each trained weight W of a model, with d = min(decay, (1 + n) / (10 + n)) in update n = 0, 1, ...

    The small d of the first updates forgets where training started. A weight in factors (L R, LoRA's B A) is averaged as the
    product, to the best approximation of its rank (`linalg.wsi_mean`): the basis turns from step to step, so that means of the
    factors on their own would be means of nothing. `bounds` says how far each such weight may be from the exact mean.
    Running statistics of norms are averaged like weights; frozen parts (a residual, LoRA's base) are what they are. Takes the
    memory of the trained weights again.

    Source of the ramp of d: TensorFlow's ExponentialMovingAverage.
    """

    def __init__(self, model, decay):
        self.decay = decay
        self.n_updates = 0
        self._factors = {name: _Factors(m) for name, m in model.named_modules()
                         if isinstance(m, (FactoredLinear, LoraLinear, DenseWeightLinear)) and _is_trained(m)}
        own = {id(p) for factors in self._factors.values() for p in factors.parameters}
        self._plain = {name: p for name, p in model.named_parameters() if p.changes and id(p) not in own}
        self._means = {name: p.data.copy() for name, p in self._plain.items()}
        self._factor_means = {name: tuple(a.copy() for a in f.get()) for name, f in self._factors.items()}
        self.bounds = dict.fromkeys(self._factors, 0.0)  # Frobenius norm, by layer

    def update(self, arena=None):
        """Takes the model's present weights in. Ranks follow those of the layers.

        arena: a wasi.Arena for what is needed meanwhile, or None; the averages themselves do not lie in it.
        """
        d = min(self.decay, (1 + self.n_updates) / (10 + self.n_updates))
        arena = arena or contextlib.nullcontext()
        with arena:
            for name, p in self._plain.items():
                mean = self._means[name]
                mean *= np.float32(d)
                mean += np.float32(1 - d) * p.data
        for name, factors in self._factors.items():
            with arena:
                *new, dropped = linalg.wsi_mean(*self._factor_means[name], *factors.get(), d)
            self._factor_means[name] = tuple(_kept(a, b) for a, b in zip(self._factor_means[name], new))
            self.bounds[name] = d * self.bounds[name] + factors.scale * dropped
        self.n_updates += 1

    def swap(self):
        """Exchanges the model's weights and the averaged ones, without copying."""
        for name, p in self._plain.items():
            p.data, self._means[name] = self._means[name], p.data
        for name, factors in self._factors.items():
            mean, self._factor_means[name] = self._factor_means[name], factors.get()
            factors.set(*mean)

    @contextlib.contextmanager
    def applied(self):
        """The model has the averaged weights within the block."""
        self.swap()
        try:
            yield
        finally:
            self.swap()

    @property
    def nbytes(self):
        """Bytes of the averaged weights."""
        return sum(self.bytes_by_module().values())

    def bytes_by_module(self):
        """{dotted name: bytes} of the averaged weights, by the module that has them."""
        sizes = {name: sum(a.nbytes for a in mean) for name, mean in self._factor_means.items()}
        for name, mean in self._means.items():
            module = name.rpartition(".")[0]
            sizes[module] = sizes.get(module, 0) + mean.nbytes
        return sizes

    def state_dict(self):
        """({name: array}, numbers) for `load_state_dict`. Arrays are not copied."""
        arrays = {f"plain.{name}": mean for name, mean in self._means.items()}
        arrays |= {f"{side}.{name}": a for name, mean in self._factor_means.items() for side, a in zip("LR", mean)}
        return arrays, {"n_updates": self.n_updates, "bounds": self.bounds}

    def load_state_dict(self, arrays, numbers):
        """Goes on from there. Raises WeightsError naming every array that does not fit the model."""
        shapes = {f"plain.{name}": mean.shape for name, mean in self._means.items()}
        for name, (L, R) in self._factor_means.items():  # of any rank: that of the last update
            rank = len(arrays.get(f"R.{name}", R))
            shapes |= {f"L.{name}": (len(L), rank), f"R.{name}": (rank, R.shape[1])}
        check_arrays("ema", arrays, shapes)
        check_numbers("ema", numbers, ("n_updates",))
        check_numbers("ema: bounds", numbers["bounds"], (), self.bounds)
        self._means = {name: arrays[f"plain.{name}"] for name in self._means}
        self._factor_means = {name: (arrays[f"L.{name}"], arrays[f"R.{name}"]) for name in self._factor_means}
        self.n_updates, self.bounds = numbers["n_updates"], {name: numbers["bounds"][name] for name in self.bounds}


class Snapshot:
    """A copy of a model's trained weights, to give them back."""

    def __init__(self, model):
        self._data = {name: p.data.copy() for name, p in model.named_parameters() if p.changes}
        self._followed = {name: tuple(a.copy() for a in m.factors) for name, m in model.named_modules()
                          if isinstance(m, DenseWeightLinear)}

    def restore(self, model):
        """Gives the model, of unchanged layers, these weights: the copies themselves, of whatever rank they were."""
        for name, p in model.named_parameters():
            if name in self._data:
                p.data, p.grad, p.packed = self._data[name], None, None
        for name, factors in self._followed.items():
            model.get_module(name).factors = factors


def _kept(array, new):
    """What `new` holds, in the array that is there where it fits."""
    if array.shape != new.shape:
        return new.copy()
    array[...] = new
    return array


def _is_trained(layer):
    if isinstance(layer, DenseWeightLinear):
        return True
    return (layer.L if isinstance(layer, FactoredLinear) else layer.A).trainable
