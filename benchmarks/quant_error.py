"""What quantisation costs in accuracy: weights by format, products by the distribution of the activations."""

import argparse

import harness
import numpy as np
from safetensors.numpy import load_file

import wasi
from wasi import ops

LAYERS = ["attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"]
BLOCK = 64  # of the rotation, which divides every width here


def relative(got, want):
    return float(np.linalg.norm(got.astype(float) - want) / np.linalg.norm(want.astype(float)))


def absmax_error(W, group=32):
    """Error of the plain format: 15 levels, one fp16 scale a group, which is its largest weight over 7."""
    groups = W.reshape(len(W), -1, group)
    scale = (np.abs(groups).max(-1, keepdims=True) / 7).astype(np.float16).astype(np.float32)
    return relative(np.rint(groups / scale) * scale, groups)


def error(W, bits=4, group=32):
    return relative(ops.dequantize_residual(ops.quantize_residual(W, bits, group)), W)


def rotated(W, rng):
    """W H D: random signs, then the Hadamard transform of each 64 columns, which keeps distances."""
    H = np.ones((1, 1), np.float32)
    while len(H) < BLOCK:
        H = np.block([[H, H], [H, -H]])
    signs = rng.choice(np.float32([-1, 1]), W.shape[1])
    blocks = (W * signs).reshape(len(W), -1, BLOCK)
    return np.ascontiguousarray((blocks @ (H / BLOCK**0.5)).reshape(W.shape))


def without_leading(W, rank):
    """What the best rank-`rank` approximation leaves of W: the residual that training keeps frozen."""
    U, s, Vt = np.linalg.svd(W, full_matrices=False)
    return np.ascontiguousarray((U[:, rank:] * s[rank:]) @ Vt[rank:])


def weights_row(name, matrices, rng):
    formats = {
        "absmax 32": absmax_error,
        "4 bits 32": error,
        "4 bits 64": lambda W: error(W, group=64),
        "4 bits 128": lambda W: error(W, group=128),
        "4 bits 32, rotated": lambda W: error(rotated(W, rng)),
        "8 bits": lambda W: error(W, 8),
    }
    means = {format: float(np.mean([measure(W) for W in matrices])) for format, measure in formats.items()}
    return {"matrix": name} | means


def products_row(name, activations, rng):
    """Errors of y and dx against the same weights with float32 activations, and of y against the dense W."""
    W = rng.standard_normal((768, 768), dtype=np.float32)
    Q = ops.quantize_residual(W)
    a = np.ascontiguousarray(activations, np.float32)
    return {"activations": name,
            "y": relative(ops.quant_linear(a, Q), ops.quant_linear(a, Q, exact=True)),
            "dx": relative(ops.quant_linear_backward(a, Q), ops.quant_linear_backward(a, Q, exact=True)),
            "y of W": relative(ops.quant_linear(a, Q), a @ W.T)}


def percent(key):
    return lambda row: f"{100 * row[key]:.2f} %"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", required=True, help="a ViT's safetensors file with timm's names")
    arguments = parser.parse_args()
    rng, weights = np.random.default_rng(0), load_file(arguments.weights)
    context = harness.context(wasi.get_num_threads())

    rows = [weights_row("normal, 768 x 768", [rng.standard_normal((768, 768), dtype=np.float32)], rng)]
    for layer in LAYERS:
        matrices = [W for name, W in weights.items() if name.endswith(f"{layer}.weight")]
        rows.append(weights_row(f"{layer} ({len(matrices)} blocks)", matrices, rng))
        rows.append(weights_row(f"{layer} less rank 32", [without_leading(W, 32) for W in matrices], rng))
    columns = {"matrix": lambda row: row["matrix"]} | {key: percent(key) for key in rows[0] if key != "matrix"}
    print(harness.markdown_table(rows, columns))
    harness.write_results("quant_error", "Relative error of quantised weights, by format and width of a group",
                          [row | context for row in rows], columns)

    shape = (1600, 768)
    normal = rng.standard_normal(shape)
    outliers = np.where(np.arange(768) % 128 == 5, 30, 1) * normal
    rows = [products_row("normal", normal, rng),
            products_row("after GELU", normal / (1 + np.exp(-1.702 * normal)), rng),
            products_row("Student t, 3 degrees", rng.standard_t(3, shape), rng),
            products_row("normal, 6 channels times 30", outliers, rng)]
    keys = ("y", "dx", "y of W")
    columns = {"activations": lambda row: row["activations"]} | {key: percent(key) for key in keys}
    print(harness.markdown_table(rows, columns))
    harness.write_results("quant_products", "Relative error of integer products: y and dx from the 8 bits of the "
                          "activations alone, y of W from the 4-bit weights as well",
                          [row | context for row in rows], columns)


if __name__ == "__main__":
    main()
