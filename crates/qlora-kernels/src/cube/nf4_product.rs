//! Products of a few tokens with an NF4 weight, straight from the codes: decoding.
//!
//! The codes are read once, sixteen bytes at a time, and nothing else of the weight exists. One token has its low-rank
//! update computed on the way: every cube multiplies with A again, which costs less than a launch.

use burn::tensor::TensorMetadata;
use burn_cubecl::{CubeRuntime, tensor::CubeTensor};
use cubecl::prelude::*;

use super::Cube;
use super::nf4::{Scales, WORD, block_scale, code, load_table, scales};
use super::reduce::{UNITS, cube_sum, scratch};
use super::tables::Table;
use super::tensors::{array, dims, empty, rows};
use crate::nf4::Nf4Parts;

/// Units that share an output feature.
pub(super) const LANES: usize = 32;
/// Output features of a cube.
pub(super) const FEATURES: usize = 8;
/// Words of codes that a unit reads at a time.
pub(super) const WORDS: usize = 4;
/// Weights of these.
const GROUP: usize = WORD * WORDS;
/// Most tokens of [`product`].
pub(crate) const MOST_TOKENS: usize = 8;
/// Most rows of A that every cube multiplies with.
const MOST_OWN_RANK: usize = 64;

/// What the product with one weight is compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Variant {
    tokens: usize,
    double: bool,
    biased: bool,
    /// Rank of the update; 0 for none.
    rank: usize,
    /// Whether `x Aᵀ` is computed here. Else it is read.
    own: bool,
}

/// Scales of the blocks of a weight, plain or doubly quantized.
#[derive(CubeType, CubeLaunch)]
pub(super) struct BlockScales {
    plain: Array<f32>,
    codes: Array<u32>,
    nested: Array<f32>,
    nested_block: usize,
    offset: f32,
}

/// An element of `x Wᵀ + b + s·(x Aᵀ) Bᵀ`, in the units below `tokens · FEATURES`: that of token `unit / FEATURES` and
/// of feature `FEATURES · cube + unit % FEATURES`, where there is one. Of `a` and `xa`, `x Aᵀ`, one is read.
#[cube]
pub(super) fn element<T: Float, N: Size, M: Size>(
    cube: usize,
    x: &Array<Vector<T, N>>,
    codes: &Array<Vector<u32, M>>,
    scales: &BlockScales,
    table: &SharedMemory<f32>,
    bias: &Array<f32>,
    a: &Array<Vector<T, N>>,
    xa: &Array<T>,
    b: &Array<T>,
    inputs: usize,
    outputs: usize,
    block_size: usize,
    lora_scale: f32,
    #[comptime] variant: Variant,
) -> f32 {
    let mut partial = SharedMemory::<f32>::new(comptime!(variant.tokens * FEATURES * (LANES + 1)));
    let mut low = SharedMemory::<f32>::new(comptime!(if variant.own { variant.rank } else { 1 }));
    let unit = UNIT_POS as usize;
    let lane = unit % comptime!(LANES);
    let row = unit / comptime!(LANES);
    let feature = cube * comptime!(FEATURES) + row;
    let width = N::value();
    let steps = comptime!(GROUP / width);

    if comptime!(variant.own) {
        let mut r = row;
        while r < comptime!(variant.rank) {
            let mut sum = 0.0f32;
            let mut i = lane;
            while i < inputs / width {
                let values = x[i];
                let factors = a[r * (inputs / width) + i];
                #[unroll]
                for l in 0..width {
                    sum += f32::cast_from(values[l]) * f32::cast_from(factors[l]);
                }
                i += comptime!(LANES);
            }
            partial[row * comptime!(LANES + 1) + lane] = sum;
            sync_cube();
            if lane == 0 {
                let mut sum = 0.0f32;
                for i in 0..comptime!(LANES) {
                    sum += partial[row * comptime!(LANES + 1) + i];
                }
                low[r] = sum;
            }
            sync_cube();
            r += comptime!(FEATURES);
        }
    }

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
                &scales.plain,
                &scales.codes,
                &scales.nested,
                table,
                scales.offset,
                scales.nested_block,
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
    let mut result = 0.0f32;
    if unit < comptime!(variant.tokens * FEATURES) {
        let token = unit / comptime!(FEATURES);
        let feature = cube * comptime!(FEATURES) + unit % comptime!(FEATURES);
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
                    if comptime!(variant.own) {
                        // Rounded as a product that is written and read again.
                        change += factor * f32::cast_from(T::cast_from(low[r]));
                    } else {
                        change += factor * f32::cast_from(xa[token * comptime!(variant.rank) + r]);
                    }
                }
                sum += lora_scale * change;
            }
            result = sum;
        }
    }
    result
}

/// Writes what the units of a cube have computed.
#[cube]
pub(super) fn write<T: Float>(
    cube: usize,
    value: f32,
    y: &mut Array<T>,
    outputs: usize,
    #[comptime] tokens: usize,
) {
    let unit = UNIT_POS as usize;
    let feature = cube * comptime!(FEATURES) + unit % comptime!(FEATURES);
    if unit < comptime!(tokens * FEATURES) && feature < outputs {
        y[unit / comptime!(FEATURES) * outputs + feature] = T::cast_from(value);
    }
}

/// `y = x Wᵀ + b + s·(x Aᵀ) Bᵀ`.
#[cube(launch_unchecked)]
fn product_kernel<T: Float, N: Size, M: Size>(
    x: &Array<Vector<T, N>>,
    table: &Array<f32>,
    codes: &Array<Vector<u32, M>>,
    scales: &BlockScales,
    bias: &Array<f32>,
    a: &Array<Vector<T, N>>,
    xa: &Array<T>,
    b: &Array<T>,
    y: &mut Array<T>,
    inputs: usize,
    outputs: usize,
    block_size: usize,
    lora_scale: f32,
    #[comptime] variant: Variant,
    #[define(T)] _dtype: StorageType,
) {
    let table = load_table(table);
    let cube = CUBE_POS as usize;
    let value = element::<T, N, M>(
        cube, x, codes, scales, &table, bias, a, xa, b, inputs, outputs, block_size, lora_scale, variant,
    );
    write::<T>(cube, value, y, outputs, comptime!(variant.tokens));
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
pub(crate) enum Update<R: CubeRuntime> {
    /// A, B in the type of x, and the factor: for one token and few ranks, see [`computes_update`].
    Factors(CubeTensor<R>, CubeTensor<R>, f32),
    /// `x Aᵀ`, B in the type of x, and the factor.
    Narrow(CubeTensor<R>, CubeTensor<R>, f32),
}

/// Whether [`product`] multiplies with A of this rank itself.
pub(crate) fn computes_update(tokens: usize, rank: usize) -> bool {
    tokens == 1 && rank <= MOST_OWN_RANK && rank.is_multiple_of(FEATURES)
}

/// A weight with what belongs to it, as kernels take it.
pub(super) struct Operand<R: CubeRuntime> {
    pub(super) codes: CubeTensor<R>,
    scales: Scales<R>,
    pub(super) bias: CubeTensor<R>,
    /// A, or `x Aᵀ`.
    left: CubeTensor<R>,
    pub(super) b: CubeTensor<R>,
    pub(super) factor: f32,
    pub(super) outputs: usize,
    pub(super) variant: Variant,
}

impl<R: CubeRuntime> Operand<R> {
    /// For products with `x`.
    pub(super) fn new<F, I, BT>(
        x: &CubeTensor<R>,
        w: &Nf4Parts<Cube<R, F, I, BT>>,
        bias: Option<CubeTensor<R>>,
        update: Option<Update<R>>,
    ) -> Self
    where
        F: burn_cubecl::FloatElement,
        I: burn_cubecl::IntElement,
        BT: burn_cubecl::BoolElement,
    {
        let scales = scales(w);
        let biased = bias.is_some();
        let bias = rows(bias.unwrap_or_else(|| scales.plain.clone()));
        let (left, b, factor, own) = match update {
            None => (x.clone(), x.clone(), 0.0, false),
            Some(Update::Factors(a, b, factor)) => (rows(a), rows(b), factor, true),
            Some(Update::Narrow(xa, b, factor)) => (rows(xa), rows(b), factor, false),
        };
        let rank = match (factor == 0.0, own) {
            (true, _) => 0,
            (_, true) => left.shape()[0],
            (_, false) => left.shape()[1],
        };
        let variant =
            Variant { tokens: dims(x)[0], double: scales.double, biased, rank, own: own && rank > 0 };
        let (codes, [outputs, _]) = (rows(w.codes.clone()), w.shape);
        Self { codes, scales, bias, left, b, factor, outputs, variant }
    }

    /// A, or something of its type where it is not read.
    pub(super) fn a(&self, x: &CubeTensor<R>, vector: usize) -> ArrayArg<R> {
        array(if self.variant.own { &self.left } else { x }, vector)
    }

    /// `x Aᵀ`, or something of its type where it is not read.
    pub(super) fn xa(&self) -> ArrayArg<R> {
        array(&self.left, 1)
    }

    pub(super) fn scales(&self) -> BlockScalesLaunch<R> {
        let Scales { plain, codes, nested, offset, nested_block, .. } = &self.scales;
        BlockScalesLaunch::new(array(plain, 1), array(codes, 1), array(nested, 1), *nested_block, *offset)
    }
}

/// Elements of x that are read at a time.
pub(super) fn vector_of<R: CubeRuntime>(x: &CubeTensor<R>) -> usize {
    let wide = x.dtype.size() == 2 && x.client.properties().hardware.max_vector_size >= 8;
    if wide { 8 } else { 4 }
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
    let operand = Operand::new(x, w, bias, update);
    let y = empty(x, [tokens, operand.outputs], x.dtype);
    let vector = vector_of(x);
    // SAFETY: units beyond the features do nothing; sizes were checked by the caller.
    unsafe {
        product_kernel::launch_unchecked::<R>(
            &x.client,
            CubeCount::Static(operand.outputs.div_ceil(FEATURES) as u32, 1, 1),
            CubeDim::new_1d((LANES * FEATURES) as u32),
            vector,
            WORDS,
            array(x, vector),
            Table::Nf4(w.codebook).argument(x),
            array(&operand.codes, WORDS),
            operand.scales(),
            array(&operand.bias, 1),
            operand.a(x, vector),
            operand.xa(),
            array(&operand.b, 1),
            array(&y, 1),
            inputs,
            operand.outputs,
            w.block_size,
            operand.factor,
            operand.variant,
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
