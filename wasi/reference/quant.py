"""Quantised weights and their integer products: the NumPy twin of csrc/kernels/quantize.c and qgemm.c."""

import numpy as np

LEVELS = np.array([-1.0, -0.79, -0.625, -0.489, -0.372, -0.266, -0.167, -0.073,
                   0.016, 0.102, 0.189, 0.279, 0.381, 0.501, 0.65, 0.865])
_PLAIN = np.rint(127 * 2.0 ** (-np.arange(64) / 16)[:, None] * LEVELS)
TABLE = np.concatenate([_PLAIN, -_PLAIN]).astype(np.int8)  # (128, 16): s, code -> q


def quantize(W, bits=4, group=32):
    """(q, s, r, c), W ~ r[:, None] * c * q: q (O, I) int8, s (O, groups) rows of TABLE (None with 8 bits)."""
    O, I = W.shape
    c = np.sqrt(np.sqrt((W * W).mean(0)))
    v = np.divide(W, c, out=np.zeros_like(W), where=c > 0)
    r = np.abs(v).max(1) / (127 * 2**-0.25 if bits == 4 else 127)
    z = np.divide(v, r[:, None], out=np.zeros_like(W), where=r[:, None] > 0)
    if bits == 8:
        return np.rint(z).astype(np.int8), None, r, c
    q, s = np.empty((O, I), np.int8), np.empty((O, -(-I // group)), np.uint8)
    for o in range(O):
        for g in range(s.shape[1]):
            part = slice(g * group, (g + 1) * group)
            s[o, g], q[o, part] = quantize_group(z[o, part], c[part])
    return q, s, r, c


def quantize_group(z, c):
    """The shape of least squared error of c * z for one group, and the levels nearest to z in it."""
    first = int(16 * np.log2(127 / max(np.abs(z).max(), 1))) - 5
    first = min(max(first, 0), 55)
    best = None
    for s in [*range(first, first + 9), *range(64 + first, 64 + first + 9)]:
        sign = 1 if s < 64 else -1
        levels = TABLE[s].astype(float)
        q = levels[np.searchsorted(sign * (levels[1:] + levels[:-1]) / 2, sign * z)]
        error = (c * c * (z - q) ** 2).sum()
        if best is None or error < best[0]:
            best = error, s, q
    return best[1], best[2]


def unpack(codes, s, I, group):
    """q (O, I) int8 from the packed arrays."""
    if s is None:
        return codes[:, :I].view(np.int8)
    blocks = codes.reshape(len(codes), -1, 16)
    index = np.concatenate([blocks & 15, blocks >> 4], axis=2).reshape(len(codes), -1)[:, :I]
    return TABLE[np.repeat(s, group, axis=1)[:, :I], index]


def quantize_tokens(v):
    """(u, z, t), v ~ t[:, None] * (u - z[:, None]): u in 0..255 from each row's least to its largest value or 0."""
    low, high = np.minimum(v.min(1), 0), np.maximum(v.max(1), 0)
    t = (high - low) / 255
    inverse = np.divide(1, t, out=np.zeros_like(t), where=t > 0)
    z = np.rint(-low * inverse)
    u = np.minimum(np.floor(v * inverse[:, None] + z[:, None] + 0.5), 255)
    return u.astype(np.int64), z.astype(np.int64), t


def forward(x, q, r, c):
    """y = x Q' with Q = r[:, None] * c * q and activations of 8 bits; sums are exact integers."""
    u, z, t = quantize_tokens(x * c)
    return (u - z[:, None]) @ q.T.astype(np.int64) * t[:, None] * r


def backward(dy, q, r, c):
    """dx = dy Q in the same way."""
    return forward(dy, q.T, c, r)
