"""Names that users choose among. Imports nothing, so that the command's help is quick."""

TASKS = ("image-classification", "text-classification", "lm")

METHODS = {
    "dense": "every weight is trained as it is",
    "asi": "weights are dense; what backward needs of the targets' inputs is kept as Tucker factors",
    "amc": "asi with the full decomposition at every step",
    "wsi": "targets become trained low-rank factors; what truncation cuts off is lost",
    "qwasi": "targets become trained low-rank factors over a frozen 4- or 8-bit residual",
    "wasi": "wsi and asi together",
    "wsi-dense": "the published WSI: dense weights and gradients stay, products use a followed low-rank approximation",
    "svd": "dense training, and each target's weight is replaced by its truncated SVD after every step",
    "svd-llm": "targets become low-rank factors by whitened truncation, trained as plain parameters",
    "svd-llm-lora": "the same factors frozen, with trained low-rank updates on both; the head is trained",
    "lora": "targets are frozen; trained low-rank updates are added; the head is trained",
    "qlora": "lora over weights frozen in 4 or 8 bits",
}
# Those whose targets start from a truncated SVD, and what that is of.
FACTORED = ("wsi", "qwasi", "wasi", "wsi-dense", "svd", "svd-llm", "svd-llm-lora")
STARTS = ("svd", "whitened", "fisher", "gradient")
PLANNED_STARTS = ("svd", "whitened", "gradient")

# Of the learning rate, and what the best epoch is best by.
SCHEDULES = ("constant", "cosine", "linear", "step")
MONITORS = ("val_accuracy", "val_loss")

# How linear layers multiply.
PRECISIONS = ("float32", "bfloat16")

# What models are exported as.
EXPORTS = ("timm", "torchvision", "hugging-face", "onnx")

# Those that can be planned, and how.
PLANNED = ("dense", "asi", "wsi", "wasi", "qwasi")
MODES = ("approximate", "exact")
