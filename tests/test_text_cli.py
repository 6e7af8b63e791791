import csv
import io
import json

import numpy as np
import pytest
from test_text import write_sentences

import wasi
from wasi.cli import main
from wasi.cli.texts import check_texts
from wasi.training.text import TokenSet


@pytest.mark.parametrize("method", ["dense", "qwasi"])
def test_text_classification(tmp_path, capsys, method):
    words = ["train", "--task", "text-classification", "--data", str(write_sentences(tmp_path / "data")), "--method", method,
             "--targets", "all", "--epochs", "2", "--batch-size", "8", "--out", str(tmp_path / "run"), "--quiet",
             "--length", "20", "--group-by-length"]
    assert main(words) == 0
    assert "| top-1 |" in capsys.readouterr().out
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["model"] == "llama_micro" and config["length"] == 20 and config["classes"] == ["no", "yes"]
    assert config["n_train"] == 32 and config["n_val"] == 8  # no dev.tsv: a fifth is held out


def test_language_modelling_and_generation_from_the_run(tmp_path, capsys):
    (tmp_path / "t.txt").write_text("to be or not to be, that is the question\n" * 40)
    words = ["train", "--task", "lm", "--data", str(tmp_path / "t.txt"), "--method", "dense", "--epochs", "6", "--batch-size",
             "4", "--out", str(tmp_path / "run"), "--quiet", "--length", "32", "--limit", "40", "--limit-val", "4",
             "--warmup", "5"]
    assert main(words) == 0
    assert "| perplexity |" in capsys.readouterr().out
    weights = tmp_path / "run" / "model.safetensors"
    assert main(["generate", "--weights", str(weights), "--prompt", "to be", "--tokens", "10"]) == 0
    assert capsys.readouterr().out.startswith("to be")
    words = ["--task", "lm", "--data", str(tmp_path / "t.txt"), "--length", "32"]
    told = []
    for path in (tmp_path / "run", weights, max((tmp_path / "run" / "checkpoints").glob("*.safetensors"))):
        assert main(["evaluate", str(path), *words]) == 0  # the run knows that it was trained on bytes
        told.append(capsys.readouterr().out)
    assert "perplexity" in told[0] and told[0] == told[1] == told[2]
    assert main(["evaluate", str(tmp_path / "run")]) == 0  # task, data and length too
    assert capsys.readouterr().out == told[0]
    assert main(["evaluate", str(tmp_path / "run"), "--length", "0"]) == 2
    assert main(["evaluate", str(tmp_path / "run"), "--confusion", str(tmp_path / "c.csv")]) == 2
    error = capsys.readouterr().err
    assert "--length: expected at least 1 token, got 0" in error and "--confusion: a language model has no classes" in error
    alone = weights.rename(tmp_path / "alone.safetensors")
    assert main(["evaluate", str(alone), *words]) == 2
    assert "--tokenizer: expected it, or tokenizer.json or tokenizer.bin in " in capsys.readouterr().err
    assert main(["evaluate", str(alone), *words, "--tokenizer", "bytes"]) == 0
    assert capsys.readouterr().out == told[0]


def test_the_last_layers_of_published_weights(tmp_path, shared_data, capsys):
    words = ["train", "--task", "text-classification", "--data", str(write_sentences(tmp_path / "data", 20)), "--method", "wasi",
             "--weights", str(shared_data("stories260k/stories260K.bin")), "--epochs", "1", "--batch-size", "8", "--quiet",
             "--tokenizer", str(shared_data("stories260k/tok512.bin")), "--last-layers", "2", "--targets", "all", "--rank", "8"]
    assert main([*words, "--out", str(tmp_path / "run")]) == 0
    counted = json.loads((tmp_path / "run" / "result.json").read_text())["counted"]
    assert counted["frozen_bytes"] > counted["trained_bytes"] > 0
    assert (tmp_path / "run" / "tokenizer.bin").read_bytes() == shared_data("stories260k/tok512.bin").read_bytes()
    evaluation = ["evaluate", str(tmp_path / "run"), "--task", "text-classification", "--data", str(tmp_path / "data")]
    capsys.readouterr()
    assert main(evaluation) == 0  # the tokenizer is that of the run
    val = json.loads((tmp_path / "run" / "epochs.json").read_text())[-1]
    assert f"loss {val['val_loss']:.4f}, top-1 {100 * val['val_accuracy']:.2f} %" in capsys.readouterr().out
    assert main(["evaluate", str(tmp_path / "run"), "--data", str(tmp_path / "data")]) == 0  # the task is the model's
    assert f"loss {val['val_loss']:.4f}" in capsys.readouterr().out
    table = tmp_path / "data" / "train.tsv"
    (tmp_path / "new.txt").write_text(table.read_text().replace("\tyes", "").replace("\tno", "\n"))
    assert main(["predict", str(tmp_path / "run"), str(tmp_path / "new.txt"), "--top", "2", "--batch-size", "3"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["sentence"] for row in rows] == [line.partition("\t")[0] for line in table.read_text().splitlines()]
    model, extra = wasi.load_model(tmp_path / "run" / "model.safetensors")
    for row in rows:
        logits = model.forward(np.array([wasi.load_tokenizer(tmp_path / "run" / "tokenizer.bin").encode(row["sentence"])]))[0]
        assert row["class1"] == extra["classes"][logits.argmax()] != row["class2"]
        assert float(row["probability1"]) == pytest.approx(1 / (1 + np.exp(-np.ptp(logits))), abs=1e-3)
    assert main(["predict", str(tmp_path / "run"), "nowhere.txt"]) == 2
    assert "nowhere.txt" in capsys.readouterr().err
    assert main([*words, "--out", str(tmp_path / "other"), "--last-layers", "6"]) == 2
    assert "last_layers: expected 0 to 5, got 6" in capsys.readouterr().err


def test_texts_that_do_not_fit_the_model_are_refused_before_a_run_begins(tmp_path, shared_data, capsys):
    model = wasi.create_model("llama_micro", vocab_size=100, max_length=8)
    good = TokenSet([np.arange(9)]), TokenSet([np.arange(8), np.zeros(0, np.int64)], [0, 0], ["a"])
    check_texts(model, *good)
    for bad, text in ((TokenSet([np.arange(10)]), "--length: expected at most the 8 tokens of the .*, got texts of 9"),
                      (TokenSet([np.arange(9)], [0], ["a"]), "--length: expected at most the 8 tokens"),
                      (TokenSet([np.array([99, 100])], [0], ["a"]), "whose ids are 0 to 99, got texts with 100")):
        with pytest.raises(ValueError, match=text):
            check_texts(model, *good, bad)
    weights, tokenizer = (str(shared_data(f"stories260k/{name}")) for name in ("stories260K.bin", "tok512.bin"))
    (tmp_path / "t.txt").write_text("to be or not to be, that is the question\n" * 400)
    words = ["--task", "lm", "--data", str(tmp_path / "t.txt"), "--tokenizer", tokenizer, "--length", "513"]
    train = ["train", *words, "--weights", weights, "--method", "dense", "--out", str(tmp_path / "run")]
    for command in (train, train, ["evaluate", weights, *words], ["plan", *words, "--weights", weights, "--budget", "1GiB"]):
        assert main(command) == 2
        assert "--length: expected at most the 512 tokens of the model's context, got texts of 513" in capsys.readouterr().err


@pytest.mark.parametrize("words, text", [
    (["--weights", "model.bin"], "--weights: expected a safetensors file, got model.bin; a decoder takes --task text-classif"),
    (["--task", "lm"], "--data: expected a text file for --task lm, got none"),
    (["--task", "text-classification"], "--data: expected a folder with train.tsv"),
    (["--task", "lm", "--data", "t", "--img-size", "32"], "--img-size: not an option of --task lm"),
    (["--task", "lm", "--data", "t", "--mixup", "1"], "--mixup: not an option of --task lm"),
    (["--task", "lm", "--data", "t", "--group-by-length"], "--group-by-length: not an option of --task lm"),
    (["--last-layers", "2"], "--last-layers: not an option of --task image-classification"),
    (["--model", "llama_micro"], "--model: llama_micro takes text"),
    (["--task", "lm", "--data", "t", "--model", "vit_micro_patch4_32"], "expected a text file"),
    (["--task", "lm", "--data", "t", "--length", "0"], "--length: expected at least 1 token")])
def test_what_does_not_go_together_is_refused(tmp_path, capsys, words, text):
    assert main(["train", "--method", "dense", "--out", str(tmp_path / "run"), *words]) == 2
    assert text in capsys.readouterr().err
