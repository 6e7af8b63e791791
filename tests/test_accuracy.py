"""The accuracy benchmark trains what its folders lack, and writes its table from them."""

import json

import accuracy
import numpy as np
import pytest
from images import image_files, write_tar

import wasi


@pytest.fixture
def words(tmp_path, monkeypatch):
    """The command's words for two rows on a few small pictures."""
    before = wasi.get_num_threads()
    monkeypatch.setattr(accuracy, "TABLES", {"scratch": ("Small", {
        "dense": accuracy.Row("dense", (0.001, 0.003)),
        "wsi": accuracy.Row("wsi", (0.001,), share=0.25),
    }, accuracy.TABLES["scratch"][2])})
    data = write_tar(tmp_path / "images.tar", image_files(np.random.default_rng(0), n=9))
    yield ["scratch", "--data", str(data), "--out", str(tmp_path / "runs"), "--results", str(tmp_path), "--epochs", "1",
           "--batch-size", "9", "--limit", "18", "--limit-val", "9", "--limit-test", "12"]
    wasi.set_num_threads(before)


def test_an_interrupted_table_goes_on_where_it_was(words, tmp_path, capsys):
    accuracy.main([*words, "--seeds", "3"])
    lines = capsys.readouterr().out.splitlines()
    trained = [line for line in lines if "s a step" in line]
    assert len(trained) == 3  # two learning rates of dense, the better by its loss on other images, and wsi
    assert sum(": val " in line for line in lines) == 2 and sum(": test " in line for line in lines) == 2
    (next((tmp_path / "runs").glob("wsi_*seed-3")) / "trained.json").unlink()
    accuracy.main([*words, "--seeds", "3", "4"])
    again = [line for line in capsys.readouterr().out.splitlines() if "s a step" in line]
    assert len(again) == 3 and sum("seed-4" in line for line in again) == 2
    dense, wsi_row = json.loads((tmp_path / "scratch_accuracy.json").read_text())
    assert dense["method"] == "dense" and dense["seeds"] == wsi_row["seeds"] == [3, 4]
    assert dense["lead"]["dense"]["seeds"] == [0, 0] and wsi_row["flops_per_image"] < dense["flops_per_image"]
    assert "| wsi | 0.001 |" in (tmp_path / "scratch_accuracy.md").read_text()
    with pytest.raises(ValueError, match="holds a run with other settings"):
        accuracy.main([*words, "--seeds", "3", "--epochs", "2"])
