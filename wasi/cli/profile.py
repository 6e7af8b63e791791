"""`wasi profile`: seconds of a training step or of inference by kernel, on random images."""

import numpy as np

import wasi
from wasi.cli import options
from wasi.models.methods import MethodOptions, apply_method
from wasi.profiling import Profile
from wasi.training.memory import mib
from wasi.training.optimizer import Optimizer
from wasi.training.step import accumulate_gradient


def run(args):
    options.set_machine(args)
    for flag, value in (("--batch-size", args.batch_size), ("--micro-batch", args.micro_batch), ("--steps", args.steps)):
        if value is not None and value < 1:
            raise ValueError(f"{flag}: expected at least 1, got {value}")
    model = wasi.create_model(args.model, num_classes=10, img_size=args.img_size, weights=args.weights)
    if model.architecture == "llama":
        raise ValueError(f"--model: expected one that takes images, got {args.model}")
    rng, S = np.random.default_rng(0), model.config.img_size
    images, labels = rng.integers(0, 256, (args.batch_size, 3, S, S), np.uint8), rng.integers(0, 10, args.batch_size)
    targets = tuple(args.targets.split(","))
    rank, pattern = (args.rank, None) if args.rank else options.quarter_ranks(model, targets)
    apply_method(model, args.method, MethodOptions(targets=targets, rank=rank, rank_pattern=pattern),
                 [(images, labels)] if args.method.startswith("svd-llm") else None, verbose=False)
    options.set_policy(args, model)
    optimizer, arena = None if args.inference else Optimizer(model, clip_norm=1.0), wasi.Arena()

    def step():
        with arena:
            if args.inference:
                model.forward(images)
            else:
                accumulate_gradient(model, images, labels, args.micro_batch)
                optimizer.step(1e-3)

    step()
    with Profile() as profile:
        for _ in range(args.steps):
            step()
    print(profile)
    print(f"{profile.seconds / args.steps:.4f} s a step, {args.steps * args.batch_size / profile.seconds:.1f} images/s, "
          f"activations and scratch at most {mib(arena.stats()['peak_bytes']):.1f} MiB, {wasi.get_num_threads()} threads")
    return 0
