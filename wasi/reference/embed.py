"""Images to tokens: the NumPy twins of csrc/kernels/patch_embed.c and patch_merge.c."""

import numpy as np


def extract_patches(images, patch):
    """(B, C, S, S) -> (B, g g, C p p)."""
    B, C, S, _ = images.shape
    g = S // patch
    return images.reshape(B, C, g, patch, g, patch).transpose(0, 2, 4, 1, 3, 5).reshape(B, g * g, -1)


def assemble_tokens(rows, cls, pos):
    """Class token (or None) before the rows, plus positions."""
    tokens = rows if cls is None else np.concatenate([np.repeat(cls, len(rows), 0), rows], 1)
    return tokens + pos


def assemble_tokens_backward(dtokens, n_cls):
    """(drows, dcls, dpos)."""
    total = dtokens.sum(0, keepdims=True)
    return dtokens[:, n_cls:], total[:, :n_cls], total


def merge_patches(x):
    """(B, H, W, C) -> (B, H/2, W/2, 4C)."""
    B, H, W, C = x.shape
    return x.reshape(B, H // 2, 2, W // 2, 2, C).transpose(0, 1, 3, 4, 2, 5).reshape(B, H // 2, W // 2, 4 * C)
