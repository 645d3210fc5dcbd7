"""What `cargo bench -p qlora-data --bench tokenize_file` does, with Hugging Face `datasets` and `tokenizers`: reads a JSONL
file of `messages`, renders, tokenizes, marks what the assistant says, skips rows above 2048 tokens, packs.

pip install datasets transformers jinja2 numpy. The tokenizer: `-- --save-tokenizer DIR` of the bench writes it.
"""

import argparse
import bisect
import hashlib
import os
import resource
import tempfile
import time

os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
os.environ["HF_HUB_OFFLINE"] = "1"

import datasets
import numpy
from transformers import PreTrainedTokenizerFast

BUDGET = 2048
# SmolLM2's own template, with the block that `return_assistant_tokens_mask` needs.
TEMPLATE = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are a "
    "helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}{{ '<|im_start|>' + "
    "message['role'] + '\n' }}{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + '<|im_end|>' "
    "}}{% endgeneration %}{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}{{ '\n' }}{% endfor %}"
)


def pack(lengths):
    """Best-fit decreasing: the packs as lists of rows."""
    packs, rooms, by_room = [], [], {}
    for row in numpy.argsort(-numpy.asarray(lengths), kind="stable").tolist():
        length = lengths[row]
        at = bisect.bisect_left(rooms, length)
        if at < len(rooms):
            room = rooms[at]
            pack = by_room[room].pop()
            if not by_room[room]:
                del by_room[room]
                del rooms[at]
        else:
            packs.append([])
            pack, room = len(packs) - 1, BUDGET
        packs[pack].append(row)
        if room > length:
            left = room - length
            if left not in by_room:
                bisect.insort(rooms, left)
                by_room[left] = []
            by_room[left].append(pack)
    return packs


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file")
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--no-mask", action="store_true", help="ids alone: less work than the bench does")
    parser.add_argument("--hash", action="store_true", help="print the SHA-256 that the bench prints")
    arguments = parser.parse_args()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(arguments.tokenizer)

    def encode(batch):
        options = {} if arguments.no_mask else {"return_assistant_tokens_mask": True}
        out = tokenizer.apply_chat_template(
            batch["messages"], chat_template=TEMPLATE, tokenize=True, return_dict=True, return_attention_mask=False, **options
        )
        columns = {"input_ids": out["input_ids"], "length": [len(ids) for ids in out["input_ids"]]}
        if not arguments.no_mask:
            columns["assistant_masks"] = out["assistant_masks"]
        return columns

    with tempfile.TemporaryDirectory() as cache:
        begin = time.perf_counter()
        rows = datasets.load_dataset("json", data_files=arguments.file, split="train", cache_dir=cache)
        read = time.perf_counter()
        features = {"input_ids": datasets.Sequence(datasets.Value("int32")), "length": datasets.Value("int32")}
        if not arguments.no_mask:
            features["assistant_masks"] = datasets.Sequence(datasets.Value("int8"))
        data = rows.map(
            encode, batched=True, num_proc=arguments.processes, remove_columns=rows.column_names, features=datasets.Features(features)
        )
        encoded = time.perf_counter()
        lengths = data["length"][:]
        if max(lengths) > BUDGET:
            data = data.filter(lambda batch: [length <= BUDGET for length in batch["length"]], batched=True, num_proc=arguments.processes)
            lengths = data["length"][:]
        packs = pack(lengths)
        end = time.perf_counter()
        tokens, seconds = sum(lengths), end - begin
        print(f"read: {read - begin:.2f} s, tokenized: {encoded - read:.2f} s, packed: {end - encoded:.2f} s")
        print(f"{len(packs)} packs, {100 * tokens / (len(packs) * BUDGET):.2f} % full")
        size = os.path.getsize(arguments.file)
        print(f"{seconds:.2f} s: {len(data) / seconds:.0f} rows/s, {tokens / seconds:.0f} tokens/s, {size / 1e6 / seconds:.1f} MB/s")
        peak = [resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        print(f"peak memory: {peak[0]} kB, the largest child {peak[1]} kB")
        if arguments.hash:
            digest = hashlib.sha256()
            for row in data.with_format("numpy"):
                weights = row["assistant_masks"].astype(numpy.float32)
                weights[0] = 0
                digest.update(len(weights).to_bytes(8, "little"))
                digest.update(row["input_ids"].astype("<u4").tobytes())
                digest.update(weights.astype("<f4").tobytes())
            print("SHA-256 of ids and weights", digest.hexdigest())


if __name__ == "__main__":
    main()
