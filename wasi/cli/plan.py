"""`wasi plan`: ranks and policies for a memory budget, as JSON, table and figure."""

import itertools
import time
from pathlib import Path

import wasi
from wasi.cli import options
from wasi.training.data import Loader, Transform


def run(args):
    options.set_machine(args)
    if args.calibration < 1:
        raise ValueError(f"--calibration: expected at least 1 batch, got {args.calibration}")
    if not Path(args.out).resolve().parent.is_dir():
        raise ValueError(f"--out: expected a file in a folder that exists, got {args.out!r}")
    train_set, _ = options.open_data(args)
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
