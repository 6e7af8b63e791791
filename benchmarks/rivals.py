"""What PyTorch needs for a training step and for inference: the rivals in wasi's tables.

    python benchmarks/rivals.py --model vit_base_patch32_224 --batch 128 --variant plain checkpoint --steps 3

One step is: gradients to None, forward, cross-entropy, backward, gradient norm clipped to 1, SGD without momentum.
Data and weights are random; the published variants' weights have singular values proportional to (i + 1)^-0.5, so that
an explained variance means a rank as it does in a trained network. Variants:

    plain          what one writes first
    checkpoint     torch.utils.checkpoint around every block: only the blocks' inputs are saved
    micro8         the batch in micro-batches of 8, gradients accumulated
    lora8          LoRA of rank 8 on the four linears of every block; all else frozen but the head
    bf16           torch.autocast to bfloat16; weights, gradients and the loss stay float32
    published      WASI as published, on the two linears of every MLP (see WasiLinear)
    published-all  the same on all four linears of every block
    inference      forward only, without gradients
"""

import argparse
import json
import math
import sys
from pathlib import Path

import torch
import torch._dynamo  # torch.optim loads it on first use: loaded here, it counts as import and not as the step's memory
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import harness
import torch_resnet
from torch_models import create_model

MICRO_BATCH = 8
LORA_RANK = 8
EPSILON = 0.8  # explained variance that the published variants keep of a weight


class Checkpointed(nn.Module):
    """A block that saves its input alone and runs again in backward."""

    def __init__(self, block):
        super().__init__()
        self.block = block

    def forward(self, x):
        return checkpoint(self.block, x, use_reentrant=False)


class LoraLinear(nn.Module):
    """y = x W' + b + (x A') B' with A (rank x I) normal, B (O x rank) zero, W and b frozen; scale 1."""

    def __init__(self, linear, rank):
        super().__init__()
        self.linear = linear
        self.A = nn.Parameter(torch.randn(rank, linear.in_features) / math.sqrt(linear.in_features))
        self.B = nn.Parameter(torch.zeros(linear.out_features, rank))

    def forward(self, x):
        return self.linear(x) + F.linear(F.linear(x, self.A), self.B)


def orth(A):
    return torch.linalg.qr(A).Q


def mode_product(A, U, mode):
    """A x_mode U': the mode'th dimension of A, contracted with the rows of U, becomes U's columns."""
    return torch.movedim(torch.tensordot(A, U, ([mode], [0])), -1, mode)


class LoraConv(nn.Module):
    """The same for a convolution: A is one into `rank` channels, B a linear map of each pixel."""

    def __init__(self, conv, rank):
        super().__init__()
        self.conv = conv
        self.A = nn.Conv2d(conv.in_channels, rank, conv.kernel_size, conv.stride, conv.padding, bias=False)
        self.B = nn.Conv2d(rank, conv.out_channels, 1, bias=False)
        nn.init.zeros_(self.B.weight)

    def forward(self, x):
        return self.conv(x) + self.B(self.A(x))


class WasiFunction(torch.autograd.Function):
    """y = (x R') L' + b, which saves x as a Tucker decomposition S x_1 U1 x_2 U2 x_3 U3.

    The gradient goes to the dense W, of which L R is the best rank-K stand-in: dW = gY' x~.
    """

    @staticmethod
    def forward(ctx, x, W, b, L, R, U1, U2, U3):
        S = x
        for mode, U in enumerate((U1, U2, U3)):
            S = mode_product(S, U, mode)
        ctx.save_for_backward(S, L, R, U1, U2, U3)
        return F.linear(F.linear(x, R), L, b)

    @staticmethod
    def backward(ctx, dy):
        S, L, R, U1, U2, U3 = ctx.saved_tensors
        g = mode_product(mode_product(dy, U1, 0), U2, 1)  # K1 K2 O: x~ is never rebuilt
        dW = g.flatten(0, 1).T @ S.flatten(0, 1) @ U3.T  # O I
        return (dy @ L) @ R, dW, dy.sum((0, 1)), None, None, None, None, None


class WasiLinear(nn.Module):
    """A linear layer trained by WASI as published (arXiv 2510.09160): factors in forward, a dense W underneath.

    Every forward runs one warm-started subspace iteration on W, R = L' W, L = orth(W R'), and one on every mode of x,
    U = orth(A (A' U)) with A the mode's unfolding. As in the published scripts the new L meets the R of the old one.
    The rank is the smallest that explains `epsilon` of W's squared singular values; the activation ranks are half the
    batch, half the tokens and a third of the embedding width, for x (B, N, I).
    """

    def __init__(self, linear, epsilon, width):
        super().__init__()
        self.weight, self.bias, self.width = linear.weight, linear.bias, width
        U, s, _ = torch.linalg.svd(linear.weight.detach(), full_matrices=False)
        explained = s.square().cumsum(0) / s.square().sum()
        self.rank = min(int((explained < epsilon).sum()) + 1, len(s))
        self.L = orth(U[:, : self.rank])  # the signs that QR gives: the first iteration keeps them
        self.U = None

    def activation_ranks(self, x):
        B, N, I = x.shape
        return math.ceil(B / 2), math.ceil(N / 2), min(self.width // 3, I)

    @torch.no_grad()
    def iterate(self, x):
        """One subspace iteration on the weight and on each mode of x; returns R."""
        R = self.L.T @ self.weight
        self.L = orth(self.weight @ R.T)
        if self.U is None:
            self.U = [torch.randn(size, rank) for size, rank in zip(x.shape, self.activation_ranks(x))]
        for mode, U in enumerate(self.U):
            A = torch.movedim(x, mode, 0).flatten(1)
            self.U[mode] = orth(A @ (A.T @ U))
        return R

    def forward(self, x):
        R = self.iterate(x)
        return WasiFunction.apply(x, self.weight, self.bias, self.L, R, *self.U)


def set_spectrum(weight):
    """Random orthonormal singular vectors, singular values proportional to (i + 1)^-0.5; the norm stays."""
    O, I = weight.shape
    K = min(O, I)
    s = torch.arange(1, K + 1) ** -0.5
    U, V = (orth(torch.randn(n, K)) for n in (O, I))
    with torch.no_grad():
        weight.copy_((U * (s * (weight.norm() / s.norm()))) @ V.T)


def stages(model):
    """The modules whose `blocks` are the model's: a Swin transformer's stages, or the ViT itself."""
    return list(getattr(model, "layers", [model]))


def linears(block):
    """(module, attribute) of the four linears of a block."""
    return [(block.attn, "qkv"), (block.attn, "proj"), (block.mlp, "fc1"), (block.mlp, "fc2")]


def build(model_name, img_size, variant, num_classes=10):
    """The model of a variant, the same random numbers each time."""
    torch.manual_seed(0)
    model = create_model(model_name, img_size, num_classes)
    if model_name.startswith("resnet"):
        if variant not in ("plain", "micro8", "lora8", "bf16", "inference"):
            raise ValueError(f"variant: {variant} is for transformers, not for {model_name}")
        if variant == "lora8":
            model.requires_grad_(False)
            model.fc.requires_grad_(True)
            for block in (m for m in model.modules() if isinstance(m, torch_resnet.BasicBlock)):
                for name in ("conv1", "conv2"):
                    setattr(block, name, LoraConv(getattr(block, name), LORA_RANK))
                if block.downsample is not None:
                    block.downsample[0] = LoraConv(block.downsample[0], LORA_RANK)
        return model
    if variant == "checkpoint":
        for stage in stages(model):
            stage.blocks = nn.ModuleList(Checkpointed(block) for block in stage.blocks)
    elif variant == "lora8":
        model.requires_grad_(False)
        model.head.requires_grad_(True)
        for block in (block for stage in stages(model) for block in stage.blocks):
            for module, name in linears(block):
                setattr(module, name, LoraLinear(getattr(module, name), LORA_RANK))
    elif variant in ("published", "published-all"):
        if model_name.startswith("swin_"):
            raise ValueError(f"variant: {variant} is for inputs B x N x C, which those of {model_name} are not")
        width = model.head.in_features
        for block in model.blocks:
            for module, name in linears(block) if variant == "published-all" else linears(block)[2:]:
                set_spectrum(getattr(module, name).weight)
                setattr(module, name, WasiLinear(getattr(module, name), EPSILON, width))
    elif variant not in ("plain", "micro8", "bf16", "inference"):
        raise ValueError(f"variant: expected one of {', '.join(VARIANTS)}, got {variant!r}")
    return model


def torch_step(model_name, img_size, batch, variant):
    """Set-up of a training step; the step returns its loss and gradient norm."""
    model = build(model_name, img_size, variant)
    S = model_size(model_name, img_size)
    images, labels = torch.randn(batch, 3, S, S), torch.randint(10, (batch,))
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d) and variant == "lora8":
            norm.eval()  # frozen, as wasi's
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.01)
    micro = MICRO_BATCH if variant == "micro8" else batch

    def step():
        optimizer.zero_grad(set_to_none=True)
        total = 0.0
        for x, target in zip(images.split(micro), labels.split(micro)):
            with torch.autocast("cpu", torch.bfloat16, enabled=variant == "bf16"):
                logits = model(x)
            loss = F.cross_entropy(logits.float(), target, reduction="sum") / batch
            loss.backward()
            total += loss.item()
        norm = nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        return {"loss": total, "gradient_norm": norm.item()}

    return step


def torch_inference(model_name, batch, img_size=None):
    """Set-up of a forward pass without gradients."""
    model = build(model_name, img_size, "inference").eval()
    S = model_size(model_name, img_size)
    images = torch.randn(batch, 3, S, S)

    def step():
        with torch.inference_mode():
            return {"mean_logit": model(images).mean().item()}

    return step


def model_size(model_name, img_size):
    if img_size is not None:
        return img_size
    return 224 if model_name.startswith("resnet") else int(model_name.rsplit("_", 1)[1])


VARIANTS = ("plain", "checkpoint", "micro8", "lora8", "bf16", "published", "published-all", "inference")

COLUMNS = {
    "PyTorch": lambda r: r["variant"],
    "peak MiB above import": lambda r: harness.mib(r["peak_bytes"]),
    "of it weights and set-up": lambda r: harness.mib(r["setup_bytes"]),
    "of it library code": lambda r: harness.mib(r["file_bytes"]),
    "seconds a step": lambda r: harness.seconds(r["seconds"]["median"]),
    "quartiles": lambda r: f"{harness.seconds(r['seconds']['low'])} to {harness.seconds(r['seconds']['high'])}",
}


def measure(model_name, img_size, batch, variant, steps, warmup, threads):
    args = {"model_name": model_name, "img_size": img_size, "batch": batch}
    if variant != "inference":
        args["variant"] = variant
    function = torch_inference if variant == "inference" else torch_step
    return {"variant": variant, **harness.run_isolated(function, args, steps, warmup, threads)}


def main():
    parser = argparse.ArgumentParser(description="PyTorch's memory and time for a training step or inference.")
    parser.add_argument("--model", default="vit_base_patch32_224")
    parser.add_argument("--img-size", type=int)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--variant", nargs="+", choices=VARIANTS, default=["plain"])
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--warmup", type=int, default=1)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", action="store_true", help="print the records instead of the table")
    parser.add_argument("--out", metavar="NAME", help="also write NAME.json and NAME.md to benchmarks/results/")
    args = parser.parse_args()
    records = [measure(args.model, args.img_size, args.batch, variant, args.steps, args.warmup, args.threads)
               for variant in args.variant]
    print(json.dumps(records, indent=1) if args.json else harness.markdown_table(records, COLUMNS).rstrip())
    if args.out:
        size = model_size(args.model, args.img_size)
        harness.write_results(args.out, f"PyTorch, {args.model} at {size}x{size}, batch {args.batch}", records, COLUMNS)


if __name__ == "__main__":
    main()
