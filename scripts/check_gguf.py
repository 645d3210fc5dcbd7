#!/usr/bin/env python3
"""Exports a model as GGUF and compares llama.cpp with this workspace: tokens, logits, greedy text, perplexity.

    python3 -m pip install xllamacpp tokenizers safetensors numpy
    python3 scripts/check_gguf.py --model smollm2-135m --adapter DIR --types F16,Q8_0,Q4_K_M,Q4_0
    python3 scripts/check_gguf.py --model FOLDER/qwen2 FOLDER/gemma3     # of make_tiny_models.py

llama.cpp comes from the package `xllamacpp`, whose server is asked over HTTP on this machine. For each type the
model, with the adapter merged, is exported; both programs then read the same file. The exit code is 1 when a text
becomes other tokens, when in a type of plain floats fewer than 4 of 5 greedy continuations are equal (a difference
where the two best tokens are closer than 0.05 nats is a tie and does not count), or when the divergence of what is
predicted after the prompts, or the perplexities of a type, are beyond its limit.
"""

import argparse
import json
import math
import os
import pathlib
import subprocess
import sys
import tempfile
import unicodedata
import urllib.request

import numpy
import safetensors.numpy
import tokenizers
import xllamacpp

FLOATS = {"F32", "F16", "BF16"}
# llama.cpp quantizes activations to 8 bits where weights are quantized, so that perplexities differ there.
LIMIT_FLOATS, LIMIT_QUANTIZED = 0.005, 0.05
# Of the mean Kullback-Leibler divergence after the prompts, in nats, in a type of plain floats.
LIMIT_DIVERGENCE = 1e-3
TIE = 0.05
NEW_TOKENS = 30

PROMPTS = [
    "The capital of France is",
    "Once upon a time, there was a little girl who",
    "def fibonacci(n):\n",
    "Water boils at a temperature of",
    "The three primary colors are",
]

TEXTS = PROMPTS + [
    "In 1984, 12345 + 678 = 13023.",
    "don't we'll I'VE they're 'quoted' \"double\"",
    "  two  spaces,\ttabs\r\n\n\nand\u00a0more   ",
    "Zwölf große Boxkämpfer; Быстрая лиса; 速い狐; 🦊🎉; é e\u0301",
    "x = [1, 2.5e-3, 0xFF]; // (a+b)*c != d && !e || f?g:h",
]

# A fixed text for perplexity.
PASSAGE = """The lighthouse stood at the end of a long spit of sand, and in winter the road to it was often under water. \
The keeper did not mind. He had a stove, a shelf of books, and a radio that spoke in three languages when the weather \
was clear. Every evening he climbed the ninety-two steps, cleaned the glass, and lit the lamp. Then he sat by the window \
and watched the ships go by. Most of them were freighters on their way to the canal; a few were fishing boats from the \
village across the bay. He knew the captains by their lights, although he had never met any of them.

One night in February a light appeared where no ship should be. It was low and yellow, and it did not move. The keeper \
took his binoculars, but there was only the light and the dark water around it. He wrote the hour into the log: ten \
minutes past two. In the morning the sea was empty. When the supply boat came on Thursday he asked the pilot about it, \
and the pilot laughed and said that old men who live alone see all kinds of things."""


class Llama:
    """llama.cpp with one model."""

    def __init__(self, path, threads, lora=None):
        params = xllamacpp.CommonParams()
        params.model.path = str(path)
        params.n_ctx = 1024
        params.n_parallel = 1
        params.n_gpu_layers = 0
        params.warmup = False
        if threads:
            # Threads of llama.cpp wait for each other by spinning: on a busy machine one is faster than two.
            params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
        params.verbosity = -1
        if lora:
            adapter = xllamacpp.CommonAdapterLoraInfo()
            adapter.path, adapter.scale = str(lora), 1.0
            params.lora_adapters = [adapter]
        self.server = xllamacpp.Server(params)
        self.plain = self.tokenize("a")[-1]

    def post(self, path, body):
        request = urllib.request.Request(
            self.server.listening_address + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)

    def tokenize(self, text):
        return self.post("/tokenize", {"content": text, "add_special": False, "parse_special": True})["tokens"]

    def log_probs(self, ids, count):
        """The most probable next tokens and their log-probabilities."""
        body = {
            "prompt": ids, "n_predict": 1, "temperature": 0, "n_probs": count, "cache_prompt": True,
            # Probabilities are those before this: but none are told of a token that is a part of a character.
            "logit_bias": [[self.plain, 1000.0]],
        }
        best = self.post("/completion", body)["completion_probabilities"][0]["top_logprobs"]
        return {token["id"]: token["logprob"] for token in best}

    def greedy(self, ids, count):
        body = {
            "prompt": ids, "n_predict": count, "temperature": 0, "return_tokens": True,
            "samplers": ["top_k"], "top_k": 1, "cache_prompt": False,
        }
        return self.post("/completion", body)["tokens"]

    def perplexity(self, rows, vocabulary):
        loss, predicted = 0.0, 0
        for row in rows:
            for end in range(1, len(row)):
                found = self.log_probs(row[:end], 500)
                if row[end] not in found:
                    found = self.log_probs(row[:end], vocabulary)
                loss -= found[row[end]]
                predicted += 1
        return math.exp(loss / predicted)


def qlora(program, *arguments):
    command = [program, *map(str, arguments), "--json"]
    ran = subprocess.run(command, capture_output=True, text=True)
    if ran.returncode != 0:
        sys.exit(f"{' '.join(command)}\n{ran.stderr}")
    return json.loads(ran.stdout.strip().splitlines()[-1])


def compare_greedy(llama, ours, prompt_ids):
    """`equal`, `tie`, or where the two part."""
    theirs = llama.greedy(prompt_ids, NEW_TOKENS)
    for place, (a, b) in enumerate(zip(ours, theirs)):
        if a != b:
            best = sorted(llama.log_probs(prompt_ids + ours[:place], 5).values(), reverse=True)
            return "tie" if best[0] - best[1] < TIE else f"differs at {place}"
    return "equal"


def divergence(program, path, llama, rows, folder, vocabulary):
    """Mean Kullback-Leibler divergence of what llama.cpp predicts after the rows from what this workspace does."""
    length = min(map(len, rows))
    rows = [row[:length] for row in rows]
    ids, out = folder / "ids.json", folder / "logits.safetensors"
    ids.write_text(json.dumps({"input_ids": rows}))
    qlora(program, "logits", "--model", path, "--dtype", "f32", "--ids", ids, "--out", out)
    ours = safetensors.numpy.load_file(out)["logits"][:, -1].astype(numpy.float64)
    out.unlink()
    ours -= numpy.log(numpy.exp(ours - ours.max(-1, keepdims=True)).sum(-1, keepdims=True)) + ours.max(-1, keepdims=True)
    total = 0.0
    for row, expected in zip(rows, ours):
        found = llama.log_probs(row, vocabulary)
        total += sum(math.exp(expected[id]) * (expected[id] - found[id]) for id in found if found[id] > -1e9)
    return total / len(rows)


class Check:
    """One model: what is exported, and how it is compared."""

    def __init__(self, options, model, folder):
        self.options, self.model, self.folder = options, model, folder
        self.adapter = ["--adapter", options.adapter] if options.adapter else []
        self.failures = []
        self.is_directory = os.path.isdir(model)
        self.checkpoint = pathlib.Path(model) if self.is_directory else folder / "checkpoint"
        if not self.is_directory:
            self.qlora("export", "--model", model, "--to", "safetensors", "--out", self.checkpoint, "--no-verify")
        self.tokenizer = tokenizers.Tokenizer.from_file(str(self.checkpoint / "tokenizer.json"))
        self.vocabulary = json.loads((self.checkpoint / "config.json").read_text())["vocab_size"]
        passage = self.tokenizer.decode(self.encode(PASSAGE)[: options.passage])
        self.passage = folder / "passage.txt"
        self.passage.write_text(passage, newline="")
        ids = self.begun(passage)
        self.rows = [ids[start : start + 256] for start in range(0, len(ids), 256)]

    def qlora(self, *arguments):
        return qlora(self.options.qlora, *arguments)

    def encode(self, text):
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def begun(self, text):
        """Behind the token that the model expects before a text."""
        return self.tokenizer.encode(text).ids

    def normalized(self, text):
        """llama.cpp leaves the canonical composition out that some tokenizers begin with."""
        composes = json.loads(self.tokenizer.to_str())["normalizer"] == {"type": "NFC"}
        return unicodedata.normalize("NFC", text) if composes else text

    def fail(self, what):
        self.failures.append(f"{self.model}: {what}")

    def tokens(self, llama, kind):
        """How many texts have the same tokens."""
        other = [text for text in TEXTS if llama.tokenize(self.normalized(text)) != self.encode(text)]
        for text in other:
            self.fail(f"{kind}: other tokens of {text!r}")
        return len(TEXTS) - len(other)

    def greedy(self, llama, kind, *model):
        verdicts = []
        for prompt in PROMPTS:
            generated = self.qlora(
                "generate", "--model", *model, "--dtype", "f32", "--raw", "--greedy",
                "--max-tokens", NEW_TOKENS, "--prompt", prompt,
            )
            verdicts.append(compare_greedy(llama, generated["ids"], self.begun(prompt)))
        agree = sum(verdict in ("equal", "tie") for verdict in verdicts)
        if kind in FLOATS and agree < 4:
            self.fail(f"{kind}: greedy text agrees for {agree} of 5 prompts: {verdicts}")
        return f"{agree} of 5 ({verdicts.count('tie')} ties)"

    def of_type(self, kind):
        path = self.folder / f"{kind}.gguf"
        exported = self.qlora(
            "export", "--model", self.model, *self.adapter, "--to", f"gguf:{kind}", "--out", path,
            "--text", self.passage,
        )
        llama = Llama(path, self.options.threads)
        tokens, greedy = self.tokens(llama, kind), self.greedy(llama, kind, path)
        apart = divergence(
            self.options.qlora, path, llama, [self.begun(prompt) for prompt in PROMPTS], self.folder, self.vocabulary
        )
        if kind in FLOATS and not abs(apart) < LIMIT_DIVERGENCE:
            self.fail(f"{kind}: what is predicted after the prompts diverges by {apart:.2e} nats")
        ours, theirs = exported["logits"]["perplexity"], llama.perplexity(self.rows, self.vocabulary)
        limit = LIMIT_FLOATS if kind in FLOATS else LIMIT_QUANTIZED
        if not abs(ours / theirs - 1) < limit:
            self.fail(f"{kind}: perplexity {ours:.3f}, llama.cpp {theirs:.3f}")
        print(
            f"{pathlib.Path(self.model).name:16} {kind:8} {exported['bytes'] / 1e6:7.1f} {tokens:>3}/{len(TEXTS)} "
            f"{greedy:16} {apart:10.2e} {ours:12.4f} {theirs:12.4f} {exported['logits']['kl']:10.2e}",
            flush=True,
        )
        del llama
        path.unlink()

    def from_directory(self):
        """The same model from tokenizer.json and safetensors: metadata and tokenizer are then made here."""
        path = self.folder / "from-directory.gguf"
        self.qlora("export", "--model", self.checkpoint, "--to", "gguf:BF16", "--out", path)
        llama = Llama(path, self.options.threads)
        tokens, greedy = self.tokens(llama, "BF16"), self.greedy(llama, "BF16", path)
        print(f"from a directory, BF16: {tokens} of {len(TEXTS)} texts, greedy text for {greedy} prompts")
        del llama

    def adapter_file(self):
        base, lora = self.folder / "base.gguf", self.folder / "lora.gguf"
        self.qlora("export", "--model", self.model, "--to", "gguf:F32", "--out", base, "--no-verify")
        self.qlora("export", "--model", self.model, *self.adapter, "--to", "gguf-lora", "--out", lora)
        llama = Llama(base, self.options.threads, lora)
        print(f"gguf-lora on F32: greedy text for {self.greedy(llama, 'F32', self.model, *self.adapter)} prompts")
        del llama


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--qlora", default="qlora", help="the program")
    parser.add_argument("--model", default=["smollm2-135m"], nargs="+")
    parser.add_argument("--adapter", help="a PEFT adapter to merge")
    parser.add_argument("--types", default="F16")
    parser.add_argument("--threads", type=int, help="of llama.cpp")
    parser.add_argument("--passage", type=int, default=256, help="tokens that perplexity is computed over")
    options = parser.parse_args()
    failures = []
    print(
        f"{'model':16} {'type':8} {'MB':>7} {'tokens':>6} {'greedy':16} {'divergence':>10} {'perplexity':>12} "
        f"{'llama.cpp':>12} {'KL to live':>10}"
    )
    for model in options.model:
        with tempfile.TemporaryDirectory() as folder:
            check = Check(options, model, pathlib.Path(folder))
            for kind in options.types.split(","):
                check.of_type(kind)
            if not check.is_directory:
                check.from_directory()
            if options.adapter:
                check.adapter_file()
            failures += check.failures

    for failure in failures:
        print("FAILED", failure)
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
