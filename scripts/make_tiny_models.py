#!/usr/bin/env python3
"""Makes small models of many families for check_gguf.py: random weights, and tokenizers trained on this workspace's texts.

    python3 -m pip install torch transformers tokenizers
    python3 scripts/make_tiny_models.py FOLDER [NAME ...]

A folder a model, as transformers saves it. Rows of all weights are whole blocks of every format. Half of the models
have a byte-level tokenizer that splits as Qwen's does, the others one like SentencePiece's, with and without a space
in front, with and without a token before each text.
"""

import json
import pathlib
import sys

import torch
import transformers
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

VOCABULARY = 1000
SIZES = {
    # More rows than tokens, as in many published models.
    "vocab_size": VOCABULARY + 24,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 8.0, "original_max_position_embeddings": 64}
# All texts of the check are beyond the original context: llama.cpp takes the long divisors for a context, not for a text.
LONG = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0 + i / 50 for i in range(24)],
    "long_factor": [1.0 + i / 8 for i in range(24)],
    "partial_rotary_factor": 0.75,
}
WINDOW = {"sliding_window": 24}

# Class, tokenizer, what differs from the sizes above.
MODELS = {
    "qwen2": ("Qwen2", "bytes", {}),
    "qwen2_yarn": ("Qwen2", "bytes", {"rope_parameters": YARN}),
    "qwen3": ("Qwen3", "bytes", {"head_dim": 64, "tie_word_embeddings": True}),
    "qwen3_moe": (
        "Qwen3Moe",
        "bytes",
        {"head_dim": 64, "num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 256, "norm_topk_prob": True},
    ),
    "gemma": ("Gemma", "gemma", {"head_dim": 64}),
    "gemma2": ("Gemma2", "gemma", {"head_dim": 64, "query_pre_attn_scalar": 64, **WINDOW}),
    "gemma3": ("Gemma3", "gemma", {"head_dim": 64, "query_pre_attn_scalar": 64, "num_hidden_layers": 7, **WINDOW}),
    "gemma3_linear": (
        "Gemma3",
        "gemma",
        {
            "head_dim": 64,
            "query_pre_attn_scalar": 64,
            "num_hidden_layers": 7,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "rope_theta": 1000000.0, "factor": 8.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
            },
            **WINDOW,
        },
    ),
    "phi3": ("Phi3", "llama", {"original_max_position_embeddings": 512}),
    "phi3_longrope": (
        "Phi3",
        "llama",
        {"original_max_position_embeddings": 4, "tie_word_embeddings": True, "rope_parameters": LONG},
    ),
    "llama3": ("Llama", "bytes", {"rope_parameters": LLAMA3}),
    "mistral_window": ("Mistral", "llama", {"max_position_embeddings": 2048, "sliding_window": 512}),
    "smollm3": ("SmolLM3", "bytes", {"no_rope_layer_interval": 4}),
    "olmo2": ("Olmo2", "bytes", {}),
    "granite": (
        "Granite",
        "bytes",
        {
            "embedding_multiplier": 12.0,
            "attention_multiplier": 0.03,
            "residual_multiplier": 0.22,
            "logits_scaling": 4.0,
            "tie_word_embeddings": True,
        },
    ),
    "cohere": ("Cohere", "bytes", {"logit_scale": 0.25}),
}


def texts():
    folder = pathlib.Path(__file__).resolve().parent.parent
    return [path.read_text() for path in sorted([*folder.glob("*.md"), *folder.glob("docs/*.md")])]


def byte_level():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    words = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
        r"\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(words), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=["<|end|>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts(), trainer)
    return tokenizer, {"eos_token": "<|end|>", "pad_token": "<|end|>"}


def sentencepiece(space_in_front):
    """Bytes for what has no token; merges are learnt within words and applied everywhere."""
    # llama.cpp asks for the last by name in a model whose name is Phi 3.
    special = ["<pad>", "<eos>", "<bos>", "<unk>"] if not space_in_front else ["<unk>", "<s>", "</s>", "<|endoftext|>"]
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first" if space_in_front else "never")
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY - len(special) - len(bytes_), show_progress=False)
    learner.train_from_iterator(texts(), trainer)
    learnt = json.loads(learner.to_str())["model"]
    tokens = special + bytes_ + sorted(learnt["vocab"], key=learnt["vocab"].get)
    model = models.BPE(
        vocab={token: index for index, token in enumerate(tokens)},
        merges=[tuple(merge) for merge in learnt["merges"]],
        unk_token="<unk>",
        fuse_unk=True,
        byte_fallback=True,
    )
    tokenizer = Tokenizer(model)
    tokenizer.add_special_tokens(special)
    spaces = normalizers.Replace(" ", "▁")
    undo = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if space_in_front:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), spaces])
        tokenizer.decoder = decoders.Sequence([*undo, decoders.Strip(" ", 1, 0)])
        names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "add_bos_token": True}
    else:
        tokenizer.normalizer = spaces
        tokenizer.decoder = decoders.Sequence(undo)
        names = {"bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>", "pad_token": "<pad>"}
        names["add_bos_token"] = True
    bos = names["bos_token"]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, tokenizer.token_to_id(bos))]
    )
    return tokenizer, names


TOKENIZERS = {
    "bytes": byte_level,
    "gemma": lambda: sentencepiece(False),
    "llama": lambda: sentencepiece(True),
}


def randomize(model, generator):
    """Weights large enough that every part of the model matters, norms around what they start from."""
    for name, parameter in model.named_parameters():
        values = torch.randn(parameter.shape, generator=generator)
        if "norm" in name:
            parameter.data += 0.2 * values
        elif name.endswith("bias"):
            parameter.data = 0.1 * values
        elif "embed_tokens" in name:
            parameter.data = 0.1 * values
        else:
            parameter.data = values * (1.2 / parameter.shape[-1] ** 0.5)


def make(folder, name, seed):
    kind, tokenizer, keys = MODELS[name]
    tokenizer, names = TOKENIZERS[tokenizer]()
    ids = {f"{role}_id": tokenizer.token_to_id(names[role]) for role in ("bos_token", "eos_token", "pad_token") if role in names}
    class_name = "Gemma3TextConfig" if kind == "Gemma3" else f"{kind}Config"
    absent = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    config = getattr(transformers, class_name)(**{**SIZES, **absent, **ids, **keys})
    model = getattr(transformers, f"{kind}ForCausalLM")(config).float().eval()
    randomize(model, torch.Generator().manual_seed(seed))
    model.tie_weights()
    model.save_pretrained(folder / name)
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder / name)
    print(name, sum(parameter.numel() for parameter in model.parameters()))


if __name__ == "__main__":
    out = pathlib.Path(sys.argv[1])
    for wanted in sys.argv[2:] or MODELS:
        make(out, wanted, 100 + list(MODELS).index(wanted))
