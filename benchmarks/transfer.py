"""Accuracy of the methods on a Swin transformer and a residual network: trained on CIFAR-10's six animals, fine-tuned on its four
vehicles.

    python benchmarks/transfer.py swin --data cifar10_jpg.tar.gz --out runs/swin

Writes below --out the two halves of the data, the dense model trained on the animals (`wasi train`, AdamW, from random weights),
and the runs of `accuracy.py`, which makes the table: 1,000 images of vehicles, 1,000 others to choose the learning rates by and
3,000 to test on. What is there already is not made again.
"""

import argparse
import tarfile
from pathlib import Path

import accuracy

from wasi.cli import main as wasi
from wasi.names import PRECISIONS

PRETRAINING_LR = {"resnet": "0.001", "swin": "0.0003"}
ANIMALS = ("bird", "cat", "deer", "dog", "frog", "horse")


def halves(data, folder):
    """(folder of the animals, folder of the vehicles) of the archive, made where they are not there."""
    animals, vehicles = folder / "animals", folder / "vehicles"
    done = folder / "complete"
    if not done.exists():
        with tarfile.open(data) as archive:
            for member in archive:
                if member.isfile() and member.name.count("/") == 2:
                    split, name, file = member.name.split("/")
                    path = (animals if name in ANIMALS else vehicles) / split / name / Path(file).name
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(archive.extractfile(member).read())
        done.touch()
    return animals, vehicles


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=PRETRAINING_LR)
    parser.add_argument("--data", required=True, help="CIFAR-10 as files by split and class in an archive")
    parser.add_argument("--out", required=True)
    parser.add_argument("--pretraining", type=int, default=30_000, metavar="N", help="images of animals")
    parser.add_argument("--pretraining-epochs", type=int, default=4)
    parser.add_argument("--pretraining-precision", choices=PRECISIONS, default="float32")
    parser.add_argument("--seeds", nargs="+", default=["0", "1", "2"])
    args = parser.parse_args()
    out = Path(args.out)
    animals, vehicles = halves(args.data, out / "data")
    weights, trained = out / "animals.safetensors", out / "animals"
    if not weights.exists():
        settings = accuracy.TABLES[args.table][2]
        words = ["train", "--data", str(animals), "--model", settings["model"], "--img-size", str(settings["img_size"]),
                 "--method", "dense", "--epochs", str(args.pretraining_epochs), "--limit", str(args.pretraining), "--limit-val",
                 "1000", "--lr", PRETRAINING_LR[args.table], "--precision", args.pretraining_precision, "--threads", "1",
                 "--out", str(trained), "--checkpoint-every", "0"]
        if wasi(words) or wasi(["export", str(trained), str(weights)]):
            raise SystemExit(1)
    accuracy.main([args.table, "--data", str(vehicles), "--weights", str(weights), "--out", str(out / "runs"), "--limit-test",
                   "3000", "--seeds", *args.seeds])


if __name__ == "__main__":
    main()
