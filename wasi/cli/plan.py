"""`wasi plan`: ranks and policies for a memory budget, as JSON, table and figure."""

import sys
import time
from pathlib import Path

import wasi
from wasi.cli import options
from wasi.models.methods import freeze_parameters
from wasi.models.plan import parse_bytes


def run(args):
    options.set_machine(args)
    options.check_task(args)
    if args.calibration < 1:
        raise ValueError(f"--calibration: expected at least 1 batch, got {args.calibration}")
    if args.budget is None and args.target_error is None:
        raise ValueError("--budget, --target-error: expected at least one of them")
    budget = None if args.budget is None else parse_bytes(args.budget, "--budget")
    for flag, path in (("--out", args.out), ("--plot", args.plot)):
        if path and not Path(path).resolve().parent.is_dir():
            raise ValueError(f"{flag}: expected a file in a folder that exists, got {path!r}")
    ranks = options.numbers_of("--ranks", args.ranks) if args.ranks else None
    train_set, val_set = options.open_data(args)
    print(options.describe_data(args, train_set, val_set), flush=True)
    model = options.make_model(args, train_set, val_set)
    freeze_parameters(model, options.frozen(args, args.method))
    batches = options.planning_batches(args, train_set, model)
    kind, momentum = options.optimizer_of(args, args.task != "image-classification")
    chosen = {"auto": "auto", "yes": True, "no": False}
    started = time.perf_counter()
    print(f"measuring on {len(batches)} batches of {len(batches[0][0])}, then solving; a small board takes minutes",
          file=sys.stderr, flush=True)
    plan = wasi.plan(
        model, batches, budget, args.target_error, method=args.method, mode=args.mode,
        batch_size=options.batch_size_of(args), micro_batch="auto" if args.micro_batch is None else args.micro_batch,
        recompute=chosen[args.recompute], saved_bits=None if args.saved_bits == 32 else args.saved_bits,
        gradient_bits=args.gradient_bits, state_bits=args.state_bits, layerwise=chosen[args.layerwise],
        optimizer=kind, momentum=momentum, clip_norm=args.clip or None,
        target_modules=options.targets_of(args), ranks=ranks, start=args.start, ema=args.ema)
    plan.save(args.out)
    if args.plot:
        plan.plot(args.plot)
    print(plan)
    print(f"planned in {time.perf_counter() - started:.1f} s, written to {args.out}")
    return 0
