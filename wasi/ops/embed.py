"""From images to tokens. B images of C channels and S x S pixels, patches of p x p, g = S / p patches a side."""

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
    """Tokens (B, N, C): the class token `cls` (1, 1, C), or None, before the embedded patches `rows` (B, P, C), plus `pos` (1, N, C)."""
    return _core.assemble_tokens(rows, cls, pos)


def assemble_tokens_backward(dtokens, dcls=None, dpos=None, n_cls=1):
    """Gradients of `assemble_tokens`: returns drows (B, P, C); adds sums over the batch to dcls and dpos, each where given."""
    return _core.assemble_tokens_backward(dtokens, dcls, dpos, n_cls)
