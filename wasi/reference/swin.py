"""The forward pass of a Swin transformer and its loss in plain NumPy, in whatever float type the parameters have."""

import numpy as np

from wasi.reference.activation import gelu
from wasi.reference.attention import attention_forward, images_of, seam_mask, unpack, windows_of
from wasi.reference.embed import extract_patches, merge_patches
from wasi.reference.loss import cross_entropy
from wasi.reference.vit import linear, norm


def relative_bias(table, window):
    """(H, N, N) of a table ((2 M - 1)^2, H): for each pair of tokens the row of their distance."""
    places = [(y, x) for y in range(window) for x in range(window)]
    rows = [[(yi - yj + window - 1) * (2 * window - 1) + xi - xj + window - 1 for yj, xj in places] for yi, xi in places]
    return table[np.array(rows)].transpose(2, 0, 1)


def swin_logits(p, images, patch, depths, n_heads, window, eps=1e-5):
    """Logits of normalised images (B, 3, S, S) under the parameters p, {timm name: array}; factored layers have .L and .R."""
    B, _, S, _ = images.shape
    grid = S // patch
    x = linear(p, "patch_embed.proj", extract_patches(images, patch))
    x = norm(p, "patch_embed.norm", x.reshape(B, grid, grid, -1), eps)
    for s, (depth, heads) in enumerate(zip(depths, n_heads)):
        if s:
            x = linear(p, f"layers.{s}.downsample.reduction", norm(p, f"layers.{s}.downsample.norm", merge_patches(x), eps))
        grid = x.shape[1]
        M = min(window, grid)
        for i in range(depth):
            b = f"layers.{s}.blocks.{i}"
            shift = M // 2 if i % 2 and M < grid else 0
            qkv = windows_of(linear(p, f"{b}.attn.qkv", norm(p, f"{b}.norm1", x, eps)), M, shift)
            bias = relative_bias(p[f"{b}.attn.relative_position_bias_table"], M)
            o, _ = attention_forward(*unpack(qkv, heads), bias=bias, mask=seam_mask(grid, grid, M, shift))
            x = x + linear(p, f"{b}.attn.proj", images_of(o.reshape(len(o), M * M, -1), grid, grid, shift))
            x = x + linear(p, f"{b}.mlp.fc2", gelu(linear(p, f"{b}.mlp.fc1", norm(p, f"{b}.norm2", x, eps))))
    return linear(p, "head.fc", norm(p, "norm", x, eps).mean((1, 2)))


def swin_loss(p, images, labels, label_smoothing=0.0, **shape):
    """Mean cross-entropy of `swin_logits`."""
    return cross_entropy(swin_logits(p, images, **shape), labels, label_smoothing)[0]
