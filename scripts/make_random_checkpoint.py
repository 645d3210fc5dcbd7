#!/usr/bin/env python3
"""Writes a sharded bf16 checkpoint in the shape of Llama 3.1 8B with random weights: for measuring memory and speed.

    python3 -m pip install numpy
    python3 scripts/make_random_checkpoint.py FOLDER [--layers 32] [--adapter FOLDER --rank 16]

Weights are slices of one pool of normal numbers, each tensor from another place, so that the disk sets the speed.
"""

import argparse
import json
import pathlib

import numpy

HIDDEN, INNER, HEADS, KV_HEADS, HEAD, VOCABULARY = 4096, 14336, 32, 8, 128, 128256
SHARD = 5 * 10**9
POOL = 1 << 26


def linears(layer):
    path = f"model.layers.{layer}"
    return {
        f"{path}.self_attn.q_proj": (HEADS * HEAD, HIDDEN),
        f"{path}.self_attn.k_proj": (KV_HEADS * HEAD, HIDDEN),
        f"{path}.self_attn.v_proj": (KV_HEADS * HEAD, HIDDEN),
        f"{path}.self_attn.o_proj": (HIDDEN, HEADS * HEAD),
        f"{path}.mlp.gate_proj": (INNER, HIDDEN),
        f"{path}.mlp.up_proj": (INNER, HIDDEN),
        f"{path}.mlp.down_proj": (HIDDEN, INNER),
    }


def tensors(layers):
    yield "model.embed_tokens.weight", (VOCABULARY, HIDDEN)
    for layer in range(layers):
        yield from ((f"{name}.weight", shape) for name, shape in linears(layer).items())
        yield f"model.layers.{layer}.input_layernorm.weight", (HIDDEN,)
        yield f"model.layers.{layer}.post_attention_layernorm.weight", (HIDDEN,)
    yield "model.norm.weight", (HIDDEN,)
    yield "lm_head.weight", (VOCABULARY, HIDDEN)


def header(entries, width, dtype):
    described, start = {"__metadata__": {"format": "pt"}}, 0
    for name, shape in entries:
        end = start + int(numpy.prod(shape)) * width
        described[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
        start = end
    text = json.dumps(described).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, start


def write_checkpoint(folder, layers):
    folder.mkdir(parents=True)
    normal = numpy.random.default_rng(0).standard_normal(POOL, dtype=numpy.float32) * 0.02
    pool = (normal.view(numpy.uint32) >> 16).astype(numpy.uint16)
    shards, size = [[]], 0
    for name, shape in tensors(layers):
        length = 2 * int(numpy.prod(shape))
        if size and size + length > SHARD:
            shards.append([])
            size = 0
        shards[-1].append((name, shape))
        size += length
    weights, total = {}, 0
    for number, entries in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        head, size = header(entries, 2, "BF16")
        total += size
        with open(folder / file, "wb") as out:
            out.write(head)
            for index, (name, shape) in enumerate(entries):
                weights[name] = file
                left, at = int(numpy.prod(shape)), (number * 7919 + index * 104729) % POOL
                while left:
                    part = pool[at : at + left]
                    out.write(part.data)
                    left, at = left - len(part), 0
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": total}, "weight_map": weights}, indent=1)
    )
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "torch_dtype": "bfloat16",
        "vocab_size": VOCABULARY,
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": layers,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": False,
        "bos_token_id": 128000,
        "eos_token_id": 128001,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    print(f"{total / 1e9:.2f} GB in {len(shards)} files")


def write_adapter(folder, layers, rank):
    folder.mkdir(parents=True)
    random = numpy.random.default_rng(1)
    entries = []
    for layer in range(layers):
        for path, (out, inputs) in linears(layer).items():
            entries += [
                (f"base_model.model.{path}.lora_A.weight", (rank, inputs)),
                (f"base_model.model.{path}.lora_B.weight", (out, rank)),
            ]
    head, _ = header(entries, 4, "F32")
    with open(folder / "adapter_model.safetensors", "wb") as file:
        file.write(head)
        for _, shape in entries:
            file.write((0.02 * random.standard_normal(shape, dtype=numpy.float32)).data)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": None,
        "r": rank,
        "lora_alpha": 2 * rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "target_modules": [path.rsplit(".", 1)[1] for path in linears(0)],
    }
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=1))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--adapter", type=pathlib.Path, help="also an adapter of all linear layers")
    parser.add_argument("--rank", type=int, default=16)
    options = parser.parse_args()
    write_checkpoint(options.folder, options.layers)
    if options.adapter:
        write_adapter(options.adapter, options.layers, options.rank)
