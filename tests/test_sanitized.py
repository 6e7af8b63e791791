"""The core built with AddressSanitizer and UBSan, called well and badly: what `tools/sanitize.sh address` does at length."""

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from compilers import ROOT, need_tools


@pytest.mark.slow
def test_no_access_out_of_bounds_and_no_undefined_behaviour(tmp_path):
    need_tools("gcc", "bash")
    runtime = subprocess.run(["gcc", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True).stdout.strip()
    if not Path(runtime).is_absolute():
        pytest.skip("needs gcc's AddressSanitizer (apt-get install libasan8)")
    if int(version("setuptools").split(".")[0]) < 77:
        pytest.skip("needs setuptools 77, which builds the core")
    environment = {**os.environ, "WASI_SANITIZE_FOLDER": str(tmp_path / "sanitize"),
                   "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    run = subprocess.run([ROOT / "tools" / "sanitize.sh", "address", "--quick"], capture_output=True, text=True, env=environment)
    assert run.returncode == 0 and run.stdout.endswith("nothing found\n"), run.stdout[-3000:] + run.stderr[-3000:]
