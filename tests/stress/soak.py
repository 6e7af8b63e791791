"""Training and inference at once, for as long as asked, and whether memory, loss and speed stay what they are.

    python tests/stress/soak.py --minutes 120

One thread trains a model of the given method over and over the shipped images, writing files; another classifies images with a
merged copy that it loads anew from the newest file, as a server would. Every half minute a row: resident memory (all of it, and
what is no file's), the interpreter's blocks, what malloc has given out, loss, updates and images a second.

Memory is judged from a quarter of the time on, when every cache has been filled, by two numbers, of all resident memory and of
the part that is no file's. The slope is Theil-Sen's, the median over all pairs of rows: resident memory falls when the system
takes file pages back and rises when they are read again, and a least squares line takes one such dip for a leak. Growth is the
highest row of the last quarter less that of the second, which sees what grows by jumps. Four KiB a minute are some forty bytes an
update: less than one array's header, kept once an update. The process ends with an error if any is too large, a loss was not
finite, an answer of the merged model was other than the first for the same file, or the slowest tenth of the intervals made less
than half of the updates of the median.
"""

import argparse
import ctypes
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

import wasi
from wasi.models.methods import METHODS, MethodOptions, apply_method
from wasi.training.data import Loader, Transform, sign_digits
from wasi.training.memory import _status_bytes, rss_bytes
from wasi.training.optimizer import Optimizer
from wasi.training.step import accumulate_gradient


class Trainer(threading.Thread):
    """Updates for ever; saves the model every `every` updates."""

    def __init__(self, path, method, batch_size, every):
        super().__init__(daemon=True)
        self.path, self.every, self.n, self.n_saved, self.loss, self.error = path, every, 0, 0, float("nan"), None
        self.stop = threading.Event()
        self.model = wasi.create_model("vit_micro_patch4_32", seed=0, num_classes=10)
        apply_method(self.model, method, MethodOptions(rank=16), verbose=False)
        self.optimizer = Optimizer(self.model, "adamw", weight_decay=0.05, clip_norm=1.0)
        self.loader = Loader(sign_digits()["train"], batch_size, Transform(32, train=True), shuffle=True, drop_last=True)
        self.arena = wasi.Arena()
        wasi.save_model(self.model, self.path)

    def run(self):
        try:
            while not self.stop.is_set():
                for images, labels in self.loader:
                    with self.arena:
                        batch = accumulate_gradient(self.model, images, labels, label_smoothing=0.1)
                        self.optimizer.step(1e-3)
                    if not np.isfinite(batch.loss):
                        raise FloatingPointError(f"loss {batch.loss} at update {self.n}")
                    self.loss, self.n = batch.loss, self.n + 1
                    if self.n % self.every == 0:
                        wasi.save_model(self.model, self.path)
                        self.n_saved += 1
                    if self.stop.is_set():
                        break
        except BaseException as error:
            self.error = error


class Server(threading.Thread):
    """Classifies the same images for ever with the newest file, multiplied out, fifty times a second at the most."""

    def __init__(self, path, trainer):
        super().__init__(daemon=True)
        self.path, self.trainer, self.n, self.error = path, trainer, 0, None
        self.images = np.random.default_rng(0).integers(0, 256, (16, 3, 32, 32), np.uint8)

    def run(self):
        try:
            while not self.trainer.stop.is_set():
                saved = self.trainer.n_saved
                model = wasi.merge(wasi.load_model(self.path)[0])
                first = model.forward(self.images)
                while self.trainer.n_saved == saved and not self.trainer.stop.is_set():
                    if not np.array_equal(model.forward(self.images), first):
                        raise AssertionError("the same model and images gave another answer")
                    self.n += len(self.images)
                    self.trainer.stop.wait(0.02)
        except BaseException as error:
            self.error = error


class _Mallinfo2(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks",
                                                     "uordblks", "fordblks", "keepcost")]


def malloc_bytes():
    """Bytes that the C library's malloc has given out and not got back; nan where it does not say (other than glibc)."""
    mallinfo = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if mallinfo is None:
        return float("nan")
    mallinfo.restype = _Mallinfo2
    info = mallinfo()
    return info.uordblks + info.hblkhd


def theil_sen(x, y):
    """Median slope over all pairs of points."""
    i, j = np.triu_indices(len(x), 1)
    return float(np.median((y[j] - y[i]) / (x[j] - x[i])))


COLUMNS = ["minutes", "rss_bytes", "anonymous_bytes", "malloc_bytes", "python_blocks", "loss", "updates", "images", "files",
           "cpu_seconds", "seconds"]


def judge(rows, most_kib_a_minute, most_growth_kib):
    """(what the rows say, whether memory and speed held still). rows: (n, len(COLUMNS))"""
    columns = dict(zip(COLUMNS, rows.T))
    minutes, quarter = columns["minutes"], len(rows) // 4
    late, still = slice(quarter, None), True
    total = {name: columns[name].sum() for name in ("updates", "images", "files")}
    lines = [f"{minutes[-1]:.0f} minutes, {total['updates']:.0f} updates, {total['images']:.0f} images classified, "
             f"{total['files']:.0f} files; loss {columns['loss'][0]:.3f} to {columns['loss'][-1]:.3f}"]
    for name, what in (("rss_bytes", "resident"), ("anonymous_bytes", "of it no file's")):
        kib = columns[name] / 1024
        slope, growth = theil_sen(minutes[late], kib[late]), kib[-quarter:].max() - kib[quarter : 2 * quarter].max()
        still &= slope <= most_kib_a_minute and growth <= most_growth_kib
        lines.append(f"{what}, from a quarter on: {kib[late].min() / 1024:.2f} to {kib[late].max() / 1024:.2f} MiB, "
                     f"{slope:+.2f} KiB a minute, the last quarter's highest {growth:+.0f} KiB above the second's")
    lines.append(f"a minute: {theil_sen(minutes[late], columns['malloc_bytes'][late]) / 1024:+.2f} KiB given out by malloc, "
                 f"{theil_sen(minutes[late], columns['python_blocks'][late]):+.2f} blocks of the interpreter")
    speeds = columns["updates"] / columns["cpu_seconds"]
    slow, median = np.quantile(speeds, 0.1), np.median(speeds)
    lines.append(f"updates a CPU second: median {median:.1f}, slowest tenth {slow:.1f}")
    return "\n".join(lines), bool(still and slow >= median / 2)


def table(rows, n=8):
    """The rows in n lines of Markdown."""
    lines = ["| minutes | resident MiB | no file's | updates | a CPU second | images | loss |", "|---|---|---|---|---|---|---|"]
    for part in np.array_split(rows, n):
        c = dict(zip(COLUMNS, part.T))
        rss, own = c["rss_bytes"] / 2**20, c["anonymous_bytes"] / 2**20
        lines.append(f"| {c['minutes'][0]:.0f} to {c['minutes'][-1]:.0f} | {rss.min():.1f} to {rss.max():.1f} | "
                     f"{own.min():.2f} to {own.max():.2f} | {c['updates'].sum():,.0f} | "
                     f"{c['updates'].sum() / c['cpu_seconds'].sum():.1f} | "
                     f"{c['images'].sum():,.0f} | {c['loss'].mean():.2f} |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=120)
    parser.add_argument("--method", choices=METHODS, default="wasi")
    parser.add_argument("--every", type=float, default=30, help="seconds between rows")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--most-kib-a-minute", type=float, default=4)
    parser.add_argument("--most-growth-kib", type=float, default=512)
    parser.add_argument("--out", type=Path, help="CSV of the rows")
    args = parser.parse_args()
    wasi.set_num_threads(args.threads)
    # Touched now, so that the rows themselves are no growth.
    rows, n = np.full((int(60 * args.minutes / args.every) + 2, len(COLUMNS)), np.nan), 0
    if args.out:
        args.out.write_text(",".join(COLUMNS) + "\n")
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(Path(folder) / "model.safetensors", args.method, 16, 50)
        server = Server(trainer.path, trainer)
        trainer.start(), server.start()
        began = at = time.monotonic()
        before, cpu = (0, 0, 0), time.process_time()
        print(f"{'minutes':>8}{'MiB':>9}{'loss':>8}{'updates/s':>11}{'images/s':>10}{'CPU':>6}", flush=True)
        while time.monotonic() - began < 60 * args.minutes and n < len(rows) and not (trainer.error or server.error):
            time.sleep(min(args.every, max(0.1, 60 * args.minutes - (time.monotonic() - began))))
            now, seen, used = time.monotonic(), (trainer.n, server.n, trainer.n_saved), time.process_time()
            # Speed is counted by CPU time: on a machine that others use too, the clock says little.
            rows[n] = ((now - began) / 60, rss_bytes(), _status_bytes("RssAnon:"), malloc_bytes(), sys.getallocatedblocks(),
                       trainer.loss, *(a - b for a, b in zip(seen, before)), used - cpu, now - at)
            r = dict(zip(COLUMNS, rows[n]))
            print(f"{r['minutes']:>8.1f}{r['rss_bytes'] / 2**20:>9.2f}{r['loss']:>8.3f}{r['updates'] / r['seconds']:>11.1f}"
                  f"{r['images'] / r['seconds']:>10.0f}{r['cpu_seconds'] / r['seconds']:>6.2f}", flush=True)
            if args.out:
                with args.out.open("a") as file:
                    file.write(",".join(f"{value:.10g}" for value in rows[n]) + "\n")
            before, cpu, at, n = seen, used, now, n + 1
        trainer.stop.set()
        trainer.join(), server.join()
    for thread in (trainer, server):
        if thread.error:
            raise thread.error
    text, still = judge(rows[:n], args.most_kib_a_minute, args.most_growth_kib)
    print(text, table(rows[:n]), sep="\n\n")
    return int(not still)


if __name__ == "__main__":
    sys.exit(main())
