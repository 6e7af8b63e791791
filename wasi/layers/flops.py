"""FLOPs of a layer from its sizes: products of matrices, an addition and a multiplication counted as one each.

Elementwise passes (activations, norms, softmax, plain optimiser updates) are left out; integer products count as those of floats.
B batch, N tokens, M = rows (B N), O / I out / in features, K rank, C channels.
"""

import itertools
import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Flops:
    """FLOPs of one training step."""

    forward: int = 0  # also an inference's
    backward: int = 0  # what training adds to it: gradients, recomputation, compression of what is kept
    update: int = 0  # the optimiser's, once a step

    def __add__(self, other):
        return Flops(self.forward + other.forward, self.backward + other.backward, self.update + other.update)

    @property
    def total(self):
        return self.forward + self.backward + self.update


def batch_flops(of_pass, batch_size, micro_batch=None):
    """The Flops of a training step on a batch. of_pass(n): those of n samples at once; micro_batch None: the whole batch."""
    n, rest = divmod(batch_size, micro_batch or batch_size)
    parts = [of_pass(micro_batch or batch_size)] * n + ([of_pass(rest)] if rest else [])
    return Flops(sum(p.forward for p in parts), sum(p.backward for p in parts), parts[0].update)


def attention_flops(B, N, C):
    """Scores and weighted sum forward; those of scores again, dP, dV, dQ, dK backward, as the tiled kernel does."""
    return Flops(4 * B * N * N * C, 10 * B * N * N * C)


def wsi_update_flops(O, I, K, rule="sgd"):
    """The norm and the step of csrc/kernels/wsi.c: tall products with K x K matrices; the K x K algebra is left out."""
    for_I, for_O = {"sgd": (13, 15), "momentum": (25, 25), "adamw": (27, 31)}[rule]
    return K * K * (for_I * I + for_O * O)


def orth_flops(O, K):
    """Two passes of Gram matrix and triangular division."""
    return 4 * O * K * K


def svd_flops(O, I):
    """The thin SVD with both sets of vectors, by the count of Golub and Van Loan (4th ed., figure 8.6.1) for the R-SVD."""
    m, n = max(O, I), min(O, I)
    return 6 * m * n * n + 20 * n**3


def asi_flops(shape, ranks):
    """One warm subspace iteration a mode, sequentially truncated in the cheapest order; modes of full rank cost nothing."""
    def of_order(order):
        total, size = 0, math.prod(shape)
        for n in order:
            d, K = shape[n], ranks[n]
            by_gram = size * d + 6 * d * d * K  # the symmetric Gram matrix, three iterations on it
            total += min(4 * size * K, by_gram) + orth_flops(d, K) + 2 * size * K
            size = size // d * K
        return total

    return min(map(of_order, itertools.permutations(n for n, (d, K) in enumerate(zip(shape, ranks)) if K < d)))


def hosvd_flops(shape, ranks):
    """The sequentially truncated decomposition by eigenvectors of Gram matrices, the smallest rank first."""
    total, size = 0, math.prod(shape)
    for n in sorted(range(len(shape)), key=lambda n: ranks[n]):
        d, K = shape[n], ranks[n]
        if K < d:
            total += size * d + 9 * d**3 + 2 * size * K
            size = size // d * K
    return total


def tucker_gradient_flops(shape, ranks, G):
    """dW (G x d_N) from a Tucker form of the input and g (d_1 x ... x G), by the cheapest order of contractions."""
    *dims, d = shape
    *cut_to, K = ranks
    modes = [n for n in range(len(dims)) if cut_to[n] < dims[n]]
    best = math.inf
    for order in itertools.permutations(modes):
        for grows in itertools.product((False, True), repeat=len(order)):
            total, g, S = 0, list(dims), list(cut_to)
            for n, grow in zip(order, grows):
                if grow:
                    total += 2 * math.prod(S) * K * dims[n]
                    S[n] = dims[n]
                else:
                    total += 2 * math.prod(g) * G * cut_to[n]
                    g[n] = cut_to[n]
            rows = math.prod(g)
            by_core = 2 * rows * G * K + (2 * G * K * d if K < d else 0)
            best = min(best, total + min(by_core, 2 * rows * K * d + 2 * rows * G * d))
    return best
