//! What a quantizer refuses.

use crate::BlockSize;

/// Why values could not be quantized, or why the parts of a quantized tensor do not fit together.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum QuantError {
    /// Not a block size that bitsandbytes has.
    #[error("block size {found}: expected a power of two from 32 to 4096, such as 64")]
    BlockSize {
        /// The size asked for.
        found: usize,
    },
    /// NaN or infinity, which has no place between -absmax and absmax.
    #[error(
        "element {index} is {value}: only finite values can be quantized; \
         the weights are damaged or the training has diverged"
    )]
    NonFinite {
        /// Flat index of the first such element.
        index: usize,
        /// The value, as text.
        value: String,
    },
    /// A shape whose elements cannot be counted in a `usize`.
    #[error("shape {shape:?} has more elements than this machine can address")]
    ShapeOverflow {
        /// The shape.
        shape: Vec<usize>,
    },
    /// A part whose length does not follow from the shape and the block size.
    #[error(
        "{part} has {found} entries, but shape {shape:?} in blocks of {} needs {expected}",
        block_size.get()
    )]
    Length {
        /// Which part: `values`, `codes`, `absmax`...
        part: &'static str,
        /// Entries that the shape and the block size need.
        expected: usize,
        /// Entries given.
        found: usize,
        /// Shape of the tensor (of the scales, for the parts of a double quantization).
        shape: Vec<usize>,
        /// Elements per block.
        block_size: BlockSize,
    },
}

impl QuantError {
    /// The error for the first non-finite element of `values`, which has one.
    /// The same of a piece that begins at this element.
    pub(crate) fn after(self, start: usize) -> Self {
        match self {
            Self::NonFinite { index, value } => Self::NonFinite { index: start + index, value },
            other => other,
        }
    }

    pub(crate) fn first_non_finite(values: &[f32]) -> Self {
        let index = values.iter().position(|value| !value.is_finite()).unwrap_or(values.len());
        let value = values.get(index).map_or_else(String::new, f32::to_string);
        Self::NonFinite { index, value }
    }
}
