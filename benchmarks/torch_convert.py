"""A PyTorch ViT fine-tuned in its own loop, plain and with linears converted by wasi.torch: peak memory, time, loss curve.

    MALLOC_MMAP_THRESHOLD_=262144 OMP_WAIT_POLICY=PASSIVE python benchmarks/torch_convert.py --data cifar10_jpg.tar.gz \\
        --weights vit_tiny_patch16_224.safetensors --out torch_convert

Each row is a process of its own that trains on the same batches from the same weights by SGD with momentum:
PyTorch's for its rows, wasi.torch.WSI for the converted ones. Rows that keep inputs as Tucker factors have
half the batch's, half the tokens' and 64 of the channels' directions; qwasi has rank 16 over 8 bits. Factors start
from four batches (gradients for qwasi, inputs for wasi); the memory of that is not the steps', and freed before.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import harness
import numpy as np
import torch
import torch._dynamo  # as in rivals.py: torch.optim loads it on first use
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from torch_models import create_model, load_weights, preprocess

import wasi.torch
from wasi.training.data import Loader, Transform, open_splits

TUCKER = (0.5, 0.5, 64)
QWASI = {"rank": 16, "bits": 8}
N_CALIBRATION = 4
N_LAST = 6  # steps at the end of the curve whose mean loss is given

# Row: method, its options, bits of GELU's derivative, whether every block is recomputed in backward (torch.utils.checkpoint).
ROWS = {
    "PyTorch": (None, {}, None, False),
    "PyTorch, checkpointed": (None, {}, None, True),
    "asi": ("asi", {"activation_ranks": TUCKER}, None, False),
    "asi, GELU in 4 bits": ("asi", {"activation_ranks": TUCKER}, 4, False),
    "qwasi": ("qwasi", QWASI, None, False),
    "qwasi, Tucker inputs, GELU in 4 bits": ("qwasi", {**QWASI, "activation_ranks": TUCKER}, 4, False),
    "qwasi, checkpointed": ("qwasi", QWASI, None, True),
    "wasi, rank 64, GELU in 4 bits": ("wasi", {"rank": 64, "activation_ranks": TUCKER}, 4, False),
}


def training(folder, model_name, img_size, batch, lr, momentum, method, options, gelu_bits, checkpointed):
    """Set-up of a training; a step returns all losses so far. folder: model.pt and the batches, as `write_inputs` leaves them."""
    folder = Path(folder)
    labels = np.load(folder / "labels.npy")

    def batch_of(step):
        size = batch * 3 * img_size**2
        images = np.fromfile(folder / "images.u8", np.uint8, size, offset=step % len(labels) * size)
        return preprocess(images.reshape(batch, 3, img_size, img_size)), torch.from_numpy(labels[step % len(labels)])

    def loss_of(step):
        x, target = batch_of(step)
        return F.cross_entropy(model(x), target)

    model = create_model(model_name, img_size, 10)
    model.load_state_dict(torch.load(folder / "model.pt", weights_only=True))
    if method is not None:
        chosen = wasi.torch.MethodOptions(targets=("all",), **options)
        wasi.torch.convert(model, method, chosen, gelu_bits=gelu_bits, verbose=False,
                           calibration=None if method == "asi" else (loss_of(step) for step in range(N_CALIBRATION)))
    if checkpointed:
        from rivals import Checkpointed

        model.blocks = torch.nn.ModuleList(Checkpointed(block) for block in model.blocks)
    if method is None:
        optimizer = torch.optim.SGD(model.parameters(), lr, momentum)
    else:
        optimizer = wasi.torch.WSI(model, lr=lr, momentum=momentum)
    losses = []

    def step():
        optimizer.zero_grad()
        loss = loss_of(len(losses))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        return {"losses": losses, "parameters": sum(p.numel() for p in model.parameters() if p.requires_grad)}

    return step


def write_inputs(folder, args):
    """The model and the batches that every row reads."""
    torch.manual_seed(0)
    model = create_model(args.model, args.img_size, 10)
    if args.weights:
        load_weights(model, args.weights, (0.02 * torch.randn(10, model.head.in_features), torch.zeros(10)))
    torch.save(model.state_dict(), folder / "model.pt")
    train_set = open_splits(args.data)["train"].subset(args.batch * args.batches, 0)
    loader = Loader(train_set, args.batch, Transform(args.img_size, train=True), shuffle=True, drop_last=True)
    images, labels = zip(*loader)
    np.stack(images).tofile(folder / "images.u8")
    np.save(folder / "labels.npy", np.stack(labels))


COLUMNS = {
    "": lambda r: r["row"],
    "trained parameters": lambda r: f"{r['values']['parameters']:,}",
    "peak MiB of the steps": lambda r: harness.mib(r["peak_bytes"]),
    "of PyTorch's": lambda r: f"{r['memory_ratio']:.2f}",
    "CPU seconds a step": lambda r: harness.seconds(r["cpu_seconds"]["median"]),
    f"loss, first {N_LAST} steps": lambda r: f"{np.mean(r['values']['losses'][:N_LAST]):.3f}",
    f"loss, last {N_LAST} steps": lambda r: f"{np.mean(r['values']['losses'][-N_LAST:]):.3f}",
    f"largest difference of {N_LAST}-step means from PyTorch's": lambda r: f"{r['curve_difference']:.3f}",
}


def means(losses):
    return np.array(losses)[: len(losses) // N_LAST * N_LAST].reshape(-1, N_LAST).mean(1)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--weights", help="(default: random)")
    parser.add_argument("--model", default="vit_tiny_patch16_224")
    parser.add_argument("--img-size", type=int, default=112)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--batches", type=int, default=40, help="different ones; then they come again")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--lr", type=float, default=0.005)
    parser.add_argument("--momentum", type=float, default=0.9)
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS), metavar="ROW")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", metavar="NAME", help="write NAME.json and NAME.md to benchmarks/results/, anew after every row")
    args = parser.parse_args()
    records = []
    with tempfile.TemporaryDirectory() as folder:
        write_inputs(Path(folder), args)
        for row in args.rows:
            method, options, gelu_bits, checkpointed = ROWS[row]
            arguments = {"folder": folder, "model_name": args.model, "img_size": args.img_size, "batch": args.batch,
                         "lr": args.lr, "momentum": args.momentum, "method": method, "options": options,
                         "gelu_bits": gelu_bits, "checkpointed": checkpointed}
            record = {"row": row, **harness.run_isolated(training, arguments, args.steps - 1, threads=args.threads)}
            first = (records or [record])[0]
            record["memory_ratio"] = record["peak_bytes"] / first["peak_bytes"]
            record["curve_difference"] = float(np.abs(means(record["values"]["losses"])
                                                      - means(first["values"]["losses"])).max())
            records.append(record)
            print(harness.markdown_table([record], COLUMNS).splitlines()[2], flush=True)
            if args.out:
                title = (f"{args.model} at {args.img_size} px, batch {args.batch}, {args.steps} steps of SGD (lr {args.lr:g}, "
                         f"momentum {args.momentum:g}) in PyTorch's loop, plain and by wasi.torch on all linears of the blocks")
                harness.write_results(args.out, title, records, COLUMNS)


if __name__ == "__main__":
    main()
