"""Makes mixes.json: the types that llama.cpp's own quantizer gives every tensor of small models of many shapes.

    pip install gguf numpy
    npm pack @node-llama-cpp/linux-x64 && tar xzf *.tgz     # or any other build of libllama as a shared library
    python make_mixes.py package/bins/linux-x64/libllama.*.so mixes.json

The models have the right metadata and names, and rows of the right length, but few rows: the choice of a type
looks at no more. `tensors` maps a name, `{}` standing for the layer, to `[shape, outermost dimension first, layers
that have it]`; `types` maps a file type, with `+` when there is an importance matrix, to the types of every such
tensor by layer, run-length encoded, in the same order.
"""

import ctypes
import itertools
import json
import os
import sys
import tempfile

import gguf
import numpy as np

FILE_TYPES = {
    "F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "Q5_1": 9, "Q2_K": 10, "Q3_K_S": 11,
    "Q3_K_M": 12, "Q3_K_L": 13, "Q4_K_S": 14, "Q4_K_M": 15, "Q5_K_S": 16, "Q5_K_M": 17, "Q6_K": 18,
    "IQ4_NL": 25, "IQ4_XS": 30, "BF16": 32,
}


class Importance(ctypes.Structure):
    _fields_ = [("name", ctypes.c_char_p), ("data", ctypes.POINTER(ctypes.c_float)), ("size", ctypes.c_size_t)]


class Params(ctypes.Structure):
    _fields_ = [
        ("nthread", ctypes.c_int32), ("ftype", ctypes.c_int), ("output_type", ctypes.c_int),
        ("embedding_type", ctypes.c_int), ("allow_requantize", ctypes.c_bool),
        ("quantize_output", ctypes.c_bool), ("only_copy", ctypes.c_bool), ("pure", ctypes.c_bool),
        ("keep_split", ctypes.c_bool), ("dry_run", ctypes.c_bool), ("imatrix", ctypes.POINTER(Importance)),
        ("kv_overrides", ctypes.c_void_p), ("tensor_types", ctypes.c_void_p), ("prune_layers", ctypes.c_void_p),
        ("room", ctypes.c_byte * 64),
    ]


def model(architecture, layers, hidden, ffn, heads, kv_heads, tied, experts=0, fused=False, only=None):
    kv = hidden // heads * kv_heads
    every = range(layers)
    tensors = {"token_embd.weight": [4, hidden], "output_norm.weight": [hidden]}
    if not tied:
        tensors["output.weight"] = [4, hidden]
    block = {"attn_norm.weight": [hidden], "attn_output.weight": [2, hidden], "ffn_norm.weight": [hidden]}
    if fused:
        block |= {"attn_qkv.weight": [2, hidden], "attn_qkv.bias": [2]}
    else:
        block |= {"attn_q.weight": [2, hidden], "attn_k.weight": [2, hidden], "attn_v.weight": [2, hidden]}
    if experts:
        block |= {
            "ffn_gate_inp.weight": [experts, hidden], "ffn_gate_exps.weight": [2, 2, hidden],
            "ffn_up_exps.weight": [2, 2, hidden], "ffn_down_exps.weight": [2, 2, ffn],
        }
    else:
        block |= {"ffn_up.weight": [2, hidden], "ffn_down.weight": [2, ffn]}
        if architecture not in ("falcon", "phi3"):
            block["ffn_gate.weight"] = [2, hidden]
    tensors = {name: [shape, None] for name, shape in tensors.items()}
    for name, shape in block.items():
        if only is None or name in only:
            tensors["blk.{}." + name] = [shape, layers]
    return {
        "architecture": architecture, "layers": layers, "heads": heads, "kv_heads": kv_heads, "experts": experts,
        "hidden": hidden, "ffn": ffn, "tensors": tensors,
    }


FEW = ("attn_v.weight", "attn_k.weight", "attn_output.weight", "ffn_down.weight")
MODELS = {
    "llama": model("llama", 18, 256, 512, 4, 2, tied=False),
    "smollm2": model("llama", 30, 576, 1536, 9, 3, tied=True),
    "grouped": model("llama", 33, 512, 1024, 8, 2, tied=False),
    "llama-70b": model("llama", 80, 256, 512, 8, 1, tied=False, only=FEW),
    "llama-65b": model("llama", 80, 256, 512, 8, 8, tied=False, only=FEW),
    "qwen2-72b": model("qwen2", 80, 256, 512, 8, 1, tied=False, only=FEW),
    "qwen3": model("qwen3", 28, 1024, 3072, 16, 8, tied=True),
    "gemma3": model("gemma3", 26, 1152, 6912, 4, 1, tied=True),
    "phi3": model("phi3", 32, 512, 1024, 8, 8, tied=False, fused=True),
    "falcon": model("falcon", 32, 512, 2048, 8, 1, tied=False, fused=True),
    "mixtral": model("llama", 32, 512, 1024, 8, 2, tied=False, experts=8),
    "qwen3moe": model("qwen3moe", 48, 512, 768, 8, 1, tied=False, experts=128),
    "odd": model("llama", 8, 80, 256, 4, 2, tied=False),
}


def write(path, m):
    writer = gguf.GGUFWriter(path, m["architecture"])
    writer.add_block_count(m["layers"])
    writer.add_context_length(64)
    writer.add_embedding_length(m["hidden"])
    writer.add_feed_forward_length(m["ffn"])
    writer.add_head_count(m["heads"])
    writer.add_head_count_kv(m["kv_heads"])
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_layer_norm_eps(1e-6)
    writer.add_sliding_window(16)
    writer.add_vocab_size(4)
    writer.add_rope_dimension_count(m["hidden"] // m["heads"])
    if m["experts"]:
        writer.add_expert_count(m["experts"])
        writer.add_expert_used_count(2)
        writer.add_expert_feed_forward_length(m["ffn"])
    random = np.random.default_rng(3)
    for name, (shape, layers) in m["tensors"].items():
        for layer in [None] if layers is None else range(layers):
            full = name if layer is None else name.format(layer)
            writer.add_tensor(full, random.normal(size=shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def run_lengths(values):
    return " ".join(f"{v}*{len(list(run))}" for v, run in itertools.groupby(values))


def main(library, target):
    folder = os.path.dirname(os.path.abspath(library))
    for dependency in ("libggml-base.so", "libggml.so"):
        for name in sorted(os.listdir(folder)):
            if name == dependency or name.startswith(dependency.removesuffix("so") + "v"):
                ctypes.CDLL(os.path.join(folder, name), mode=ctypes.RTLD_GLOBAL)
    llama = ctypes.CDLL(library)
    llama.llama_model_quantize_default_params.restype = Params
    llama.llama_model_quantize.restype = ctypes.c_uint32
    llama.llama_model_quantize.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.POINTER(Params)]
    log = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
    errors = []
    quiet = log(lambda level, text, _: errors.append(text.decode()) if level >= 4 else None)
    llama.llama_log_set(quiet, None)

    value = (ctypes.c_float * 1)(1.0)
    importance = (Importance * 2)(Importance(b"none", value, 1), Importance(None, None, 0))
    out = {}
    with tempfile.TemporaryDirectory() as folder:
        source, quantized = os.path.join(folder, "in.gguf"), os.path.join(folder, "out.gguf")
        for key, m in MODELS.items():
            write(source, m)
            m["types"] = {}
            for (file_type, number), weighted in itertools.product(FILE_TYPES.items(), [False, True]):
                params = llama.llama_model_quantize_default_params()
                assert params.quantize_output and not params.dry_run, "another version of the parameters"
                params.nthread, params.ftype = 1, number
                params.imatrix = importance if weighted else None
                errors.clear()
                if llama.llama_model_quantize(source.encode(), quantized.encode(), ctypes.byref(params)):
                    print(key, file_type, "".join(errors).strip(), file=sys.stderr)
                    continue
                reader = gguf.GGUFReader(quantized)
                assert reader.fields["general.file_type"].contents() == number
                found = {t.name: t.tensor_type.name for t in reader.tensors}
                rows = []
                for name, (_, layers) in m["tensors"].items():
                    names = [name] if layers is None else [name.format(i) for i in range(layers)]
                    rows.append(run_lengths(found[n] for n in names))
                m["types"][file_type + "+" * weighted] = rows
            for file_type in FILE_TYPES:
                # Most do not look at the importance matrix.
                if m["types"].get(file_type + "+") == m["types"].get(file_type):
                    m["types"].pop(file_type + "+", None)
            m.pop("hidden"), m.pop("ffn")
            out[key] = m
    with open(target, "w") as file:
        file.write(json.dumps(out).replace('"architecture"', '\n"architecture"').replace('"types"', '\n"types"') + "\n")


main(*sys.argv[1:])
