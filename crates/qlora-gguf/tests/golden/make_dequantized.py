"""Makes dequantized.safetensors: blocks of every format, with the values that ggml's own decoder gives.

    pip install gguf numpy safetensors
    python make_dequantized.py GOLDEN/gguf/ggml_quantize.safetensors dequantized.safetensors

For each format: half of four rows that ggml quantized (ordinary weights, all zeros, one outlier, values so small
that the scales are subnormal), then four blocks of random bytes with ordinary scales, so that every bit of every
field counts. `<format>` holds the bytes, `<format>.values` the decoded f32.
"""

import sys

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quants
from safetensors.numpy import load_file, save_file

ROWS = [1, 3, 4, 8]
# Where a block keeps its f16 scales.
SCALES = {
    "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0],
    "Q2_K": [80, 82], "Q3_K": [108], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208],
    "IQ4_NL": [0], "IQ4_XS": [0],
}


def main(source, target):
    golden = load_file(source)
    rows = golden["input"].shape[0]
    random = np.random.default_rng(7)
    out = {}
    for name, scales in SCALES.items():
        kind = GGMLQuantizationType[name]
        _, size = GGML_QUANT_SIZES[kind]
        real = golden[name].reshape(rows, -1)
        real = real[ROWS, : real.shape[1] // 2].ravel()
        noise = random.integers(0, 256, (4, size), dtype=np.uint8)
        for at in scales:
            noise[:, at : at + 2] = random.normal(0, 0.05, 4).astype(np.float16).view(np.uint8).reshape(4, 2)
        out[name] = np.concatenate([real, noise.ravel()])
        out[f"{name}.values"] = quants.dequantize(out[name], kind).astype(np.float32)
    save_file(out, target)


main(*sys.argv[1:])
