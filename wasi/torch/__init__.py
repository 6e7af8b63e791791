"""PyTorch models with WASI layers: less memory for training, in your own loop. Needs PyTorch, which nothing else here does.

    import timm, torch, wasi.torch

    model = timm.create_model("vit_base_patch16_224", pretrained=True)
    wasi.torch.convert(model, "wasi", wasi.torch.MethodOptions(targets=("all",), rank=128))
    optimizer = wasi.torch.WSI(model, lr=0.01, momentum=0.9)    # or any of torch.optim, on model.parameters()
    ...                                                         # the loop stays as it is
    wasi.torch.merge(model)                                     # plain nn.Linear again

The layers run wasi's kernels on the tensors' own memory, without copies, in float32 on the CPU.
`wasi.torch.convert` sets the number of wasi's threads to PyTorch's; after a later torch.set_num_threads, call
wasi.set_num_threads too. Both have a pool of their own and take turns; OMP_WAIT_POLICY=PASSIVE keeps
PyTorch's from burning the cores while wasi computes.
"""

try:
    import torch as _torch  # noqa: F401
except ImportError as error:
    raise ImportError("wasi.torch needs PyTorch: pip install torch") from error

from wasi.models.methods import MethodOptions
from wasi.torch.convert import METHODS, convert, merge, restore
from wasi.torch.layers import FactoredLinear, Gelu, Linear
from wasi.torch.optimizer import WSI

__all__ = ["METHODS", "WSI", "FactoredLinear", "Gelu", "Linear", "MethodOptions", "convert", "merge", "restore"]
