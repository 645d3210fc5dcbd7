"""Makes seeds/: small sound inputs of each target. pip install gguf numpy safetensors tokenizers"""

import json
import pathlib
import tempfile

import gguf
import numpy
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
