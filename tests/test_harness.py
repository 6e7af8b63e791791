"""The benchmark harness: what it reports as memory, time and origin is true."""

import json
import os
import re
import socket
import time

import harness
import numpy as np
import pytest
from harness import MIB

# Measured functions


def touch(setup_mib, step_mib):
    kept = np.ones(setup_mib * MIB, np.uint8)

    def step():
        return {"total": int(np.ones(step_mib * MIB, np.uint8)[:: 2**12].sum()), "kept": len(kept)}

    return step


def touch_and_free():
    np.ones(300 * MIB, np.uint8)
    return lambda: None


def environment():
    print("not an answer")
    return lambda: {"omp": os.environ["OMP_NUM_THREADS"], "pid": os.getpid()}


def failing():
    raise ValueError("no such thing")


def dying():
    return lambda: os._exit(7)


# Tests


def test_peak_is_what_the_step_touches():
    record = harness.run_isolated(touch, {"setup_mib": 0, "step_mib": 300}, steps=1, warmup=0)
    assert record["peak_bytes"] == pytest.approx(300 * MIB, rel=0.05)
    assert record["setup_bytes"] < 5 * MIB
    assert record["values"]["total"] == 300 * MIB // 2**12


def test_what_setup_keeps_counts_and_what_it_frees_does_not():
    record = harness.run_isolated(touch, {"setup_mib": 100, "step_mib": 200}, steps=1, warmup=0)
    assert record["setup_bytes"] == pytest.approx(100 * MIB, rel=0.05)
    assert record["peak_bytes"] == pytest.approx(300 * MIB, rel=0.05)
    if not record["peak_reset"]:
        pytest.skip("the system does not allow to reset the peak")
    record = harness.run_isolated(touch_and_free, {}, steps=1, warmup=0)
    assert record["peak_bytes"] < 20 * MIB


def test_fresh_process_with_its_own_threads():
    record = harness.run_isolated(environment, {}, steps=4, warmup=2, threads=1)
    assert record["values"]["omp"] == "1" and record["threads"] == 1
    assert record["values"]["pid"] != os.getpid()
    assert len(record["seconds_all"]) == record["steps"] == 4
    assert record["seconds"]["low"] <= record["seconds"]["median"] <= record["seconds"]["high"]


def test_failures_are_told():
    with pytest.raises(RuntimeError, match=r"(?s)test_harness.failing.*ValueError: no such thing"):
        harness.run_isolated(failing, {})
    with pytest.raises(RuntimeError, match="exit status 7"):
        harness.run_isolated(dying, {})


def test_interleave_alternates_and_finds_the_ratio():
    calls = []

    def sleeper(name, seconds):
        return lambda: (calls.append(name), time.sleep(seconds))

    with harness.Isolated(environment, {}) as isolated:
        record = harness.interleave({"slow": sleeper("slow", 0.04), "fast": sleeper("fast", 0.01), "process": isolated},
                                    rounds=3, warmup=1)
    assert calls == ["fast", "slow", "slow", "fast", "fast", "slow", "slow", "fast"]
    assert list(record["ratios"]) == ["slow / fast", "slow / process", "fast / process"]
    assert 1.5 < record["ratios"]["slow / fast"]["median"] < 6
    assert record["seconds"]["process"]["median"] < 0.04


def test_spread():
    assert harness.spread([3.0]) == {"median": 3.0, "low": 3.0, "high": 3.0}
    assert harness.spread([5.0, 1.0, 2.0, 3.0, 4.0]) == {"median": 3.0, "low": 2.0, "high": 4.0}


def test_written_results_tell_the_origin_but_not_the_host(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", [str(harness.ROOT / "benchmarks" / "x.py"), "--data=/home/someone/data.npz",
                                     "/home/someone/weights", "--steps", "1"])
    for name in harness.environment():  # of who runs this test
        monkeypatch.delenv(name)
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "262144")
    monkeypatch.setenv("OMP_NUM_THREADS", "7")  # the harness sets its own
    record = harness.run_isolated(touch, {"setup_mib": 1, "step_mib": 1}, steps=1, warmup=0)
    columns = {"step MiB": lambda r: r["args"]["step_mib"], "peak MiB": lambda r: harness.mib(r["peak_bytes"])}
    harness.write_results("touch", "Touching memory", [record, record], columns, tmp_path)
    text, records = (tmp_path / "touch.md").read_text(), json.loads((tmp_path / "touch.json").read_text())
    assert records[1] == record
    assert text.startswith("# Touching memory\n\n| step MiB | peak MiB |\n| --- | --- |\n| 1 | ")
    assert "MALLOC_MMAP_THRESHOLD_=262144 python benchmarks/x.py --data=data.npz weights --steps 1" in text
    assert "OMP_NUM_THREADS" not in text
    assert record["machine"]["cpu"] in text and f"commit {record['commit']}" in text and "numpy" in text
    for secret in (socket.gethostname(), str(harness.ROOT), "/home/someone"):
        assert not re.search(rf"(?<!\w){re.escape(secret)}(?!\w)", text + json.dumps(records))
