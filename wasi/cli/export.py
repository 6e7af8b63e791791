"""`wasi export`: a trained model for other programs."""

import sys
from pathlib import Path

from wasi.cli.models import classes_of, model_file
from wasi.cli.texts import keep_tokenizer
from wasi.models import export, load_model


def run(args):
    model, extra = load_model(model_file(args.model))
    kind = args.format or ("onnx" if args.out.endswith(".onnx") else "hugging-face" if model.architecture == "llama" else "timm")
    export(model, args.out, kind, args.factored, args.opset, classes_of(extra), args.overwrite)
    if kind == "hugging-face" and model.architecture == "llama":
        try:
            keep_tokenizer(None, args.model, Path(args.out))
        except FileNotFoundError:
            print("no tokenizer lies beside the model: copy it into the folder", file=sys.stderr)
    print(f"written to {args.out}, as {kind}")
    return 0
