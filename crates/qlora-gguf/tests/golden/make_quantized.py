"""Makes quantized.safetensors: rows of every kind and the blocks that ggml quantizes them to.

    pip install numpy safetensors xllamacpp
    python make_quantized.py quantized.safetensors [rounds [columns]]

`input` is f32 [rows, columns]; `imatrix` f32 [columns], an importance matrix, with zeros. For each format,
`<format>` and `<format>.imatrix` hold the blocks, row-major, of ggml_quantize_chunk (llama.cpp as packaged in
xllamacpp, x86-64).
"""

import ctypes
import sys
from importlib.util import find_spec

import numpy as np
from safetensors.numpy import save_file

FORMATS = {
    "F16": 1, "BF16": 30, "Q4_0": 2, "Q4_1": 3, "Q5_0": 6, "Q5_1": 7, "Q8_0": 8, "Q2_K": 10, "Q3_K": 11, "Q4_K": 12,
    "Q5_K": 13, "Q6_K": 14, "IQ4_NL": 20, "IQ4_XS": 23,
}


def rows(random, n):
    """One row of each kind."""
    normal = random.normal(size=n)
    groups = np.repeat(np.arange(n // 16), 16)
    yield 0.02 * normal
    yield 0.02 * random.standard_t(2, size=n)
    yield random.uniform(-1, 1, n)
    yield np.full(n, 0.25)
    yield np.full(n, -0.3)
    yield np.abs(normal)
    yield -np.abs(normal)
    yield np.round(8 * normal) / 16
    yield np.where(random.uniform(size=n) < 0.02, normal, 0)
    yield np.where(groups % 3 == 0, 0, normal)
    yield normal * 10.0 ** random.uniform(-9, 2, n // 16)[groups]
    yield normal * 10.0 ** random.uniform(-9, 2, n // 256)[groups // 16]
    yield np.sign(normal) * 0.5
    yield np.where(random.uniform(size=n) < 0.5, -0.0, 0.0)
    yield np.linspace(-1, 1, n)
    yield 1e4 * normal
    yield 1e-14 * normal
    yield 1e-20 * normal
    yield 1e-41 * normal
    yield 1.0 + 1e-6 * normal
    yield np.where(groups % 2 == 0, 100 + normal, normal)


def main(target, rounds="1", columns="256"):
    n = int(columns)
    folder = next(iter(find_spec("xllamacpp").submodule_search_locations))
    ggml = ctypes.CDLL(f"{folder}/xllamacpp.abi3.so")
    ggml.ggml_quantize_chunk.restype = ctypes.c_size_t
    ggml.ggml_row_size.restype = ctypes.c_size_t
    random = np.random.default_rng(5)
    matrix = np.array([row for _ in range(int(rounds)) for row in rows(random, n)]).astype(np.float32)
    importance = random.lognormal(sigma=2, size=n).astype(np.float32)
    importance[random.uniform(size=n) < 0.1] = 0
    out = {"input": matrix, "imatrix": importance}
    for name, number in FORMATS.items():
        for suffix, weights in (("", None), (".imatrix", importance)):
            blocks = np.zeros(len(matrix) * ggml.ggml_row_size(number, ctypes.c_int64(n)), np.uint8)
            ggml.ggml_quantize_chunk(
                number, matrix.ctypes.data_as(ctypes.c_void_p), blocks.ctypes.data_as(ctypes.c_void_p),
                ctypes.c_int64(0), ctypes.c_int64(len(matrix)), ctypes.c_int64(n),
                None if weights is None else weights.ctypes.data_as(ctypes.c_void_p),
            )
            out[name + suffix] = blocks
    save_file(out, target)


main(*sys.argv[1:])
