"""ONNX graphs of models, for inference elsewhere: standard operators alone, batch (and a decoder's length) left open.

A linear is MatMul with the transposed weight and Add; factored, two MatMuls. Images come in as normalised
float32: mean and deviation of their pixels, and the classes, are in the file's metadata. Opset 17 is the
least, which brings LayerNormalization; Gelu is there from opset 20 on, and made of Erf before.
"""

import json
import math

import numpy as np

from wasi import ops
from wasi.layers import BasicBlock, FactoredLinear
from wasi.layers.windows import relative_positions
from wasi.models.weights import kernel_of, published_shape

LEAST_OPSET = 17
LARGEST = 2**31 - 2**20  # bytes of weights: a file of protocol buffers ends at 2 GiB


def onnx_model(model, opset=LEAST_OPSET, factored=False, classes=None):
    """The onnx.ModelProto of a ViT, a Swin transformer, a ResNet or a decoder. Parameters as of `wasi.export`.

    A model of images maps "images" (batch, 3, S, S) float32 to "logits" (batch, classes); a decoder
    "tokens" (batch, length) int64, without padding, to "logits" (batch, length, vocabulary), or (batch,
    classes) from the last token.
    Raises ImportError without the onnx library, ValueError for an opset that it does not have, a model of more than
    2 GiB, or one of another architecture.
    """
    try:
        import onnx
    except ImportError as error:
        raise ImportError("exporting to ONNX needs the onnx library: pip install onnx") from error
    newest = onnx.defs.onnx_opset_version()
    if not LEAST_OPSET <= opset <= newest:
        raise ValueError(f"opset: expected {LEAST_OPSET} to {newest}, got {opset}")
    builders = {"vit": _vit, "swin": _swin, "resnet": _resnet, "llama": _llama}
    if model.architecture not in builders:
        raise ValueError(f"model: expected an architecture out of {', '.join(builders)}, got {model.architecture!r}")
    graph = _Graph(onnx, opset, factored)
    builders[model.architecture](graph, model)
    if graph.n_bytes > LARGEST:
        raise ValueError(f"model: expected at most {LARGEST} bytes of weights, which is what an ONNX file can hold, got "
                         f"{graph.n_bytes}")
    return graph.finish(model, classes)


class _Graph:
    """Nodes and weights of a graph that is under way; values go by their names."""

    def __init__(self, onnx, opset, factored):
        self.onnx, self.opset, self.factored = onnx, opset, factored
        self.nodes, self.weights, self.n_bytes = [], {}, 0
        self.inputs = self.outputs = ()

    def weight(self, array, name):
        """A named constant."""
        array = np.asarray(array, order="C")
        if name not in self.weights:
            self.n_bytes += array.nbytes
            if self.n_bytes <= LARGEST:
                self.weights[name] = self.onnx.numpy_helper.from_array(array, name)
        return name

    def number(self, value, dtype=np.float32):
        """A constant scalar, or a list of them."""
        array = np.array(value, dtype)
        return self.weight(array, f"constant_{array.dtype}_{'_'.join(map(str, array.reshape(-1).tolist()))}_{array.ndim}")

    def shape(self, *sizes):
        """A shape, or axes, or sizes of parts: whole numbers as Reshape and others take them. 0 keeps, -1 infers."""
        return self.number(sizes, np.int64)

    def node(self, kind, *inputs, n_outputs=None, **attributes):
        """The output's name of a new node, or a list of n_outputs."""
        outputs = [f"{kind.lower()}_{len(self.nodes)}" + (f"_{i}" if n_outputs else "") for i in range(n_outputs or 1)]
        self.nodes.append(self.onnx.helper.make_node(kind, list(inputs), outputs, name=f"node_{len(self.nodes)}", **attributes))
        return outputs if n_outputs else outputs[0]

    def reshape(self, x, *sizes):
        return self.node("Reshape", x, self.shape(*sizes))

    def transpose(self, x, *order):
        return self.node("Transpose", x, perm=order)

    def mean(self, x, *axes, keepdims):
        if self.opset >= 18:
            return self.node("ReduceMean", x, self.shape(*axes), keepdims=int(keepdims))
        return self.node("ReduceMean", x, axes=axes, keepdims=int(keepdims))

    def linear(self, x, layer, name):
        """x (..., I) through a linear layer of any kind."""
        if self.factored and isinstance(layer, FactoredLinear) and layer.residual is None:
            z = self.node("MatMul", x, self.weight(layer.R.data.T, f"{name}.0.weight"))
            y = self.node("MatMul", z, self.weight(layer.L.data.T, f"{name}.1.weight"))
        else:
            y = self.node("MatMul", x, self.weight(dense_weight(layer).T, f"{name}.weight"))
        bias = getattr(layer, "bias", None)
        return y if bias is None else self.node("Add", y, self.weight(bias.data, f"{name}.bias"))

    def layer_norm(self, x, layer, name):
        return self.node("LayerNormalization", x, self.weight(layer.weight.data, f"{name}.weight"),
                         self.weight(layer.bias.data, f"{name}.bias"), axis=-1, epsilon=layer.eps)

    def rms_norm(self, x, layer, name):
        square = self.mean(self.node("Mul", x, x), -1, keepdims=True)
        root = self.node("Sqrt", self.node("Add", square, self.number(layer.eps)))
        return self.node("Mul", self.node("Div", x, root), self.weight(layer.weight.data, f"{name}.weight"))

    def gelu(self, x):
        if self.opset >= 20:
            return self.node("Gelu", x)
        erf = self.node("Erf", self.node("Mul", x, self.number(math.sqrt(0.5))))
        return self.node("Mul", self.node("Mul", x, self.number(0.5)), self.node("Add", erf, self.number(1)))

    def mlp(self, x, mlp, name):
        return self.linear(self.gelu(self.linear(x, mlp.fc1, f"{name}.fc1")), mlp.fc2, f"{name}.fc2")

    def block(self, x, block, name, attend):
        """A pre-norm block of a ViT or a Swin transformer; attend(x) is its attention."""
        x = self.node("Add", x, attend(self.layer_norm(x, block.norm1, f"{name}.norm1")))
        return self.node("Add", x, self.mlp(self.layer_norm(x, block.norm2, f"{name}.norm2"), block.mlp, f"{name}.mlp"))

    def heads(self, x, attention, name, N):
        """Queries, keys (transposed) and values (B, H, N, D) of tokens x (B, N, C)."""
        C = attention.proj.in_features
        H, D = attention.n_heads, C // attention.n_heads
        qkv = self.linear(x, attention.qkv, f"{name}.qkv")
        q, k, v = self.node("Split", qkv, self.shape(C, C, C), n_outputs=3, axis=-1)
        q, k, v = (self.reshape(part, -1, N, H, D) for part in (q, k, v))
        q = self.node("Mul", self.transpose(q, 0, 2, 1, 3), self.number(D**-0.5))
        return q, self.transpose(k, 0, 2, 3, 1), self.transpose(v, 0, 2, 1, 3)

    def weighted_values(self, scores, v, N, C):
        """(B, N, C) from scores (B, H, N, N)."""
        o = self.node("MatMul", self.node("Softmax", scores, axis=-1), v)
        return self.reshape(self.transpose(o, 0, 2, 1, 3), -1, N, C)

    def images(self, config):
        """The name of the input, normalised images (B, 3, S, S)."""
        self.inputs = (("images", np.float32, ("batch", 3, config.img_size, config.img_size)),)
        return "images"

    def conv(self, x, layer, name):
        """x (B, C, H, W) through a linear layer of any kind with a window: its convolution."""
        window = layer.window
        place = {"kernel_shape": (window.kernel,) * 2, "strides": (window.stride,) * 2, "pads": (window.padding,) * 4}
        if self.factored and isinstance(layer, FactoredLinear) and layer.residual is None:
            z = self.node("Conv", x, self.weight(kernel_of(layer.R.data, window), f"{name}.0.weight"), **place)
            y = self.weight(layer.L.data[:, :, None, None], f"{name}.1.weight")
            return self.node("Conv", z, y, kernel_shape=(1, 1))
        return self.node("Conv", x, self.weight(kernel_of(dense_weight(layer), window), f"{name}.weight"), **place)

    def batch_norm(self, x, norm, name):
        parts = (self.weight(getattr(norm, part).data, f"{name}.{part}") for part in
                 ("weight", "bias", "running_mean", "running_var"))
        return self.node("BatchNormalization", x, *parts, epsilon=norm.eps)

    def patches(self, images, embed, model):
        p = model.config.patch_size
        kernel = published_shape(model, "patch_embed.proj.weight", dense_weight(embed.proj))
        bias = self.weight(embed.proj.bias.data, "patch_embed.proj.bias")
        kernel = self.weight(kernel, "patch_embed.proj.weight")
        return self.node("Conv", images, kernel, bias, kernel_shape=(p, p), strides=(p, p))

    def finish(self, model, classes):
        """The checked ModelProto."""
        helper = self.onnx.helper

        def value(name, dtype, shape):
            return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), shape)

        graph = helper.make_graph(self.nodes, model.architecture, [value(*i) for i in self.inputs],
                                  [value(*o) for o in self.outputs], list(self.weights.values()))
        opsets = [helper.make_opsetid("", self.opset)]
        made = helper.make_model(graph, opset_imports=opsets, producer_name="wasi",
                                 ir_version=helper.find_min_ir_version_for(opsets))
        about = {"architecture": model.architecture}
        for name in ("mean", "std"):
            if hasattr(model.config, name):
                about[name] = json.dumps(getattr(model.config, name))
        helper.set_model_props(made, about | ({"classes": json.dumps(list(classes))} if classes else {}))
        self.onnx.checker.check_model(made, full_check=True)
        return made

    def end(self, x, *shape):
        """Names x as the logits, of that shape."""
        self.nodes.append(self.onnx.helper.make_node("Identity", [x], ["logits"], name="logits"))
        self.outputs = (("logits", np.float32, shape),)


def dense_weight(layer):
    """The weight (O, I) that a layer computes with."""
    return layer.merged_weight() if hasattr(layer, "merged_weight") else layer.weight.data


def _vit(g, model):
    c, N, C = model.config, model.config.grid**2 + 1, model.config.embed_dim
    x = g.patches(g.images(c), model.patch_embed, model)
    x = g.transpose(g.reshape(x, 0, C, N - 1), 0, 2, 1)
    batch = g.node("Shape", "images", start=0, end=1)
    token = g.node("Expand", g.weight(model.cls_token.data, "cls_token"), g.node("Concat", batch, g.shape(1, C), axis=0))
    x = g.node("Add", g.node("Concat", token, x, axis=1), g.weight(model.pos_embed.data, "pos_embed"))

    def attend(attention, name):
        def of(y):
            q, k, v = g.heads(y, attention, name, N)
            return g.linear(g.weighted_values(g.node("MatMul", q, k), v, N, C), attention.proj, f"{name}.proj")
        return of

    for i, block in enumerate(model.blocks):
        x = g.block(x, block, f"blocks.{i}", attend(block.attn, f"blocks.{i}.attn"))
    x = g.node("Gather", x, g.number(0, np.int64), axis=1)  # the class token
    g.end(g.linear(g.layer_norm(x, model.norm, "norm"), model.head, "head"), "batch", c.num_classes)


def _swin(g, model):
    c = model.config
    x = g.transpose(g.patches(g.images(c), model.patch_embed, model), 0, 2, 3, 1)
    x = g.layer_norm(x, model.patch_embed.norm, "patch_embed.norm")
    for s, stage in enumerate(model.layers):
        if stage.downsample is not None:
            x = _merging(g, x, stage.downsample, f"layers.{s}.downsample", c.grid >> s, c.embed_dim << (s - 1))
        for i, block in enumerate(stage.blocks):
            name = f"layers.{s}.blocks.{i}"
            x = g.block(x, block, name, _window_attention(g, block.attn, f"{name}.attn", c.grid >> s))
    x = g.mean(g.layer_norm(x, model.norm, "norm"), 1, 2, keepdims=False)
    g.end(g.linear(x, model.head.fc, "head.fc"), "batch", c.num_classes)


def _resnet(g, model):
    pool = model.maxpool.window
    x = g.conv(g.images(model.config), model.conv1, "conv1")
    x = g.node("Relu", g.batch_norm(x, model.bn1, "bn1"))
    x = g.node("MaxPool", x, kernel_shape=(pool.kernel,) * 2, strides=(pool.stride,) * 2, pads=(pool.padding,) * 4)
    for name, block in model.named_modules():
        if not isinstance(block, BasicBlock):
            continue
        y = g.node("Relu", g.batch_norm(g.conv(x, block.conv1, f"{name}.conv1"), block.bn1, f"{name}.bn1"))
        y = g.batch_norm(g.conv(y, block.conv2, f"{name}.conv2"), block.bn2, f"{name}.bn2")
        if block.downsample is not None:
            x = g.conv(x, block.downsample[0], f"{name}.downsample.0")
            x = g.batch_norm(x, block.downsample[1], f"{name}.downsample.1")
        x = g.node("Relu", g.node("Add", y, x))
    g.end(g.linear(g.mean(x, 2, 3, keepdims=False), model.fc, "fc"), "batch", model.config.num_classes)


def _merging(g, x, merging, name, grid, C):
    """PatchMerging of x (B, 2 grid, 2 grid, C): neighbours in the order of `ops.merge_patches`, down each column first."""
    x = g.transpose(g.reshape(x, -1, grid, 2, grid, 2, C), 0, 1, 3, 4, 2, 5)
    x = g.reshape(x, -1, grid, grid, 4 * C)
    return g.linear(g.layer_norm(x, merging.norm, f"{name}.norm"), merging.reduction, f"{name}.reduction")


def _window_attention(g, attention, name, grid):
    """The function of a WindowAttention on (B, grid, grid, C)."""
    M, shift, H, C = attention.window, attention.shift, attention.n_heads, attention.proj.in_features
    N, n = M * M, grid // M
    table = attention.relative_position_bias_table.data
    bias = np.ascontiguousarray(table[relative_positions(M)].T).reshape(1, H, N, N)

    def rolled(x, by):
        """Row and column `by` become the first."""
        for axis in (1, 2):
            first, second = g.node("Split", x, g.shape(by, grid - by), n_outputs=2, axis=axis)
            x = g.node("Concat", second, first, axis=axis)
        return x

    def of(x):
        x = rolled(x, shift) if shift else x
        x = g.reshape(g.transpose(g.reshape(x, -1, n, M, n, M, C), 0, 1, 3, 2, 4, 5), -1, N, C)
        q, k, v = g.heads(x, attention, name, N)
        scores = g.node("Add", g.node("MatMul", q, k), g.weight(bias, f"{name}.relative_position_bias"))
        if shift:
            scores = g.node("Add", g.reshape(scores, -1, n * n, H, N, N),
                            g.weight(_border_mask(grid, M, shift), f"border_mask_{grid}_{M}_{shift}"))
            scores = g.reshape(scores, -1, H, N, N)
        y = g.linear(g.weighted_values(scores, v, N, C), attention.proj, f"{name}.proj")
        y = g.transpose(g.reshape(y, -1, n, n, M, M, C), 0, 1, 3, 2, 4, 5)
        y = g.reshape(y, -1, grid, grid, C)
        return rolled(y, grid - shift) if shift else y

    return of


def _border_mask(grid, M, shift):
    """(n * n, 1, N, N), to be added to scores: -1e9 between tokens that only the rolling has brought together, else 0."""
    part = np.zeros(grid, np.int64)
    part[grid - M :], part[grid - shift :] = 1, 2
    parts = part[:, None] * 3 + part
    n = grid // M
    windows = parts.reshape(n, M, n, M).transpose(0, 2, 1, 3).reshape(n * n, 1, M * M)
    return np.where(windows[..., None] == windows[:, :, None], 0, -1e9).astype(np.float32)


def _llama(g, model):
    c = model.config
    g.inputs = (("tokens", np.int64, ("batch", "length")),)
    table = g.weight(_table(model.embed), "embed.weight")
    x = g.node("Gather", table, "tokens", axis=0)
    length = g.node("Shape", "tokens", start=1, end=2)
    angles = np.arange(c.max_length)[:, None] * float(c.rope_theta) ** (-np.arange(0, c.head_dim, 2) / c.head_dim)
    turn = [g.node("Slice", g.weight(f(angles).astype(np.float32), f"rotary.{f.__name__}"), g.shape(0), length, g.shape(0))
            for f in (np.cos, np.sin)]
    ones = g.node("Expand", g.number(-1e9), g.node("Concat", length, length, axis=0))
    mask = g.node("Trilu", ones, g.number(1, np.int64), upper=1)
    for i, block in enumerate(model.blocks):
        name = f"blocks.{i}"
        y = g.rms_norm(x, block.norm1, f"{name}.norm1")
        x = g.node("Add", x, _grouped_attention(g, y, block.attn, f"{name}.attn", c, turn, mask))
        y, mlp = g.rms_norm(x, block.norm2, f"{name}.norm2"), block.mlp
        a = g.linear(y, mlp.gate_proj, f"{name}.mlp.gate_proj")
        silu = g.node("Mul", a, g.node("Sigmoid", a))
        y = g.node("Mul", silu, g.linear(y, mlp.up_proj, f"{name}.mlp.up_proj"))
        x = g.node("Add", x, g.linear(y, mlp.down_proj, f"{name}.mlp.down_proj"))
    if c.num_classes is not None:
        x = g.node("Gather", x, g.number(-1, np.int64), axis=1)
    x = g.rms_norm(x, model.norm, "norm")
    if model.head is None:
        x = g.node("MatMul", x, g.node("Transpose", table, perm=(1, 0)))
    else:
        x = g.linear(x, model.head, "head")
    g.end(x, "batch", *(("length", c.vocab_size) if c.num_classes is None else (c.num_classes,)))


def _table(embed):
    return ops.bf16_expand(embed.bits) if hasattr(embed, "bits") else embed.weight.data


def _grouped_attention(g, x, attention, name, c, turn, mask):
    """A GroupedQueryAttention on x (B, n, C); turn: cosines and sines (n, D/2); mask (n, n), added to the scores."""
    H, G, D = c.num_heads, c.num_kv_heads, c.head_dim

    def heads(part, n_heads):
        y = g.linear(x, getattr(attention, part), f"{name}.{part}")
        return g.transpose(g.reshape(y, 0, 0, n_heads, D), 0, 2, 1, 3)  # B, heads, n, D

    def rotated(y):
        a, b = g.node("Split", y, g.shape(D // 2, D // 2), n_outputs=2, axis=-1)
        cos, sin = turn
        left = g.node("Sub", g.node("Mul", a, cos), g.node("Mul", b, sin))
        right = g.node("Add", g.node("Mul", b, cos), g.node("Mul", a, sin))
        return g.node("Concat", left, right, axis=-1)

    q, k, v = rotated(heads("q_proj", H)), rotated(heads("k_proj", G)), heads("v_proj", G)
    # The H / G queries that share keys and values lie side by side: B, G, H / G, n, D beside B, G, 1, D, n.
    q = g.node("Mul", q, g.number(D**-0.5))
    batch, length = g.node("Shape", x, start=0, end=1), g.node("Shape", x, start=1, end=2)
    q = g.node("Reshape", q, g.node("Concat", batch, g.shape(G, H // G), length, g.shape(D), axis=0))
    k, v = (g.node("Unsqueeze", y, g.shape(2)) for y in (k, v))
    scores = g.node("Add", g.node("MatMul", q, g.transpose(k, 0, 1, 2, 4, 3)), mask)
    o = g.node("MatMul", g.node("Softmax", scores, axis=-1), v)
    o = g.node("Reshape", o, g.node("Concat", batch, g.shape(H), length, g.shape(D), axis=0))
    o = g.reshape(g.transpose(o, 0, 2, 1, 3), 0, 0, H * D)
    return g.linear(o, attention.o_proj, f"{name}.o_proj")
