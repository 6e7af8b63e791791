"""What others call the tensors that we call as timm does: a table of pairs for each library and architecture.

A pair is (our name, theirs), with fields of `_FIELDS` in braces. Written is what the first pair gives that fits our name; of
torchvision, whose names are also read, whatever any pair gives.
"""

import functools
import re

# {s}: a stage of a Swin transformer. torchvision counts the mergings with the stages: {merging} comes before the stage {stage};
# in Hugging Face's files the merging is at the end of the stage {before}.
_FIELDS = {"b": r"\d+", "n": "[12]", "p": "weight|bias", "part": r"(?:norm|attn).*", "proj": r"\w+_proj",
           "s": r"\d+", "merging": r"\d+", "stage": r"\d+", "before": r"\d+"}

TORCHVISION = {
    "vit": [
        ("patch_embed.proj.{p}", "conv_proj.{p}"),
        ("cls_token", "class_token"),
        ("pos_embed", "encoder.pos_embedding"),
        ("norm.{p}", "encoder.ln.{p}"),
        ("head.{p}", "heads.head.{p}"),
        ("blocks.{b}.norm{n}.{p}", "encoder.layers.encoder_layer_{b}.ln_{n}.{p}"),
        ("blocks.{b}.attn.qkv.{p}", "encoder.layers.encoder_layer_{b}.self_attention.in_proj_{p}"),
        ("blocks.{b}.attn.proj.{p}", "encoder.layers.encoder_layer_{b}.self_attention.out_proj.{p}"),
        ("blocks.{b}.mlp.fc1.{p}", "encoder.layers.encoder_layer_{b}.mlp.0.{p}"),
        ("blocks.{b}.mlp.fc2.{p}", "encoder.layers.encoder_layer_{b}.mlp.3.{p}"),
        ("blocks.{b}.mlp.fc1.{p}", "encoder.layers.encoder_layer_{b}.mlp.linear_1.{p}"),  # older files
        ("blocks.{b}.mlp.fc2.{p}", "encoder.layers.encoder_layer_{b}.mlp.linear_2.{p}"),
    ],
    "swin": [
        ("patch_embed.proj.{p}", "features.0.0.{p}"),
        ("patch_embed.norm.{p}", "features.0.2.{p}"),
        ("norm.{p}", "norm.{p}"),
        ("head.fc.{p}", "head.{p}"),
        ("layers.{s}.downsample.norm.{p}", "features.{merging}.norm.{p}"),
        ("layers.{s}.downsample.reduction.{p}", "features.{merging}.reduction.{p}"),
        ("layers.{s}.blocks.{b}.mlp.fc1.{p}", "features.{stage}.{b}.mlp.0.{p}"),
        ("layers.{s}.blocks.{b}.mlp.fc2.{p}", "features.{stage}.{b}.mlp.3.{p}"),
        ("layers.{s}.blocks.{b}.{part}", "features.{stage}.{b}.{part}"),
    ],
}

# Attention's three inputs are linears of their own there: attn.q, attn.k and attn.v.
HUGGING_FACE = {
    "vit": [
        ("patch_embed.proj.{p}", "vit.embeddings.patch_embeddings.projection.{p}"),
        ("cls_token", "vit.embeddings.cls_token"),
        ("pos_embed", "vit.embeddings.position_embeddings"),
        ("norm.{p}", "vit.layernorm.{p}"),
        ("head.{p}", "classifier.{p}"),
        ("blocks.{b}.norm1.{p}", "vit.encoder.layer.{b}.layernorm_before.{p}"),
        ("blocks.{b}.norm2.{p}", "vit.encoder.layer.{b}.layernorm_after.{p}"),
        ("blocks.{b}.attn.q.{p}", "vit.encoder.layer.{b}.attention.attention.query.{p}"),
        ("blocks.{b}.attn.k.{p}", "vit.encoder.layer.{b}.attention.attention.key.{p}"),
        ("blocks.{b}.attn.v.{p}", "vit.encoder.layer.{b}.attention.attention.value.{p}"),
        ("blocks.{b}.attn.proj.{p}", "vit.encoder.layer.{b}.attention.output.dense.{p}"),
        ("blocks.{b}.mlp.fc1.{p}", "vit.encoder.layer.{b}.intermediate.dense.{p}"),
        ("blocks.{b}.mlp.fc2.{p}", "vit.encoder.layer.{b}.output.dense.{p}"),
    ],
    "swin": [
        ("patch_embed.proj.{p}", "swin.embeddings.patch_embeddings.projection.{p}"),
        ("patch_embed.norm.{p}", "swin.embeddings.norm.{p}"),
        ("norm.{p}", "swin.layernorm.{p}"),
        ("head.fc.{p}", "classifier.{p}"),
        ("layers.{s}.downsample.norm.{p}", "swin.encoder.layers.{before}.downsample.norm.{p}"),
        ("layers.{s}.downsample.reduction.{p}", "swin.encoder.layers.{before}.downsample.reduction.{p}"),
        ("layers.{s}.blocks.{b}.norm1.{p}", "swin.encoder.layers.{s}.blocks.{b}.layernorm_before.{p}"),
        ("layers.{s}.blocks.{b}.norm2.{p}", "swin.encoder.layers.{s}.blocks.{b}.layernorm_after.{p}"),
        ("layers.{s}.blocks.{b}.attn.q.{p}", "swin.encoder.layers.{s}.blocks.{b}.attention.self.query.{p}"),
        ("layers.{s}.blocks.{b}.attn.k.{p}", "swin.encoder.layers.{s}.blocks.{b}.attention.self.key.{p}"),
        ("layers.{s}.blocks.{b}.attn.v.{p}", "swin.encoder.layers.{s}.blocks.{b}.attention.self.value.{p}"),
        ("layers.{s}.blocks.{b}.attn.relative_position_bias_table",
         "swin.encoder.layers.{s}.blocks.{b}.attention.self.relative_position_bias_table"),
        ("layers.{s}.blocks.{b}.attn.proj.{p}", "swin.encoder.layers.{s}.blocks.{b}.attention.output.dense.{p}"),
        ("layers.{s}.blocks.{b}.mlp.fc1.{p}", "swin.encoder.layers.{s}.blocks.{b}.intermediate.dense.{p}"),
        ("layers.{s}.blocks.{b}.mlp.fc2.{p}", "swin.encoder.layers.{s}.blocks.{b}.output.dense.{p}"),
    ],
    "llama": [
        ("embed.weight", "model.embed_tokens.weight"),
        ("blocks.{b}.norm1.weight", "model.layers.{b}.input_layernorm.weight"),
        ("blocks.{b}.norm2.weight", "model.layers.{b}.post_attention_layernorm.weight"),
        ("blocks.{b}.attn.{proj}.weight", "model.layers.{b}.self_attn.{proj}.weight"),
        ("blocks.{b}.mlp.{proj}.weight", "model.layers.{b}.mlp.{proj}.weight"),
        ("norm.weight", "model.norm.weight"),
    ],
}

# What published files hold besides: tables that follow from the sizes, and counts that nothing is computed from.
_COMPUTED = (".relative_position_index", ".attn_mask", ".num_batches_tracked")


def their_name(name, pairs):
    """The name that a table of pairs has for one of our tensors. Raises KeyError where it has none."""
    for ours, theirs in pairs:
        match = _pattern(ours).fullmatch(name)
        if match:
            found = match.groupdict()
            if "s" in found:
                s = int(found["s"])
                found |= {"merging": 2 * s, "stage": 2 * s + 1, "before": s - 1}
            return theirs.format(**found)
    raise KeyError(f"no published name is known for the tensor {name!r}")


def our_name(name, pairs):
    """Our name of a tensor that goes by theirs, or by ours."""
    for ours, theirs in pairs:
        match = _pattern(theirs).fullmatch(name)
        if match:
            found = match.groupdict()
            if "merging" in found or "stage" in found:
                found["s"] = int(found.get("merging") or found["stage"]) // 2
            return ours.format(**found)
    return name


@functools.cache
def _pattern(template):
    """The regular expression of a name with fields in braces."""
    parts = re.split(r"\{(\w+)\}", template)
    parts[::2] = map(re.escape, parts[::2])
    parts[1::2] = (f"(?P<{field}>{_FIELDS[field]})" for field in parts[1::2])
    return re.compile("".join(parts))


def names_in_file(names, architecture):
    """{our name: name in the file} of a file by timm's or torchvision's names, without what no model needs.

    Swin files that end a stage by its merging, as the paper's authors' and timm's before 0.9 do, are told by layers.0.downsample.
    """
    pairs = TORCHVISION.get(architecture, ())
    by_name = {our_name(name, pairs): name for name in names if not name.endswith(_COMPUTED)}
    if architecture != "swin" or not any(name.startswith("layers.0.downsample.") for name in by_name):
        return by_name
    return {re.sub(r"^layers\.(\d+)\.downsample", lambda m: f"layers.{int(m[1]) + 1}.downsample", name): theirs
            for name, theirs in by_name.items()}
