"""From images to tokens: B images of C channels and S x S pixels, p x p patches, g = S / p patches a side."""

from wasi import _core


def extract_patches(images, patch, mean=None, std=None, out=None):
    """Cuts images (B, C, S, S) into rows (B, g g, C p p), in the order of a flattened convolution kernel.

    float32 images are taken as they are; uint8 images become (x / 255 - mean[c]) / std[c].
    Raises ValueError where S is not a multiple of `patch`.
    """
    return _core.extract_patches(images, patch, mean, std, out)


def fold_patches(patches, patch, channels=3):
    """The transpose of `extract_patches`: rows (B, g g, C p p) back to images (B, C, S, S)."""
    return _core.fold_patches(patches, patch, channels)


def assemble_tokens(rows, cls, pos):
    """Tokens (B, N, C): the class token, if any, before the embedded patches, plus positions.

    Parameters: rows (B, P, C), cls (1, 1, C) or None, pos (1, N, C) with N = P, plus 1 for a class token.
    """
    return _core.assemble_tokens(rows, cls, pos)


def assemble_tokens_backward(dtokens, dcls=None, dpos=None, n_cls=1):
    """Gradients of `assemble_tokens`: returns drows (B, P, C).

    Adds the sums over the batch to dcls (1, 1, C) and dpos (1, N, C), each where given.
    n_cls: class tokens, 0 or 1.
    """
    return _core.assemble_tokens_backward(dtokens, dcls, dpos, n_cls)


def merge_patches(x):
    """Neighbours side by side: x (B, H, W, C) -> (B, H/2, W/2, 4C), y[b, i, j, (2v + u) C + c] = x[b, 2i + u, 2j + v, c].

    Raises ValueError where H or W is odd.
    """
    return _core.merge_patches(x)


def merge_patches_backward(dy):
    """The gradient of `merge_patches`, and its inverse: (B, H/2, W/2, 4C) -> (B, H, W, C)."""
    return _core.merge_patches_backward(dy)
