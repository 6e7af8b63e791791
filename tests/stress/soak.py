"""Training and inference at once, for as long as asked, and whether memory, loss and speed stay what they are.

    python tests/stress/soak.py --minutes 120

One thread trains a model of the given method over and over the shipped images, writing files; another classifies images with a
merged copy that it loads anew from the newest file, as a server would. Every half minute a row: resident memory, loss, updates
and images a second. At the end the slope of memory over the second half is fitted, and the process ends with an error unless it
is below --most-kib-a-minute, every loss was finite, no answer of the merged model was other than the first for the same file, and
the slowest tenth of the intervals made at least half of the updates of the median.
"""

import argparse
import json
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

import wasi
from wasi.models.methods import METHODS, MethodOptions, apply_method
from wasi.training.data import Loader, Transform, sign_digits
from wasi.training.memory import rss_bytes
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


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=120)
    parser.add_argument("--method", choices=METHODS, default="wasi")
    parser.add_argument("--every", type=float, default=30, help="seconds between rows")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--most-kib-a-minute", type=float, default=16)
    parser.add_argument("--out", type=Path, help="JSON of the rows")
    args = parser.parse_args()
    wasi.set_num_threads(args.threads)
    rows, began = [], time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(Path(folder) / "model.safetensors", args.method, 16, 50)
        server = Server(trainer.path, trainer)
        trainer.start(), server.start()
        before, cpu, at = (0, 0), time.process_time(), began
        print(f"{'minutes':>8}{'MiB':>9}{'loss':>8}{'updates/s':>11}{'images/s':>10}{'CPU':>6}", flush=True)
        while time.monotonic() - began < 60 * args.minutes and not (trainer.error or server.error):
            time.sleep(min(args.every, max(0.1, 60 * args.minutes - (time.monotonic() - began))))
            now, seen, used = time.monotonic(), (trainer.n, server.n), time.process_time()
            # Speed is counted by CPU time: on a machine that others use too, the clock says little.
            rows.append({"minutes": (now - began) / 60, "rss_bytes": rss_bytes(), "loss": trainer.loss,
                         "updates": seen[0] - before[0], "images": seen[1] - before[1], "cpu_seconds": used - cpu,
                         "seconds": now - at})
            r = rows[-1]
            print(f"{r['minutes']:>8.1f}{r['rss_bytes'] / 2**20:>9.2f}{r['loss']:>8.3f}{r['updates'] / r['seconds']:>11.1f}"
                  f"{r['images'] / r['seconds']:>10.0f}{r['cpu_seconds'] / r['seconds']:>6.2f}", flush=True)
            before, cpu, at = seen, used, now
            if args.out:
                args.out.write_text(json.dumps(rows, indent=0) + "\n")
        trainer.stop.set()
        trainer.join(), server.join()
    for thread in (trainer, server):
        if thread.error:
            raise thread.error
    half = rows[len(rows) // 2 :]
    slope = np.polyfit([r["minutes"] for r in half], [r["rss_bytes"] / 1024 for r in half], 1)[0] if len(half) > 2 else 0.0
    speeds = np.array([r["updates"] / r["cpu_seconds"] for r in rows])
    slow, median = np.quantile(speeds, 0.1), np.median(speeds)
    print(f"{rows[-1]['minutes']:.0f} minutes, {trainer.n} updates, {server.n} images classified, {trainer.n_saved} files "
          f"written; memory in the second half {slope:+.1f} KiB a minute, {half[0]['rss_bytes'] / 2**20:.1f} to "
          f"{half[-1]['rss_bytes'] / 2**20:.1f} MiB; updates a CPU second: median {median:.1f}, slowest tenth {slow:.1f}; loss "
          f"{rows[0]['loss']:.3f} to {rows[-1]['loss']:.3f}")
    return int(slope > args.most_kib_a_minute or slow < median / 2)


if __name__ == "__main__":
    sys.exit(main())
