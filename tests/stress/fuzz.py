"""Feeds damaged files to every reader and reports what was found.

    python tests/stress/fuzz.py --runs 60000                 every reader, so many files each
    python tests/stress/fuzz.py --runs 60000 tar plan        those alone
    python tests/stress/fuzz.py --cut                        whole files cut off at every byte
    python tests/stress/fuzz.py --replay FILE tar            one file, the finding as it comes

With atheris (pip install atheris) files are found by the branches of wasi's Python that they reach; without it they are made by
`mutate` from the corpus alone, by a seed. Each reader runs in a process of its own. Files that break a promise are kept in
--findings, one of each kind; the table that is printed is what docs/hardening.md reports.
"""

import argparse
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from hashlib import sha256
from pathlib import Path

HERE = Path(__file__).parent


class Session:
    """Runs one reader, counts, and keeps one file of each kind of finding."""

    def __init__(self, name, runs, findings, folder):
        from readers import READERS

        self.name, self.reader, self.runs, self.findings, self.folder = name, READERS[name], runs, findings, folder
        self.n = self.taken = 0
        self.kinds, self.slowest, self.started = {}, 0.0, time.time()

    def cut(self, seeds):
        """Every seed, cut off at every byte; stands in for an engine."""
        self.runs = sum(map(len, seeds))
        for data in seeds:
            for n in range(len(data)):
                self.one(data[:n])

    def one(self, data):
        from readers import Finding, check

        self.n += 1
        for path in self.folder.iterdir():
            if path.is_file():
                path.unlink()
        began = time.thread_time()
        try:
            self.taken += check(self.reader, data, self.folder)
        except Finding as error:
            kind = _kind_of(error)
            if kind not in self.kinds:
                self.kinds[kind] = str(error)[:300]
                path = self.findings / f"{self.name}-{sha256(data).hexdigest()[:12]}"
                path.write_bytes(data)
                print(f"{self.name}: {error} [{path}]"[:400], file=sys.stderr, flush=True)
        self.slowest = max(self.slowest, time.thread_time() - began)
        if self.n >= self.runs:
            print(json.dumps({"reader": self.name, "runs": self.n, "taken": self.taken, "kinds": self.kinds,
                              "slowest_seconds": self.slowest, "seconds": time.time() - self.started}), flush=True)
            os._exit(0)


def _kind_of(finding):
    """What tells one defect from another: the type of the error and the innermost line of wasi that it passed through."""
    cause = finding.__cause__
    if cause is None:
        return re.sub(r"[0-9.]+", "_", str(finding))[:90]
    places = [f"{Path(f.filename).name}:{f.lineno}" for f in traceback.extract_tb(cause.__traceback__) if "/wasi/" in f.filename]
    return f"{type(cause).__name__} {places[-1] if places else str(finding)[:60]}"


def seeds_of(name):
    from readers import CORPUS, READERS

    kept = [path.read_bytes() for path in sorted((CORPUS / name).glob("*"))]
    return [*READERS[name].seeds(), *kept]


def with_atheris(session, seeds, seed):
    import atheris
    from mutate import mutate

    def mutator(data, most, number):
        rng = random.Random(number)
        return mutate(data, rng, most) if rng.random() < 0.5 else atheris.Mutate(data, most)

    corpus = session.folder.parent / "corpus"
    corpus.mkdir()
    for i, data in enumerate(seeds):
        (corpus / str(i)).write_bytes(data)
    longest = max(1 << 12, 2 * max(map(len, seeds)))
    atheris.Setup(["fuzz", str(corpus), f"-max_len={longest}", f"-seed={seed + 1}", "-runs=-1", "-rss_limit_mb=2048",
                   "-timeout=60", "-print_final_stats=0", "-verbosity=0",
                   f"-artifact_prefix={session.findings}/{session.name}-crash-"], session.one, custom_mutator=mutator)
    atheris.Fuzz()


def without(session, seeds, seed):
    from mutate import mutate

    rng = random.Random(seed)
    for data in seeds:
        session.one(data)
    while True:
        data = mutate(rng.choice(seeds), rng)
        session.one(mutate(data, rng) if rng.random() < 0.3 else data)


def child(args, name):
    sys.path.insert(0, str(HERE))
    warnings.simplefilter("ignore")
    engine = without
    if args.engine != "own":
        try:
            import atheris
        except ImportError:
            if args.engine == "atheris":
                raise
        else:
            engine = with_atheris
            with atheris.instrument_imports(include=["wasi"], enable_loader_override=False):
                import readers  # noqa: F401
    import wasi

    wasi.set_num_threads(1)
    seeds = seeds_of(name)
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as folder:
        (Path(folder) / "files").mkdir()
        session = Session(name, args.runs, args.findings, Path(folder) / "files")
        session.cut(seeds) if args.cut else engine(session, seeds, args.seed)


def replay(args):
    sys.path.insert(0, str(HERE))
    from readers import READERS, check

    with tempfile.TemporaryDirectory() as folder:
        taken = check(READERS[args.readers[0]], args.replay.read_bytes(), Path(folder))
    print("taken" if taken else "refused by name")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("readers", nargs="*")
    parser.add_argument("--runs", type=int, default=1000, help="files for each reader")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--engine", choices=("any", "atheris", "own"), default="any")
    parser.add_argument("--findings", type=Path, default=Path("findings"))
    parser.add_argument("--out", type=Path, help="JSON of the table")
    parser.add_argument("--cut", action="store_true")
    parser.add_argument("--replay", type=Path)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.findings.mkdir(parents=True, exist_ok=True)
    if args.replay:
        return replay(args)
    if args.child:
        return child(args, args.child)
    sys.path.insert(0, str(HERE))
    from readers import READERS

    rows, failed = [], False
    for name in args.readers or READERS:
        words = [sys.executable, __file__, "--child", name, "--runs", str(args.runs), "--seed", str(args.seed), "--engine",
                 args.engine, "--findings", str(args.findings), *["--cut"] * args.cut]
        run = subprocess.run(words, stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        lines = [line for line in run.stdout.splitlines() if line.startswith('{"reader"')]
        row = json.loads(lines[-1]) if lines else {"reader": name, "kinds": {"crash": f"the process ended with {run.returncode}"}}
        rows.append(row)
        failed |= bool(row["kinds"])
        print(f"{name:<18}{row.get('runs', 0):>9} files{row.get('taken', 0):>9} taken{len(row['kinds']):>4} findings, slowest "
              f"{row.get('slowest_seconds', 0):.2f} s, {row.get('seconds', 0):.0f} s", flush=True)
        for text in row["kinds"].values():
            print(f"    {text[:200]}", flush=True)
        if args.out:
            args.out.write_text(json.dumps(rows, indent=1) + "\n")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
