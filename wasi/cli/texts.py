"""What the text tasks of `wasi train` are made from: tokenizer, data, decoder, loaders."""

import itertools
import shutil
from pathlib import Path

import numpy as np

import wasi
from wasi.cli.models import model_file, run_folder, settings_of_run
from wasi.models import load_model
from wasi.models.chat import COMPANIONS
from wasi.models.llama import LLAMA_CONFIGS, PADDING, Llama, random_arrays
from wasi.models.llama_files import is_published, open_llama, weight_files
from wasi.models.tokenizer import ByteTokenizer, load_tokenizer
from wasi.models.weights import TensorFile
from wasi.training.text import TokenLoader, open_sentences, open_windows

TOKENIZERS = ("tokenizer.json", "tokenizer.bin")  # files that are looked for beside weights; llama2.c's ends in .bin


def find_tokenizer(name, weights):
    """The file of the tokenizer of --tokenizer, else that beside the weights or in the run folder that they are of; None: bytes.

    Raises FileNotFoundError where there is none.
    """
    if name is not None:
        return None if name == "bytes" else Path(name)
    if weights is None:
        return None
    folder = run_folder(weights)
    for file in TOKENIZERS:
        if (folder / file).is_file():
            return folder / file
    if settings_of_run(weights).get("tokenizer") == "bytes":
        return None
    raise FileNotFoundError(f"--tokenizer: expected it, or {' or '.join(TOKENIZERS)} in {str(folder)!r}, which has neither")


def open_tokenizer(name, weights):
    """The tokenizer that `find_tokenizer` finds."""
    path = find_tokenizer(name, weights)
    return ByteTokenizer() if path is None else load_tokenizer(path)


def tokenizer_folder(name, weights):
    """The folder where what belongs to the tokenizer lies."""
    path = find_tokenizer(name, weights) or Path(weights or ".")
    return path if path.is_dir() else path.parent


def keep_tokenizer(name, weights, folder):
    """Copies the tokenizer that `find_tokenizer` finds, and what belongs to it, into a folder whose model needs it.

    Returns what the folder's config.json is to say: the file's name, or bytes.
    """
    path = find_tokenizer(name, weights)
    if path is None:
        return "bytes"
    path = path / TOKENIZERS[0] if path.is_dir() else path
    copy = TOKENIZERS[0] if path.suffix == ".json" else TOKENIZERS[1]
    shutil.copyfile(path, folder / copy)
    for companion in COMPANIONS:
        if (path.parent / companion).is_file():
            shutil.copyfile(path.parent / companion, folder / companion)
    return copy


def open_any(path):
    """(the model, what was saved with it) of a file or folder: any of wasi's own, or a decoder's published weights, which stay
    mapped where they can.
    """
    path = Path(path)
    if path.is_dir() and not (is_published(path) and (weight_files(path) or (path / "config.json").is_file())):
        path = model_file(path)
    if path.is_file() and path.suffix != ".bin":
        alone = not (path.parent / "config.json").is_file()  # which a decoder's published weights need
        if alone or "wasi" in TensorFile(path).metadata:
            return load_model(path)
    return wasi.load_llama(path, last_layers=0), {}


def task_of(model):
    """What a model is for, of the tasks of wasi train."""
    if model.architecture != "llama":
        return "image-classification"
    return "lm" if model.config.num_classes is None else "text-classification"


def open_texts(args):
    """The data sets of the text tasks by split."""
    if args.length < 1:
        raise ValueError(f"--length: expected at least 1 token, got {args.length}")
    if not args.data:
        wanted = "a text file" if args.task == "lm" else "a folder with train.tsv"
        raise ValueError(f"--data: expected {wanted} for --task {args.task}, got none")
    tokenizer = open_tokenizer(args.tokenizer, args.weights)
    return (open_windows if args.task == "lm" else open_sentences)(args.data, tokenizer, args.length)


def decoder_name(args):
    return args.model or (Path(args.weights).name if args.weights else "llama_micro")


def make_decoder(args, train_set, val_set, blank=False):
    """The model of --weights, or a new one of --model whose vocabulary is the tokenizer's; blank: without any values.

    Raises ValueError where texts do not fit it.
    """
    num_classes = None if args.task == "lm" else len(train_set.classes)
    if not args.weights:
        model = _new_decoder(args, num_classes, None if blank else args.seed)
    elif blank:
        model = Llama(open_llama(args.weights, num_classes)[0], random_arrays(None))
    else:
        model = wasi.load_llama(args.weights, num_classes, args.last_layers, args.seed)
    check_texts(model, train_set, val_set)
    if args.last_layers is not None:
        model.train_last(args.last_layers)
    return model


def _new_decoder(args, num_classes, seed):
    name = decoder_name(args)
    if name not in LLAMA_CONFIGS:
        raise ValueError(f"--model: expected one of {', '.join(LLAMA_CONFIGS)} for --task {args.task}, got {name!r}")
    vocabulary = len(open_tokenizer(args.tokenizer, None))
    return wasi.create_model(name, num_classes, seed=seed, vocab_size=vocabulary)


def check_texts(model, *datasets):
    """Raises ValueError, naming the option, for texts that are longer than a decoder's context or not of its vocabulary."""
    context, vocabulary = model.config.max_length, model.config.vocab_size
    for dataset in datasets:
        longest = max(map(len, dataset.tokens)) - (dataset.labels is None)  # the last of a window is only predicted
        largest = max(int(tokens.max(initial=0)) for tokens in dataset.tokens)
        if longest > context:
            raise ValueError(f"--length: expected at most the {context} tokens of the model's context, got texts of {longest}")
        if largest >= vocabulary:
            raise ValueError(f"--tokenizer: expected that of the model, whose ids are 0 to {vocabulary - 1}, got texts with "
                             f"{largest}")


def longest_batches(dataset, n, settings):
    """The first n batches of a TokenLoader of these settings, each as wide as one with the longest text would be."""
    longest, batches = max(map(len, dataset.tokens)), []
    for tokens, targets in itertools.islice(TokenLoader(dataset, **settings), n):
        wide = np.full((len(tokens), longest if dataset.labels is not None else tokens.shape[1]), PADDING, np.int64)
        wide[:, : tokens.shape[1]] = tokens
        batches.append((wide, targets))
    return batches


def make_token_loaders(args, batch_size, train_set, val_set):
    """Loaders of both sets; the order of the training samples depends on the seed alone."""
    return (TokenLoader(train_set, batch_size, shuffle=True, seed=args.seed, drop_last=True,
                        group_by_length=args.group_by_length),
            TokenLoader(val_set, min(batch_size, len(val_set))))
