"""`wasi export`: a trained model for other programs."""

from wasi.cli.models import classes_of, model_file
from wasi.models import export, load_model


def run(args):
    model, extra = load_model(model_file(args.model))
    kind = args.format or ("onnx" if args.out.endswith(".onnx") else "hugging-face" if model.architecture == "llama" else "timm")
    try:
        export(model, args.out, kind, args.factored, args.opset, classes_of(extra), args.overwrite)
    except ImportError as error:
        raise ValueError(error) from error
    print(f"written to {args.out}, as {kind}")
    return 0
