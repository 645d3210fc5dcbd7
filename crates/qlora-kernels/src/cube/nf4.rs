//! NF4 on a GPU: whole matrices decoded, and products of a few tokens straight from the codes.

use burn::tensor::{DType, TensorMetadata};
use burn_cubecl::{CubeRuntime, tensor::CubeTensor};
use cubecl::prelude::*;

use super::Cube;
use super::elementwise::flat;
use super::tables::Table;
use super::tensors::{array, dims, empty, rows, vector_width};
use crate::nf4::{AbsmaxParts, Nf4Parts};

/// Weights in a word of codes.
const WORD: usize = 8;
/// Values of the codes, then the dynamic map of double quantization.
const TABLE: usize = 16 + 256;

/// Block scales as a kernel takes them. Unused arrays are one element long.
struct Scales<R: CubeRuntime> {
    plain: CubeTensor<R>,
    codes: CubeTensor<R>,
    nested: CubeTensor<R>,
    offset: f32,
    nested_block: usize,
    double: bool,
}

fn scales<R: CubeRuntime, F, I, BT>(w: &Nf4Parts<Cube<R, F, I, BT>>) -> Scales<R>
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
fn load_table(table: &Array<f32>) -> SharedMemory<f32> {
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
fn block_scale(
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
fn code(word: u32, #[comptime] e: usize) -> usize {
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

/// Units that share an output feature.
const LANES: usize = 32;
/// Output features of a cube.
const FEATURES: usize = 8;
/// Most tokens of [`product`].
pub(crate) const MOST_TOKENS: usize = 8;

/// `y = x Wᵀ + b + s·(x Aᵀ) Bᵀ` for a few tokens: the codes are read once, nothing else of the weight exists.
#[cube(launch_unchecked)]
fn product_kernel<T: Float>(
    x: &Array<T>,
    codes: &Array<u32>,
    plain: &Array<f32>,
    scale_codes: &Array<u32>,
    nested: &Array<f32>,
    table: &Array<f32>,
    bias: &Array<f32>,
    xa: &Array<T>,
    b: &Array<T>,
    y: &mut Array<T>,
    inputs: usize,
    outputs: usize,
    rank: usize,
    block_size: usize,
    nested_block: usize,
    offset: f32,
    lora_scale: f32,
    #[comptime] tokens: usize,
    #[comptime] double: bool,
    #[comptime] biased: bool,
    #[comptime] adapted: bool,
    #[define(T)] _dtype: StorageType,
) {
    let table = load_table(table);
    let mut partial = SharedMemory::<f32>::new(comptime!(LANES * FEATURES));
    let lane = UNIT_POS as usize % comptime!(LANES);
    let feature = CUBE_POS as usize * comptime!(FEATURES) + UNIT_POS as usize / comptime!(LANES);
    let mut sums = Array::<f32>::new(tokens);
    #[unroll]
    for token in 0..tokens {
        sums[token] = 0.0f32;
    }
    let words = inputs / comptime!(WORD);
    if feature < outputs {
        let mut i = lane;
        while i < words {
            let position = feature * words + i;
            let word = codes[position];
            let scale = block_scale(
                position * comptime!(WORD) / block_size,
                plain,
                scale_codes,
                nested,
                &table,
                offset,
                nested_block,
                double,
            );
            let mut weights = Array::<f32>::new(comptime!(WORD));
            #[unroll]
            for e in 0..comptime!(WORD) {
                weights[e] = table[code(word, e)] * scale;
            }
            #[unroll]
            for token in 0..tokens {
                let start = comptime!(token) * inputs + i * comptime!(WORD);
                let mut sum = 0.0f32;
                #[unroll]
                for e in 0..comptime!(WORD) {
                    sum += weights[e] * f32::cast_from(x[start + e]);
                }
                sums[token] += sum;
            }
            i += comptime!(LANES);
        }
    }
    #[unroll]
    for token in 0..tokens {
        sync_cube();
        partial[UNIT_POS as usize] = sums[token];
        sync_cube();
        if lane == 0 && feature < outputs {
            let mut sum = 0.0f32;
            for i in 0..comptime!(LANES) {
                sum += partial[UNIT_POS as usize + i];
            }
            if biased {
                sum += bias[feature];
            }
            if adapted {
                let mut update = 0.0f32;
                for r in 0..rank {
                    update += f32::cast_from(xa[comptime!(token) * rank + r])
                        * f32::cast_from(b[feature * rank + r]);
                }
                sum += lora_scale * update;
            }
            y[comptime!(token) * outputs + feature] = T::cast_from(sum);
        }
    }
}

/// Whether [`product`] takes this.
pub(crate) fn product_fits<R: CubeRuntime, F, I, BT>(w: &Nf4Parts<Cube<R, F, I, BT>>, tokens: usize) -> bool
where
    F: burn_cubecl::FloatElement,
    I: burn_cubecl::IntElement,
    BT: burn_cubecl::BoolElement,
{
    tokens <= MOST_TOKENS && w.shape[1].is_multiple_of(WORD)
}

/// The low-rank operands of [`product`]: `x Aᵀ`, B in the type of x, and the factor.
pub(crate) type Update<R> = (CubeTensor<R>, CubeTensor<R>, f32);

/// `x Wᵀ + b + s·(x Aᵀ) Bᵀ` of at most [`MOST_TOKENS`] tokens.
pub(crate) fn product<R: CubeRuntime, F, I, BT>(
    x: &CubeTensor<R>,
    w: &Nf4Parts<Cube<R, F, I, BT>>,
    bias: Option<CubeTensor<R>>,
    update: Option<Update<R>>,
) -> CubeTensor<R>
where
    F: burn_cubecl::FloatElement,
    I: burn_cubecl::IntElement,
    BT: burn_cubecl::BoolElement,
{
    let [tokens, inputs] = dims(x);
    let [outputs, _] = w.shape;
    let codes = rows(w.codes.clone());
    let scales = scales(w);
    let y = empty(x, [tokens, outputs], x.dtype);
    let (biased, adapted) = (bias.is_some(), update.is_some());
    let bias = rows(bias.unwrap_or_else(|| scales.plain.clone()));
    let (xa, b, factor) = update.unwrap_or_else(|| (x.clone(), x.clone(), 0.0));
    let rank = if adapted { xa.shape()[1] } else { 0 };
    // SAFETY: units beyond the features do nothing; sizes were checked by the caller.
    unsafe {
        product_kernel::launch_unchecked::<R>(
            &x.client,
            CubeCount::Static(outputs.div_ceil(FEATURES) as u32, 1, 1),
            CubeDim::new_1d((LANES * FEATURES) as u32),
            array(x, 1),
            array(&codes, 1),
            array(&scales.plain, 1),
            array(&scales.codes, 1),
            array(&scales.nested, 1),
            Table::Nf4(w.codebook).argument(x),
            array(&bias, 1),
            array(&rows(xa), 1),
            array(&rows(b), 1),
            array(&y, 1),
            inputs,
            outputs,
            rank,
            w.block_size,
            scales.nested_block,
            scales.offset,
            factor,
            tokens,
            scales.double,
            biased,
            adapted,
            x.dtype.into(),
        );
    }
    y
}
