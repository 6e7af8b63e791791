"""Central finite differences in float64."""

import numpy as np


def directional_check(loss, arguments, gradients, rng, n_directions=4, step=1e-6):
    """Largest relative error of <gradient, v> against (loss(x + h v) - loss(x - h v)) / 2h over random directions.

    loss: function of the list of float64 arrays; gradients: one array per argument (None: skipped).
    """
    worst = 0.0
    for i, gradient in enumerate(gradients):
        if gradient is None:
            continue
        for _ in range(n_directions):
            v = rng.standard_normal(arguments[i].shape)
            v /= np.linalg.norm(v)
            up, down = list(arguments), list(arguments)
            up[i], down[i] = arguments[i] + step * v, arguments[i] - step * v
            numeric = (loss(up) - loss(down)) / (2 * step)
            analytic = float(np.vdot(np.asarray(gradient, np.float64), v))
            scale = max(abs(numeric), np.linalg.norm(gradient) / np.sqrt(max(v.size, 1)), 1e-12)
            worst = max(worst, abs(numeric - analytic) / scale)
    return worst
