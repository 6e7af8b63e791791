"""PyTorch's side of decoder_step.py: the file of random weights, and a training step on the last layers."""

import json
import sys
from pathlib import Path

import torch
import torch._dynamo  # as in rivals.py: loaded here, it counts as import
from safetensors import safe_open
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import torch_llama
from decoder_step import random_batch

from wasi.models.llama_files import hugging_face_name, read_config
from wasi.training.memory import peak_rss_bytes

RIVALS = ("float32", "bf16")


def write_model(folder, config):
    """A folder with config.json and model.safetensors of random weights."""
    torch.manual_seed(0)
    tensors = {hugging_face_name(name): torch.ones(shape, dtype=torch.bfloat16) if len(shape) == 1 else
               torch.randn(shape, dtype=torch.bfloat16) * 0.02 for name, shape in config.shapes().items()}
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": config.vocab_size,
        "hidden_size": config.embed_dim, "intermediate_size": config.hidden_dim, "num_hidden_layers": config.depth,
        "num_attention_heads": config.num_heads, "num_key_value_heads": config.num_kv_heads, "rms_norm_eps": config.norm_eps,
        "max_position_embeddings": config.max_length}))


def torch_step(folder, variant, last_layers, batch, length):
    """The same for PyTorch: dense training of the last blocks and the last norm."""
    folder = Path(folder)
    config = read_config(folder / "config.json")
    with torch.device("meta"):
        model = torch_llama.Llama(config)
    frozen = set(config.frozen_names(last_layers))
    with safe_open(folder / "model.safetensors", "pt") as file:
        for name in [name for name, _ in model.named_parameters()]:
            tensor = file.get_tensor(hugging_face_name(name))
            if variant == "float32":
                tensor = tensor.float()
            elif name not in frozen:
                tensor = tensor.clone()
            owner, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(owner), attribute, torch.nn.Parameter(tensor, requires_grad=name not in frozen))
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.01)
    setup_peak = peak_rss_bytes()
    tokens, targets = (torch.from_numpy(a) for a in random_batch(config, batch, length))

    def step():
        optimizer.zero_grad(set_to_none=True)
        logits = model(tokens)
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        return {"loss": loss.item(), "whole_peak_bytes": max(setup_peak, peak_rss_bytes())}

    return step
