"""Makes tokenizers/*.json and tokenizers/spm.model: small vocabularies, and what llama.cpp (xllamacpp), the
`tokenizers` package and SentencePiece say that texts become with them.

    pip install gguf numpy sentencepiece tokenizers xllamacpp
    python make_tokenizers.py

One byte-level vocabulary serves all kinds of `tokenizer.ggml.pre`: it is trained without any splitting, so that
its merges reach over words, digits and lines, and a text's ids show where a pre-tokenizer splits. llama.cpp only
tokenizes with a whole model, so each vocabulary goes into a model of one layer with zeros as weights.

`python make_tokenizers.py MODEL.gguf OUT.json` writes what llama.cpp makes of the texts with a real model.
"""

import json
import pathlib
import sys
import tempfile
import urllib.request

import gguf
import numpy
import sentencepiece
import tokenizers
import xllamacpp
from tokenizers import decoders, pre_tokenizers

OUT = pathlib.Path(__file__).parent / "tokenizers"

TEXTS = [
    "In 1984, 12345 + 678 = 13023.", " 10 100 1000", "x=42;y=007", "  two  spaces\n\ttab",
    "naïve café — “quotes” 你好 😀", "it's we'll I'M", "List:\n\n1. one\n\n2. two", "a  12", "tab\t\t9",
    "def f(x):\n    return x+1\n\n\n# 3", "<|im_start|>user\nhi 5<|im_end|>\n", "٣ ½ Ⅷ 2²", "\r\n7", "   ", "",
    "Hello world", "HELLO  WORLD!!!  ???",
    "camelCase HTTPServer iPhone McDonald's DON'T don't Don'T", "a1b22c333d4444e55555",
    "https://example.com/a/b?c=d&e=f#g", "価格は1234円です。안녕하세요 세계", "e\u0301 e\u0301te\u0301 A\u030a", "Ünïcödé ÀÉÎ straße ǅ",
    "\u00a0nbsp\u2003em space\u200bzero", "👩‍👩‍👧‍👦 🇩🇪 👍🏽", "مرحبا بالعالم 123", "हिन्दी पाठ ४५", "line\r\nline\n\r\n\n  \n end  ",
    "!!!...---===///\n/*x*/", "$5.00 + €7 <a>^b`c|d~e", "\u0000\u0001\u007f", "<s>hi</s> there", "<tool>x<tool>  y",
    " lead", "trail ", "▁under▁score", "\ufffd\U0010ffff", "'s 't 'RE 'Ve'll", "1,234,567.89 and 0x1F",
    "\n\n\n\n", "\t\t\tx", " \n \n x", "don’t “it’s”", "я не знаю 42", "ไทยภาษา", "…。，、",
]

SPECIAL = ["<s>", "</s>", "<|im_start|>", "<|im_end|>", "<tool>"]

# Without special tokens, which would be learned as ordinary ones.
TRAINING = [text for text in TEXTS if not any(token in text for token in SPECIAL)] * 4 + [
    "The quick brown fox jumps over 13 lazy dogs. It's what we'll do, isn't it? I'm sure they've done 1234 of them.",
    "def main():\n    for i in range(100):\n        print(i, 'hello world')\n\n    return 0\n",
    "In 2024, the price was $1,234.56 (up 12%).\n\nLists:\n1. one\n2. two\n\n\tTabbed  text   here",
    "camelCase and HTTPServer, JSONParser; MacDonald's DON'T",
] * 8

# What `transformers` splits by where that is another pattern than llama.cpp's, which stands in for it.
LETTERS = r"[^\r\n\p{L}\p{N}]?"
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
END = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
TEKKEN = f"{LETTERS}{UPPER}*{LOWER}+|{LETTERS}{UPPER}+{LOWER}*|\\p{{N}}{END}"
APOSTROPHE = "(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
GPT4O = f"{LETTERS}{UPPER}*{LOWER}+{APOSTROPHE}|{LETTERS}{UPPER}+{LOWER}*{APOSTROPHE}|\\p{{N}}{{1,3}}{END}"

BYTE_LEVEL_KINDS = {
    "default": None, "gpt-2": None, "llama-bpe": None, "qwen2": None, "smollm": None, "olmo": None, "dbrx": None,
    "smaug-bpe": None, "command-r": None, "refact": None, "starcoder": None, "falcon": None, "falcon3": None,
    "deepseek-coder": None, "deepseek-v3": None, "deepseek-r1-qwen": None, "stablelm2": None,
    "chatglm-bpe": None, "tekken": TEKKEN, "gpt-4o": GPT4O, "llama4": GPT4O,
}


def write_model(path, metadata, tokens, scores, types, merges):
    """A llama of one layer and eight channels."""
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in {"context_length": 64, "embedding_length": 32, "feed_forward_length": 32, "block_count": 1}.items():
        writer.add_uint32(f"llama.{key}", value)
    writer.add_head_count(1)
    writer.add_layer_norm_rms_eps(1e-5)
    for key, value in metadata.items():
        add = {str: writer.add_string, int: writer.add_uint32, bool: writer.add_bool}[type(value)]
        add(key, value)
    writer.add_token_list(tokens)
    if scores:
        writer.add_token_scores(scores)
    writer.add_token_types(types)
    if merges:
        writer.add_token_merges(merges)
    shapes = {"token_embd": (len(tokens), 32), "output_norm": (32,)}
    for name in ["attn_norm", "ffn_norm"]:
        shapes[f"blk.0.{name}"] = (32,)
    for name in ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"]:
        shapes[f"blk.0.{name}"] = (32, 32)
    for name, shape in shapes.items():
        writer.add_tensor(name + ".weight", numpy.zeros(shape, numpy.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def llama_cpp(path, texts):
    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.n_ctx = 64
    params.n_parallel = 1
    params.warmup = False
    params.port = 0
    params.verbosity = -1
    params.cpuparams.n_threads = 1
    server = xllamacpp.Server(params)

    def ids(text):
        body = json.dumps({"content": text, "add_special": False, "parse_special": True}).encode()
        request = urllib.request.Request(
            f"{server.listening_address}/tokenize", body, {"Content-Type": "application/json"})
        return json.load(urllib.request.urlopen(request))["tokens"]

    return [ids(text) for text in texts]


def byte_level():
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=900, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    tokenizer.train_from_iterator(TRAINING, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    merges = [" ".join(merge) for merge in model["merges"]]
    first = len(tokens)
    types = [1] * first + [3, 3, 3, 3, 4]
    tokens += SPECIAL
    base = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.bos_token_id": first, "tokenizer.ggml.eos_token_id": first + 3}
    kinds = {}
    for pre, pattern in BYTE_LEVEL_KINDS.items():
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "model.gguf"
            write_model(path, base | {"tokenizer.ggml.pre": pre}, tokens, None, types, merges)
            kinds[pre] = {"llama_cpp": llama_cpp(path, TEXTS)}
        if pattern:
            tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
                pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
            tokenizer.add_special_tokens(SPECIAL[:4])
            tokenizer.add_tokens([tokenizers.AddedToken("<tool>", normalized=False)])
            kinds[pre]["transformers"] = [tokenizer.encode(text, add_special_tokens=False).ids for text in TEXTS]
    return {"tokens": tokens, "types": types, "merges": merges, "texts": TEXTS, "kinds": kinds}


def sentencepiece_bpe():
    with tempfile.TemporaryDirectory() as folder:
        prefix = pathlib.Path(folder) / "spm"
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter([line for text in TRAINING for line in text.split("\n") if line and "\0" not in line]),
            model_prefix=str(prefix), model_type="bpe", vocab_size=700, byte_fallback=True, character_coverage=0.98,
            normalization_rule_name="identity", remove_extra_whitespaces=False, allow_whitespace_only_pieces=True,
            split_digits=True, control_symbols=["<|im_start|>", "<|im_end|>"], user_defined_symbols=["<tool>", "\n\n", "▁▁"],
            minloglevel=2)
        blob = prefix.with_suffix(".model").read_bytes()
    (OUT / "spm.model").write_bytes(blob)
    processor = sentencepiece.SentencePieceProcessor(model_proto=blob)
    tokens, scores, types = [], [], []
    for i in range(processor.vocab_size()):
        piece, kind = processor.id_to_piece(i), 1
        if processor.is_unknown(i):
            kind = 2
        elif processor.is_control(i):
            kind = 3
        elif processor.is_unused(i):
            kind = 5
        elif processor.is_byte(i):
            kind = 6
        elif piece in ("<tool>", "\n\n", "▁▁"):
            # As llama.cpp's converter does.
            piece, kind = piece.replace("▁", " "), 4
        tokens.append(piece), scores.append(processor.get_score(i)), types.append(kind)
    base = {"tokenizer.ggml.model": "llama", "tokenizer.ggml.pre": "default", "tokenizer.ggml.bos_token_id": processor.bos_id(),
            "tokenizer.ggml.eos_token_id": processor.eos_id(), "tokenizer.ggml.unknown_token_id": processor.unk_id()}
    kinds = {}
    for name, prefix in {"space_prefix": True, "no_space_prefix": False}.items():
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "model.gguf"
            write_model(path, base | {"tokenizer.ggml.add_space_prefix": prefix}, tokens, scores, types, None)
            kinds[name] = {"llama_cpp": llama_cpp(path, TEXTS)}
    kinds["space_prefix"]["sentencepiece"] = [processor.encode(text) for text in TEXTS]
    return {"tokens": tokens, "scores": scores, "types": types, "texts": TEXTS, "kinds": kinds}


def write(name, value):
    text = json.dumps(value, ensure_ascii=True, separators=(",", ":"))
    (OUT / name).write_text(text.replace('],"', '],\n"') + "\n")


if len(sys.argv) == 3:
    vectors = [{"text": text, "ids": ids} for text, ids in zip(TEXTS, llama_cpp(sys.argv[1], TEXTS))]
    pathlib.Path(sys.argv[2]).write_text(json.dumps(vectors) + "\n")
else:
    OUT.mkdir(exist_ok=True)
    write("sentencepiece.json", sentencepiece_bpe())
    write("byte_level.json", byte_level())
