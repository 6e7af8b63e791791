"""Conversations: templates, end tokens, and `wasi generate` on folders as people have them."""

import io
import json
import shutil

import pytest
from test_llama_files import CONFIG, folder_of, hugging_face_tensors

from wasi.cli import main
from wasi.models import TokenizerError
from wasi.models.chat import ChatTemplate, end_tokens
from wasi.models.tokenizer import ByteTokenizer

TEMPLATE = """{% for message in messages %}
{{ '<|' + message['role'] + '|>\n' + message['content'] + eos_token }}
{% endfor %}
{% if add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}"""
TALK = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello"}]


def write(folder, name="tokenizer_config.json", **settings):
    (folder / name).write_text(json.dumps(settings))


def test_a_template_makes_one_text_of_a_conversation(tmp_path):
    pytest.importorskip("jinja2")
    write(tmp_path, chat_template=TEMPLATE, eos_token="</s>")
    want = "<|system|>\nBe kind.</s>\n<|user|>\nHello</s>\n<|assistant|>\n"
    assert ChatTemplate(tmp_path).text(TALK) == want
    write(tmp_path, chat_template=[{"name": "tools", "template": "no"}, {"name": "default", "template": TEMPLATE}],
          eos_token={"content": "</s>", "lstrip": False})
    assert ChatTemplate(tmp_path).text(TALK) == want
    (tmp_path / "chat_template.jinja").write_text("{{ bos_token }}{{ messages[1].content | tojson }}")
    write(tmp_path, bos_token="<s>")
    template = ChatTemplate(tmp_path)
    assert template.text(TALK) == '<s>"Hello"'
    assert template.tokens(ByteTokenizer(), TALK)[:3] == [3 + b for b in b"<s>"]  # the mark is not put before it again


@pytest.mark.parametrize("template, text", [
    (None, "expected a chat template"),
    ("{% for %}", "the chat template is not valid"),
    ("{{ raise_exception('roles must alternate') }}", "refuses this conversation .roles must alternate"),
    ("{{ messages[7].content }}", "refuses this conversation"),
    ("{{ messages.__class__.__mro__ }}", "refuses this conversation"),
    ("{{ messages.append(1) }}", "refuses this conversation"),
    ("{{ range(10**9) | list }}", "refuses this conversation")])
def test_templates_that_are_refused(tmp_path, template, text):
    pytest.importorskip("jinja2")
    write(tmp_path, **({} if template is None else {"chat_template": template}))
    with pytest.raises(TokenizerError, match=text):
        ChatTemplate(tmp_path).text(TALK)


def test_end_tokens_are_all_that_the_folder_names(tmp_path):
    assert end_tokens(ByteTokenizer(), tmp_path) == {1, 2}
    write(tmp_path, "config.json", eos_token_id=7)
    write(tmp_path, "generation_config.json", eos_token_id=[8, 9])
    assert end_tokens(ByteTokenizer(), tmp_path) == {1, 2, 7, 8, 9}
    for bad in ({"eos_token_id": "x"}, {"eos_token_id": [1, None]}):
        write(tmp_path, "generation_config.json", **bad)
        with pytest.raises(TokenizerError, match=r"generation_config.json: eos_token_id: expected"):
            end_tokens(ByteTokenizer(), tmp_path)
    for bad in (b"[]", b"{", b"\xff", b"[" * 100_000):
        (tmp_path / "generation_config.json").write_bytes(bad)
        with pytest.raises(TokenizerError, match="generation_config.json"):
            end_tokens(ByteTokenizer(), tmp_path)


def published(folder):
    """A decoder for the ids of `ByteTokenizer`, by Hugging Face's names, with a tokenizer.json of bytes and a template."""
    tokenizers = pytest.importorskip("tokenizers")
    pytest.importorskip("jinja2")
    from dataclasses import replace

    config = replace(CONFIG, vocab_size=259, max_length=256, tied=False)
    _, tensors = hugging_face_tensors(config)
    folder_of(folder, tensors, vocab_size=259, max_position_embeddings=256)
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2, **{f"<0x{b:02X}>": 3 + b for b in range(256)}}
    made = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, [], byte_fallback=True, unk_token="<unk>"))
    made.add_special_tokens(["<unk>", "<s>", "</s>"])
    made.decoder = tokenizers.decoders.Sequence([tokenizers.decoders.ByteFallback(), tokenizers.decoders.Fuse()])
    made.save(str(folder / "tokenizer.json"))
    write(folder, chat_template=TEMPLATE, eos_token="</s>")
    write(folder, "generation_config.json", eos_token_id=2)
    return str(folder)


def test_published_weights_are_used_trained_exported_and_used_again(tmp_path, capsys, monkeypatch):
    folder, run, exported = published(tmp_path / "published"), str(tmp_path / "run"), str(tmp_path / "exported")
    (tmp_path / "t.txt").write_text("to be or not to be, that is the question\n" * 20)

    def wasi(*words):
        assert main([*words, "--threads", "1"] if words[0] not in ("export", "info") else list(words)) == 0
        return capsys.readouterr().out

    text = wasi("generate", "--weights", folder, "--prompt", "to be", "--tokens", "12", "--temperature", "1")
    assert text.startswith("to be") and len(text) > 8
    stop = text.rstrip("\n")[7:9]
    assert wasi("generate", "--weights", folder, "--prompt", "to be", "--tokens", "12", "--temperature", "1", "--stop", stop,
                "--stop", "never") == text[: text.index(stop, 5)] + "\n"
    data = ["--task", "lm", "--data", str(tmp_path / "t.txt")]
    assert "perplexity 2" in wasi("evaluate", folder, *data, "--length", "32")  # of random weights about the vocabulary's size
    wasi("train", *data, "--weights", folder, "--method", "wsi", "--targets", "all", "--epochs", "1", "--batch-size", "4",
         "--length", "32", "--out", run, "--quiet")
    for weights in (run, f"{run}/model.safetensors"):
        assert wasi("generate", "--weights", weights, "--prompt", "to", "--tokens", "3").startswith("to")
    wasi("export", run, exported)
    assert {f.name for f in (tmp_path / "exported").iterdir()} == {"config.json", "model.safetensors", "tokenizer.json",
                                                                   "tokenizer_config.json", "generation_config.json"}
    reply = wasi("generate", "--weights", exported, "--chat", "--prompt", "Hello", "--system", "Be kind.", "--tokens", "5")
    assert "Hello" not in reply
    monkeypatch.setattr("sys.stdin", io.StringIO("Hello\n\nand then?\n"))
    assert wasi("generate", "--weights", exported, "--chat", "--system", "Be kind.", "--tokens", "5").startswith(reply)
    assert "tensors" in wasi("info", folder)


def test_what_does_not_fit_is_refused(tmp_path, capsys):
    folder = published(tmp_path / "published")
    shutil.copytree(folder, tmp_path / "run")
    write(tmp_path / "run", "config.json", method="wsi", arguments={})
    for words, text in (
            (["generate", "--weights", folder, "--system", "x"], "--system: expected --chat with it"),
            (["generate", "--weights", folder, "--top-p", "0"], "top_p: expected a share in (0, 1], got 0.0"),
            (["evaluate", folder, "--task", "text-classification", "--data", __file__],
             "--task: the model is for lm, got text-classification"),
            (["generate", "--weights", folder, "--chat", "--prompt", "x" * 300], "tokens: expected a prompt of 1 to 255 tokens"),
            (["train", "--task", "lm", "--data", __file__, "--weights", str(tmp_path / "run"), "--method", "dense", "--out",
              str(tmp_path / "out")], "is a run folder; `wasi export` makes a folder of published weights of it")):
        assert main(words) == 2
        out, err = capsys.readouterr()
        assert text in err and (words[0] == "train" or not out)
