"""The command as a user types it, on small data of its own making."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

import wasi
from wasi.cli import main
from wasi.cli.train import better_epoch
from wasi.training.data import open_splits
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


def test_what_is_frozen_stays_and_is_no_target(folder, tmp_path, capfd):
    words = ["train", "--data", str(folder), "--method", "wsi", "--out", str(tmp_path / "run"), *OPTIONS, "--epochs", "1"]
    assert main([*words[:-2], "--epochs", "1", "--freeze", "patch_embed,blocks.0"]) == 0
    model, _ = wasi.models.load_model(tmp_path / "run" / "model.safetensors")
    start = wasi.create_model("vit_micro_patch8_64", num_classes=2, img_size=16, seed=0)
    for name, p in start.named_parameters():
        if name.startswith(("patch_embed.", "blocks.0.")):
            assert np.array_equal(model.get_module(name.rpartition(".")[0]).__dict__[name.rpartition(".")[2]].data, p.data), name
    assert not np.array_equal(model.head.bias.data, start.head.bias.data)
    assert main([*words[:5], "--out", str(tmp_path / "other"), *OPTIONS, "--freeze", "patch"]) == 2
    assert "freeze: the model has no parameters 'patch'" in capfd.readouterr().err


@pytest.mark.parametrize("method, words, stays", [
    ("qwasi", [], True), ("qwasi", ["--freeze", "none"], False), ("wsi", [], False)])
def test_qwasi_leaves_the_stem_of_a_pretrained_model_as_it_is(folder, tmp_path, capfd, method, words, stays):
    start, run = tmp_path / "start.safetensors", tmp_path / "run"
    before = wasi.create_model("vit_micro_patch8_64", num_classes=2, img_size=16, seed=0)
    wasi.export(before, start, "timm")
    assert main(["train", "--data", str(folder), "--method", method, "--weights", str(start), "--out", str(run), *OPTIONS,
                 *words]) == 0
    model, _ = wasi.load_model(run / "model.safetensors")
    for a, b in ((model.cls_token, before.cls_token), (model.patch_embed.proj.bias, before.patch_embed.proj.bias)):
        assert np.array_equal(a.data, b.data) == stays
    assert not np.array_equal(model.norm.bias.data, before.norm.bias.data)


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


EVERYTHING = ["--schedule", "step", "--milestones", "1", "--gamma", "0.5", "--layer-lr-decay", "0.9", "--ema", "0.9",
              "--param-groups", "head.*:lr=2,*:decay=0.01", "--class-weights", "balanced", "--mixup", "0.2", "--cutmix", "1",
              "--randaugment", "1,5", "--label-smoothing", "0.1", "--early-stopping", "3", "--monitor", "val_loss"]


def test_everything_at_once_goes_on_bit_for_bit_and_is_evaluated(folder, tmp_path, capfd):
    words = ["train", "--data", str(folder), "--method", "wsi", *OPTIONS, *EVERYTHING, "--epochs", "3", "--threads", "1",
             "--seed", "3"]
    assert main([*words, "--out", str(tmp_path / "run")]) == 0
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    (tmp_path / "copy" / "result.json").unlink()  # as if killed in the last epoch
    for late in sorted((tmp_path / "copy" / "checkpoints").glob("*.safetensors"))[1:]:
        late.unlink()
    assert main(["train", "--resume", "--out", str(tmp_path / "copy")]) == 0
    ours, theirs = (load_file(tmp_path / name / "model.safetensors") for name in ("run", "copy"))
    assert ours.keys() == theirs.keys() and all(np.array_equal(ours[k], theirs[k]) for k in ours)
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["class_weights"] == [1.0, 1.0] and config["early_stopping"]["patience"] == 3
    capfd.readouterr()
    model = str(tmp_path / "run" / "model.safetensors")
    assert main(["evaluate", model, "--data", str(folder), "--confusion", str(tmp_path / "c.csv")]) == 0
    printed = capfd.readouterr().out
    assert f"top-1 {100 * json.loads((tmp_path / 'run' / 'result.json').read_text())['val_accuracy']:.2f} %" in printed
    assert "that wasi train holds out with --seed 3 " in printed
    assert "class  samples   recall  precision" in printed and (tmp_path / "c.csv").read_text().startswith("true,dark,light")
    assert main(["evaluate", str(tmp_path / "run")]) == 0  # the run knows its data and the seed of their split
    assert capfd.readouterr().out == printed
    shutil.copy(model, tmp_path / "alone.safetensors")
    assert main(["evaluate", model, "--task", "lm"]) == main(["evaluate", str(tmp_path / "alone.safetensors")]) == 2
    errors = capfd.readouterr().err
    assert "--task: the model is for image-classification, got lm" in errors
    assert "--data: expected the model's classes dark, light, got 0, 1" in errors


def test_photos_as_people_have_them_train_are_evaluated_and_predicted(folder, tmp_path, capfd):
    (folder / "dark" / "cut.png").write_bytes((folder / "dark" / "0.png").read_bytes()[:300])
    (folder / "light" / "Größe 1.txt").write_text("no image")
    run = str(tmp_path / "run")
    assert main(["train", "--data", str(folder), "--method", "dense", "--out", run, *OPTIONS[:-1]]) == 0
    out, err = capfd.readouterr()
    assert f"{folder}: 2 classes, 20 samples to train on, 5 to validate on\n" in out
    assert err.startswith("not used: light/Größe 1.txt: not an image by its suffix\ndense: epoch 1 of 2: loss ")
    assert "dense: epoch 2 of 2" in err and "not used: dark/cut.png: " in err and err.count("not used") == 2

    assert main(["evaluate", run, "--data", str(folder)]) == main(["evaluate", run, "--data", str(folder), "--all"]) == 0
    out = capfd.readouterr().out
    assert "5 samples: the fifth of" in out and "25 samples: all of" in out and "24 samples, loss" in out
    shutil.copytree(folder / "light", tmp_path / "new" / "light")
    shutil.copytree(folder / "dark", tmp_path / "new" / "night")
    assert main(["evaluate", run, "--data", str(tmp_path / "new"), "--all"]) == 2
    assert "expected the model's classes dark, light, got light, night" in capfd.readouterr().err

    table = tmp_path / "predicted.csv"
    assert main(["predict", run, str(folder), str(folder / "dark" / "1.png"), "nowhere.jpg", "--out", str(table)]) == 0
    err, rows = capfd.readouterr().err, read_csv(table)
    assert "not used: nowhere.jpg: No such file or directory" in err and f"not used: {folder}/dark/cut.png: " in err
    assert len(rows) == 25 and rows[0]["file"] == f"{folder}/dark/0.png" and rows[-1] == rows[1]
    assert {row["class"] for row in rows} <= {"dark", "light"} and all(float(row["probability"]) >= 0.5 for row in rows)
    assert main(["predict", run, str(folder / "light"), "--top", "2", "--batch-size", "5"]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert lines[0] == "file,class1,probability1,class2,probability2" and len(lines) == 13
    assert [line.split(",")[:2] for line in lines[1:]] == [[row["file"], row["class"]] for row in rows[12:24]]
    assert main(["predict", run, "nowhere.jpg"]) == main(["predict", run, str(folder), "--top", "0"]) == 2
    before = table.read_text()
    assert main(["predict", run, "nowhere.jpg", "--out", str(table)]) == 2 and table.read_text() == before  # not half of another


def test_a_better_epoch_than_the_last_is_named(tmp_path):
    file = tmp_path / "checkpoints" / "step-00000004.safetensors"
    result = {"best": {"epoch": 2, "step": 4, "val_accuracy": 0.5, "val_loss": 1.25}, "val_loss": 1.5, "config": {"ema": None}}
    assert better_epoch("wsi", tmp_path, result) == []  # its checkpoint is not there
    file.parent.mkdir()
    file.touch()
    assert better_epoch("wsi", tmp_path, {**result, "val_loss": 1.25}) == []
    (line,) = better_epoch("wsi", tmp_path, result)
    assert line.startswith(f"wsi was best in epoch 2, top-1 50.0 %, loss 1.250: {file}")


def test_a_set_with_some_of_the_classes_is_labelled_by_the_models(folder):
    dataset = open_splits(folder)["train"]
    wide = dataset.with_classes(("bright", "dark", "grey", "light"))
    assert wide.labels.tolist() == [1] * 12 + [3] * 12 and wide.name(3) == dataset.name(3)
    with pytest.raises(ValueError, match="classes: expected the set's own among them, got none called dark"):
        dataset.with_classes(("light", "bright"))


@pytest.mark.parametrize("method", ["svd", "svd-llm", "svd-llm-lora"])
def test_comparison_methods_run_without_further_options(folder, tmp_path, method):
    assert main(["train", "--data", str(folder), "--method", method, "--out", str(tmp_path / "run"), *OPTIONS]) == 0


@pytest.mark.parametrize("options, message", [
    (["--epochs", "0", "--method", "dense"], "epochs: expected at least 1, got 0"),
    (["--threads", "0", "--method", "dense"], "n: expected"),
    (["--method", "magic"], "--method: expected names out of dense, asi"),
    (["--method", "dense", "--data", "nowhere"], "nowhere"),
    (["--method", "qwasi", "--start-scale", "0"], "start_scale: expected a finite number above 0, got 0.0"),
    (["--method", "wsi", "--targets", "mpl"], "target_modules: ['mpl'] match none"),
    (["--method", "dense", "--batch-size", "1000"], "1000"),
    (["--method", "dense", "--weights", "no.safetensors"], "weights: expected a safetensors file"),
    (["--method", "dense", "--img-size", "20"], "img_size: expected a multiple of the patch size 8, got 20"),
    (["--method", "dense,lora", "--adapt-ranks", "5"], "--adapt-ranks: expected a method out of wsi, wasi, qwasi, got dense"),
    (["--method", "lora", "--track-subspaces", "5"], "--track-subspaces: expected a method out of wsi"),
    (["--method", "wsi", "--adapt-ranks", "-1"], "--adapt-ranks: expected a positive number of steps, got -1"),
    (["--method", "wsi", "--adapt-ranks", "2", "--grow", "1"], "grow, shrink: expected 0 < grow < shrink"),
    (["--method", "dense", "--model", "vit_giant"], "name: expected one of"),
    (["--method", "dense", "--milestones", "1,x", "--schedule", "step"], "--milestones: expected whole numbers separated"),
    (["--method", "dense", "--schedule", "step"], "milestones: expected epochs with schedule 'step'"),
    (["--method", "dense", "--class-weights", "1,2,3"], "--class-weights: expected 2 numbers, one for each of dark, light"),
    (["--method", "dense", "--param-groups", "head.*:rate=2"], "--param-groups: expected PATTERN:lr=FACTOR:decay=NUMBER"),
    (["--method", "dense", "--randaugment", "2"], "--randaugment: expected a number of operations and a magnitude"),
    (["--method", "dense", "--randaugment", "2,11"], "magnitude: expected a number from 0 to 10"),
    (["--method", "dense", "--early-stopping", "0"], "patience: expected at least 1 epoch, got 0"),
    (["--method", "dense", "--label-smoothing", "1"], "label_smoothing: expected a number in [0, 1), got 1.0"),
    (["--method", "dense", "--ema", "2"], "ema: expected a decay between 0 and 1"),
    (["--method", "dense", "--micro-batch", "-1"], "micro_batch: expected at least 1 sample or None, got -1"),
    (["--method", "dense", "--lr", "nan"], "lr: expected a number from 0, got nan"),
    (["--method", "dense", "--momentum", "1.5"], "momentum: expected a number in [0, 1), got 1.5"),
    (["--method", "asi", "--activation-ranks", "a,b,c"], "--activation-ranks: expected numbers separated by commas, got 'a,b,c'"),
    (["--method", "wsi", "--calibration", "-1"], "--calibration: expected a number of batches from 0, got -1"),
    (["--method", "dense", "--limit", "0"], "n: expected at least 1, got 0"),
])
def test_errors_are_one_line_and_status_2(folder, tmp_path, capfd, options, message):
    assert main(["train", "--data", str(folder), "--out", str(tmp_path / "run"), *OPTIONS, *options]) == 2
    error = capfd.readouterr().err
    assert error.startswith("wasi train: ") and error.count("\n") == 1
    assert message in error


@pytest.mark.parametrize("options, message", [
    (["--method", "dense", "--layerwise"], "clip_norm: expected None with layerwise updates"),
    (["--method", "lora", "--alpha", "nan"], "alpha: expected a finite number, got nan"),
    (["--method", "wsi", "--adapt-ranks", "1", "--max-factor-bytes", "1"], "max_bytes: expected at least"),
    (["--method", "dense", "--param-groups", "haed.*:lr=2"], "param_groups: haed.* match no parameter"),
    (["--method", "dense", "--clip", "-1"], "clip_norm: expected a positive norm or None, got -1.0"),
])
def test_a_run_that_was_refused_leaves_its_folder_free(folder, tmp_path, capfd, options, message):
    words = ["train", "--data", str(folder), "--out", str(tmp_path / "run"), *OPTIONS, *options]
    for _ in range(2):
        assert main(words) == 2
        assert message in capfd.readouterr().err
    assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.parametrize("command", ["train", "plan", "generate"])
def test_a_seed_below_zero_is_refused_by_name(capfd, command):
    with pytest.raises(SystemExit):
        main([command, "--weights", "w", "--seed", "-1"])
    assert "argument --seed: expected a whole number from 0, got '-1'" in capfd.readouterr().err


def test_an_unwritable_run_folder_is_refused_before_anything_is_trained(folder, tmp_path, capfd):
    (tmp_path / "taken").write_text("")
    assert main(["train", "--data", str(folder), "--method", "dense", "--out", str(tmp_path / "taken"), *OPTIONS]) == 2
    assert "out: expected a folder that can be written to" in capfd.readouterr().err


def test_python_dash_m_shows_help():
    done = subprocess.run([sys.executable, "-P", "-m", "wasi", "train", "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and "--variance" in done.stdout
