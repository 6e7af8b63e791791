"""`wasi plan`: ranks and policies for a memory budget, as JSON, table and figure."""

import itertools
import time
from pathlib import Path

import wasi
from wasi.cli import options
from wasi.models.methods import STARTS
from wasi.models.plan import METHODS, MODES
from wasi.training.data import Loader, Transform

DESCRIPTION = ("Measures on calibration images what each rank, residual and activation rank of each layer costs in accuracy, "
               "predicts the memory of the whole training step, and picks the least error under --budget, or the least memory "
               "under --target-error. `wasi train --plan` trains as planned and prints planned and measured peak side by side.")


def add_arguments(parser):
    add = parser.add_argument
    parser.set_defaults(task="image-classification")
    add("--budget", help="memory for weights, gradients, optimiser, images, activations and scratch together, such as 64MiB")
    add("--target-error", type=float, help="largest relative error; alone: the least memory that reaches it")
    add("--method", choices=METHODS, default="wasi")
    add("--mode", choices=MODES, default="approximate", help="exact: activations are kept or recomputed, never compressed")
    add("--data", help="image folder, tar, tar.gz or npz (default: the shipped sign-language digits)")
    add("--weights", help="safetensors file with timm or torchvision names (default: random)")
    add("--model", help="architecture (default: vit_tiny_patch16_224 with --weights, else vit_micro_patch4_32)")
    add("--img-size", type=int, help="pixels a side (default: the architecture's)")
    add("--targets", help="layers to plan: mlp, attn, all, or tails of names, separated by commas (default: mlp)")
    add("--ranks", help="ranks to choose among, separated by commas (default: a grid of explained variances and of shares)")
    add("--batch-size", type=int, help="of the training step (default: 32)")
    add("--micro-batch", type=int, help="samples in flight at once (default: chosen)")
    add("--recompute", choices=("auto", "yes", "no"), default="auto", help="run each block's forward again in backward")
    add("--optimizer", choices=("sgd", "adamw"), help="(default: sgd with --weights, else adamw)")
    add("--momentum", type=float, help="of sgd (default: 0.9)")
    add("--calibration", type=int, default=2, metavar="N", help="batches of up to 16 training images to measure on")
    add("--start", choices=STARTS, help="of the factors, as for wasi train")
    add("--limit", type=int, help="as for wasi train")
    add("--limit-val", type=int, help="as for wasi train")
    add("--seed", type=int, default=0)
    add("--threads", type=int, help="(default: all cores of this process)")
    add("--out", default="plan.json", help="the plan")
    add("--plot", help="PNG of bytes and error of every layer")


def run(args):
    if args.threads:
        wasi.set_num_threads(args.threads)
    if args.calibration < 1:
        raise ValueError(f"--calibration: expected at least 1 batch, got {args.calibration}")
    if not Path(args.out).resolve().parent.is_dir():
        raise ValueError(f"--out: expected a file in a folder that exists, got {args.out!r}")
    train_set, _ = options.open_images(args)
    model = options.make_model(args, train_set.classes)
    batch_size = options.batch_size_of(args)
    loader = Loader(train_set, min(batch_size, 16, len(train_set)), Transform(model.config.img_size, train=True), shuffle=True,
                    seed=args.seed)
    batches = list(itertools.islice(loader, args.calibration))
    kind, momentum = options.optimizer_of(args)
    started = time.perf_counter()
    plan = wasi.plan(
        model, batches, args.budget, args.target_error, method=args.method, mode=args.mode, batch_size=batch_size,
        micro_batch="auto" if args.micro_batch is None else args.micro_batch,
        recompute={"auto": "auto", "yes": True, "no": False}[args.recompute], optimizer=kind, momentum=momentum,
        target_modules=options.targets_of(args), ranks=_ranks(args.ranks), start=args.start)
    plan.save(args.out)
    if args.plot:
        plan.plot(args.plot)
    print(plan)
    print(f"planned in {time.perf_counter() - started:.1f} s, written to {args.out}")
    return 0


def _ranks(text):
    if text is None:
        return None
    if not all(r.strip().isdigit() for r in text.split(",")):
        raise ValueError(f"--ranks: expected whole numbers separated by commas, got {text!r}")
    return [int(r) for r in text.split(",")]
