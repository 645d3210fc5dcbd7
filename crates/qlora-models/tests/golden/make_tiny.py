#!/usr/bin/env python3
"""Makes the tiny checkpoints beside this file: random weights, and what transformers computes with them.

    pip install torch transformers safetensors
    python make_tiny.py [NAME ...]

A folder a model, in the form of the goldens of the workspace: config.json and model.safetensors as transformers saves
them, golden.safetensors with the logits of two rows and the gradients of the projections of one layer, golden.json with
the rows, their loss, and a greedy continuation. Gradients of experts, which transformers keeps in one tensor, are
written one by one, under the names that checkpoints have.
"""

import json
import sys
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file, save_file

HERE = Path(__file__).parent
SIZES = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
LONG = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0, 1.1, 1.3],
    "long_factor": [1.5, 2.0, 4.0],
}

# Name, class, what differs from the sizes above. Rows have 24 tokens: where 16 is the original context they are beyond it.
MODELS = {
    "smollm3": ("SmolLM3", {"num_hidden_layers": 4, "no_rope_layer_interval": 4}),
    "gemma": ("Gemma", {"head_dim": 16}),
    "gemma2_caps": (
        "Gemma2",
        {
            "head_dim": 16,
            "sliding_window": 7,
            "query_pre_attn_scalar": 16,
            "attn_logit_softcapping": 4.0,
            "final_logit_softcapping": 3.0,
        },
    ),
    "qwen3_bias": ("Qwen3", {"head_dim": 8, "attention_bias": True}),
    "olmo2": ("Olmo2", {"rms_norm_eps": 1e-5}),
    "granite": (
        "Granite",
        {
            "embedding_multiplier": 12.0,
            "attention_multiplier": 0.3,
            "residual_multiplier": 0.22,
            "logits_scaling": 8.0,
            "attention_bias": True,
            "mlp_bias": True,
        },
    ),
    "cohere": ("Cohere", {"logit_scale": 0.25}),
    "cohere_qk_norm": ("Cohere", {"logit_scale": 0.25, "use_qk_norm": True}),
    "qwen3_moe": (
        "Qwen3Moe",
        {
            "head_dim": 8,
            "num_experts": 6,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 24,
            "norm_topk_prob": True,
        },
    ),
    "qwen3_moe_mixed": (
        "Qwen3Moe",
        {
            "num_experts": 5,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 16,
            "mlp_only_layers": [1],
        },
    ),
    "qwen2_window": ("Qwen2", {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1}),
    "phi3_partial": (
        "Phi3",
        {
            "tie_word_embeddings": True,
            "original_max_position_embeddings": 16,
            "rope_parameters": {**LONG, "partial_rotary_factor": 0.75},
        },
    ),
    "phi3_short": (
        "Phi3",
        {
            "original_max_position_embeddings": 64,
            "rope_parameters": {**LONG, "partial_rotary_factor": 0.75},
        },
    ),
    "llama_linear": ("Llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}}),
    "llama_dynamic": (
        "Llama",
        {
            "max_position_embeddings": 16,
            "rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0},
        },
    ),
    "llama_yarn": (
        "Llama",
        {
            "attention_bias": True,
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 10000.0,
                "factor": 8.0,
                "original_max_position_embeddings": 16,
            },
        },
    ),
    "gemma3_linear": (
        "Gemma3",
        {
            "head_dim": 16,
            "sliding_window": 7,
            "query_pre_attn_scalar": 16,
            "num_hidden_layers": 7,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "rope_theta": 1000000.0, "factor": 8.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
            },
        },
    ),
}


def configuration(kind, keys):
    name = "Gemma3TextConfig" if kind == "Gemma3" else f"{kind}Config"
    return getattr(transformers, name)(**{**SIZES, **keys})


def randomize(model, generator):
    """Weights large enough that every part of the model matters, norms around what they start from."""
    for name, parameter in model.named_parameters():
        values = torch.randn(parameter.shape, generator=generator)
        if "norm" in name:
            parameter.data += 0.2 * values
        elif name.endswith("bias"):
            parameter.data = 0.1 * values
        elif "embed_tokens" in name:
            parameter.data = 0.2 * values
        else:
            parameter.data = values * (1.5 / parameter.shape[-1] ** 0.5)


def expert_gradients(layer, experts):
    """One expert a name, of the tensors that hold all of a layer."""
    found = {}
    inner = experts.down_proj.shape[-1]
    for index in range(experts.num_experts):
        path = f"grad.model.layers.{layer}.mlp.experts.{index}"
        gate_up = experts.gate_up_proj.grad[index]
        found[f"{path}.gate_proj.weight"] = gate_up[:inner].clone()
        found[f"{path}.up_proj.weight"] = gate_up[inner:].clone()
        found[f"{path}.down_proj.weight"] = experts.down_proj.grad[index].clone()
    return found


def make(name, seed):
    kind, keys = MODELS[name]
    generator = torch.Generator().manual_seed(seed)
    config = configuration(kind, keys)
    config._attn_implementation = "eager"
    model = getattr(transformers, f"{kind}ForCausalLM")(config).float().eval()
    if config.tie_word_embeddings:
        model.tie_weights()
    randomize(model, generator)

    ids = torch.randint(3, SIZES["vocab_size"], (2, 24), generator=generator)
    labels = ids.clone()
    labels[0, :7] = -100
    labels[1, 20:] = -100
    logits = model(input_ids=ids, use_cache=False).logits
    targets = labels[:, 1:].reshape(-1)
    loss = torch.nn.functional.cross_entropy(
        logits[:, :-1].reshape(-1, logits.shape[-1]), targets, ignore_index=-100
    )
    loss.backward()

    # A layer whose kind is not that of the first.
    layer = config.num_hidden_layers - 1
    tensors = {"logits": logits.detach().clone()}
    module = model.model.layers[layer]
    for path, linear in module.named_modules():
        if isinstance(linear, torch.nn.Linear):
            tensors[f"grad.model.layers.{layer}.{path}.weight"] = linear.weight.grad.clone()
    if hasattr(module.mlp, "experts"):
        tensors.update(expert_gradients(layer, module.mlp.experts))

    # Up to where the rotation of all tokens changes: what a cache holds is not rotated again.
    context = (config.rope_parameters or {}).get("original_max_position_embeddings", 128)
    context = min(context, config.max_position_embeddings)
    prompt = ids[0, :10]
    sequence, gap = prompt.clone(), float("inf")
    with torch.no_grad():
        for _ in range(min(12, context - 10)):
            last = model(input_ids=sequence[None], use_cache=False).logits[0, -1]
            top = last.topk(2)
            gap = min(gap, (top.values[0] - top.values[1]).item())
            sequence = torch.cat([sequence, top.indices[:1]])
    folder = HERE / name
    folder.mkdir(exist_ok=True)
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    save_file(tensors, folder / "golden.safetensors")
    golden = {
        "architecture": name,
        "input_ids": ids.tolist(),
        "labels": labels.tolist(),
        "loss": loss.item(),
        "greedy": {"prompt": prompt.tolist(), "new_ids": sequence[10:].tolist(), "min_top2_gap": gap},
        "made_with": f"transformers {transformers.__version__}, torch {torch.__version__}, float32, eager attention",
    }
    (folder / "golden.json").write_text(json.dumps(golden, indent=1) + "\n")
    names = load_file(folder / "model.safetensors")
    print(f"{name}: loss {loss.item():.4f}, gap {gap:.4f}, {len(names)} tensors")


if __name__ == "__main__":
    torch.manual_seed(0)
    wanted = sys.argv[1:] or list(MODELS)
    for name in wanted:
        make(name, 1000 + list(MODELS).index(name))
