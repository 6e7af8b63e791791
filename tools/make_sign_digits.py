"""Makes wasi/data/sign_digits/sign_digits.tar.gz from the published Sign Language Digits data set.

    python tools/make_sign_digits.py sign_digits.tar

The input holds Dataset/<digit>/IMG_<number>.JPG and LICENSE. Each image is resized to 64 x 64 and every fifth
signer goes into the test split. The file numbers tell signers apart: everyone was photographed signing 0 to 9
in this order, so a new signer begins with each "0". (Where someone's 0 is missing, two signers count as one.)

The output is the same, byte for byte, for the same versions of Pillow's JPEG library and of zlib.
"""

import argparse
import gzip
import io
import re
import tarfile
from pathlib import Path

from PIL import Image, ImageOps

SIDE = 64
TEST_EVERY = 5
FOLDER = Path(__file__).resolve().parents[1] / "wasi" / "data" / "sign_digits"


def photographs(archive):
    """[(number, digit, member)] in the order in which they were taken."""
    found = []
    for member in archive:
        match = re.fullmatch(r"Dataset/(\d)/IMG_(\d+)\.JPG", member.name)
        if match:
            found.append((int(match[2]), match[1], member))
    return sorted(found, key=lambda photograph: photograph[0])


def small_jpeg(file):
    """The upright image as a JPEG of SIDE x SIDE px, without metadata."""
    with Image.open(file) as image:
        image = ImageOps.exif_transpose(image).convert("RGB")
    small = image.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    small.info.clear()
    out = io.BytesIO()
    small.save(out, "JPEG", quality=90, optimize=True)
    return out.getvalue()


def add(archive, name, data):
    """Adds a file whose owner, mode and date do not depend on where this runs."""
    member = tarfile.TarInfo(name)
    member.size = len(data)
    archive.addfile(member, io.BytesIO(data))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path, help="sign_digits.tar as published")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where sign_digits.tar.gz and LICENSE go")
    arguments = parser.parse_args()

    images, signer = {}, -1
    with tarfile.open(arguments.source) as archive:
        for number, digit, member in photographs(archive):
            signer += digit == "0"
            split = "test" if signer % TEST_EVERY == TEST_EVERY - 1 else "train"
            images[f"{split}/{digit}/IMG_{number}.jpg"] = small_jpeg(archive.extractfile(member))
        licence = archive.extractfile("LICENSE").read()

    (arguments.folder / "LICENSE").write_bytes(licence)
    packed = arguments.folder / "sign_digits.tar.gz"
    with (
        packed.open("wb") as file,
        gzip.GzipFile("", "wb", 9, file, mtime=0) as zipped,
        tarfile.open(fileobj=zipped, mode="w", format=tarfile.USTAR_FORMAT) as archive,
    ):
        add(archive, "LICENSE", licence)
        add(archive, "README.md", (FOLDER / "README.md").read_bytes())
        for name in sorted(images):
            add(archive, name, images[name])
    n_test = sum(name.startswith("test/") for name in images)
    print(
        f"{packed.name}: {packed.stat().st_size} bytes, "
        f"{len(images) - n_test} + {n_test} images, {signer + 1} signers"
    )


if __name__ == "__main__":
    main()
