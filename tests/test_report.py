"""`wasi report`: the page is whole HTML that loads nothing, its numbers are the run's, and hostile folders stay text."""

import csv
import json
import math
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from test_training import Batches, small_model

import wasi
from wasi.cli import main
from wasi.cli.report import command_of
from wasi.reports import find_runs, read_run, report_page
from wasi.training.loop import TrainConfig, train
from wasi.training.ranks import RankAdaptation
from wasi.training.runlog import RunFolder, environment, write_confusion

VOID = {"meta", "br", "hr", "img", "input", "link"}
HOSTILE = ("</title></style><script>alert(1)</script><img src=http://evil.example/x onerror=alert(2)>'\"& $\\frac{$ "
           "\u202e\x00\ud800")


class Page(HTMLParser):
    """A strict reading: every tag is closed by its own, no id twice, every reference is to an id of the page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.ids, self.references, self.values, self.words, self.seen = [], [], [], [], [], set()
        self.attributes = []
        self.feed(text)
        self.close()
        assert self.tags == [], self.tags
        assert len(self.ids) == len(set(self.ids)) and set(self.references) <= set(self.ids)

    def handle_starttag(self, tag, attributes):
        self.seen.add(tag)
        self.attributes += attributes
        for name, value in attributes:
            if name == "id":
                self.ids.append(value)
            elif name == "href":
                assert value.startswith("#")
                self.references.append(value[1:])
            self.references += re.findall(r"url\(#([^)]+)\)", value or "")
        if tag == "data":
            self.values.append(dict(attributes)["value"])
        if tag not in VOID:
            self.tags.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.tags.pop()

    def handle_endtag(self, tag):
        assert self.tags.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def check(page):
    """The Page, found to load and run nothing."""
    found = Page(page)
    assert not found.seen & {"script", "link", "img", "iframe", "object", "embed", "base", "form", "image", "foreignobject"}
    assert not any(name.startswith("on") or name in ("src", "srcset", "xlink:href") for name, _ in found.attributes)
    assert not re.search(r"(https?:)?//|@import|javascript:", re.sub(r">[^<]*<", "><", page))  # in no tag
    assert "://" not in re.search(r"<style>(.*?)</style>", page, re.S)[1]
    assert "default-src 'none'" in page
    return found


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A short run with everything in it."""
    folder = RunFolder(tmp_path_factory.mktemp("runs") / "a")
    model = wasi.factorize(small_model(), rank=8, target_modules=("mlp",), verbose=False)
    config = TrainConfig(epochs=2, momentum=0.9, track_subspaces=2, adapt_ranks=RankAdaptation(every=2, grow=0.99999, shrink=1.0))
    folder.write_json("config.json", {"method": "wsi", "model": "small", "img_size": 16, "n_train": 96, "n_val": 12,
                                      "environment": environment(), "start_rss_bytes": 2**25, "data_rss_bytes": 2**25 + 2**20,
                                      "arguments": {"command": "train", "method": "wsi", "rank": 8, "quiet": True, "lr": None,
                                                    "alpha": 16.0, "data": "my photos"}})
    train(model, Batches(), Batches(1, seed=1), config, folder, progress=False)
    return folder.path


@pytest.fixture
def copy(run, tmp_path):
    return Path(shutil.copytree(run, tmp_path / "a"))


def test_the_page_has_the_numbers_of_the_run(run, capsys):
    assert main(["report", str(run)]) == 0
    assert capsys.readouterr().out == f"written to {run / 'report.html'}\n"
    page = (run / "report.html").read_text()
    found, words = check(page), " ".join(Page(page).words)
    result = json.loads((run / "result.json").read_text())
    wanted = [result[k] for k in ("seconds_per_step", "parameters", "counted_peak_bytes", "peak_rss_above_start_bytes")]
    wanted += [result["counted"][k] for k in ("gradient_bytes", "optimizer_bytes", "saved_bytes")]
    wanted += [e[k] for e in result["epochs"] for k in ("train_loss", "train_accuracy", "val_loss", "val_accuracy", "seconds")]
    wanted += [layer[k] for layer in json.loads((run / "layers.json").read_text())["layers"]
               for k in ("trained", "frozen_bytes", "gradient_bytes", "optimizer_bytes", "saved_bytes")]
    with open(run / "subspaces.csv") as file:
        last = {r["layer"]: r for r in csv.DictReader(file) if r["against"] == "start"}
    wanted += [float(r[k]) for r in last.values() for k in ("mean_degrees", "largest_degrees")]
    assert {repr(v) for v in wanted} <= set(found.values)
    assert "wasi train --method wsi --rank 8 --quiet --data 'my photos'" in words
    assert environment()["blas"] in words and "What this folder does not tell" not in words
    for title in ("Training loss", "Validation accuracy", "Memory by step", "Bytes by layer", "Rank of each layer by step",
                  "Mean principal angle to the subspace at the start"):
        assert title in words
    assert page == report_page([read_run(run, "a")], {"a": command_of(read_run(run, "a").config["arguments"])})  # the same again


def bare(folder, task="image-classification", **files):
    """A run folder that has its settings alone, and these files."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"method": "wsi", "arguments": {"task": task}}))
    for name, content in files.items():
        (folder / name.replace("_", ".")).write_text(content)
    return folder


def test_what_was_taken_for_what(tmp_path):
    folder, counts = bare(tmp_path / "a"), np.array([[7, 2, 0], [0, 9, 0], [0, 0, 0]])
    write_confusion(folder / "confusion.csv", counts, ["a cat", HOSTILE.replace("\x00", "").replace("\ud800", ""), "0"])
    page = report_page([read_run(folder, "a")])
    found = check(page)
    words = " ".join(found.words)
    assert "Confusion" in words and "a cat" in words and "<script>alert(1)</script>" in words
    assert re.findall(r'--part:([0-9.]+)">', page) == ["0.778", "0.222", *["0.000"] * 2, "1.000", *["0.000"] * 4]
    assert {repr(7 / 9), repr(9 / 11), "1.0"} <= set(found.values)  # recall and precision; the third class has neither

    counts = np.eye(40, dtype=int)
    counts[3, 5], counts[7, 1] = 4, 9
    write_confusion(folder / "confusion.csv", counts, [f"class {i}" for i in range(40)])
    words = check(report_page([read_run(folder, "a")])).words  # too many to be shown whole: the pairs, the most frequent first
    words = words[words.index("of the class") + 1 :]
    assert words[:8] == ["class 7", "class 1", "9", "90.0%", "class 3", "class 5", "4", "80.0%"]


@pytest.mark.parametrize("content", ["", "true\n", "true,a,b\na,1,2\n", "true,a,b\na,1,2\nc,1,2\n", "true,a\na,-1\n",
                                     "true,a\na,1,2\n", "true,a\na,1e3\n", "a" * 200_000, "true,a\na," + "9" * 400 + "\n"])
def test_a_confusion_matrix_that_is_none_is_named(tmp_path, content):
    found = read_run(bare(tmp_path / "a", confusion_csv=content), "a")
    assert not found.confusion and "confusion.csv: cannot be read" in " ".join(found.absent)
    assert "Confusion" not in check(report_page([found])).words


def test_the_command_of_a_run_has_its_zeros():
    arguments = {"command": "train", "method": "wsi", "clip": 0.0, "calibration": 0, "quiet": False, "recompute": True,
                 "rank": None}
    assert command_of(arguments) == "wasi train --method wsi --clip 0.0 --calibration 0 --recompute"


def test_language_models_are_told_by_their_perplexity(run, tmp_path):
    result = json.loads((run / "result.json").read_text())
    for name, task in (("lm", "lm"), ("vit", "image-classification")):
        bare(tmp_path / name / "seed-0", task, result_json=json.dumps(result))
    page = report_page([read_run(folder, label) for label, folder in find_runs([tmp_path]).items()])
    found, words = check(page), " ".join(Page(page).words)
    assert {repr(math.exp(result["val_loss"])), repr(100 * result["val_accuracy"])} <= set(found.values)
    for title in ("Perplexity against memory", "Accuracy against memory", "Validation perplexity", "Validation accuracy"):
        assert title in words


@pytest.mark.parametrize("kept", [["config.json"], ["steps.csv"], ["result.json"], ["layers.json"],
                                  ["config.json", "steps.csv", "epochs.json", "layers.json", "ranks.csv"]])
def test_what_a_folder_lacks_is_named(copy, kept):
    for file in copy.iterdir():
        if file.is_file() and file.name not in kept:
            file.unlink()
    words = " ".join(check(report_page([read_run(copy, "a")])).words)
    for name in {"config.json", "steps.csv", "result.json", "layers.json"} - set(kept):
        assert f"{name}: " in words
    assert ("Training loss" in words) == ("steps.csv" in kept)
    assert ("environment" in words.lower()) and ("No command is recorded" in words)


def test_a_run_that_was_killed_in_a_row_of_its_log(copy):
    (copy / "result.json").unlink()
    steps = (copy / "steps.csv").read_text()
    (copy / "steps.csv").write_text(steps[: steps.rindex(",")][:-40])
    found = read_run(copy, "a")
    assert len(found.epochs) == 2 and found.counted_peak_bytes > 0 and found.measured_peak_bytes > 0
    words = " ".join(check(report_page([found])).words)
    assert "the run has not ended, or was killed" in words and "steps.csv: 1 rows that are cut off" in words


def test_logs_of_an_older_version(copy):
    with open(copy / "steps.csv", newline="") as file:
        rows = [row[:8] for row in csv.reader(file)]  # before rss_mib and counted_mib
    with open(copy / "steps.csv", "w", newline="") as file:
        csv.writer(file).writerows(rows)
    words = " ".join(check(report_page([read_run(copy, "a")])).words)
    assert "highest so far" in words and "arrays, highest so far" not in words


@pytest.mark.parametrize("content", ["", "[]", "null", "{", '{"epochs": 3, "counted": [], "val_accuracy": "x", "environment": 1}',
                                     '{"epochs": [{"epoch": 1e400}, {"epoch": NaN}, null]}', "[" * 100000, '{"arguments": 7}',
                                     '{"layers": [{"name": 1}, 2, {"name": "x", "trained": Infinity}], "step": {}}'])
def test_malformed_files_are_left_out(copy, content):
    for name in ("config.json", "result.json", "layers.json", "plan.json", "epochs.json"):
        (copy / name).write_text(content)
    for name in ("steps.csv", "ranks.csv", "subspaces.csv"):
        (copy / name).write_bytes(b"step,loss,layer\n1,2\n\x00\xff,nan,\n1e999,inf,x,y,z\n")
    check(report_page([read_run(copy, "a"), read_run(copy, "b")]))


def test_hostile_text_stays_text(copy):
    def poison(value):
        if isinstance(value, dict):
            return {(k if k in keys else HOSTILE): poison(v) for k, v in value.items()} | {HOSTILE: HOSTILE}
        return [poison(v) for v in value] if isinstance(value, list) else HOSTILE if isinstance(value, str) else value

    keys = {"layers", "name", "kind", "shape", "rank", "trained", "trained_bytes", "frozen_bytes", "gradient_bytes", "step",
            "optimizer_bytes", "saved_bytes", "method", "model", "img_size", "environment", "arguments"}
    for name in ("config.json", "layers.json"):
        (copy / name).write_text(json.dumps(poison(json.loads((copy / name).read_text()))))
    for name in ("ranks.csv", "subspaces.csv"):
        with open(copy / name, newline="") as file:
            fields, *rows = csv.reader(file)
        with open(copy / name, "w", newline="", errors="replace") as file:
            csv.writer(file).writerows([fields, *[[HOSTILE.replace("\x00", "") if v.startswith("blocks") else v for v in row]
                                                  for row in rows]])
    runs = [read_run(copy, HOSTILE), read_run(copy, "_" + HOSTILE + "/seed-0"), read_run(copy, "$x^2$" * 1000)]
    page = report_page(runs, {HOSTILE: command_of(runs[0].config["arguments"])})
    found = check(page)
    page.encode()
    words = " ".join(found.words)
    assert "<script>alert(1)</script>" in words and "$\\frac{$" in words
    assert "\u202e" not in page and "\x00" not in page


def test_several_runs_are_compared(run, tmp_path, capsys):
    for folder in ("dense/seed-0", "dense/seed-1", "wsi/seed-0"):
        (tmp_path / "c" / folder).mkdir(parents=True)
        for name in ("config.json", "result.json"):
            shutil.copy(run / name, tmp_path / "c" / folder / name)
    (tmp_path / "c" / "dense" / "seed-1" / "result.json").unlink()
    assert list(find_runs([tmp_path / "c"])) == ["c/dense/seed-0", "c/dense/seed-1", "c/wsi/seed-0"]
    assert main(["report", str(tmp_path / "c"), str(run), "--out", str(tmp_path / "page.html")]) == 0
    found = check((tmp_path / "page.html").read_text())
    words = " ".join(found.words)
    assert "Accuracy against memory" in words and "Not compared, since their results are not whole: c/dense/seed-1" in words
    result = json.loads((run / "result.json").read_text())
    assert repr(100 * result["val_accuracy"]) in found.values


@pytest.mark.parametrize("words, message", [
    (["nowhere"], "run: expected a run folder, got 'nowhere', which is not a folder"),
    (["."], "run: '.' holds no run"),
    (["{run}", "--out", "no/such/page.html"], "out: expected a file in a folder that is there, got 'no/such/page.html'"),
])
def test_errors_are_one_line_and_status_2(run, tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    assert main(["report", *[w.format(run=run) for w in words]]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"wasi report: {message}") and error.count("\n") == 1
