"""SGD and AdamW: the NumPy twins of csrc/kernels/optim.c. They return new arrays."""

import numpy as np


def sgd_update(param, grad, buffer, lr, momentum=0.0, weight_decay=0.0, nesterov=False, grad_scale=1.0):
    """(param, buffer) after one step."""
    g = grad_scale * grad + weight_decay * param
    if buffer is None:
        return param - lr * g, None
    buffer = momentum * buffer + g
    return param - lr * (g + momentum * buffer if nesterov else buffer), buffer


def adamw_update(param, grad, m, v, lr, beta1, beta2, eps, weight_decay, step, grad_scale=1.0):
    """(param, m, v) after one step."""
    g = grad_scale * grad
    m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g * g
    m_hat, v_hat = m / (1 - beta1**step), v / (1 - beta2**step)
    return param * (1 - lr * weight_decay) - lr * m_hat / (np.sqrt(v_hat) + eps), m, v
