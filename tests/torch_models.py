"""A plain PyTorch vision transformer with timm's parameter names: the oracle of tests and the rival of benchmarks.

Pre-norm blocks, x = x + attention(norm1(x)), x = x + mlp(norm2(x)); exact GELU; LayerNorm eps 1e-6; the class token
feeds the head. Input: float32 images (B, 3, S, S), scaled by `preprocess`.
"""

import math
import re

import numpy as np
import torch
import torch.nn.functional as F
import torch_resnet
from safetensors.torch import load_file
from torch import nn
from torch_swin import Mlp, create_swin

SIZES = {"tiny": (192, 12, 3), "small": (384, 12, 6), "base": (768, 12, 12)}  # C, depth, H


class Attention(nn.Module):
    def __init__(self, C, H):
        super().__init__()
        self.H = H
        self.qkv = nn.Linear(C, 3 * C)
        self.proj = nn.Linear(C, C)

    def forward(self, x):
        B, N, C = x.shape
        q, k, v = self.qkv(x).reshape(B, N, 3, self.H, C // self.H).permute(2, 0, 3, 1, 4)  # each B, H, N, D
        y = F.scaled_dot_product_attention(q, k, v)
        return self.proj(y.transpose(1, 2).reshape(B, N, C))


class Block(nn.Module):
    def __init__(self, C, H):
        super().__init__()
        self.norm1 = nn.LayerNorm(C, eps=1e-6)
        self.attn = Attention(C, H)
        self.norm2 = nn.LayerNorm(C, eps=1e-6)
        self.mlp = Mlp(C)

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class PatchEmbed(nn.Module):
    def __init__(self, C, patch):
        super().__init__()
        self.proj = nn.Conv2d(3, C, patch, stride=patch)

    def forward(self, x):
        return self.proj(x).flatten(2).transpose(1, 2)  # B, N - 1, C


class ViT(nn.Module):
    def __init__(self, C, depth, H, patch, img_size, num_classes):
        super().__init__()
        if img_size % patch:
            raise ValueError(f"img_size: expected a multiple of {patch}, got {img_size}")
        self.patch_embed = PatchEmbed(C, patch)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, C))
        self.pos_embed = nn.Parameter(torch.empty(1, (img_size // patch) ** 2 + 1, C))
        self.blocks = nn.ModuleList(Block(C, H) for _ in range(depth))
        self.norm = nn.LayerNorm(C, eps=1e-6)
        self.head = nn.Linear(C, num_classes)
        nn.init.normal_(self.pos_embed, std=0.02)

    def forward(self, x):
        x = self.patch_embed(x)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1) + self.pos_embed  # B, N, C
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])


def create_model(name, img_size=None, num_classes=1000, **changes):
    """A randomly initialised model from a timm name; img_size replaces that of the name.

    vit_{tiny,small,base}_patch{P}_{S}, a Swin transformer, whose window_size may be changed (`torch_swin.create_swin`), or
    resnet18 or resnet34, which take images of any size.
    """
    if name in torch_resnet.DEPTHS:
        return torch_resnet.ResNet(torch_resnet.DEPTHS[name], num_classes=num_classes)
    if name.startswith("swin_"):
        return create_swin(name, img_size, num_classes, **changes)
    match = re.fullmatch(rf"vit_({'|'.join(SIZES)})_patch(16|32)_(\d+)", name)
    if not match:
        raise ValueError(f"name: expected vit_{{tiny,small,base}}_patch{{16,32}}_SIZE, swin_... or resnet..., got {name!r}")
    return ViT(*SIZES[match[1]], int(match[2]), int(match[3]) if img_size is None else img_size, num_classes)


def resize_pos_embed(table, n_tokens):
    """The position table (1, N, C) for `n_tokens`: the class token's row is kept, the square grid is resized.

    Bicubic with antialias=True, which is what timm's resample_abs_pos_embed does.
    """
    if table.shape[1] == n_tokens:
        return table
    old, new = math.isqrt(table.shape[1] - 1), math.isqrt(n_tokens - 1)
    grid = table[:, 1:].reshape(1, old, old, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=(new, new), mode="bicubic", antialias=True)
    return torch.cat([table[:, :1], grid.flatten(2).transpose(1, 2)], 1)


def load_weights(model, weights, head=None):
    """Loads a safetensors file, or a dict of tensors or arrays by timm name; every name and shape must fit.

    A ViT's position table is resized to the model's. `head`, a pair (weight, bias), replaces the head of the weights.
    """
    if not isinstance(weights, dict):
        weights = load_file(weights)
    state = {name: torch.as_tensor(value) for name, value in weights.items()}
    if head is not None:
        names = [name for name, _ in model.named_parameters() if name.startswith(("head.", "fc."))]
        state |= {name: torch.as_tensor(value) for name, value in zip(names, head, strict=True)}
    if "pos_embed" in state:
        state["pos_embed"] = resize_pos_embed(state["pos_embed"], model.pos_embed.shape[1])
    model.load_state_dict(state, strict=True)
    return model


def preprocess(images):
    """uint8 images (B, 3, S, S) to the float32 input of the published weights, (x / 255 - 0.5) / 0.5."""
    return torch.from_numpy((np.asarray(images, np.float32) / 255 - 0.5) / 0.5)
