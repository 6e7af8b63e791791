"""Options that commands share, and what is made from them: data, model, method, configuration of the training."""

import itertools
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import wasi
from wasi.cli import texts
from wasi.models import create_model, find_targets
from wasi.models.methods import FACTORED, METHODS, MethodOptions, check_method, default_freeze, default_start
from wasi.training.augment import RandAugment
from wasi.training.data import Loader, Transform, open_splits, sign_digits
from wasi.training.loop import EarlyStopping, ParamGroup, TrainConfig
from wasi.training.memory import release_freed
from wasi.training.ranks import RankAdaptation
from wasi.training.runlog import read_csv
from wasi.training.step import balanced_class_weights

# Methods whose factors the WSI step trains, and those whose subspace can be followed.
WSI = ("wsi", "wasi", "qwasi")
MAX_PROBLEMS = 20  # named one by one of what a source has that cannot be used
TRACKED = (*WSI, "wsi-dense", "svd")


def set_machine(args):
    """Applies what `add_machine_options` read."""
    if args.threads is not None:
        wasi.set_num_threads(args.threads)
    wasi.set_matmul_precision(args.precision)


def known_methods(names):
    """The names, each checked to be a method."""
    unknown = [m for m in names if m not in METHODS]
    if unknown:
        raise ValueError(f"--method: expected names out of {', '.join(METHODS)}, got {', '.join(unknown)}")
    return names


def words_of(args, **changes):
    """The `wasi train` command line that repeats these arguments with some changed; None leaves one out."""
    words = ["train"]
    for name, value in {**vars(args), **changes}.items():
        if name == "command" or value is None or value is False:
            continue
        flag = "--" + name.replace("_", "-")
        words += [flag] if value is True else [flag, str(value)]
    return words


def run_in_child(words, silent=False):
    """Runs the command of these words in a process of its own; returns its exit status, 130 where Ctrl-C came meanwhile.

    silent: what it prints is dropped; errors and progress, on stderr, are not.
    """
    # -P: started in a checkout, the child too must import the installed package, not the sources.
    child = subprocess.Popen([sys.executable, "-P", "-m", "wasi", *words], stdout=subprocess.DEVNULL if silent else None)
    try:
        return child.wait()
    except KeyboardInterrupt:  # the child got it too: it ends its step and writes its results
        child.wait()
        return 130


def open_splits_of(args):
    """The data sets of the task by split."""
    if args.task != "image-classification":
        return texts.open_texts(args)
    return open_splits(args.data) if args.data else sign_digits()


def open_data(args):
    """The training and the validation set of the task. A source without a validation or test split gives a fifth of its own."""
    splits = open_splits_of(args)
    if "train" not in splits:
        raise ValueError(f"--data: expected images to train on in {args.data!r}, got {' and '.join(splits)} alone")
    train_set, val_set = splits["train"], splits.get("val") or splits.get("test")
    if val_set is None:
        train_set, val_set = train_set.split(0.8, args.seed)
    train_set = train_set if args.limit is None else train_set.subset(args.limit, args.seed)
    val_set = val_set if args.limit_val is None else val_set.subset(args.limit_val, args.seed)
    return train_set, val_set


def describe_data(args, train_set, val_set):
    """A line for people."""
    classes = f"{len(train_set.classes)} classes, " if train_set.classes else ""
    counts = f"{len(train_set):,} samples to train on, {len(val_set):,} to validate on"
    return f"{args.data or 'sign-language digits'}: {classes}{counts}"


def tell_problems(dataset, first=0):
    """Says on stderr what of the source is not used, from problem number `first` on; returns how many are known now."""
    known = list(dataset.problems)
    for problem in known[first : first + MAX_PROBLEMS]:
        print(f"not used: {problem.name}: {problem.reason}", file=sys.stderr)
    if len(known) - first > MAX_PROBLEMS:
        print(f"not used: {len(known) - first - MAX_PROBLEMS} more", file=sys.stderr)
    return len(known)


def make_model(args, train_set, val_set, blank=False):
    """The dense model to start from; blank: without any values, for what depends on its layers alone."""
    if args.task != "image-classification":
        return texts.make_decoder(args, train_set, val_set, blank)
    if args.weights and (Path(args.weights).is_dir() or args.weights.endswith(".bin")):
        raise ValueError(f"--weights: expected a safetensors file, got {args.weights}; a decoder takes "
                         "--task text-classification or lm")
    values = {"seed": None} if blank else {"weights": args.weights, "seed": args.seed}
    model = create_model(model_name(args), len(train_set.classes), args.img_size, **values)
    if model.architecture == "llama":
        raise ValueError(f"--model: {args.model} takes text; expected --task text-classification or lm")
    return model


def make_loaders(args, train_set, val_set, model):
    """Loaders of both sets; the order of the training samples depends on the seed alone."""
    batch_size = batch_size_of(args)
    if args.task != "image-classification":
        return texts.make_token_loaders(args, batch_size, train_set, val_set)
    img_size = model.config.img_size
    transform = Transform(img_size, train=True, augment=augmentation_of(args))
    return (Loader(train_set, batch_size, transform, shuffle=True, seed=args.seed, drop_last=True, skip_unreadable=True),
            Loader(val_set, min(batch_size, len(val_set)), Transform(img_size, train=False), skip_unreadable=True))


def planning_batches(args, dataset, model):
    """The first --calibration batches of up to 16 shuffled samples; texts as wide as the longest: a plan must do for that."""
    settings = {"batch_size": min(batch_size_of(args), 16, len(dataset)), "shuffle": True, "seed": args.seed}
    if args.task != "image-classification":
        return texts.longest_batches(dataset, args.calibration, settings)
    loader = Loader(dataset, transform=Transform(model.config.img_size, train=True), skip_unreadable=True, **settings)
    return list(itertools.islice(loader, args.calibration))


def batch_size_of(args):
    return 32 if args.batch_size is None else args.batch_size


def targets_of(args):
    """What the user named, or None for the model's default."""
    return args.targets and tuple(args.targets.split(","))


def quarter_ranks(model, targets):
    """(rank, rank_pattern) that give factors a quarter of the width: the model's, or that of each convolution."""
    if hasattr(model.config, "embed_dim"):
        return model.config.embed_dim // 4, None
    layers = {name: model.get_module(name) for name in find_targets(model, targets)}
    return None, {name: max(1, min(m.out_features, m.in_features) // 4) for name, m in layers.items()}


def optimizer_of(args, text=False):
    """Kind and momentum, with the defaults that depend on whether weights were given and on the task."""
    return args.optimizer or ("sgd" if args.weights and not text else "adamw"), 0.9 if args.momentum is None else args.momentum


def follow_plan(args, plan):
    """Sets in `args` what the plan decides. Raises ValueError for options that decide the same, or decided otherwise."""
    for name in ("rank", "share", "variance", "bits", "activation_ranks", "targets", "start", "calibration", "recompute",
                 "saved_bits"):
        if getattr(args, name) is not None and getattr(args, name) is not False:
            raise ValueError(f"--{name.replace('_', '-')}: the plan decides this; give --plan or this option, not both")
    kind, momentum = ("adamw", None) if plan.optimizer == "adamw" else ("sgd", 0.0 if plan.optimizer == "sgd" else 0.9)
    if plan.layerwise:
        if args.clip:
            raise ValueError(f"--clip: the plan updates layer by layer, without the whole gradient's norm; got {args.clip}")
        args.clip = 0.0
    for name, value in (("batch_size", plan.batch_size), ("micro_batch", plan.micro_batch), ("optimizer", kind),
                        ("gradient_bits", plan.gradient_bits), ("state_bits", plan.state_bits), ("layerwise", plan.layerwise),
                        ("ema", plan.ema)):
        given = getattr(args, name) or None
        if given not in (None, value):
            raise ValueError(f"--{name.replace('_', '-')}: the plan was made for {value}, got {given}")
        setattr(args, name, value)
    if plan.micro_batch == plan.batch_size:
        args.micro_batch = None
    if args.momentum is not None and kind == "sgd" and bool(args.momentum) != bool(momentum):
        word = "with" if momentum else "without"
        raise ValueError(f"--momentum: the plan was made for sgd {word} momentum, got {args.momentum}")
    args.momentum = momentum if args.momentum is None else args.momentum
    args.img_size = args.img_size or plan.model.get("img_size")


def model_name(args):
    if args.task != "image-classification":
        return texts.decoder_name(args)
    return args.model or ("vit_tiny_patch16_224" if args.weights else "vit_micro_patch4_32")


def method_options(args, method, model):
    """What `apply_method` is told of a method."""
    rank, pattern, targets = args.rank, None, targets_of(args)
    if rank is None and args.share is None and args.variance is None and not args.weights:
        rank, pattern = quarter_ranks(model, targets)
    ranks = numbers_of("--activation-ranks", args.activation_ranks, _number) if args.activation_ranks else None
    return MethodOptions(targets=targets, variance=0.9 if args.variance is None else args.variance, rank=rank, share=args.share,
                         rank_pattern=pattern, bits=args.bits or 4, start=args.start, start_scale=args.start_scale,
                         alpha=args.alpha, lora_rank=args.lora_rank, seed=args.seed, freeze=frozen(args, method),
                         activation_ranks=ranks)


def frozen(args, method):
    """Names of what is left as it is: those of --freeze, else `default_freeze`."""
    if args.freeze is None:
        return default_freeze(method, bool(args.weights))
    return () if args.freeze == "none" else tuple(args.freeze.split(","))


def n_calibration(args, method):
    """How many batches the factors are chosen on."""
    if method not in FACTORED:
        return 0
    if args.calibration is not None:
        if args.calibration < 0:
            raise ValueError(f"--calibration: expected a number of batches from 0, got {args.calibration}")
        return args.calibration
    start = args.start or default_start(method, True, args.share)
    usual = 16 if start == "fisher" else 4  # gradients vary more than inputs do
    return usual if args.weights or method.startswith("svd-llm") else 0


def calibration_batches(args, method, loader):
    """The batches that the factors are chosen on, or None."""
    return list(itertools.islice(loader, n_calibration(args, method))) or None


def own_options(args, method):
    """Those of the options that not all methods have a use for, as this method takes them."""
    return {"adapt_ranks": args.adapt_ranks if method in WSI else None,
            "track_subspaces": args.track_subspaces if method in TRACKED else None}


def check_task(args):
    """Raises ValueError for an option that the task has no use for."""
    text = args.task != "image-classification"
    for flag, value, used in (("--tokenizer", args.tokenizer, text), ("--last-layers", args.last_layers, text),
                              ("--img-size", args.img_size, not text)):
        if value is not None and not used:
            raise ValueError(f"{flag}: not an option of --task {args.task}")


def check_options(args, methods):
    """Raises ValueError for an option that the task or none of the methods has a use for."""
    check_task(args)
    for flag, value in (("--mixup", args.mixup or None), ("--cutmix", args.cutmix or None), ("--randaugment", args.randaugment)):
        if value is not None and args.task != "image-classification":
            raise ValueError(f"{flag}: not an option of --task {args.task}")
    if args.group_by_length and args.task != "text-classification":
        raise ValueError(f"--group-by-length: not an option of --task {args.task}")
    for flag, value, users in (("--adapt-ranks", args.adapt_ranks, WSI), ("--track-subspaces", args.track_subspaces, TRACKED)):
        if value is not None and value < 0:
            raise ValueError(f"{flag}: expected a positive number of steps, got {value}")
        if value and not set(methods) & set(users):
            raise ValueError(f"{flag}: expected a method out of {', '.join(users)}, got {', '.join(methods)}")


def check_runs(runs):
    """Raises ValueError or OSError for what one of several runs, (args, method) each, would be refused for in its turn."""
    alike = {}
    for args, method in runs:
        key = tuple(repr(getattr(args, name)) for name in ("task", "data", "limit", "limit_val", "model", "weights", "img_size",
                                                           "tokenizer", "length", "last_layers"))
        alike.setdefault(key, []).append((args, method))
    for some in alike.values():
        _check_alike(some)
        release_freed()  # the runs are processes of their own, which need it


def _check_alike(runs):
    """The same of runs on the same data and model, which is made without weights."""
    first, _ = runs[0]
    train_set, val_set = open_data(first)
    model = make_model(first, train_set, val_set, blank=True)
    for args, method in runs:
        train_config(args, method, train_set)
        augmentation_of(args)
        check_method(model, method, method_options(args, method, model), n_calibration(args, method) > 0)


def class_weights_of(args, train_set):
    """The numbers of --class-weights, or None."""
    if args.class_weights is None:
        return None
    if args.task == "lm":
        raise ValueError("--class-weights: not an option of --task lm")
    if args.class_weights == "balanced":
        return tuple(balanced_class_weights(train_set.labels, len(train_set.classes)).tolist())
    weights = numbers_of("--class-weights", args.class_weights, float)
    if len(weights) != len(train_set.classes):
        raise ValueError(f"--class-weights: expected {len(train_set.classes)} numbers, one for each of "
                         f"{', '.join(train_set.classes)}, got {len(weights)}")
    return weights


def numbers_of(flag, text, kind=int):
    """The numbers of a list such as 20,30, or 0.5,64 where kind makes either of a text."""
    try:
        return tuple(kind(part) for part in text.split(","))
    except ValueError:
        what = "whole numbers" if kind is int else "numbers"
        raise ValueError(f"{flag}: expected {what} separated by commas, got {text!r}") from None


def _number(text):
    return float(text) if "." in text else int(text)


def param_groups_of(text):
    """The ParamGroups of a list such as 'head.*:lr=10,*.norm*:lr=0.1:decay=0'."""
    groups = []
    for item in text.split(","):
        pattern, *settings = item.split(":")
        values = dict(setting.partition("=")[::2] for setting in settings)
        try:
            numbers = {{"lr": "lr_scale", "decay": "weight_decay"}[k]: float(v) for k, v in values.items()}
        except (KeyError, ValueError):
            raise ValueError(f"--param-groups: expected PATTERN:lr=FACTOR:decay=NUMBER, got {item!r}") from None
        groups.append(ParamGroup(pattern, **numbers))
    return tuple(groups)


def augmentation_of(args):
    """The RandAugment of --randaugment, or None."""
    if args.randaugment is None:
        return None
    numbers = numbers_of("--randaugment", args.randaugment, float)
    if len(numbers) != 2 or not numbers[0].is_integer():
        raise ValueError(f"--randaugment: expected a number of operations and a magnitude, such as 2,9, got {args.randaugment!r}")
    return RandAugment(int(numbers[0]), numbers[1])


def train_config(args, method, train_set):
    """The TrainConfig, with the defaults that depend on whether weights were given."""
    adaptation = None
    if args.adapt_ranks and method in WSI:
        adaptation = RankAdaptation(every=args.adapt_ranks, grow=args.grow, shrink=args.shrink, max_bytes=args.max_factor_bytes,
                                    seed=args.seed)
    text = args.task != "image-classification"
    optimizer, momentum = optimizer_of(args, text)
    stopping = None if args.early_stopping is None else EarlyStopping(args.early_stopping, args.min_delta,
                                                                      not args.keep_last_weights)
    return TrainConfig(
        epochs=(2 if args.weights else 10 if text else 30) if args.epochs is None else args.epochs,
        lr={"sgd": 0.02, "adamw": 0.001 if text and args.weights else 0.003}[optimizer] if args.lr is None else args.lr,
        optimizer=optimizer,
        momentum=momentum,
        weight_decay={"sgd": 0.0, "adamw": 0.05}[optimizer] if args.weight_decay is None else args.weight_decay,
        clip_norm=1.0 if args.clip is None else args.clip or None,
        schedule=args.schedule,
        n_warmup=(10 if args.weights else 100) if args.warmup is None else args.warmup,
        label_smoothing=(0.0 if args.weights or text else 0.1) if args.label_smoothing is None else args.label_smoothing,
        micro_batch=args.micro_batch,
        gradient_bits=args.gradient_bits or 32,
        state_bits=args.state_bits or 32,
        layerwise=args.layerwise,
        adapt_ranks=adaptation,
        track_subspaces=args.track_subspaces if method in TRACKED else 0,
        checkpoint_every=args.checkpoint_every,
        keep=args.keep,
        min_lr=args.min_lr,
        milestones=numbers_of("--milestones", args.milestones) if args.milestones else (),
        gamma=args.gamma,
        layer_lr_decay=args.layer_lr_decay,
        param_groups=param_groups_of(args.param_groups) if args.param_groups else (),
        class_weights=class_weights_of(args, train_set),
        mixup=args.mixup,
        cutmix=args.cutmix,
        mix_prob=args.mix_prob,
        ema=args.ema,
        ema_every=args.ema_every,
        monitor=args.monitor,
        early_stopping=stopping,
        tensorboard=args.tensorboard,
        seed=args.seed,
    )


def draw_log(folder, name, flag, plot):
    """Draws <name>.png of a run folder from the <name>.csv that a flag of `wasi train` asks for: plot(rows, path)."""
    try:
        rows = read_csv(Path(folder) / f"{name}.csv")
    except FileNotFoundError:
        raise FileNotFoundError(f"folder: expected a run folder with {name}.csv ({flag}), got {folder!r}") from None
    if not rows:
        raise ValueError(f"folder: {name}.csv of {folder!r} has no rows yet")
    path = f"{folder}/{name}.png"
    plot(rows, path)
    print(f"written to {path}")
    return 0


def set_policy(args, model):
    """Has the blocks keep what the flags say, beside what the method chose."""
    for block in model.blocks:
        block.policy = replace(block.policy, recompute=args.recompute, saved_bits=args.saved_bits)
