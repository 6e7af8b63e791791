"""A plain PyTorch Llama with our parameter names: the oracle of tests and the rival of benchmarks."""

import torch
import torch.nn.functional as F
from torch import nn


class RMSNorm(nn.Module):
    def __init__(self, C, eps):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(C))
        self.eps = eps

    def forward(self, x):
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


def rotate(x, cosines, sines):
    """x (B, H, N, D), Hugging Face's rotate-half."""
    a, b = x.chunk(2, -1)
    cosines, sines = torch.cat([cosines, cosines], -1), torch.cat([sines, sines], -1)
    return x * cosines + torch.cat([-b, a], -1) * sines


class Attention(nn.Module):
    def __init__(self, c):
        super().__init__()
        C, D = c.embed_dim, c.head_dim
        self.c = c
        self.q_proj = nn.Linear(C, c.num_heads * D, bias=False)
        self.k_proj = nn.Linear(C, c.num_kv_heads * D, bias=False)
        self.v_proj = nn.Linear(C, c.num_kv_heads * D, bias=False)
        self.o_proj = nn.Linear(c.num_heads * D, C, bias=False)

    def forward(self, x, cosines, sines):
        B, N, _ = x.shape
        q, k, v = (proj(x).reshape(B, N, heads, -1).transpose(1, 2)
                   for proj, heads in ((self.q_proj, self.c.num_heads), (self.k_proj, self.c.num_kv_heads),
                                       (self.v_proj, self.c.num_kv_heads)))
        q, k = rotate(q, cosines, sines), rotate(k, cosines, sines)
        o = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return self.o_proj(o.transpose(1, 2).reshape(B, N, -1))


class Mlp(nn.Module):
    def __init__(self, C, hidden):
        super().__init__()
        self.gate_proj = nn.Linear(C, hidden, bias=False)
        self.up_proj = nn.Linear(C, hidden, bias=False)
        self.down_proj = nn.Linear(hidden, C, bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.norm1 = RMSNorm(c.embed_dim, c.norm_eps)
        self.attn = Attention(c)
        self.norm2 = RMSNorm(c.embed_dim, c.norm_eps)
        self.mlp = Mlp(c.embed_dim, c.hidden_dim)

    def forward(self, x, cosines, sines):
        x = x + self.attn(self.norm1(x), cosines, sines)
        return x + self.mlp(self.norm2(x))


class Llama(nn.Module):
    """config: a LlamaConfig. forward(tokens, lengths): lengths (B,) where it classifies."""

    def __init__(self, config):
        super().__init__()
        c = self.c = config
        self.embed = nn.Embedding(c.vocab_size, c.embed_dim)
        self.blocks = nn.ModuleList(Block(c) for _ in range(c.depth))
        self.norm = RMSNorm(c.embed_dim, c.norm_eps)
        self.head = None if c.tied else nn.Linear(c.embed_dim, c.num_classes or c.vocab_size, bias=False)

    def forward(self, tokens, lengths=None):
        x = self.embed(tokens)
        D = self.c.head_dim
        rates = self.c.rope_theta ** (-torch.arange(0, D, 2, dtype=torch.float64) / D)
        angles = torch.arange(tokens.shape[1], dtype=torch.float64)[:, None] * rates
        cosines, sines = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
        for block in self.blocks:
            x = block(x, cosines, sines)
        if self.c.num_classes is not None:
            x = x[torch.arange(len(x)), lengths - 1]
        y = self.norm(x)
        return y @ self.embed.weight.T if self.head is None else self.head(y)
