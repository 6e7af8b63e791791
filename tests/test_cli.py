"""The command as a user types it, on small data of its own making."""

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from wasi.cli import main
from wasi.training.runlog import read_csv


@pytest.fixture
def folder(tmp_path):
    """Twelve images in each of two classes."""
    rng = np.random.default_rng(0)
    for label, level in (("dark", 60), ("light", 190)):
        (tmp_path / "images" / label).mkdir(parents=True)
        for i in range(12):
            pixels = np.clip(level + rng.integers(-40, 40, (20, 24, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / label / f"{i}.png")
    return tmp_path / "images"


OPTIONS = ["--model", "vit_micro_patch8_64", "--img-size", "16", "--epochs", "2", "--batch-size", "8", "--rank", "16", "--quiet"]


def test_two_methods_write_a_table_and_curves(folder, tmp_path, capfd):
    assert main(["train", "--data", str(folder), "--out", str(tmp_path / "run"), *OPTIONS]) == 0
    table = capfd.readouterr().out
    assert "| dense |" in table and "| wsi |" in table and "blocks.3.mlp.fc2" in table
    assert (tmp_path / "run" / "summary.md").read_text() in table
    assert (tmp_path / "run" / "curves.png").stat().st_size > 1000
    results = {m: json.loads((tmp_path / "run" / m / "result.json").read_text()) for m in ("dense", "wsi")}
    assert results["wsi"]["parameters"] < results["dense"]["parameters"]
    assert all(r["peak_rss_above_start_bytes"] > 0 for r in results.values())


def test_one_method_runs_in_this_process(folder, tmp_path, capfd):
    assert main(["train", "--data", str(folder), "--method", "wsi", "--calibration", "1", "--targets", "attn,fc1",
                 "--out", str(tmp_path / "run"), *OPTIONS]) == 0
    assert json.loads((tmp_path / "run" / "config.json").read_text())["arguments"]["targets"] == "attn,fc1"
    assert (tmp_path / "run" / "model.safetensors").exists()


def test_ranks_and_subspaces_are_logged_and_drawn(folder, tmp_path, capfd):
    options = ["--method", "dense,wsi", "--adapt-ranks", "1", "--grow", "0.99999", "--shrink", "1", "--track-subspaces", "2",
               "--max-factor-bytes", "10000000"]
    assert main(["train", "--data", str(folder), "--out", str(tmp_path / "run"), *OPTIONS, "--epochs", "3", *options]) == 0
    run = tmp_path / "run" / "wsi"
    ranks = read_csv(run / "ranks.csv")
    assert ranks[0] == {"step": "0", "layer": "blocks.0.mlp.fc1", "rank": "16"} and ranks[-1]["rank"] == "20"
    result = json.loads((run / "result.json").read_text())
    assert result["ranks"]["blocks.0.mlp.fc1"] == 20
    angles = read_csv(run / "subspaces.csv")
    assert {r["step"] for r in angles} == {"2", "4", "6"} and {r["against"] for r in angles} == {"start", "previous"}
    assert all(len(r["degrees"].split()) == 16 for r in angles if r["against"] == "start")
    assert main(["plot-ranks", str(run)]) == main(["plot-subspaces", str(run)]) == 0
    assert all((run / name).read_bytes().startswith(b"\x89PNG") for name in ("ranks.png", "subspaces.png"))
    assert main(["plot-subspaces", str(tmp_path / "run" / "dense")]) == 2
    assert "folder: expected a run folder with subspaces.csv (--track-subspaces)" in capfd.readouterr().err


@pytest.mark.parametrize("method", ["svd", "svd-llm", "svd-llm-lora"])
def test_comparison_methods_run_without_further_options(folder, tmp_path, method):
    assert main(["train", "--data", str(folder), "--method", method, "--out", str(tmp_path / "run"), *OPTIONS]) == 0


@pytest.mark.parametrize("options, message", [
    (["--method", "magic"], "--method: expected names out of dense, asi"),
    (["--method", "dense", "--data", "nowhere"], "nowhere"),
    (["--method", "wsi", "--targets", "mpl"], "target_modules: ['mpl'] match none"),
    (["--method", "dense", "--batch-size", "1000"], "1000"),
    (["--method", "dense", "--weights", "no.safetensors"], "weights: expected a safetensors file"),
    (["--method", "dense", "--img-size", "20"], "img_size: expected a multiple of the patch size 8, got 20"),
    (["--method", "dense,lora", "--adapt-ranks", "5"], "--adapt-ranks: expected a method out of wsi, wasi, qwasi, got dense"),
    (["--method", "lora", "--track-subspaces", "5"], "--track-subspaces: expected a method out of wsi"),
    (["--method", "wsi", "--adapt-ranks", "-1"], "--adapt-ranks: expected a positive number of steps, got -1"),
    (["--method", "wsi", "--adapt-ranks", "2", "--grow", "1"], "grow, shrink: expected 0 < grow < shrink"),
    (["--method", "dense", "--model", "vit_giant"], "name: expected one of"),
])
def test_errors_are_one_line_and_status_2(folder, tmp_path, capfd, options, message):
    assert main(["train", "--data", str(folder), "--out", str(tmp_path / "run"), *OPTIONS, *options]) == 2
    error = capfd.readouterr().err
    assert error.startswith("wasi train: ") and error.count("\n") == 1
    assert message in error


def test_an_unwritable_run_folder_is_refused_before_anything_is_trained(folder, tmp_path, capfd):
    (tmp_path / "taken").write_text("")
    assert main(["train", "--data", str(folder), "--method", "dense", "--out", str(tmp_path / "taken"), *OPTIONS]) == 2
    assert "out: expected a folder that can be written to" in capfd.readouterr().err


def test_python_dash_m_shows_help():
    done = subprocess.run([sys.executable, "-P", "-m", "wasi", "train", "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and "--variance" in done.stdout
