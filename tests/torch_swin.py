"""A plain PyTorch Swin transformer (arXiv 2103.14030) with timm's parameter names: oracle of tests, rival of benchmarks.

Every step as the paper has it: windows are cut out of the rolled tokens (B, H, W, C) and put back, a mask keeps apart what was
rolled around the border. Exact GELU; LayerNorm eps 1e-5; the head takes the mean token. Input: normalised images (B, 3, S, S).
"""

import re

import torch
import torch.nn.functional as F
from torch import nn

SIZES = {"tiny": (96, (2, 2, 6, 2), (3, 6, 12, 24)), "small": (96, (2, 2, 18, 2), (3, 6, 12, 24)),
         "base": (128, (2, 2, 18, 2), (4, 8, 16, 32))}  # C, depths, heads


def cut(x, M):
    """The windows (B n, M * M, C) of x (B, H, W, C)."""
    B, H, W, C = x.shape
    return x.view(B, H // M, M, W // M, M, C).permute(0, 1, 3, 2, 4, 5).reshape(-1, M * M, C)


def put_back(x, M, H, W):
    """(B, H, W, C) of its windows."""
    x = x.view(-1, H // M, W // M, M, M, x.shape[-1])
    return x.permute(0, 1, 3, 2, 4, 5).reshape(-1, H, W, x.shape[-1])


class WindowAttention(nn.Module):
    def __init__(self, C, H, M):
        super().__init__()
        self.H, self.M = H, M
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * M - 1) ** 2, H))
        self.qkv = nn.Linear(C, 3 * C)
        self.proj = nn.Linear(C, C)
        place = torch.stack(torch.meshgrid(torch.arange(M), torch.arange(M), indexing="ij")).flatten(1)
        apart = place[:, :, None] - place[:, None] + M - 1  # 2, N, N
        self.register_buffer("index", apart[0] * (2 * M - 1) + apart[1], persistent=False)
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)

    def forward(self, x, mask):
        """x (B n, N, C), mask (n, N, N) or None."""
        B, N, C = x.shape
        q, k, v = self.qkv(x).reshape(B, N, 3, self.H, C // self.H).permute(2, 0, 3, 1, 4)
        bias = self.relative_position_bias_table[self.index].permute(2, 0, 1)  # H, N, N
        if mask is not None:
            bias = (bias + mask[:, None]).repeat(B // len(mask), 1, 1, 1)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return self.proj(y.transpose(1, 2).reshape(B, N, C))


class Mlp(nn.Module):
    def __init__(self, C):
        super().__init__()
        self.fc1 = nn.Linear(C, 4 * C)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(4 * C, C)

    def forward(self, x):
        return self.fc2(self.act(self.fc1(x)))


class Block(nn.Module):
    def __init__(self, C, H, grid, window, shift):
        super().__init__()
        self.window, self.shift = window, shift
        self.norm1 = nn.LayerNorm(C)
        self.attn = WindowAttention(C, H, window)
        self.norm2 = nn.LayerNorm(C)
        self.mlp = Mlp(C)
        mask = None
        if shift:
            part = torch.zeros(1, grid, grid, 1)
            edges = [slice(0, -window), slice(-window, -shift), slice(-shift, None)]
            for i, rows in enumerate(edges):
                for j, columns in enumerate(edges):
                    part[:, rows, columns] = 3 * i + j
            part = cut(part, window)[:, :, 0]
            mask = torch.where(part[:, None] == part[:, :, None], 0.0, -100.0)
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, x):
        H, W, s = *x.shape[1:3], self.shift
        y = self.norm1(x)
        y = cut(torch.roll(y, (-s, -s), (1, 2)) if s else y, self.window)
        y = put_back(self.attn(y, self.mask), self.window, H, W)
        x = x + (torch.roll(y, (s, s), (1, 2)) if s else y)
        return x + self.mlp(self.norm2(x))


class PatchMerging(nn.Module):
    def __init__(self, C):
        super().__init__()
        self.norm = nn.LayerNorm(4 * C)
        self.reduction = nn.Linear(4 * C, 2 * C, bias=False)

    def forward(self, x):
        x = torch.cat([x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]], -1)
        return self.reduction(self.norm(x))


class Stage(nn.Module):
    def __init__(self, downsample, blocks):
        super().__init__()
        self.downsample = downsample
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x):
        x = self.downsample(x)
        for block in self.blocks:
            x = block(x)
        return x


class PatchEmbed(nn.Module):
    def __init__(self, C, patch):
        super().__init__()
        self.proj = nn.Conv2d(3, C, patch, stride=patch)
        self.norm = nn.LayerNorm(C)

    def forward(self, x):
        return self.norm(self.proj(x).permute(0, 2, 3, 1))  # B, H, W, C


class Head(nn.Module):
    def __init__(self, C, num_classes):
        super().__init__()
        self.fc = nn.Linear(C, num_classes)

    def forward(self, x):
        return self.fc(x.mean((1, 2)))


class Swin(nn.Module):
    def __init__(self, C, depths, heads, patch=4, window=7, img_size=224, num_classes=1000):
        super().__init__()
        stages, grid = [], img_size // patch
        for s, (depth, H) in enumerate(zip(depths, heads)):
            M = min(window, grid)
            blocks = [Block(C << s, H, grid, M, M // 2 if i % 2 and M < grid else 0) for i in range(depth)]
            stages.append(Stage(PatchMerging(C << (s - 1)) if s else nn.Identity(), blocks))
            grid //= 2
        self.patch_embed = PatchEmbed(C, patch)
        self.layers = nn.ModuleList(stages)
        self.norm = nn.LayerNorm(C << s)
        self.head = Head(C << s, num_classes)

    def forward(self, x):
        x = self.patch_embed(x)
        for stage in self.layers:
            x = stage(x)
        return self.head(self.norm(x))


def create_swin(name, img_size=None, num_classes=1000, window_size=7):
    """A randomly initialised Swin transformer from a timm name, swin_{tiny,small,base}_patch4_window7_224; the rest replaces."""
    match = re.fullmatch(rf"swin_({'|'.join(SIZES)})_patch4_window7_224", name)
    if not match:
        raise ValueError(f"name: expected swin_{{tiny,small,base}}_patch4_window7_224, got {name!r}")
    return Swin(*SIZES[match[1]], window=window_size, img_size=img_size or 224, num_classes=num_classes)
