#!/usr/bin/env python3
"""Writes model.gguf beside the model.safetensors of the checkpoints that make_tiny.py makes.

    pip install gguf safetensors torch
    python make_gguf.py [NAME ...]

Names of tensors are those of the gguf package; rows of q and k, and norms, are changed as llama.cpp's converter does:
https://github.com/ggml-org/llama.cpp/blob/master/convert_hf_to_gguf.py. There is no vocabulary: only its size.
"""

import json
import re
import sys
from pathlib import Path

import gguf
import numpy as np
from safetensors.numpy import load_file

HERE = Path(__file__).parent
ARCHITECTURES = {
    "llama": gguf.MODEL_ARCH.LLAMA,
    "smollm3": gguf.MODEL_ARCH.SMOLLM3,
    "qwen3": gguf.MODEL_ARCH.QWEN3,
    "qwen3_moe": gguf.MODEL_ARCH.QWEN3MOE,
    "gemma": gguf.MODEL_ARCH.GEMMA,
    "gemma2": gguf.MODEL_ARCH.GEMMA2,
    "gemma3_text": gguf.MODEL_ARCH.GEMMA3,
    "phi3": gguf.MODEL_ARCH.PHI3,
    "olmo2": gguf.MODEL_ARCH.OLMO2,
    "granite": gguf.MODEL_ARCH.GRANITE,
    "cohere": gguf.MODEL_ARCH.COMMAND_R,
}
PERMUTED = {"llama", "smollm3", "granite"}
# Metadata cannot say what sets these apart.
WITHOUT = {"qwen2_window", "qwen3_moe_mixed", "phi3_short", "llama_dynamic"}


def permute(values, heads):
    """From halves to interleaved pairs."""
    rest = values.shape[1:]
    return values.reshape(heads, 2, values.shape[0] // heads // 2, *rest).swapaxes(1, 2).reshape(values.shape)


def write_keys(writer, config):
    kind = config["model_type"]
    heads = config["num_attention_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    rope = config["rope_parameters"]
    rope = rope.get("full_attention", rope)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(int(head_dim * rope.get("partial_rotary_factor", 1.0)))
    writer.add_rope_freq_base(rope["rope_theta"])
    if kind == "cohere":
        writer.add_layer_norm_eps(config["layer_norm_eps"])
        writer.add_logit_scale(config["logit_scale"])
    else:
        writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    if rope["rope_type"] in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(rope["rope_type"]))
        writer.add_rope_scaling_factor(rope["factor"])
    if rope["rope_type"] == "yarn":
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    if rope["rope_type"] == "longrope":
        original = rope["original_max_position_embeddings"]
        writer.add_rope_scaling_orig_ctx_len(original)
        factor = config["max_position_embeddings"] / original
        writer.add_rope_scaling_attn_factors(float(np.sqrt(1 + np.log(factor) / np.log(original))))
        for which in ("long", "short"):
            writer.add_tensor(f"rope_factors_{which}.weight", np.array(rope[f"{which}_factor"], dtype=np.float32))
    if kind in ("gemma2", "gemma3_text"):
        writer.add_sliding_window(config["sliding_window"])
    if kind == "gemma2":
        writer.add_attn_logit_softcapping(config["attn_logit_softcapping"])
        writer.add_final_logit_softcapping(config["final_logit_softcapping"])
    if kind == "granite":
        writer.add_embedding_scale(config["embedding_multiplier"])
        writer.add_attention_scale(config["attention_multiplier"])
        writer.add_residual_scale(config["residual_multiplier"])
        writer.add_logit_scale(config["logits_scaling"])
    if kind == "qwen3_moe":
        writer.add_expert_count(config["num_local_experts"])
        writer.add_expert_used_count(config["num_experts_per_tok"])
        writer.add_expert_feed_forward_length(config["moe_intermediate_size"])


def converted(name, values, config):
    kind = config["model_type"]
    if kind.startswith("gemma") and name.endswith("norm.weight"):
        return values + 1
    if kind in PERMUTED and ".q_proj." in name:
        return permute(values, config["num_attention_heads"])
    if kind in PERMUTED and ".k_proj." in name:
        return permute(values, config["num_key_value_heads"])
    return values


def make(name):
    folder = HERE / name
    config = json.loads((folder / "config.json").read_text())
    architecture = ARCHITECTURES[config["model_type"]]
    names = gguf.get_tensor_name_map(architecture, config["num_hidden_layers"])
    writer = gguf.GGUFWriter(folder / "model.gguf", gguf.MODEL_ARCH_NAMES[architecture])
    write_keys(writer, config)
    experts = {}
    for source, values in load_file(folder / "model.safetensors").items():
        expert = re.fullmatch(r"(.*\.experts)\.(\d+)\.(.*)", source)
        if expert:
            whole = f"{expert[1]}.{expert[3]}"
            experts.setdefault(whole, {})[int(expert[2])] = values
            continue
        target = names.get_name(source, try_suffixes=(".weight", ".bias"))
        assert target, f"{source} has no name in {name}"
        writer.add_tensor(target, np.ascontiguousarray(converted(source, values, config), dtype=np.float32))
    for source, parts in experts.items():
        stacked = np.stack([parts[index] for index in range(len(parts))]).astype(np.float32)
        writer.add_tensor(names.get_name(source, try_suffixes=(".weight",)), stacked)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    print(name, gguf.MODEL_ARCH_NAMES[architecture])


if __name__ == "__main__":
    folders = sorted(path.parent.name for path in HERE.glob("*/config.json"))
    for name in sys.argv[1:] or [name for name in folders if name not in WITHOUT]:
        make(name)
