"""Ranks that follow the spectrum of the factors during training, within a number of bytes."""

from dataclasses import asdict, dataclass

import numpy as np

from wasi import linalg
from wasi.models.weights import check_numbers


@dataclass(frozen=True)
class RankAdaptation:
    """When factored layers change their rank. e(k) is the share of |R|^2 in R's k largest singular values (those of L R).

    Every `every` steps a layer of rank K votes: to shrink where e(k) >= shrink for a k < K (to the smallest such k), to grow
    where e(K - 1) < grow. Between the two it stays. `patience` equal votes in a row make a change; each turn from shrinking to
    growing or back doubles that number for the layer, so ranks settle. Growth never takes the factors' bytes above max_bytes;
    shrinking frees bytes for other layers, and the layers that explain least go first.
    """

    every: int = 50  # steps between votes
    grow: float = 0.99  # share in (0, 1): add directions where all but the last explain less
    shrink: float = 0.9999  # share in (grow, 1]: drop the directions that those before explain so much without
    patience: int = 2  # votes
    n_new: int = 4  # directions added at once
    max_bytes: int | None = None  # of L, R, their gradients and optimiser state over all layers; None: the bytes at the start
    seed: int = 0  # of the new directions

    def __post_init__(self):
        for name in ("every", "patience", "n_new"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if not 0 < self.grow < self.shrink <= 1:
            raise ValueError(f"grow, shrink: expected 0 < grow < shrink <= 1, got {self.grow} and {self.shrink}")


MOST_VOTES = 1000  # a checkpoint that says more of them is damaged


@dataclass
class _Votes:
    last: int = 0  # -1 to shrink, 0 to stay, 1 to grow
    in_a_row: int = 0
    changed: int = 0  # the last change's sign
    turns: int = 0

    def count(self, vote, patience):
        """Takes a vote in; whether it is enough for a change."""
        self.in_a_row = self.in_a_row + 1 if vote == self.last else 1
        self.last = vote
        turning = vote * self.changed < 0
        return vote != 0 and self.in_a_row >= patience * 2 ** (self.turns + 1 if turning else 0)

    def change(self):
        """The change that the last vote was for has been made."""
        self.turns += self.last * self.changed < 0
        self.changed = self.last
        self.in_a_row = 0


class RankController:
    """Carries a RankAdaptation out on an Optimizer's layers.

    Raises ValueError where the model has no layer trained by the WSI step, or where they take more than max_bytes already.
    """

    def __init__(self, adaptation, optimizer):
        self.adaptation = adaptation
        self.optimizer = optimizer
        if not optimizer.factored:
            raise ValueError("adapt_ranks: the model has no factored layer that the WSI step trains")
        now = self.factor_bytes
        self.max_bytes = now if adaptation.max_bytes is None else adaptation.max_bytes
        if now > self.max_bytes:
            raise ValueError(f"max_bytes: expected at least {now}, the bytes of the factors at the start, got {self.max_bytes}")
        self._votes = {name: _Votes() for name in optimizer.factored}
        self._rng = np.random.default_rng(adaptation.seed)

    @property
    def factor_bytes(self):
        """Bytes of L, R, their gradients and optimiser state over all layers."""
        return sum(layer.rank * self.optimizer.bytes_per_rank(name) for name, (layer, _) in self.optimizer.factored.items())

    @property
    def ranks(self):
        """{layer name: rank}"""
        return {name: layer.rank for name, (layer, _) in self.optimizer.factored.items()}

    def state_dict(self):
        """({}, numbers) for `load_state_dict`."""
        return {}, {"max_bytes": self.max_bytes, "rng": self._rng.bit_generator.state,
                    "votes": {name: asdict(votes) for name, votes in self._votes.items()}}

    def load_state_dict(self, arrays, numbers):
        """Goes on from there. Raises ValueError for votes of other layers."""
        if numbers["votes"].keys() != self._votes.keys():
            raise ValueError(f"adapt_ranks: expected votes of {sorted(self._votes)}, got those of {sorted(numbers['votes'])}")
        check_numbers("adapt_ranks", numbers, ("max_bytes",))
        for name, votes in numbers["votes"].items():
            if any(type(n) is not int or abs(n) > MOST_VOTES for n in votes.values()):
                raise ValueError(f"adapt_ranks: votes of {name}: expected small whole numbers, got {votes!r}")
        self.max_bytes = numbers["max_bytes"]
        self._rng.bit_generator.state = numbers["rng"]
        self._votes = {name: _Votes(**votes) for name, votes in numbers["votes"].items()}

    def update(self):
        """Lets every layer vote and makes the changes; returns {layer name: new rank} of those that changed.

        A layer whose new directions have not been moved by a step yet does not vote.
        """
        a, changed, growing = self.adaptation, {}, []
        for name, (layer, state) in self.optimizer.factored.items():
            if state.n_new:
                continue
            share = explained_variance(layer.R.data)
            K = layer.rank
            smallest = int(np.argmax(share >= a.shrink)) + 1
            before_last = share[K - 2] if K > 1 else 0.0
            vote = -1 if smallest < K else 1 if before_last < a.grow else 0
            if not self._votes[name].count(vote, a.patience):
                continue
            if vote < 0:
                self.optimizer.shrink(name, smallest)
                self._votes[name].change()
                changed[name] = smallest
            else:
                growing.append((before_last, name))
        for _, name in sorted(growing):
            layer, _ = self.optimizer.factored[name]
            O, I, K = layer.out_features, layer.in_features, layer.rank
            room = (self.max_bytes - self.factor_bytes) // self.optimizer.bytes_per_rank(name)
            n_new = min(a.n_new, min(O, I) - K, room)
            if n_new > 0:
                self.optimizer.grow(name, self._rng.standard_normal((O, n_new)))
                self._votes[name].change()
                changed[name] = K + n_new
        return changed


def explained_variance(R):
    """e(k) for k = 1..K: the share of |R|^2 in R's k largest singular values; with an orthonormal L, that of L R.

    >>> explained_variance(np.diag([2.0, 1.0])).tolist()
    [0.8, 1.0]
    """
    squares = linalg.truncated_svd(R)[1].astype(np.float64) ** 2
    total = np.cumsum(squares)
    return total / total[-1] if total[-1] > 0 else np.ones(len(squares))
