"""A quick check of an installed wasi, outside of any checkout: `python tools/check_install.py`.

The core computes what its NumPy twin does, one OpenBLAS is loaded and it is that of scipy-openblas32, and the command trains.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.remove(str(Path(__file__).resolve().parent))  # where the script lies, the sources are near

import numpy as np  # noqa: E402

import wasi  # noqa: E402
from wasi import ops  # noqa: E402
from wasi.reference.linear import factored_forward  # noqa: E402


def main():
    rng = np.random.default_rng(0)
    x, L, R = (rng.standard_normal(shape, dtype=np.float32) for shape in ((33, 48), (40, 8), (8, 48)))
    y, _ = ops.factored_linear(x, L, R)
    twin, _ = factored_forward(x.astype(np.float64), L, R)
    assert np.linalg.norm(y - twin) < 1e-5 * np.linalg.norm(twin)
    maps = Path("/proc/self/maps").read_text().split()
    loaded = {path for path in maps if "openblas" in path and "numpy" not in path}
    assert len(loaded) == 1 and "scipy_openblas32" in loaded.pop(), loaded  # NumPy's own copy is another matter
    with tempfile.TemporaryDirectory() as folder:
        words = ["train", "--method", "wsi", "--epochs", "1", "--limit", "64", "--limit-val", "32", "--quiet", "--out", "run"]
        subprocess.run([sys.executable, "-P", "-m", "wasi", *words], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    print(f"wasi {wasi.__version__} in {Path(wasi.__file__).parent}: {wasi._core.blas_config()}, {wasi._core.get_isa()}")


if __name__ == "__main__":
    main()
