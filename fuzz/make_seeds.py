"""Makes seeds/: small sound inputs of each target. pip install gguf numpy pyarrow safetensors tokenizers"""

import datetime
import decimal
import gzip
import io
import json
import pathlib
import tempfile

import gguf
import numpy
import pyarrow
import pyarrow.parquet
from safetensors.numpy import save
from tokenizers import Tokenizer, models, pre_tokenizers

SEEDS = pathlib.Path(__file__).parent / "seeds"
SPM = pathlib.Path(__file__).parent.parent / "crates/qlora-text/tests/golden/tokenizers/spm.model"
ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())[:40] + list("abcdehlnortxĠ")
TOKENS = list(dict.fromkeys(ALPHABET)) + ["he", "ll", "hell", "Ġa", "<s>", "</s>"]


def seed(target, name, data):
    folder = SEEDS / target
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(data)


def gguf_file(model):
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "a.gguf"
        writer = gguf.GGUFWriter(path, "llama")
        writer.add_tokenizer_model(model)
        writer.add_tokenizer_pre("llama-bpe")
        writer.add_token_list(TOKENS)
        writer.add_token_scores([-float(i) for i in range(len(TOKENS))])
        writer.add_token_types([1] * (len(TOKENS) - 2) + [3, 3])
        writer.add_token_merges(["h e", "l l", "he ll", "Ġ a"])
        writer.add_bos_token_id(len(TOKENS) - 2)
        writer.add_eos_token_id(len(TOKENS) - 1)
        writer.add_chat_template("{{ messages[0]['content'] }}")
        writer.add_array("general.languages", ["en"])
        values = numpy.arange(64, dtype=numpy.float32).reshape(2, 32)
        writer.add_tensor("a.weight", values)
        for kind in ["Q4_0", "Q8_0"]:
            kind = gguf.GGMLQuantizationType[kind]
            writer.add_tensor(f"{kind.name}.weight", gguf.quants.quantize(values, kind), raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path.read_bytes()


seed("gguf", "byte_level", gguf_file("gpt2"))
seed("gguf", "sentencepiece", gguf_file("llama"))

tensors = {"a": numpy.ones((2, 3), numpy.float32), "b": numpy.zeros(4, numpy.float16)}
seed("safetensors", "one_file", b"\0" + save(tensors, metadata={"format": "pt"}))
index = json.dumps({"metadata": {"total_size": 32}, "weight_map": {"a": "a.safetensors", "b": "a.safetensors"}}).encode()
index += b" " * (-len(index) % 16)
seed("safetensors", "sharded", bytes([len(index) // 16]) + index + save(tensors))

lists = [b"\0".join(token.encode() for token in TOKENS), bytes([1] * (len(TOKENS) - 2) + [3, 3]), b"h e\0l l\0he ll\0\xc4\xa0 a"]
rest = lists + ["hello <s> 12 é".encode(), b"{% for m in messages %}{{ m['content'] }}{% endfor %}"]
for kind in range(2):
    for pre in range(0, 8, 3):
        seed("tokenizer_metadata", f"{kind}_{pre}", b"\xff".join([bytes([kind * 3 + 12, pre, 4, 60, 61, 0])] + rest))

tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(TOKENS)}, merges=[("h", "e"), ("l", "l"), ("he", "ll")]))
tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
tokenizer.add_special_tokens(["<s>", "</s>"])
config = {"bos_token": "<s>", "eos_token": {"content": "</s>"}, "chat_template": [{"name": "default", "template": "{{ bos_token }}"}]}
files = [b"\0" + tokenizer.to_str().encode(), b"\2" + json.dumps(config).encode(), b'\5{"eos_token_id": [1]}']
seed("tokenizer_files", "byte_level", b"\xff".join(files))
seed("tokenizer_files", "sentencepiece", b'\4{"<new>": 700}\xff\1' + SPM.read_bytes())

# The first byte of `json` and `table`: the ending of the name, whether documents are cut, what is trained, lengths.
turns = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "hi é"}, {"role": "assistant", "content": "hello", "weight": 0.5}]
rows = [
    {"messages": turns, "tools": None, "other": [1, 2.5, None, True]},
    {"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}]}, {"role": "assistant", "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {"a": 1}}}]}]},
    {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}, {"from": "function_call", "value": '{"name": "f", "arguments": {}}'}]},
    {"instruction": "add", "input": "1 1", "output": "2", "history": [["q", "a"]]},
    {"prompt": "1 + 1 =", "completion": " 2"},
    {"prompt": turns[1:2], "completion": turns[2:]},
    {"prompt": "p", "chosen": "c", "rejected": "r"},
    {"text": "a document\n"},
    {"input_ids": [1, 2, 257], "labels": [-100, 2, 257], "attention_mask": [1, 1, 1]},
]
lines = [json.dumps(row, ensure_ascii=False) for row in rows]
for at, line in enumerate(lines):
    seed("json", f"row_{at}", bytes([8 * (at % 4)]) + f"{line}\n\n{line}".encode())
seed("json", "list", b"\1" + f'[{lines[0]}, {lines[0]}]'.encode())
seed("json", "data", b"\1" + f'{{"version": 1, "data": [{lines[4]}, {{"prompt": 2}}]}}'.encode())
seed("json", "packed", b"\2" + gzip.compress("\n".join(lines[:1] * 3).encode(), mtime=0))
seed("table", "csv", b"\0prompt,completion\n\"a, \"\"b\"\"\nc\",d\nx,y\n")
seed("table", "tsv", b"\1instruction\tinput\toutput\nadd\t1 1\t2\n")
seed("table", "text", b"\6one two three\n\nfour five six seven\n")
seed("table", "markdown", b"\7# A\n\none\ntwo\n\n## B\nthree\n")


def parquet_file(rows, **options):
    out = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), out, store_schema=False, **options)
    return out.getvalue()


messages = [{"messages": turns[1:2] + [{"role": "assistant", "content": "hello"}], "n": at} for at in range(3)]
seed("parquet", "nested", parquet_file(messages, compression="none"))
typed = {"prompt": "p", "completion": "c", "f": 1.5, "b": True, "d": datetime.date(2026, 1, 1), "t": datetime.datetime(2026, 1, 1), "x": decimal.Decimal("1.50"), "raw": b"\1\xff", "l": [1, 2]}
for codec in ["snappy", "zstd", "gzip", "none"]:
    seed("parquet", f"flat_{codec}", parquet_file([typed, {**typed, "completion": "cc", "l": []}], compression=codec))
texts = [{"text": f"text {at}"} for at in range(20)]
seed("parquet", "delta", parquet_file(texts, compression="none", use_dictionary=False, column_encoding="DELTA_BYTE_ARRAY", data_page_version="2.0"))
seed("parquet", "groups", parquet_file(texts, compression="none", row_group_size=5))

tiny = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 4, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 2, "vocab_size": 8, "max_position_embeddings": 32, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu", "tie_word_embeddings": True, "torch_dtype": "float32", "bos_token_id": 0, "eos_token_id": [1]}
embedding = save({"model.embed_tokens.weight": numpy.ones((8, 4), numpy.float32)})
index = json.dumps({"metadata": {"total_size": 128}, "weight_map": {"model.embed_tokens.weight": "a.safetensors"}}).encode()
for name, more in {
    "llama3": {"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16}},
    "yarn": {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "use_sliding_window": False, "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8}},
    "longrope": {"architectures": ["Phi3ForCausalLM"], "model_type": "phi3", "original_max_position_embeddings": 16, "rope_scaling": {"type": "longrope", "short_factor": [1.0], "long_factor": [2.0]}},
    "qwen3_moe": {"architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 4, "norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": []},
    "gemma3": {"architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text", "sliding_window": 8, "sliding_window_pattern": 2, "query_pre_attn_scalar": 2, "rope_local_base_freq": 10000.0, "hidden_activation": "gelu_pytorch_tanh"},
    "bnb": {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True, "llm_int8_skip_modules": ["lm_head"]}},
}.items():
    config = json.dumps({**tiny, **more}).encode()
    seed("model_config", name, config + b"\xff\xff" + embedding)
seed("model_config", "sharded", json.dumps(tiny).encode() + b"\xff" + index + b"\xff" + embedding)
