//! A frozen matrix as a product reads it: full, half or four bits an element, never copied.

use half::{bf16, f16};

/// How a matrix product rounds what it multiplies. Sums are always `f32`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Precision {
    /// Operands stay `f32`.
    F32,
    /// Operands are rounded to bf16, to nearest even. A processor without bf16 dot products
    /// multiplies the rounded values in `f32`: the same up to the order of the sums.
    Bf16,
}

/// The scales of the NF4 blocks.
#[derive(Clone, Copy, Debug)]
pub enum Absmax<'a> {
    /// One scale a block.
    Plain(&'a [f32]),
    /// Scales quantized to eight bits in turn (QLoRA, arXiv 2305.14314, section 3):
    /// `map[codes[i]] · nested_absmax[i / nested_block] + offset`.
    Double {
        /// One byte a block.
        codes: &'a [u8],
        /// The values of the bytes.
        map: &'a [f32; 256],
        /// One scale for each `nested_block` blocks.
        nested_absmax: &'a [f32],
        /// How many blocks share a nested scale, usually 256.
        nested_block: usize,
        /// The mean that was taken off before quantizing.
        offset: f32,
    },
}

impl Absmax<'_> {
    /// The scale of a block.
    ///
    /// # Panics
    ///
    /// When there is no such block.
    #[inline(always)]
    #[must_use]
    pub fn get(&self, block: usize) -> f32 {
        match *self {
            Self::Plain(values) => values[block],
            Self::Double { codes, map, nested_absmax, nested_block, offset } => {
                // A division costs more than decoding 32 elements; every real checkpoint has 256.
                let nested = if nested_block == 256 { block >> 8 } else { block / nested_block };
                map[usize::from(codes[block])] * nested_absmax[nested] + offset
            }
        }
    }

    fn blocks(&self) -> usize {
        match *self {
            Self::Plain(values) => values.len(),
            Self::Double { codes, nested_absmax, nested_block, .. } => {
                codes.len().min(nested_absmax.len().saturating_mul(nested_block))
            }
        }
    }
}

/// Four-bit codes in blocks with a scale each. Element `i` is `codebook[code i] · absmax[i / block_size]`.
#[derive(Clone, Copy, Debug)]
pub struct Nf4View<'a> {
    /// Two codes a byte, the first in the high nibble.
    pub codes: &'a [u8],
    /// The scales of the blocks.
    pub absmax: Absmax<'a>,
    /// Consecutive elements that share a scale. Blocks do not stop at the end of a row.
    pub block_size: usize,
    /// The values of the 16 codes, in [-1, 1].
    pub codebook: &'a [f32; 16],
}

/// The elements of a [`Weight`], row after row.
#[derive(Clone, Copy, Debug)]
pub enum WeightData<'a> {
    /// 32-bit floats.
    F32(&'a [f32]),
    /// bfloat16.
    Bf16(&'a [bf16]),
    /// IEEE half precision.
    F16(&'a [f16]),
    /// NF4.
    Nf4(Nf4View<'a>),
}

/// A frozen matrix `[rows = out features, cols = in features]`, row-major.
#[derive(Clone, Copy, Debug)]
pub struct Weight<'a> {
    rows: usize,
    cols: usize,
    data: WeightData<'a>,
}

impl<'a> Weight<'a> {
    /// A matrix over borrowed data.
    ///
    /// # Panics
    ///
    /// When the data has not `rows · cols` elements (NF4: fewer codes or scales than they need,
    /// or a block size of zero).
    #[must_use]
    pub fn new(rows: usize, cols: usize, data: WeightData<'a>) -> Self {
        let len = rows.checked_mul(cols).expect("a weight's element count overflows");
        match &data {
            WeightData::F32(values) => assert_eq!(values.len(), len, "f32 weight [{rows}, {cols}]"),
            WeightData::Bf16(values) => assert_eq!(values.len(), len, "bf16 weight [{rows}, {cols}]"),
            WeightData::F16(values) => assert_eq!(values.len(), len, "f16 weight [{rows}, {cols}]"),
            WeightData::Nf4(view) => {
                assert!(view.block_size > 0, "an NF4 block has at least one element");
                assert!(view.codes.len() >= len.div_ceil(2), "NF4 weight [{rows}, {cols}]: too few codes");
                let blocks = len.div_ceil(view.block_size);
                assert!(view.absmax.blocks() >= blocks, "NF4 weight [{rows}, {cols}]: too few scales");
            }
        }
        Self { rows, cols, data }
    }

    /// Output features.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Input features.
    #[must_use]
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// The elements.
    #[must_use]
    pub fn data(&self) -> &WeightData<'a> {
        &self.data
    }
}

/// A low-rank update of a frozen matrix: `W + scale · B · A` (LoRA, arXiv 2106.09685).
#[derive(Clone, Copy, Debug)]
pub struct Lora<'a> {
    /// `[rank, in]`.
    pub a: &'a [f32],
    /// `[out, rank]`.
    pub b: &'a [f32],
    /// The inner dimension.
    pub rank: usize,
    /// `alpha / rank`, or `alpha / √rank` (rank-stabilised LoRA).
    pub scale: f32,
}
