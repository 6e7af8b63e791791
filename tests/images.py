"""Small made-up image sets, as folders, archives and arrays, for the tests of the data side."""

import io
import tarfile

import numpy as np
from PIL import Image


def jpeg(pixels, **options):
    """Bytes of a JPEG (or, by format=, another file) of a uint8 array."""
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, options.pop("format", "JPEG"), **options)
    return out.getvalue()


def pixels(rng, height=40, width=48):
    """A smooth random picture, uint8 height x width x 3."""
    coarse = rng.integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def image_files(rng, splits=("train", "test"), classes=("cat", "dog", "emu"), n=4):
    """{path: bytes} of n pictures a class, as PNG so that decoding gives the pixels back."""
    prefixes = [f"{split}/" for split in splits] or [""]
    return {
        f"{prefix}{name}/{i:02d}.png": jpeg(pixels(rng), format="PNG")
        for prefix in prefixes
        for name in classes
        for i in range(n)
    }


def write_folder(root, files):
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def write_tar(path, files, members=()):
    """A tar (compressed if the name ends in gz) of the files, in reverse order, then of the given TarInfo."""
    with tarfile.open(path, "w:gz" if path.name.endswith("gz") else "w") as archive:
        for name, data in reversed(files.items()):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
        for member in members:
            archive.addfile(member)
    return path


def write_npz(path, files):
    """The same as arrays, split by split, in sorted order."""
    classes = sorted({name.split("/")[-2] for name in files})
    arrays = {}
    for split in sorted({name.split("/")[0] for name in files}):
        names = sorted(name for name in files if name.startswith(split + "/"))
        arrays[f"{split}_images"] = np.stack(
            [np.asarray(Image.open(io.BytesIO(files[name]))) for name in names]
        )
        arrays[f"{split}_labels"] = np.array([classes.index(name.split("/")[1]) for name in names])
    np.savez_compressed(path, classes=classes, **arrays)
    return path
