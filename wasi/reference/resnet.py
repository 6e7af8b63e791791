"""A residual network of basic blocks and its loss in plain NumPy, in whatever float type the parameters have."""

import numpy as np

from wasi.reference.conv import batch_norm_forward, batch_norm_statistics, conv_forward, max_pool_forward
from wasi.reference.loss import cross_entropy
from wasi.reference.vit import linear


def conv(p, name, x, kernel, stride):
    """A convolution of the parameters p, dense (O, k k C) or factored, padded so that the grid only shrinks by the stride."""
    weight = p[f"{name}.L"] @ p[f"{name}.R"] if f"{name}.L" in p else p[f"{name}.weight"]
    return conv_forward(x, weight, kernel, stride, kernel // 2)


def norm(p, name, x, training, eps):
    """A batch norm of the parameters p."""
    mean, var = batch_norm_statistics(x) if training else (p[f"{name}.running_mean"], p[f"{name}.running_var"])
    return batch_norm_forward(x, mean, 1 / np.sqrt(var + eps), p[f"{name}.weight"], p[f"{name}.bias"])


def resnet_logits(p, images, depths, training=False, eps=1e-5):
    """Logits of normalised images (B, 3, S, S) under the parameters p, {torchvision's name: array}."""
    x = norm(p, "bn1", conv(p, "conv1", images.transpose(0, 2, 3, 1), 7, 2), training, eps)
    x, _ = max_pool_forward(np.maximum(x, 0), 3, 2, 1)
    for stage, depth in enumerate(depths):
        for i in range(depth):
            b, stride = f"layer{stage + 1}.{i}", 2 if stage and i == 0 else 1
            h = np.maximum(norm(p, f"{b}.bn1", conv(p, f"{b}.conv1", x, 3, stride), training, eps), 0)
            h = norm(p, f"{b}.bn2", conv(p, f"{b}.conv2", h, 3, 1), training, eps)
            if f"{b}.downsample.1.weight" in p:
                x = norm(p, f"{b}.downsample.1", conv(p, f"{b}.downsample.0", x, 1, stride), training, eps)
            x = np.maximum(h + x, 0)
    return linear(p, "fc", x.mean((1, 2)))


def resnet_loss(p, images, labels, label_smoothing=0.0, **shape):
    """Mean cross-entropy of `resnet_logits`, in training."""
    return cross_entropy(resnet_logits(p, images, training=True, **shape), labels, label_smoothing)[0]
