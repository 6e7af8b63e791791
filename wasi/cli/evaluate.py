"""`wasi evaluate`: what a trained model reaches on a data set, in all and by class."""

import math
from pathlib import Path

from wasi.cli import options, texts
from wasi.cli.models import classes_of, take_over
from wasi.training.data import Loader, Transform
from wasi.training.runlog import write_confusion
from wasi.training.step import evaluate
from wasi.training.text import TokenLoader


def run(args):
    options.set_machine(args)
    model, extra = texts.open_any(args.model)
    if args.task not in (None, texts.task_of(model)):
        raise ValueError(f"--task: the model is for {texts.task_of(model)}, got {args.task}")
    args.task, args.weights, args.limit = texts.task_of(model), args.model, None  # the tokenizer lies beside the weights
    take_over(args, model, ("data", "seed", "length"))
    if args.confusion and args.task == "lm":
        raise ValueError("--confusion: a language model has no classes")
    if args.confusion and not Path(args.confusion).resolve().parent.is_dir():
        raise ValueError(f"--confusion: expected a file in a folder that exists, got {args.confusion!r}")
    is_text = args.task != "image-classification"
    dataset, what = choose(args)
    classes = tuple(classes_of(extra) or dataset.classes)
    if dataset.classes != classes:
        if is_text or not set(dataset.classes) <= set(classes):
            raise ValueError(f"--data: expected the model's classes {', '.join(classes)}, got {', '.join(dataset.classes)}")
        dataset = dataset.with_classes(classes)
    if is_text:
        texts.check_texts(model, dataset)
    if args.task != "lm" and len(classes) != model.config.num_classes:
        raise ValueError(f"--data: expected the model's {model.config.num_classes} classes, got {', '.join(classes)}")
    print(f"{len(dataset):,} samples: {what}", flush=True)
    batch_size = min(options.batch_size_of(args), len(dataset))
    loader = (TokenLoader(dataset, batch_size) if is_text else
              Loader(dataset, batch_size, Transform(model.config.img_size), skip_unreadable=True))
    val = evaluate(model, loader)
    print(f"{val.n} samples, loss {val.loss:.4f}, " + (f"perplexity {math.exp(val.loss):.2f}" if args.task == "lm" else
                                                       f"top-1 {100 * val.accuracy:.2f} %")
          + (f", top-5 {100 * val.top5:.2f} %" if val.top5 is not None else ""))
    if val.confusion is not None:
        print(class_table(classes, val.per_class()))
        if args.confusion:
            write_confusion(args.confusion, val.confusion, classes)
    options.tell_problems(dataset)
    return 0


def choose(args):
    """(the samples that --data and --all name, which they are, for people)."""
    splits = options.open_splits_of(args)
    name = args.data or "sign-language digits"
    split = next((s for s in ("val", "test") if s in splits), None)
    if split is not None and not args.all:
        chosen, what = splits[split], f"the {split} part of {name}"
    elif len(splits) > 1:
        raise ValueError(f"--all: expected data without parts, got {name} with {', '.join(splits)}; name one of its folders")
    elif args.all:
        chosen, what = next(iter(splits.values())), f"all of {name}"
    else:
        _, chosen = splits["train"].split(0.8, args.seed)
        what = f"the fifth of {name} that wasi train holds out with --seed {args.seed} (--all: evaluate every one)"
    if args.limit_val is not None:
        chosen, what = chosen.subset(args.limit_val, args.seed), f"drawn from {what}"
    return chosen, what


def class_table(classes, rows):
    """A text table of `Evaluation.per_class`."""
    width = max(map(len, ("class", *classes)))
    lines = [f"{'class':<{width}}  samples   recall  precision"]
    for name, row in zip(classes, rows, strict=True):
        recall, precision = ("-" if row[k] is None else f"{100 * row[k]:.1f} %" for k in ("recall", "precision"))
        lines.append(f"{name:<{width}}  {row['samples']:>7}  {recall:>7}  {precision:>9}")
    return "\n".join(lines)
