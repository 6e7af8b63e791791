"""`wasi evaluate`: what a trained model reaches on a data set, in all and by class."""

import math

from wasi.cli import options
from wasi.cli.models import model_file
from wasi.models import load_model
from wasi.training.data import Loader, Transform
from wasi.training.runlog import write_confusion
from wasi.training.step import evaluate
from wasi.training.text import TokenLoader


def run(args):
    options.set_machine(args)
    path = model_file(args.model)
    model, extra = load_model(path)
    is_text = args.task != "image-classification"
    if is_text != (model.architecture == "llama"):
        raise ValueError(f"--task: the model is a {model.architecture}, which is not for {args.task}")
    args.weights, args.limit = path, None  # the tokenizer lies beside the weights
    _, val_set = options.open_data(args)
    classes = extra.get("classes") or list(val_set.classes)
    if list(val_set.classes) != classes:
        raise ValueError(f"--data: expected the model's classes {', '.join(classes)}, got {', '.join(val_set.classes)}")
    batch_size = min(options.batch_size_of(args), len(val_set))
    loader = TokenLoader(val_set, batch_size) if is_text else Loader(val_set, batch_size, Transform(model.config.img_size))
    val = evaluate(model, loader)
    print(f"{val.n} samples, loss {val.loss:.4f}, " + (f"perplexity {math.exp(val.loss):.2f}" if args.task == "lm" else
                                                       f"top-1 {100 * val.accuracy:.2f} %")
          + (f", top-5 {100 * val.top5:.2f} %" if val.top5 is not None else ""))
    if val.confusion is not None:
        print(class_table(classes, val.per_class()))
        if args.confusion:
            write_confusion(args.confusion, val.confusion, classes)
    return 0


def class_table(classes, rows):
    """A text table of `Evaluation.per_class`."""
    width = max(map(len, ("class", *classes)))
    lines = [f"{'class':<{width}}  samples   recall  precision"]
    for name, row in zip(classes, rows, strict=True):
        recall, precision = ("-" if row[k] is None else f"{100 * row[k]:.1f} %" for k in ("recall", "precision"))
        lines.append(f"{name:<{width}}  {row['samples']:>7}  {recall:>7}  {precision:>9}")
    return "\n".join(lines)
