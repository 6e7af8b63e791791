"""Conversations with a published decoder: the template that it was trained by, and the tokens that end its texts.

Both lie beside the weights, in tokenizer_config.json (or chat_template.jinja), generation_config.json and config.json.
"""

import json
from pathlib import Path

from wasi.models.tokenizer import TokenizerError

# What belongs to a tokenizer besides its own file.
COMPANIONS = ("tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja", "generation_config.json")
LARGEST_FILE = 8 * 2**20  # bytes


def end_tokens(tokenizer, folder):
    """The ids that end a text: the tokenizer's own marks, and eos_token_id of the JSON files in the folder.

    Raises TokenizerError for files that are damaged.
    """
    ids = {tokenizer.bos, tokenizer.eos} - {None}
    for name in ("config.json", "generation_config.json"):
        found = _settings(Path(folder) / name).get("eos_token_id")
        found = found if isinstance(found, list) else [] if found is None else [found]
        if not all(isinstance(i, int) for i in found):
            raise TokenizerError(f"tokenizer: {name}: eos_token_id: expected a whole number or several, got {found}")
        ids |= set(found)
    return ids


class ChatTemplate:
    """The Jinja template of a folder, which makes one text of a conversation. It runs in Jinja's sandbox.

    Raises TokenizerError where the folder has none, where it is not valid, and where the jinja2 library is missing.
    """

    def __init__(self, folder):
        folder = Path(folder)
        settings = _settings(folder / "tokenizer_config.json")
        source, file = settings.get("chat_template"), folder / "chat_template.jinja"
        if isinstance(source, list):  # several by name
            source = next((t.get("template") for t in source if isinstance(t, dict) and t.get("name") == "default"), None)
        if file.is_file():
            source = _read(file)
        if not isinstance(source, str):
            raise TokenizerError("tokenizer: expected a chat template in tokenizer_config.json or chat_template.jinja of "
                                 f"{str(folder)!r}, got none: this model is not known to be made for conversations")
        try:
            from jinja2 import TemplateError
            from jinja2.sandbox import ImmutableSandboxedEnvironment
        except ImportError as error:
            raise TokenizerError("tokenizer: a chat template needs the jinja2 library: pip install 'wasi[text]'") from error
        self._errors = (TemplateError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
        self._marks = {name: _content(settings.get(name)) for name in ("bos_token", "eos_token", "unk_token", "pad_token")}
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        environment.globals["raise_exception"] = _refuse
        environment.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
        try:
            self._template = environment.from_string(source)
        except self._errors as error:
            raise TokenizerError(f"tokenizer: the chat template is not valid ({error})") from error

    def text(self, messages):
        """The conversation up to where the model's reply begins. messages: dicts of role and content. Raises TokenizerError."""
        try:
            return self._template.render(messages=messages, add_generation_prompt=True, **self._marks)
        except self._errors as error:
            raise TokenizerError(f"tokenizer: the chat template refuses this conversation ({error})") from error

    def tokens(self, tokenizer, messages):
        """The ids of `text`, after the mark of the beginning once."""
        text, mark = self.text(messages), self._marks["bos_token"]
        return tokenizer.encode(text, bos=not (mark and text.startswith(mark)))


def _refuse(text):
    raise ValueError(text)


def _content(mark):
    """The text of a mark, which is given as text or as an object with more about it."""
    mark = mark.get("content") if isinstance(mark, dict) else mark
    return mark if isinstance(mark, str) else ""


def _read(path):
    if path.stat().st_size > LARGEST_FILE:
        raise TokenizerError(f"tokenizer: expected at most {LARGEST_FILE} bytes, {path.name} has {path.stat().st_size}")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise TokenizerError(f"tokenizer: {path.name} is not UTF-8 text ({error})") from error


def _settings(path):
    """The object that a JSON file holds; an empty one where there is no file."""
    if not path.is_file():
        return {}
    try:
        settings = json.loads(_read(path))
    except (ValueError, RecursionError) as error:
        raise TokenizerError(f"tokenizer: {path.name} cannot be read ({error})") from error
    if not isinstance(settings, dict):
        raise TokenizerError(f"tokenizer: {path.name}: expected an object of settings, got {type(settings).__name__}")
    return settings
