"""Makes grids.bin, the grids of the IQ1, IQ2 and IQ3 formats, and dequantized_grids.safetensors, blocks of random
bytes of all formats that dequantized.safetensors lacks, with the values that ggml's decoders give.

    pip install numpy safetensors xllamacpp gguf
    python make_grids.py ../../src/blocks/grids.bin dequantized_grids.safetensors

A grid is found by decoding blocks of scale 1 whose indices run through all of it. grids.bin holds one little-endian
u16 for each point: eight fields of two bits (IQ1, IQ2) or four of three bits (IQ3), the first value in the lowest, each
the rank of the value among those of the grid. In order: IQ2_XXS (256 points), IQ2_XS (512), IQ2_S (1024), IQ1_S and
IQ1_M (2048), IQ3_XXS (256), IQ3_S (512).
"""

import ctypes
import sys
from importlib.util import find_spec

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quants
from safetensors.numpy import save_file

ggml = ctypes.CDLL(next(p for p in find_spec("xllamacpp").submodule_search_locations) + "/xllamacpp.abi3.so")


def decode(name, blocks):
    blocks = np.ascontiguousarray(blocks)
    out = np.empty((len(blocks), LENGTHS.get(name, 256)), np.float32)
    function = getattr(ggml, f"dequantize_row_{name.lower()}")
    function(blocks.ctypes.data_as(ctypes.c_void_p), out.ctypes.data_as(ctypes.c_void_p), ctypes.c_int64(out.size))
    return out


def empty(size, scale):
    blocks = np.zeros((size[0], size[1]), np.uint8)
    blocks[:, :2] = np.array([scale], np.float16).view(np.uint8)
    return blocks


def iq2_xxs():
    blocks = empty((256, 66), 8.0)
    blocks[:, 2] = np.arange(256)
    return decode("IQ2_XXS", blocks)[:, :8]


def iq2_xs():
    blocks = empty((512, 74), 8.0)
    blocks[:, 2:4] = np.arange(512, dtype="<u2").view(np.uint8).reshape(-1, 2)
    return decode("IQ2_XS", blocks)[:, :8]


def iq2_s():
    blocks = empty((1024, 82), 8.0)
    blocks[:, 2] = np.arange(1024) & 255
    blocks[:, 66] = np.arange(1024) >> 8
    return decode("IQ2_S", blocks)[:, :8]


def iq1():
    blocks = empty((2048, 50), 1.0)
    blocks[:, 2] = np.arange(2048) & 255
    blocks[:, 34] = np.arange(2048) >> 8
    return decode("IQ1_S", blocks)[:, :8] - 0.125


def iq3_xxs():
    blocks = empty((256, 98), 4.0)
    blocks[:, 2] = np.arange(256)
    return decode("IQ3_XXS", blocks)[:, :4]


def iq3_s():
    blocks = empty((512, 110), 1.0)
    blocks[:, 2] = np.arange(512) & 255
    blocks[:, 66] = np.arange(512) >> 8
    return decode("IQ3_S", blocks)[:, :4]


# Where a block keeps its f16 scale. IQ1_M spreads it over its scales; MXFP4 has an exponent.
SCALES = {
    "IQ2_XXS": 0, "IQ2_XS": 0, "IQ2_S": 0, "IQ3_XXS": 0, "IQ3_S": 0, "IQ1_S": 0, "IQ1_M": None,
    "TQ1_0": 52, "TQ2_0": 64, "MXFP4": None, "Q1_0": 0, "Q2_0": 0,
}
LENGTHS = {"MXFP4": 32, "Q1_0": 128, "Q2_0": 64}


def main(grids, target):
    with open(grids, "wb") as file:
        for grid in (iq2_xxs(), iq2_xs(), iq2_s(), iq1(), iq3_xxs(), iq3_s()):
            levels = np.unique(grid)
            print(len(grid), levels, file=sys.stderr)
            bits = 16 // grid.shape[1] if grid.shape[1] == 8 else 3
            ranks = np.searchsorted(levels, grid).astype(np.uint32)
            points = (ranks << (bits * np.arange(grid.shape[1], dtype=np.uint32))).sum(1)
            file.write(points.astype("<u2").tobytes())
    random = np.random.default_rng(11)
    out = {}
    for name, at in SCALES.items():
        kind = getattr(GGMLQuantizationType, name, None)  # The package does not know the newest.
        size = 18 if kind is None else GGML_QUANT_SIZES[kind][1]
        blocks = random.integers(0, 256, (6, size), dtype=np.uint8)
        if at is not None:
            blocks[:, at : at + 2] = random.normal(0, 0.05, 6).astype(np.float16).view(np.uint8).reshape(6, 2)
        if name == "MXFP4":
            blocks[:, 0] = [0, 1, 2, 120, 127, 130]
        if name == "IQ1_M":
            blocks[:, 55] &= 0x3F  # The scale's exponent is not that of infinity.
        values = decode(name, blocks)
        if kind in quants._type_traits:
            assert np.array_equal(values, quants.dequantize(blocks, kind).reshape(values.shape)), name
        out[name], out[f"{name}.values"] = blocks.ravel(), values.ravel()
    save_file(out, target)


main(*sys.argv[1:])
