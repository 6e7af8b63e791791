"""The forward pass of a ViT and its loss in plain NumPy, in whatever float type the parameters have."""

import numpy as np

from wasi.reference.activation import gelu
from wasi.reference.attention import attention_forward, unpack
from wasi.reference.loss import cross_entropy
from wasi.reference.norm import layer_norm


def _linear(p, name, x):
    weight = p[f"{name}.L"] @ p[f"{name}.R"] if f"{name}.L" in p else p[f"{name}.weight"]
    return x @ weight.T + p[f"{name}.bias"]


def _norm(p, name, x, eps):
    return layer_norm(x, p[f"{name}.weight"], p[f"{name}.bias"], eps)[0]


def vit_logits(p, images, patch, depth, n_heads, eps=1e-6):
    """Logits of normalised images (B, 3, S, S) under the parameters p, {timm name: array}; factored layers have .L and .R."""
    B, _, S, _ = images.shape
    g = S // patch
    x = images.reshape(B, 3, g, patch, g, patch).transpose(0, 2, 4, 1, 3, 5).reshape(B, g * g, -1)
    x = _linear(p, "patch_embed.proj", x)
    x = np.concatenate([np.repeat(p["cls_token"], B, 0), x], 1) + p["pos_embed"]
    for i in range(depth):
        b = f"blocks.{i}"
        qkv = _linear(p, f"{b}.attn.qkv", _norm(p, f"{b}.norm1", x, eps))
        o, _ = attention_forward(*unpack(qkv, n_heads))
        x = x + _linear(p, f"{b}.attn.proj", o.reshape(x.shape))
        h = _linear(p, f"{b}.mlp.fc1", _norm(p, f"{b}.norm2", x, eps))
        x = x + _linear(p, f"{b}.mlp.fc2", gelu(h))
    return _linear(p, "head", _norm(p, "norm", x[:, 0], eps))


def vit_loss(p, images, labels, label_smoothing=0.0, **shape):
    """Mean cross-entropy of `vit_logits`."""
    return cross_entropy(vit_logits(p, images, **shape), labels, label_smoothing)[0]
