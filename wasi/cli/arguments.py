"""What each command takes: a function a command, which adds its options and whose docstring describes it.

Nothing heavy is imported here, so that help and mistyped options are quick.
"""

import argparse

from wasi.names import (
    EXPORTS,
    METHODS,
    MODES,
    MONITORS,
    PLANNED,
    PLANNED_STARTS,
    PRECISIONS,
    SCHEDULES,
    STARTS,
    TASKS,
)


def add_machine_options(parser):
    """Adds how the machine is used."""
    parser.add_argument("--threads", type=int, help="(default: all cores of this process)")
    parser.add_argument("--precision", choices=PRECISIONS, default=PRECISIONS[0],
                        help="of the products in linear layers; bfloat16: twice as fast on processors with AVX512-BF16")


def add_data_options(parser):
    """Adds what data and model are made from."""
    add = parser.add_argument_group("data and model").add_argument
    add("--task", choices=TASKS, default=TASKS[0])
    add("--data", help="images: a folder, tar, tar.gz or npz (default: the shipped sign-language digits); text-classification: a "
                       "folder with train.tsv and dev.tsv of lines sentence<TAB>label; lm: a text file")
    add("--limit", type=int, help="use at most this many training samples; drawn at random by --seed")
    add("--limit-val", type=int, help="the same for validation")
    add("--weights", help="to start from: a safetensors file with timm or torchvision names; for texts a folder with config.json "
                          "and safetensors, or a llama2.c checkpoint (default: random)")
    add("--model", help="architecture (default: vit_tiny_patch16_224 with --weights, else vit_micro_patch4_32; for texts "
                        "llama_micro)")
    add("--img-size", type=int, help="pixels a side (default: the architecture's)")
    add("--tokenizer", help="of texts: tokenizer.json, llama2.c's tokenizer file, or the word bytes (default: tokenizer.json or "
                            "tokenizer.bin beside the weights, or that of their run; bytes without weights)")
    add("--length", type=int, default=128, help="of texts: tokens a sample; longer sentences are cut")
    add("--last-layers", type=int, help="of a decoder: train the last so many blocks only (default: all)")
    add("--freeze", metavar="NAMES",
        help="parameters or modules to leave as they are, separated by commas, such as blocks.0; stem: what comes before the "
             "blocks; batchnorm: every batch norm (default: stem,batchnorm of pretrained models that qwasi trains, else none)")


def add_training_options(parser):
    """Adds what describes one training run besides its method, its seed and its folder."""
    add_data_options(parser)

    add = parser.add_argument_group("method").add_argument
    add("--targets", help="layers to factor: mlp, attn, conv, all, or tails of names, separated by commas (default: mlp, or "
        "conv of residual networks)")
    add("--variance", type=float, help="share of the squared singular values that wsi keeps (default: 0.9 with --weights)")
    add("--rank", type=int, help="one rank for every factored layer instead (default without --weights: a quarter of the width, "
                                 "since random weights have no spectrum to choose by)")
    add("--share", type=float, help="instead of a rank: factors of so many times the parameters of the layers they replace, such "
                                    "as 0.4; calibrated, wsi and wasi give them to the layers where the loss misses them most")
    add("--calibration", type=int, metavar="N", help="choose the start of the factors on N training batches; 0: plain SVD "
                                                     "(default: 4 with --weights and for svd-llm, 16 for fisher, else 0)")
    add("--start", choices=STARTS, help="of the factors: SVD of the weight, plain, whitened by the inputs or weighted by the "
                                        "loss's Fisher matrix, or, for qwasi, the gradient's leading directions (default, "
                                        "calibrated: gradient for qwasi, fisher with --share, else whitened)")
    add("--start-scale", type=float, default=1.0, metavar="S",
        help="of qwasi's factors in the gradient's directions, beside the weight: smaller ones turn faster to later gradients' "
             "(default: 1)")
    add("--bits", type=int, choices=(4, 8), help="of the frozen residual of qwasi and the frozen weights of qlora (default: 4)")
    add("--alpha", type=float, default=16.0, help="lora's scale times its rank")
    add("--lora-rank", type=int, default=8, help="of the updates of svd-llm-lora; lora itself takes --rank")
    add("--activation-ranks", help="compress the targets' saved inputs: batch,tokens,channels as shares or numbers, such as "
                                   "0.5,0.5,64 (the default of asi, wasi and amc)")
    add("--plan", help="JSON that `wasi plan` wrote: it decides ranks, bits, start, activation ranks, targets, batch size, "
                       "micro-batch, optimiser, and what a step keeps")
    add("--adapt-ranks", type=int, metavar="N", help="let the ranks of wsi, wasi and qwasi follow the spectrum of their factors: "
        "every N steps a layer may shrink or grow (default: ranks stay)")
    add("--grow", type=float, default=0.99, help="with --adapt-ranks: add directions where all but the last explain less")
    add("--shrink", type=float, default=0.9999, help="with --adapt-ranks: drop what the others explain so much without")
    add("--max-factor-bytes", type=int, help="with --adapt-ranks: most bytes of factors, their gradients and optimiser state "
        "(default: those at the start)")

    group = parser.add_argument_group("a step, and its memory")
    add = group.add_argument
    add("--batch-size", type=int, help="(default: 32)")
    add("--group-by-length", action="store_true", help="of texts: batches hold texts of about one length, hence little padding")
    add("--micro-batch", type=int, help="gradient accumulation: samples in flight at once; the gradient stays the batch's, but "
                                        "for batch norms that are trained: these take the statistics of the micro-batch")
    add_policy_options(group)
    add("--gradient-bits", type=int, choices=(16, 32), help="of a gradient's sums over micro-batches; 16: bfloat16 (default: 32)")
    add("--state-bits", type=int, choices=(16, 32), help="of momentum and AdamW's first moments; 16: bfloat16 (default: 32)")
    add("--layerwise", action="store_true", help="update each layer in backward, so that no full gradient exists; needs --clip 0")

    add = parser.add_argument_group("optimiser and schedule").add_argument
    add("--epochs", type=int, help="passes over the training set (default: 2 with --weights, else 30, of texts 10)")
    add("--optimizer", choices=("sgd", "adamw"), help="(default: sgd for images with --weights, else adamw)")
    add("--lr", type=float, help="(default: 0.02 for sgd, 0.003 for adamw, 0.001 for texts with --weights)")
    add("--momentum", type=float, help="of sgd (default: 0.9)")
    add("--weight-decay", type=float, help="(default: 0 for sgd, 0.05 for adamw); never of biases, norms, tokens, positions")
    add("--clip", type=float, help="largest gradient norm; 0: no clipping (default: 1; 0 where a plan updates layer by layer)")
    add("--schedule", choices=SCHEDULES, default="cosine", help="of the learning rate, after the warm-up")
    add("--warmup", type=int, help="steps of linear warm-up (default: 10 with --weights, else 100)")
    add("--min-lr", type=float, default=0.0, help="where cosine and linear end")
    add("--milestones", metavar="EPOCHS", help="with --schedule step: epochs after which the rate falls, such as 20,30")
    add("--gamma", type=float, default=0.1, help="with --schedule step: what it is multiplied by")
    add("--layer-lr-decay", type=float, default=1.0, metavar="D", help="each block learns by D times the rate of the one above")
    add("--param-groups", metavar="GROUPS", help="rates and weight decay by name, such as "
        "'head.*:lr=10,*.norm*:lr=0.1,blocks.0.*:decay=0'; lr is a factor, the first pattern that matches counts")
    add("--ema", type=float, metavar="D", help="validate and leave the moving average of the weights that decays by D a step, "
        "such as 0.999 (default: the last weights)")
    add("--ema-every", type=int, default=1, metavar="N", help="steps between its updates")

    add = parser.add_argument_group("loss and augmentation").add_argument
    add("--label-smoothing", type=float, help="(default: 0 with --weights and for texts, else 0.1)")
    add("--class-weights", metavar="W", help="of the training loss: a number a class, such as 1,2.5,1, or the word balanced")
    add("--mixup", type=float, default=0.0, metavar="A", help="blend pairs of images by shares drawn from Beta(A, A); 0: do not")
    add("--cutmix", type=float, default=0.0, metavar="A", help="paste areas drawn so; with both, each batch draws one")
    add("--mix-prob", type=float, default=1.0, metavar="P", help="share of the batches that are mixed")
    add("--randaugment", nargs="?", const="2,9", metavar="N,M", help="N random picture operations of magnitude M of 10 on each "
        "training image (without numbers: 2,9)")

    add = parser.add_argument_group("the run's end, checkpoints and logs").add_argument
    add("--monitor", choices=MONITORS, default=MONITORS[0], help="what the best epoch is best by")
    add("--early-stopping", type=int, metavar="N", help="end once N epochs in a row did not better the best, and leave its model")
    add("--min-delta", type=float, default=0.0, help="with --early-stopping: what counts as better")
    add("--keep-last-weights", action="store_true", help="with --early-stopping: leave the last model, not the best")
    add("--checkpoint-every", type=int, metavar="N", help="steps between checkpoints; 0: none (default: one at each epoch's end)")
    add("--keep", type=int, default=2, metavar="N", help="checkpoints to keep beside that of the best epoch: the last N")
    add("--tensorboard", action="store_true", help="write event files to the run folder, besides CSV; needs tensorboardX")
    add("--track-subspaces", type=int, default=0, metavar="N", help="every N steps, log by what angles the subspaces of wsi, "
        "wasi, qwasi, wsi-dense and svd have turned; 0: never")
    add("--quiet", action="store_true", help="no progress bar")

    add_machine_options(parser)


def add_policy_options(parser):
    """Adds what blocks keep for backward."""
    add = parser.add_argument
    add("--recompute", action="store_true", help="keep block inputs alone and run each block again in backward: exact")
    add("--saved-bits", type=int, choices=(8, 16), help="keep what blocks keep for backward in so many bits (default: exact)")


def compare(parser):
    """Trains by each method with each seed, each run in a process of its own, so that memory is measured apart. A seed fixes
    the order of the images and all random numbers. Writes results.json, comparison.md and comparison.png: accuracy against
    measured memory and time, mean and spread over seeds, Pareto front marked. Started again with the same options, it goes
    on after the last finished run; a run that fails leaves the others to go on.
    """
    parser.add_argument("--methods", default="dense,wsi", help=f"separated by commas, out of {', '.join(METHODS)}; a method may "
                        "have options of its own, as in dense,wsi:rank=16,wsi:rank=32:recompute")
    parser.add_argument("--seeds", default="0", help="separated by commas")
    add_training_options(parser)
    parser.add_argument("--out", help="folder of the runs (default: runs/<time>)")
    parser.add_argument("--plot-only", action="store_true", help="train nothing; read the runs in --out again")


def evaluate(parser):
    """Evaluates a model that `wasi train` left: loss, top-1, top-5, and of each class samples, recall and precision. Of a
    decoder published weights do as well.
    """
    add = parser.add_argument
    add("model", help="file of wasi's own (model.safetensors of a run, a checkpoint), or a run folder; of texts also what "
                      "--weights of wasi generate takes")
    add("--task", choices=TASKS, help="(default: what the model is for)")
    add("--data", help="as for wasi train: its validation or test part is taken, or, where it has no parts, the fifth that wasi "
                       "train holds out (default: those of the run, else the shipped digits)")
    add("--all", action="store_true", help="every sample of data without parts, not the fifth alone")
    add("--tokenizer", help="as for wasi train (default: that of the run)")
    add("--length", type=int, help="as for wasi train (default: that of the run, else 128, or a shorter context of the model)")
    add("--limit-val", type=int, help="use at most so many samples")
    add("--batch-size", type=int, help="(default: 32)")
    add("--seed", type=_from_zero, help="of the split where the data have but one (default: that of the run, else 0)")
    add("--confusion", metavar="CSV", help="also write samples by true class (row) and predicted class (column)")
    add_machine_options(parser)


def export(parser):
    """Writes a trained model for other programs: safetensors that timm, torchvision or Hugging Face's transformers load as they
    are, or ONNX. Factors, residuals and updates are multiplied out to dense weights.
    """
    add = parser.add_argument
    add("model", help="file of wasi's own (model.safetensors of a run, a checkpoint), or a run folder")
    add("out", help="file to write; for hugging-face a folder")
    add("--format", choices=EXPORTS, help="(default: onnx for a name that ends so, else timm, of decoders hugging-face)")
    add("--factored", action="store_true", help="two linears for each layer of factors, NAME.0 and NAME.1, in place of one")
    add("--opset", type=int, default=17, help="of ONNX")
    add("--overwrite", action="store_true", help="replace what is there")


def generate(parser):
    """Continues a text by a decoder of the Llama architecture, from a cache of keys and values."""
    add = parser.add_argument
    add("--weights", required=True, help="folder with config.json and safetensors, a run folder of wasi train or a file in it, "
                                         "or a llama2.c checkpoint (.bin)")
    add("--tokenizer", help="tokenizer.json, llama2.c's tokenizer file, or the word bytes (default: tokenizer.json "
                           "or tokenizer.bin beside the weights, or that of their run)")
    add("--prompt", help="(default: Once upon a time; with --chat the lines of standard input, one after another)")
    add("--chat", action="store_true", help="answer the prompt as a message, by the chat template that lies beside the tokenizer")
    add("--system", help="with --chat: what the model is told first")
    add("--tokens", type=int, default=100, help="new tokens at most")
    add("--stop", action="append", default=[], metavar="TEXT", help="end where this comes (may be repeated); also ended by the "
        "tokenizer's and generation_config.json's end tokens")
    add("--temperature", type=float, default=0.0, help="0: the most probable token each time")
    add("--top-p", type=float, default=1.0, help="sample only among the fewest tokens that together are so probable")
    add("--seed", type=_from_zero, default=0, help="of the sampling")
    add_machine_options(parser)


def info(parser):
    """Prints what a model file holds: architecture, layers with ranks and bits, parameters, bytes, progress of a checkpoint."""
    parser.add_argument("model", help="file of wasi's own (model.safetensors of a run, a checkpoint), or a run folder; of other "
                                      "safetensors files and llama2.c's checkpoints the tensors are listed")


def plan(parser):
    """Measures on calibration samples what each rank, residual and activation rank of each layer costs in accuracy, predicts
    the memory of the whole training step, and picks the least error under --budget, or the least memory under
    --target-error. `wasi train --plan` trains as planned and prints planned and measured peak side by side.
    """
    add = parser.add_argument
    add("--budget", help="memory for weights, gradients, optimiser, inputs, activations and scratch together, such as 64MiB")
    add("--target-error", type=float, help="largest relative error; alone: the least memory that reaches it")
    add("--method", choices=PLANNED, default="wasi")
    add("--mode", choices=MODES, default="approximate", help="exact: gradients are; nothing is compressed nor kept in fewer bits")
    add("--targets", help="layers to plan: mlp, attn, all, or tails of names, separated by commas (default: mlp)")
    add("--ranks", help="ranks to choose among, separated by commas (default: a grid of explained variances and of shares)")
    add("--batch-size", type=int, help="of the training step (default: 32)")
    add("--micro-batch", type=int, help="samples in flight at once (default: chosen)")
    add("--recompute", choices=("auto", "yes", "no"), default="auto", help="run each block's forward again in backward")
    add("--saved-bits", type=_or_auto, choices=("auto", 8, 16, 32), default="auto", help="of what blocks keep for backward")
    add("--gradient-bits", type=_or_auto, choices=("auto", 16, 32), default="auto", help="of the gradient's sums")
    add("--state-bits", type=_or_auto, choices=("auto", 16, 32), default="auto", help="of momentum and AdamW's first moments")
    add("--layerwise", choices=("auto", "yes", "no"), default="auto", help="update each layer in backward; needs --clip 0")
    add("--clip", type=float, default=1.0, help="largest gradient norm in training; 0: no clipping, no full gradient needed")
    add("--optimizer", choices=("sgd", "adamw"), help="(default: sgd for images with --weights, else adamw)")
    add("--momentum", type=float, help="of sgd (default: 0.9)")
    add("--ema", type=float, metavar="D", help="as for wasi train: plan memory for the average of the weights, too")
    add("--calibration", type=int, default=2, metavar="N", help="batches of up to 16 training samples to measure on")
    add("--start", choices=PLANNED_STARTS, help="of the factors, as for wasi train")
    add_data_options(parser)
    add("--seed", type=_from_zero, default=0)
    add_machine_options(parser)
    add("--out", default="plan.json", help="the plan")
    add("--plot", help="PNG of bytes and error of every layer")


def _from_zero(text):
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected a whole number from 0, got {text!r}")
    return int(text)


def _or_auto(text):
    return text if text == "auto" else int(text)


def plot_ranks(parser):
    """Draws ranks.png in a run folder that `wasi train --adapt-ranks N` wrote: the rank of each layer by step."""
    parser.add_argument("folder", help="run folder of one method")


def plot_subspaces(parser):
    """Draws subspaces.png in a run folder that `wasi train --track-subspaces N` wrote: how far each factored layer's
    subspace turns from its start, and from one record to the next.
    """
    parser.add_argument("folder", help="run folder of one method")


def predict(parser):
    """Writes what a classifier that `wasi train` left takes images or sentences for: a CSV line each with the image's path or the
    sentence, class and probability.
    """
    add = parser.add_argument
    add("model", help="model.safetensors of a run, a checkpoint, or a run folder")
    add("inputs", nargs="+", metavar="INPUT", help="image file, or folder of images; of texts a file with a sentence a line")
    add("--top", type=int, default=1, metavar="N", help="the N most probable classes")
    add("--batch-size", type=int, default=32, help="images or sentences at once")
    add("--tokenizer", help="as for wasi train (default: that of the run)")
    add("--length", type=int, help="as for wasi evaluate")
    add("--out", metavar="CSV", help="file to write (default: standard output)")
    add_machine_options(parser)


def profile(parser):
    """Times every kernel of a training step (or of inference) on random images, after one step to warm up."""
    add = parser.add_argument
    add("--model", default="vit_tiny_patch16_224", help="architecture")
    add("--weights", help="safetensors file with timm or torchvision names (default: random)")
    add("--method", default="wsi", choices=METHODS)
    add("--targets", default="all", help="layers to factor: mlp, attn, conv, all, or tails of names, separated by commas")
    add("--rank", type=int, help="of the factored layers (default: a quarter of the width)")
    add("--batch-size", type=int, default=32)
    add("--micro-batch", type=int, help="samples in flight at once")
    add_policy_options(parser)
    add("--img-size", type=int, help="pixels a side (default: the architecture's)")
    add("--steps", type=int, default=3)
    add("--inference", action="store_true", help="forward passes instead of training steps")
    add_machine_options(parser)


def report(parser):
    """Writes one self-contained HTML page of run folders: curves, memory planned, counted and measured, bytes by layer, ranks,
    subspaces, environment and command; several runs are set side by side, too. What a folder lacks is named on the page.
    """
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folder, or a folder of runs as `wasi train` and "
                        "`wasi compare` write for several methods")
    parser.add_argument("--out", help="the page (default: report.html in RUN if there is one, else in the current folder)")


def train(parser):
    """Trains a model by each method on the same batches and prints accuracy, seconds a step and measured peak memory.
    Without --data it uses the shipped sign-language digits. Ctrl-C writes a checkpoint and ends with status 130; --resume
    goes on from there, bit for bit.
    """
    parser.add_argument("--method", help=f"one or more of {', '.join(METHODS)}, separated by commas (default: dense,wsi; with "
                        "--plan the plan's)")
    add_training_options(parser)
    parser.add_argument("--seed", type=_from_zero, default=0)
    parser.add_argument("--out", help="run folder (default: runs/<time>)")
    parser.add_argument("--resume", action="store_true", help="go on with the run in --out from its newest checkpoint, by the "
                        "options that it was started with")
