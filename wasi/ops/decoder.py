"""What a decoder needs besides: rows of a table by token id, and rotary positions."""

from wasi import _core


def embedding(tokens, table, out=None):
    """Rows of `table` (V, C) by token id: tokens (...) int64 -> (..., C).

    Raises ValueError naming the first id outside 0 to V - 1; TypeError or ValueError for arrays that do not fit.

    >>> import numpy as np
    >>> embedding(np.array([2, 0]), np.arange(6, dtype=np.float32).reshape(3, 2)).tolist()
    [[4.0, 5.0], [0.0, 1.0]]
    """
    return _core.embedding_forward(tokens, table, out)


def embedding_backward(dy, tokens, dtable):
    """Adds the gradient of `embedding` to dtable (V, C): each row of dy (..., C) to the row of its token."""
    _core.embedding_backward(dy, tokens, dtable)


def rope(x, cosines, sines, start=0, back=False):
    """Rotary position embedding, in place: turns numbers d and D/2 + d of each head by the angle of the position.

    Parameters: x (B, N, H, D), D even, is overwritten; cosines, sines (positions, D/2) of the angles; start: the position of
    x[:, 0]; back: turn the other way, which is the transpose that backward needs.
    Returns x. Raises ValueError where start + N passes the tables' end.

    Source: RoFormer (arXiv 2104.09864), in the order of Hugging Face's Llama.
    """
    return _core.rope(x, cosines, sines, start, back)
