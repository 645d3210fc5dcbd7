//! NF4 on a GPU: whole matrices decoded.

use burn::tensor::DType;
use burn_cubecl::{CubeRuntime, tensor::CubeTensor};
use cubecl::prelude::*;

use super::Cube;
use super::elementwise::flat;
use super::tables::Table;
use super::tensors::{array, empty, rows, vector_width};
use crate::nf4::{AbsmaxParts, Nf4Parts};

/// Weights in a word of codes.
pub(super) const WORD: usize = 8;
/// Values of the codes, then the dynamic map of double quantization.
const TABLE: usize = 16 + 256;

/// Block scales as a kernel takes them. Unused arrays are one element long.
pub(super) struct Scales<R: CubeRuntime> {
    pub(super) plain: CubeTensor<R>,
    pub(super) codes: CubeTensor<R>,
    pub(super) nested: CubeTensor<R>,
    pub(super) offset: f32,
    pub(super) nested_block: usize,
    pub(super) double: bool,
}

pub(super) fn scales<R: CubeRuntime, F, I, BT>(w: &Nf4Parts<Cube<R, F, I, BT>>) -> Scales<R>
where
    F: burn_cubecl::FloatElement,
    I: burn_cubecl::IntElement,
    BT: burn_cubecl::BoolElement,
{
    match &w.absmax {
        AbsmaxParts::Plain(absmax) => {
            let absmax = rows(absmax.clone());
            Scales {
                plain: absmax.clone(),
                codes: rows(w.codes.clone()),
                nested: absmax,
                offset: 0.0,
                nested_block: 1,
                double: false,
            }
        }
        AbsmaxParts::Double { codes, nested_absmax, offset, nested_block } => {
            let nested = rows(nested_absmax.clone());
            Scales {
                plain: nested.clone(),
                codes: rows(codes.clone()),
                nested,
                offset: *offset,
                nested_block: *nested_block,
                double: true,
            }
        }
    }
}

/// Fills shared memory with the lookup tables. Looking up there costs no memory traffic, and no constant arrays,
/// which become slow local memory on CUDA and are refused by some compilers.
#[cube]
pub(super) fn load_table(table: &Array<f32>) -> SharedMemory<f32> {
    let mut shared = SharedMemory::<f32>::new(comptime!(TABLE));
    let mut i = UNIT_POS as usize;
    while i < comptime!(TABLE) {
        shared[i] = table[i];
        i += CUBE_DIM as usize;
    }
    sync_cube();
    shared
}

/// The scale of a block.
#[cube]
pub(super) fn block_scale(
    block: usize,
    plain: &Array<f32>,
    codes: &Array<u32>,
    nested: &Array<f32>,
    table: &SharedMemory<f32>,
    offset: f32,
    nested_block: usize,
    #[comptime] double: bool,
) -> f32 {
    if double {
        let word = codes[block / 4];
        let code = (word >> (8 * (block % 4) as u32)) & 255u32;
        table[16 + code as usize] * nested[block / nested_block] + offset
    } else {
        plain[block]
    }
}

/// The code of element `e` (0..8) of a word.
#[cube]
pub(super) fn code(word: u32, #[comptime] e: usize) -> usize {
    let shift = comptime!((8 * (e / 2) + 4 * (1 - e % 2)) as u32);
    ((word >> shift) & 15u32) as usize
}

/// Every unit decodes a word: eight consecutive weights, which need not be of one row or block.
#[cube(launch_unchecked)]
fn dequantize_kernel<T: Float, N: Size>(
    codes: &Array<u32>,
    plain: &Array<f32>,
    scale_codes: &Array<u32>,
    nested: &Array<f32>,
    table: &Array<f32>,
    out: &mut Array<Vector<T, N>>,
    count: usize,
    block_size: usize,
    nested_block: usize,
    offset: f32,
    #[comptime] double: bool,
    #[define(T)] _dtype: StorageType,
) {
    let table = load_table(table);
    let position = ABSOLUTE_POS;
    let start = position * comptime!(WORD);
    if start < count {
        let word = codes[position];
        // Blocks are multiples of 32 weights: a word never spans two.
        let scale =
            block_scale(start / block_size, plain, scale_codes, nested, &table, offset, nested_block, double);
        let width = N::value();
        #[unroll]
        for part in 0..comptime!(WORD / width) {
            let mut vector = Vector::<T, N>::empty();
            #[unroll]
            for lane in 0..width {
                let e = comptime!(part * width + lane);
                vector[lane] = T::cast_from(table[code(word, e)] * scale);
            }
            if start + comptime!(part * width) < count {
                out[position * comptime!(WORD / width) + part] = vector;
            }
        }
    }
}

/// The dense matrix `[out, in]`.
pub(crate) fn dequantize<R: CubeRuntime, F, I, BT>(
    w: &Nf4Parts<Cube<R, F, I, BT>>,
    dtype: DType,
) -> CubeTensor<R>
where
    F: burn_cubecl::FloatElement,
    I: burn_cubecl::IntElement,
    BT: burn_cubecl::BoolElement,
{
    let codes = rows(w.codes.clone());
    let scales = scales(w);
    let [outputs, inputs] = w.shape;
    let count = outputs * inputs;
    let out = empty(&codes, [outputs, inputs], dtype);
    let client = codes.client.clone();
    let (cubes, dim) = flat(&client, count.div_ceil(WORD));
    // 16 bytes a store where the runtime has such vectors.
    let vector = match count % WORD {
        0 if dtype.size() == 2 && client.properties().hardware.max_vector_size >= 8 => 8,
        0 => 4,
        _ => vector_width(count),
    };
    // SAFETY: units beyond the words do nothing, nor do parts of a word beyond the weights.
    unsafe {
        dequantize_kernel::launch_unchecked::<R>(
            &client,
            cubes,
            dim,
            vector,
            array(&codes, 1),
            array(&scales.plain, 1),
            array(&scales.codes, 1),
            array(&scales.nested, 1),
            Table::Nf4(w.codebook).argument(&codes),
            array(&out, vector),
            count,
            w.block_size,
            scales.nested_block,
            scales.offset,
            scales.double,
            dtype.into(),
        );
    }
    out
}
