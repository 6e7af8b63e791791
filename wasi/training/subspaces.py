"""How far the factored layers' subspaces turn during training: the evidence for, or against, stable subspaces."""

import numpy as np

from wasi import linalg
from wasi.layers import FactoredLinear
from wasi.layers.published import DenseWeightLinear
from wasi.models.weights import WeightsError


class SubspaceLog:
    """Measures the principal angles between the column bases of a model's factored layers, now and before.

    One row a layer, record and reference: "start", the basis when the log was made, and "previous", that of the record before.
    Keeps two copies of each basis. Raises ValueError for a model without factored layers.
    """

    def __init__(self, model):
        self._layers = {name: m for name, m in model.named_modules()
                        if isinstance(m, DenseWeightLinear) or (isinstance(m, FactoredLinear) and not m.plain)}
        if not self._layers:
            raise ValueError("track_subspaces: the model has no factored layers")
        self._start = {name: m.basis.copy() for name, m in self._layers.items()}
        self._previous = dict(self._start)

    def state_dict(self):
        """({name: array}, {}) for `load_state_dict`."""
        return {f"{which}.{name}": basis for which, bases in (("start", self._start), ("previous", self._previous))
                for name, basis in bases.items()}, {}

    def load_state_dict(self, arrays, numbers):
        """Goes on from there. Raises WeightsError unless each layer has its two bases."""
        wanted = {f"{which}.{name}": layer.out_features for name, layer in self._layers.items()
                  for which in ("start", "previous")}
        wrong = sorted(wanted.keys() ^ arrays.keys())
        wrong += [name for name, a in arrays.items() if name in wanted and (a.ndim != 2 or len(a) != wanted[name])]
        if wrong:
            raise WeightsError(f"track_subspaces: expected a basis each of {sorted(wanted)}, missing or not fitting: {wrong}")
        self._start = {name: arrays[f"start.{name}"] for name in self._layers}
        self._previous = {name: arrays[f"previous.{name}"] for name in self._layers}

    def record(self, step):
        """Yields the rows of subspaces.csv after that many steps."""
        for name, layer in self._layers.items():
            basis = layer.basis.copy()
            for against, reference in (("start", self._start[name]), ("previous", self._previous[name])):
                degrees = np.rad2deg(linalg.principal_angles(reference, basis))
                yield {"step": step, "layer": name, "rank": basis.shape[1], "against": against,
                       "mean_degrees": float(degrees.mean()), "largest_degrees": float(degrees.max()),
                       "degrees": " ".join(f"{d:.4g}" for d in degrees)}
            self._previous[name] = basis
