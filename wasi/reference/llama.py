"""The forward pass of a Llama decoder in plain NumPy, in whatever float type the parameters have."""

import numpy as np

from wasi.reference.activation import swiglu
from wasi.reference.attention import attention_forward
from wasi.reference.decoder import rope
from wasi.reference.loss import cross_entropy
from wasi.reference.norm import rms_norm


def _linear(p, name, x):
    weight = p[f"{name}.L"] @ p[f"{name}.R"] if f"{name}.L" in p else p[f"{name}.weight"]
    return x @ weight.T


def rope_interleaved(x, cosines, sines):
    """`rope` for models whose pairs are the neighbours 2 d and 2 d + 1 of a head."""
    order = np.concatenate([np.arange(0, x.shape[3], 2), np.arange(1, x.shape[3], 2)])
    turned = np.empty_like(x)
    turned[..., order] = rope(x[..., order], cosines, sines)
    return turned


def llama_logits(p, tokens, depth, n_heads, n_kv_heads, eps=1e-5, theta=10000.0, interleaved=False):
    """Logits (B, N, V) of tokens (B, N) under the parameters p, {name: array}; tied without head.weight; factors as .L and .R."""
    B, N = tokens.shape
    x = p["embed.weight"][tokens]
    D = p["blocks.0.attn.q_proj.weight"].shape[0] // n_heads if "blocks.0.attn.q_proj.weight" in p else \
        len(p["blocks.0.attn.q_proj.L"]) // n_heads
    angles = np.arange(N)[:, None] * theta ** (-np.arange(0, D, 2) / D)
    cosines, sines = np.cos(angles).astype(x.dtype), np.sin(angles).astype(x.dtype)
    turn = rope_interleaved if interleaved else rope
    for i in range(depth):
        b = f"blocks.{i}"
        h, _ = rms_norm(x, p[f"{b}.norm1.weight"], eps)
        q, k, v = (_linear(p, f"{b}.attn.{part}_proj", h).reshape(B, N, heads, D)
                   for part, heads in (("q", n_heads), ("k", n_kv_heads), ("v", n_kv_heads)))
        o, _ = attention_forward(turn(q, cosines, sines), turn(k, cosines, sines), v, causal=True)
        x = x + _linear(p, f"{b}.attn.o_proj", o.reshape(B, N, -1))
        h, _ = rms_norm(x, p[f"{b}.norm2.weight"], eps)
        x = x + _linear(p, f"{b}.mlp.down_proj", swiglu(_linear(p, f"{b}.mlp.gate_proj", h), _linear(p, f"{b}.mlp.up_proj", h)))
    y, _ = rms_norm(x, p["norm.weight"], eps)
    return y @ p.get("head.weight", p["embed.weight"]).T


def llama_loss(p, tokens, targets, **shape):
    """Mean cross-entropy of `llama_logits` against the next tokens (B, N)."""
    logits = llama_logits(p, tokens, **shape)
    return cross_entropy(logits.reshape(-1, logits.shape[-1]), targets.reshape(-1))[0]
