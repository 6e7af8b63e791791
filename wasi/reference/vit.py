"""The forward pass of a ViT and its loss in plain NumPy, in whatever float type the parameters have."""

import numpy as np

from wasi.reference.activation import gelu
from wasi.reference.attention import attention_forward, unpack
from wasi.reference.embed import extract_patches
from wasi.reference.loss import cross_entropy
from wasi.reference.norm import layer_norm


def linear(p, name, x):
    """A linear of the parameters p, dense or factored, with a bias if there is one."""
    weight = p[f"{name}.L"] @ p[f"{name}.R"] if f"{name}.L" in p else p[f"{name}.weight"]
    return x @ weight.T + p.get(f"{name}.bias", 0)


def norm(p, name, x, eps):
    """A LayerNorm of the parameters p."""
    return layer_norm(x, p[f"{name}.weight"], p[f"{name}.bias"], eps)[0]


def vit_logits(p, images, patch, depth, n_heads, eps=1e-6):
    """Logits of normalised images (B, 3, S, S) under the parameters p, {timm name: array}; factored layers have .L and .R."""
    B = len(images)
    x = linear(p, "patch_embed.proj", extract_patches(images, patch))
    x = np.concatenate([np.repeat(p["cls_token"], B, 0), x], 1) + p["pos_embed"]
    for i in range(depth):
        b = f"blocks.{i}"
        qkv = linear(p, f"{b}.attn.qkv", norm(p, f"{b}.norm1", x, eps))
        o, _ = attention_forward(*unpack(qkv, n_heads))
        x = x + linear(p, f"{b}.attn.proj", o.reshape(x.shape))
        h = linear(p, f"{b}.mlp.fc1", norm(p, f"{b}.norm2", x, eps))
        x = x + linear(p, f"{b}.mlp.fc2", gelu(h))
    return linear(p, "head", norm(p, "norm", x[:, 0], eps))


def vit_loss(p, images, labels, label_smoothing=0.0, **shape):
    """Mean cross-entropy of `vit_logits`."""
    return cross_entropy(vit_logits(p, images, **shape), labels, label_smoothing)[0]
