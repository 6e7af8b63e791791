"""One timer, one measuring process and one table writer for every benchmark.

A measured function does its set-up and returns the step to be measured, a callable without arguments:

    def dense_step(batch):              # set-up: built once, not timed
        ...
        return lambda: {"loss": ...}    # the step; it may return a dict of values for the record

    record = run_isolated(dense_step, {"batch": 8}, threads=2)

Memory is resident memory (RSS) of a process that does nothing else. After the function's module is imported, the RSS
is the baseline; after set-up the kernel's high-water mark is reset; the peak is that mark after the last step, minus
the baseline. So it holds weights, gradients, optimiser state, saved activations and scratch, but not the interpreter.
"""

import contextlib
import ctypes
import gc
import importlib.util
import inspect
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import time
import traceback
from itertools import combinations
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).resolve().parent / "results"
MIB = 2**20
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def timed(function):
    """(seconds, result) of one call."""
    start = time.perf_counter()
    result = function()
    return time.perf_counter() - start, result


def spread(values):
    """Median and quartiles; a single value is its own quartiles."""
    low, _, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    return {"median": statistics.median(values), "low": low, "high": high}


# Memory of this process


def memory():
    """Bytes of VmRSS, VmHWM and RssFile of this process, from /proc/self/status."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {name: 1024 * int(fields[name].split()[0]) for name in ("VmRSS", "VmHWM", "RssFile")}


def release():
    """Gives back what is free: garbage, and the C library's empty pages."""
    gc.collect()
    with contextlib.suppress(AttributeError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)


def reset_peak():
    """Sets VmHWM back to VmRSS; False where the system does not allow it."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


# The measuring process


class Isolated:
    """A fresh process that holds one measured function; a context manager.

    Parameters: function, defined at the top of a file; args, a dict of JSON values handed to it; threads, set in the
    process for OpenMP, BLAS, PyTorch and wasi. `step()` runs one step and returns its seconds, `record()` what was
    measured until then. Raises RuntimeError with the process's own words where it fails.
    """

    def __init__(self, function, args, threads=None):
        self.name, self.args = f"{Path(inspect.getfile(function)).stem}.{function.__name__}", args
        self.threads = threads or cpu_count()
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env=os.environ | dict.fromkeys(THREAD_VARIABLES, str(self.threads)))
        self._seconds, self._cpu_seconds = [], []
        try:
            self._ask({"file": inspect.getfile(function), "function": function.__name__, "args": args,
                       "threads": self.threads, "path": sys.path})
        except BaseException:
            self.close()
            raise

    def _ask(self, request):
        with contextlib.suppress(BrokenPipeError):  # the missing answer tells
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name}({self.args}) ended with exit status {self._process.wait()}")
        answer = json.loads(line)
        if "error" in answer:
            raise RuntimeError(f"{self.name}({self.args}) failed:\n{answer['error']}")
        return answer

    def step(self, warmup=False):
        answer = self._ask("step")
        if not warmup:
            self._seconds.append(answer["seconds"])
            self._cpu_seconds.append(answer["cpu_seconds"])
        return answer["seconds"]

    def record(self):
        if not self._seconds:
            raise RuntimeError(f"{self.name}: expected at least one measured step, got none")
        answer = self._ask("report")
        return {"function": self.name, "args": scrub(self.args), "steps": len(self._seconds),
                "seconds": spread(self._seconds), "seconds_all": self._seconds,
                "cpu_seconds": spread(self._cpu_seconds), **answer, **context(self.threads),
                "versions": answer["versions"]}

    def close(self):
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self.close()


def run_isolated(function, args, steps=3, warmup=1, threads=None):
    """The record of `function(**args)` measured in a fresh process (see the module and Isolated).

    Record: seconds and cpu_seconds, of all threads (median and quartiles of `steps`), peak_bytes, setup_bytes (RSS that
    set-up left behind) and file_bytes (the part of the growth that is mapped files, that is library code touched for the
    first time) above baseline_bytes, values (of the last step), and the context: machine, threads, versions, commit, command.
    """
    with Isolated(function, args, threads) as process:
        for i in range(warmup + steps):
            process.step(warmup=i < warmup)
        return process.record()


def serve(requests, answer):
    """The measuring process: sets up what the first request names, then answers "step" and "report"."""
    task = json.loads(next(requests))
    sys.path[:] = [str(Path(task["file"]).parent), *task["path"]]
    spec = importlib.util.spec_from_file_location(Path(task["file"]).stem, task["file"])
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name in ("torch", "wasi"):
        if name in sys.modules:
            sys.modules[name].set_num_threads(task["threads"])
    release()
    baseline = memory()
    step = getattr(module, task["function"])(**task["args"])
    release()
    ready = memory()
    peak_reset = reset_peak()
    values = None
    answer({"ready": True})
    for request in requests:
        if json.loads(request) == "step":
            cpu_before = time.process_time()
            seconds, values = timed(step)
            answer({"seconds": seconds, "cpu_seconds": time.process_time() - cpu_before})
        else:
            now = memory()
            answer({"baseline_bytes": baseline["VmRSS"], "setup_bytes": ready["VmRSS"] - baseline["VmRSS"],
                    "peak_bytes": now["VmHWM"] - baseline["VmRSS"], "file_bytes": now["RssFile"] - baseline["RssFile"],
                    "peak_reset": peak_reset, "values": values, "versions": versions()})


# Comparison in alternation


def interleave(candidates, rounds=5, warmup=1):
    """Times candidates in turn within one run, so that what else the machine does hits all of them alike.

    Parameters: candidates, a dict from name to a callable or an `Isolated`; every other round goes in reverse order.
    Returns a record with seconds (name -> median and quartiles) and ratios ("a / b" -> median and quartiles of the
    ratio within a round) for every pair.
    """
    seconds = {name: [] for name in candidates}
    for turn in range(-warmup, rounds):
        for name in reversed(candidates) if turn % 2 else candidates:
            candidate = candidates[name]
            s = candidate.step(turn < 0) if isinstance(candidate, Isolated) else timed(candidate)[0]
            if turn >= 0:
                seconds[name].append(s)
    ratios = {f"{a} / {b}": spread([x / y for x, y in zip(seconds[a], seconds[b])])
              for a, b in combinations(candidates, 2)}
    return {"rounds": rounds, "seconds": {name: spread(s) for name, s in seconds.items()}, "ratios": ratios,
            **context(None)}


# What a record says about where it comes from


def cpu_count():
    return len(os.sched_getaffinity(0))


def machine():
    """CPU model, cores and memory; no host name."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {"cpu": models[0] if models else platform.machine(), "cores": cpu_count(),
            "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")}


def versions():
    """Versions of Python and of those of our libraries that this process has loaded."""
    loaded = {name: sys.modules[name] for name in ("numpy", "torch", "wasi") if name in sys.modules}
    found = {"python": platform.python_version(), **{name: str(m.__version__) for name, m in loaded.items()}}
    if "wasi" in loaded:
        found["blas"] = loaded["wasi"]._core.blas_config()
    return found


def commit():
    """Short hash of HEAD, "+" appended where tracked files outside results/ differ; "unknown" without git."""

    def git(*args):
        return subprocess.run(["git", "-C", ROOT, *args], capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!benchmarks/results")
        return git("rev-parse", "--short=12", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def scrub(value):
    """The value with every path from the root of the file system cut down to its last part."""
    if isinstance(value, dict):
        return {key: scrub(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [scrub(v) for v in value]
    if isinstance(value, (str, Path)):
        head, equals, tail = str(value).rpartition("=")  # also in --data=/path/to/file
        return head + equals + (Path(tail).name if tail.startswith("/") else tail)
    return value


def command():
    """The command line of this run, as one would type it in the repository."""
    program = Path(sys.argv[0]).resolve()
    program = program.relative_to(ROOT) if program.is_relative_to(ROOT) else program.name
    return shlex.join(["python", str(program), *scrub(sys.argv[1:])])


def environment():
    """Settings of the C library's allocator and of the threading libraries that this run was started with."""
    prefixes = ("MALLOC_", "GLIBC_TUNABLES", "OMP_", "GOMP_", "KMP_", "MKL_", "OPENBLAS_", "LD_PRELOAD")
    return {name: scrub(value) for name, value in sorted(os.environ.items())
            if name.startswith(prefixes) and name not in THREAD_VARIABLES}


def context(threads):
    return {"machine": machine(), "load": os.getloadavg()[0], "threads": threads or cpu_count(),
            "versions": versions(), "commit": commit(), "environment": environment(), "command": command()}


# Tables


def mib(n_bytes):
    return f"{n_bytes / MIB:,.0f}"


def seconds(s):
    return f"{s:.3g}" if s < 100 else f"{s:.0f}"


def markdown_table(rows, columns):
    """A table of rows under columns, a dict from heading to a function that makes a row's text."""
    lines = [list(columns), ["---"] * len(columns), *([str(cell(row)) for cell in columns.values()] for row in rows)]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def write_results(name, title, records, columns, folder=RESULTS):
    """Writes NAME.json (the records) and NAME.md (their table, and where they come from) to benchmarks/results/."""
    where = records[0]
    settings = "".join(f"{name}={value} " for name, value in where["environment"].items())
    loads = [r["load"] for r in records if "load" in r]
    load = f"{min(loads):.1f} to {max(loads):.1f}" if loads else "unknown"
    loaded = ", ".join(f"{library} {version}" for library, version in where["versions"].items())
    text = (f"# {title}\n\n{markdown_table(records, columns)}\n"
            f"{where['machine']['cpu']}, {where['machine']['cores']} cores, {mib(where['machine']['memory_bytes'])} MiB; "
            f"{where['threads']} threads; {loaded}; commit {where['commit']}; load average {load}.\n\n"
            f"    {settings}{where['command']}\n")
    Path(folder).mkdir(parents=True, exist_ok=True)
    (Path(folder) / f"{name}.json").write_text(json.dumps(records, indent=1) + "\n")
    (Path(folder) / f"{name}.md").write_text(text)


if __name__ == "__main__":
    channel = os.fdopen(os.dup(1), "w")  # answers go here; whatever else is printed goes to stderr
    os.dup2(2, 1)

    def answer(message):
        channel.write(json.dumps(message) + "\n")
        channel.flush()

    try:
        serve(iter(sys.stdin), answer)
    except Exception:
        answer({"error": traceback.format_exc()})
        raise
