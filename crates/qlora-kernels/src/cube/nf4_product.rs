//! Products of a few tokens with an NF4 weight, straight from the codes: decoding.
//!
//! The codes are read once, sixteen bytes at a time, and nothing else of the weight exists.

use burn_cubecl::{CubeRuntime, tensor::CubeTensor};
use cubecl::prelude::*;

use super::Cube;
use super::nf4::{WORD, block_scale, code, load_table, scales};
use super::reduce::{UNITS, cube_sum, scratch};
use super::tables::Table;
use super::tensors::{array, dims, empty, rows};
use crate::nf4::Nf4Parts;

/// Units that share an output feature.
const LANES: usize = 32;
/// Output features of a cube.
const FEATURES: usize = 8;
/// Words of codes that a unit reads at a time.
const WORDS: usize = 4;
/// Weights of these.
const GROUP: usize = WORD * WORDS;
/// Most tokens of [`product`].
pub(crate) const MOST_TOKENS: usize = 8;

/// What the kernel is compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Variant {
    tokens: usize,
    double: bool,
    biased: bool,
    /// Rank of the update; 0 for none.
    rank: usize,
}

/// `y = x Wᵀ + b + s·(x Aᵀ) Bᵀ`; `xa` is `x Aᵀ`.
#[cube(launch_unchecked)]
fn product_kernel<T: Float, N: Size, M: Size>(
    x: &Array<Vector<T, N>>,
    codes: &Array<Vector<u32, M>>,
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
    block_size: usize,
    nested_block: usize,
    offset: f32,
    lora_scale: f32,
    #[comptime] variant: Variant,
    #[define(T)] _dtype: StorageType,
) {
    let table = load_table(table);
    let mut partial = SharedMemory::<f32>::new(comptime!(variant.tokens * FEATURES * (LANES + 1)));
    let unit = UNIT_POS as usize;
    let lane = unit % comptime!(LANES);
    let row = unit / comptime!(LANES);
    let feature = CUBE_POS as usize * comptime!(FEATURES) + row;
    let width = N::value();
    let steps = comptime!(GROUP / width);

    let mut sums = Array::<f32>::new(comptime!(variant.tokens));
    #[unroll]
    for token in 0..comptime!(variant.tokens) {
        sums[token] = 0.0f32;
    }
    let groups = inputs / comptime!(GROUP);
    if feature < outputs {
        let mut i = lane;
        while i < groups {
            let position = feature * groups + i;
            let words = codes[position];
            // Blocks are multiples of 32 weights: a group never spans two.
            let scale = block_scale(
                position * comptime!(GROUP) / block_size,
                plain,
                scale_codes,
                nested,
                &table,
                offset,
                nested_block,
                comptime!(variant.double),
            );
            let mut weights = Array::<f32>::new(comptime!(GROUP));
            #[unroll]
            for w in 0..comptime!(WORDS) {
                let word = words[w];
                #[unroll]
                for e in 0..comptime!(WORD) {
                    weights[comptime!(w * WORD + e)] = table[code(word, e)];
                }
            }
            #[unroll]
            for token in 0..comptime!(variant.tokens) {
                let start = (token * inputs + i * comptime!(GROUP)) / width;
                let mut sum = 0.0f32;
                #[unroll]
                for part in 0..steps {
                    let values = x[start + part];
                    #[unroll]
                    for l in 0..width {
                        sum += weights[comptime!(part * width + l)] * f32::cast_from(values[l]);
                    }
                }
                sums[token] += sum * scale;
            }
            i += comptime!(LANES);
        }
    }
    #[unroll]
    for token in 0..comptime!(variant.tokens) {
        partial[(token * comptime!(FEATURES) + row) * comptime!(LANES + 1) + lane] = sums[token];
    }
    sync_cube();
    // A unit a token and feature.
    if unit < comptime!(variant.tokens * FEATURES) {
        let token = unit / comptime!(FEATURES);
        let feature = CUBE_POS as usize * comptime!(FEATURES) + unit % comptime!(FEATURES);
        if feature < outputs {
            let mut sum = 0.0f32;
            for i in 0..comptime!(LANES) {
                sum += partial[unit * comptime!(LANES + 1) + i];
            }
            if comptime!(variant.biased) {
                sum += bias[feature];
            }
            if comptime!(variant.rank > 0) {
                let mut change = 0.0f32;
                for r in 0..comptime!(variant.rank) {
                    let factor = f32::cast_from(b[feature * comptime!(variant.rank) + r]);
                    change += factor * f32::cast_from(xa[token * comptime!(variant.rank) + r]);
                }
                sum += lora_scale * change;
            }
            y[token * outputs + feature] = T::cast_from(sum);
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
    (1..=MOST_TOKENS).contains(&tokens) && w.shape[1].is_multiple_of(GROUP)
}

/// The update of [`product`].
pub(crate) struct Update<R: CubeRuntime> {
    /// `x Aᵀ`, in the type of x.
    pub(crate) xa: CubeTensor<R>,
    /// B, in the type of x.
    pub(crate) b: CubeTensor<R>,
    /// Factor of the update.
    pub(crate) scale: f32,
}

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
    let biased = bias.is_some();
    let bias = rows(bias.unwrap_or_else(|| scales.plain.clone()));
    let (xa, b, factor) = match update {
        None => (x.clone(), x.clone(), 0.0),
        Some(Update { xa, b, scale }) => (rows(xa), rows(b), scale),
    };
    let rank = if factor == 0.0 { 0 } else { dims(&xa)[1] };
    let variant = Variant { tokens, double: scales.double, biased, rank };
    let wide = x.dtype.size() == 2 && x.client.properties().hardware.max_vector_size >= 8;
    let vector = if wide { 8 } else { 4 };
    // SAFETY: units beyond the features do nothing; sizes were checked by the caller.
    unsafe {
        product_kernel::launch_unchecked::<R>(
            &x.client,
            CubeCount::Static(outputs.div_ceil(FEATURES) as u32, 1, 1),
            CubeDim::new_1d((LANES * FEATURES) as u32),
            vector,
            WORDS,
            array(x, vector),
            array(&codes, WORDS),
            array(&scales.plain, 1),
            array(&scales.codes, 1),
            array(&scales.nested, 1),
            Table::Nf4(w.codebook).argument(x),
            array(&bias, 1),
            array(&xa, 1),
            array(&b, 1),
            array(&y, 1),
            inputs,
            outputs,
            w.block_size,
            scales.nested_block,
            scales.offset,
            factor,
            variant,
            x.dtype.into(),
        );
    }
    y
}

#[cube(launch_unchecked)]
fn narrow_kernel<T: Float>(
    x: &Array<T>,
    a: &Array<T>,
    out: &mut Array<T>,
    inputs: usize,
    rank: usize,
    #[define(T)] _dtype: StorageType,
) {
    let mut shared = scratch();
    let r = CUBE_POS_X as usize;
    let token = CUBE_POS_Y as usize;
    let mut sum = 0.0f32;
    let mut i = UNIT_POS as usize;
    while i < inputs {
        sum += f32::cast_from(x[token * inputs + i]) * f32::cast_from(a[r * inputs + i]);
        i += comptime!(UNITS as usize);
    }
    let sum = cube_sum(sum, &mut shared);
    if UNIT_POS == 0 {
        out[token * rank + r] = T::cast_from(sum);
    }
}

/// `x Aᵀ` of a few tokens, a cube a number: `[tokens, rank]`.
pub(crate) fn narrow<R: CubeRuntime>(x: &CubeTensor<R>, a: &CubeTensor<R>) -> CubeTensor<R> {
    let ([tokens, inputs], [rank, _]) = (dims(x), dims(a));
    let out = empty(x, [tokens, rank], x.dtype);
    // SAFETY: a cube a row of A and token.
    unsafe {
        narrow_kernel::launch_unchecked::<R>(
            &x.client,
            CubeCount::Static(rank as u32, tokens as u32, 1),
            CubeDim::new_1d(UNITS),
            array(x, 1),
            array(a, 1),
            array(&out, 1),
            inputs,
            rank,
            x.dtype.into(),
        );
    }
    out
}
