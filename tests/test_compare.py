"""`wasi compare`: runs, resuming, table and figure."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from test_cli import OPTIONS, folder  # noqa: F401 (a fixture)

from wasi.cli import build_parser, compare, main
from wasi.reports import comparison_table, environments, pareto_front, plot_comparison, summarise_runs
from wasi.training.checkpoint import list_checkpoints
from wasi.training.runlog import read_steps


@pytest.mark.filterwarnings("error")
def test_compare_runs_resumes_and_draws_again(folder, tmp_path, capfd):  # noqa: F811
    out = tmp_path / "runs"
    command = ["compare", "--methods", "dense,lora:rank=4", "--seeds", "0,1", "--data", str(folder), "--out", str(out), *OPTIONS]
    assert main(command) == 0
    printed = capfd.readouterr().out
    results = json.loads((out / "results.json").read_text())
    assert results["environments"][0]["threads"] >= 1 and results["arguments"]["epochs"] == 2
    rows = results["methods"]
    assert [(r["method"], r["seeds"]) for r in rows] == [("dense", [0, 1]), ("lora:rank=4", [0, 1])]
    assert rows[1]["trained MiB"]["mean"] < rows[0]["trained MiB"]["mean"]
    assert (out / "comparison.md").read_text() in printed and (out / "comparison.png").read_bytes().startswith(b"\x89PNG")
    config = json.loads((out / "lora_rank=4" / "seed-1" / "config.json").read_text())
    assert (config["method"], config["arguments"]["rank"], config["arguments"]["seed"]) == ("lora", 4, 1)

    # A run that did not end goes on from its checkpoint, a finished one is left.
    kept = (out / "dense" / "seed-1" / "result.json").stat().st_mtime_ns
    (out / "dense" / "seed-0" / "result.json").unlink()
    first, *_ = list_checkpoints(out / "dense" / "seed-0").values()
    written = first.stat().st_mtime_ns
    before = read_steps(out / "dense" / "seed-0" / "steps.csv")["loss"]
    assert main(["compare", "--plot-only", "--out", str(out)]) == 0
    assert "not finished: dense seed 0" in capfd.readouterr().out
    assert main(command) == 0
    assert "run 1 of 4: dense, seed 0: " in capfd.readouterr().out
    assert (out / "dense" / "seed-1" / "result.json").stat().st_mtime_ns == kept
    assert first.stat().st_mtime_ns == written
    assert np.array_equal(read_steps(out / "dense" / "seed-0" / "steps.csv")["loss"], before)  # the same order and bits

    for changed, told in ((["--epochs", "3"], "epochs 2, not 3"), (["--rank", "8"], "rank 16, not 8")):
        assert main([*command, *changed]) == 2
        assert f"seed-0 holds a run with other options ({told}); name another folder" in capfd.readouterr().err


@pytest.mark.parametrize("options, message", [
    (["--methods", "dense,magic"], "--method: expected names out of dense"),
    (["--methods", "dense,wsi:rank"], "wsi:rank: expected option=value with an option of wasi train, or a flag of its, got"),
    (["--methods", "wsi:magic=3"], "got 'magic=3'"),
    (["--methods", "wsi:recompute=1"], "got 'recompute=1'"),
    (["--methods", "dense,dense"], "dense is named twice"),
    (["--seeds", "0,x"], "--seeds: expected whole numbers separated by commas, got '0,x'"),
    (["--plot-only"], "--plot-only: expected --out"),
    (["--plot-only", "--out", "nowhere"], "'nowhere' holds no comparison"),
])
def test_errors_are_one_line_and_status_2(capfd, tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    assert main(["compare", *options]) == 2
    error = capfd.readouterr().err
    assert error.startswith("wasi compare: ") and error.count("\n") == 1 and message in error
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_fails_leaves_the_others_to_go_on(folder, tmp_path, capfd):  # noqa: F811
    command = ["compare", "--methods", "wsi:lr=1e30,dense", "--data", str(folder), "--out", str(tmp_path / "runs"), *OPTIONS,
               "--warmup", "0"]
    assert main(command) == 2
    out, error = capfd.readouterr()
    assert "wasi train: step 1, lr " in error
    assert "run 1 of 2: wsi:lr=1e30, seed 0: failed\n" in out and "not finished: wsi:lr=1e30 seed 0\n" in out
    assert (tmp_path / "runs" / "dense" / "seed-0" / "result.json").exists()


@pytest.mark.parametrize("command", [["compare", "--methods", "dense,wsi:rank=999"],
                                     ["train", "--method", "dense,wsi", "--rank", "999"]])
def test_what_a_later_method_would_refuse_is_refused_before_the_first_trains(folder, tmp_path, capfd, command):  # noqa: F811
    options = [*command[1:], "--data", str(folder), "--out", str(tmp_path / "runs")]
    assert main([command[0], *OPTIONS[: OPTIONS.index("--rank")], *options]) == 2
    out, error = capfd.readouterr()
    assert error == f"wasi {command[0]}: rank: expected 1 to 128 for blocks.0.mlp.fc1 (512 x 128), got 999\n"
    assert out == "" and not (tmp_path / "runs").exists()


def test_a_bad_value_of_a_methods_own_option_is_refused_before_anything_runs(capfd, tmp_path):
    with pytest.raises(SystemExit):
        main(["compare", "--methods", "dense,wsi:rank=many", "--out", str(tmp_path / "runs")])
    assert "argument --rank: invalid int value: 'many'" in capfd.readouterr().err and not (tmp_path / "runs").exists()


def test_a_method_may_have_flags_of_its_own():
    args = build_parser(["compare"]).parse_args(["compare"])
    words = compare.words_of_run(args, "wsi:rank=8:recompute", 0, Path("out"))
    assert "--recompute" in words and words[words.index("--rank") + 1] == "8"
    assert "--recompute" not in compare.words_of_run(args, "wsi:rank=8", 0, Path("out"))


def test_commas_belong_to_an_option_where_no_method_follows():
    text = "dense,wsi:targets=attn,fc1:rank=8,lora"
    assert compare.split_methods(text) == ["dense", "wsi:targets=attn,fc1:rank=8", "lora"]


def test_pareto_front_by_hand():
    assert pareto_front([(2, 5), (1, 4), (3, 5), (3, 6), (1, 4), (4, 1)]) == [1, 4, 0, 3]
    assert pareto_front([]) == []


def result(accuracy, peak, seconds):
    counted = dict.fromkeys(("trained_bytes", "frozen_bytes", "gradient_bytes", "optimizer_bytes", "saved_bytes"), 2**20)
    return {"val_accuracy": accuracy, "peak_rss_above_start_bytes": peak * 2**20, "seconds_per_step": seconds,
            "counted": counted, "flops_per_image": 3e9}


def test_summary_and_table_by_hand(tmp_path):
    rows = summarise_runs({"a": {0: result(0.5, 10, 1.0), 1: result(0.7, 12, 1.0)}, "b": {0: result(0.4, 5, 2.0)}})
    assert rows[0]["top-1 %"] == {"mean": pytest.approx(60), "std": pytest.approx(200**0.5), "min": 50, "max": pytest.approx(70),
                                  "values": [50, pytest.approx(70)]}
    assert rows[0]["on_front"] == ["memory", "time"] and rows[1]["on_front"] == ["memory"]
    first, _, a, b = comparison_table(rows).splitlines()
    assert a == "| a | 60.0 ± 14.1 | 11 ± 1 | 1.000 | 1.00 | 1.00 | 2.00 | 1.00 | 3.000 | 2 | memory, time |"
    assert b.endswith("| 1 | memory |") and first.count("|") == a.count("|")
    plot_comparison(rows, tmp_path / "c.png")
    assert (tmp_path / "c.png").stat().st_size > 10_000


def test_language_models_are_compared_by_perplexity(tmp_path):
    runs = {method: {0: result(0.5, 10, 1.0) | {"val_loss": math.log(n)}} for method, n in (("a", 8), ("b", 6))}
    rows = summarise_runs(runs, language=True)
    assert [row["on_front"] for row in rows] == [[], ["memory", "time"]]  # less is better
    head, _, a, b = comparison_table(rows).splitlines()
    assert "| perplexity |" in head and "top-1" not in head and a.startswith("| a | 8.00 |") and b.startswith("| b | 6.00 |")
    plot_comparison(rows, tmp_path / "c.png")


def test_compare_of_language_models_prints_perplexity(tmp_path, capfd):
    (tmp_path / "t.txt").write_text("to be or not to be, that is the question\n" * 20)
    assert main(["compare", "--task", "lm", "--data", str(tmp_path / "t.txt"), "--methods", "dense", "--epochs", "1", "--length",
                 "16", "--batch-size", "8", "--limit", "16", "--limit-val", "4", "--quiet", "--out", str(tmp_path / "runs")]) == 0
    printed = capfd.readouterr().out
    loss = json.loads((tmp_path / "runs" / "dense" / "seed-0" / "result.json").read_text())["val_loss"]
    assert f"dense, seed 0: perplexity {math.exp(loss):.2f}, " in printed and "| method | perplexity |" in printed
    assert "top-1" not in printed


@pytest.mark.parametrize("name", ["compare.json", "dense/seed-0/config.json"])
@pytest.mark.parametrize("content", ["{", "[]", '{"methods": 3}', '{"method": "dense", "arguments": []}'])
def test_damaged_files_of_a_comparison_are_named(tmp_path, capfd, name, content):
    (tmp_path / "dense" / "seed-0").mkdir(parents=True)
    (tmp_path / name).write_text(content)
    words = ["--plot-only"] if name == "compare.json" else ["--methods", "dense"]
    assert main(["compare", *words, "--out", str(tmp_path)]) == 2
    error = capfd.readouterr().err
    assert error.count("\n") == 1 and f"{tmp_path / name}" in error and "not written by wasi" in error


def test_equal_environments_are_one():
    runs = {m: {s: {"environment": {"wasi": "1", "threads": n}} for s in (0, 1)} for m, n in (("a", 1), ("b", 2), ("c", 1))}
    assert [e["threads"] for e in environments(runs)] == [1, 2]
