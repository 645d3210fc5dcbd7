#!/usr/bin/env python3
"""Exports a model as GGUF and compares llama.cpp with this workspace: tokens, greedy text, perplexity.

    python3 -m pip install xllamacpp tokenizers
    python3 scripts/check_gguf.py --model smollm2-135m --adapter DIR --types F16,Q8_0,Q4_K_M,Q4_0

llama.cpp comes from the package `xllamacpp`, whose server is asked over HTTP on this machine. For each type the
model, with the adapter merged, is exported; both programs then read the same file. The exit code is 1 when a text
becomes other tokens, when in a type of plain floats fewer than 4 of 5 greedy continuations are equal (a difference
where the two best tokens are closer than 0.05 nats is a tie and does not count), or when the perplexities of a type
are further apart than its limit.
"""

import argparse
import json
import math
import pathlib
import subprocess
import sys
import tempfile
import urllib.request

import tokenizers
import xllamacpp

FLOATS = {"F32", "F16", "BF16"}
# llama.cpp quantizes activations to 8 bits where weights are quantized, so that perplexities differ there.
LIMIT_FLOATS, LIMIT_QUANTIZED = 0.005, 0.05
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

    def __init__(self, path, lora=None):
        params = xllamacpp.CommonParams()
        params.model.path = str(path)
        params.n_ctx = 1024
        params.n_parallel = 1
        params.n_gpu_layers = 0
        params.warmup = False
        params.verbosity = -1
        if lora:
            adapter = xllamacpp.CommonAdapterLoraInfo()
            adapter.path, adapter.scale = str(lora), 1.0
            params.lora_adapters = [adapter]
        self.server = xllamacpp.Server(params)

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
        body = {"prompt": ids, "n_predict": 1, "temperature": 0, "n_probs": count, "cache_prompt": True}
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


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--qlora", default="qlora", help="the program")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--adapter", help="a PEFT adapter to merge")
    parser.add_argument("--types", default="F16")
    parser.add_argument("--passage", type=int, default=256, help="tokens that perplexity is computed over")
    options = parser.parse_args()
    adapter = ["--adapter", options.adapter] if options.adapter else []
    failures = []

    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        passage = folder / "passage.txt"
        checkpoint = folder / "checkpoint"
        qlora(options.qlora, "export", "--model", options.model, "--to", "safetensors", "--out", checkpoint, "--no-verify")
        tokenizer = tokenizers.Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
        encode = lambda text: tokenizer.encode(text, add_special_tokens=False).ids
        vocabulary = json.loads((checkpoint / "config.json").read_text())["vocab_size"]
        text = tokenizer.decode(encode(PASSAGE)[: options.passage])
        passage.write_text(text, newline="")
        ids = encode(text)
        rows = [ids[start : start + 256] for start in range(0, len(ids), 256)]

        print(f"{'type':8} {'MB':>7} {'tokens':>7} {'greedy':28} {'perplexity':>10} {'llama.cpp':>10} {'KL to live':>10}")
        for kind in options.types.split(","):
            path = folder / f"{kind}.gguf"
            exported = qlora(
                options.qlora, "export", "--model", options.model, *adapter, "--to", f"gguf:{kind}",
                "--out", path, "--text", passage,
            )
            llama = Llama(path)
            other = [text for text in TEXTS if llama.tokenize(text) != encode(text)]
            failures += [f"{kind}: other tokens of {text!r}" for text in other]
            verdicts = []
            for prompt in PROMPTS:
                generated = qlora(
                    options.qlora, "generate", "--model", path, "--dtype", "f32", "--raw", "--greedy",
                    "--max-tokens", NEW_TOKENS, "--prompt", prompt,
                )
                verdicts.append(compare_greedy(llama, generated["ids"], encode(prompt)))
            agree = sum(verdict in ("equal", "tie") for verdict in verdicts)
            if kind in FLOATS and agree < 4:
                failures.append(f"{kind}: greedy text agrees for {agree} of 5 prompts: {verdicts}")
            ours, theirs = exported["logits"]["perplexity"], llama.perplexity(rows, vocabulary)
            limit = LIMIT_FLOATS if kind in FLOATS else LIMIT_QUANTIZED
            if not abs(ours / theirs - 1) < limit:
                failures.append(f"{kind}: perplexity {ours:.3f}, llama.cpp {theirs:.3f}")
            summary = f"{agree} of 5 ({verdicts.count('tie')} ties)"
            print(
                f"{kind:8} {exported['bytes'] / 1e6:7.1f} {len(TEXTS) - len(other):>3}/{len(TEXTS)} {summary:28} "
                f"{ours:10.4f} {theirs:10.4f} {exported['logits']['kl']:10.2e}",
                flush=True,
            )
            del llama

        # The same model from tokenizer.json and safetensors: metadata and tokenizer are then made here.
        path = folder / "from-directory.gguf"
        qlora(options.qlora, "export", "--model", checkpoint, "--to", "gguf:BF16", "--out", path)
        llama = Llama(path)
        other = [text for text in TEXTS if llama.tokenize(text) != encode(text)]
        failures += [f"from a directory: other tokens of {text!r}" for text in other]
        verdicts = []
        for prompt in PROMPTS:
            generated = qlora(
                options.qlora, "generate", "--model", path, "--dtype", "f32", "--raw", "--greedy",
                "--max-tokens", NEW_TOKENS, "--prompt", prompt,
            )
            verdicts.append(compare_greedy(llama, generated["ids"], encode(prompt)))
        agree = sum(verdict in ("equal", "tie") for verdict in verdicts)
        print(f"from a directory, BF16: {len(TEXTS) - len(other)} of {len(TEXTS)} texts, greedy text for {agree} of 5 prompts")
        if agree < 4:
            failures.append(f"from a directory: greedy text agrees for {agree} of 5 prompts: {verdicts}")
        del llama

        if options.adapter:
            base, lora = folder / "base.gguf", folder / "lora.gguf"
            qlora(options.qlora, "export", "--model", options.model, "--to", "gguf:F32", "--out", base, "--no-verify")
            qlora(options.qlora, "export", "--model", options.model, *adapter, "--to", "gguf-lora", "--out", lora)
            llama = Llama(base, lora)
            verdicts = []
            for prompt in PROMPTS:
                generated = qlora(
                    options.qlora, "generate", "--model", options.model, *adapter, "--dtype", "f32", "--raw", "--greedy",
                    "--max-tokens", NEW_TOKENS, "--prompt", prompt,
                )
                verdicts.append(compare_greedy(llama, generated["ids"], encode(prompt)))
            agree = sum(verdict in ("equal", "tie") for verdict in verdicts)
            print(f"gguf-lora on F32: greedy text agrees for {agree} of 5 prompts")
            if agree < 4:
                failures.append(f"gguf-lora: greedy text agrees for {agree} of 5 prompts: {verdicts}")

    for failure in failures:
        print("FAILED", failure)
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
