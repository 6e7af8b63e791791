"""Images to tokens: the NumPy twins of csrc/kernels/patch_embed.c."""

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
