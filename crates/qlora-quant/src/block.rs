//! How many consecutive elements share a scale.

use crate::QuantError;

/// Elements per block: a power of two from 32 to 4096.
///
/// Blocks run over the flat, row-major elements of a tensor and may cross rows; the last one may be
/// shorter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockSize(u16);

impl BlockSize {
    /// The block of NF4 weights in QLoRA: 64.
    pub const NF4: Self = Self(64);
    /// The block of 8-bit scales and optimizer states: 256.
    pub const EIGHT_BIT: Self = Self(256);

    /// # Errors
    /// [`QuantError::BlockSize`] when `elements` is not a power of two from 32 to 4096.
    pub const fn new(elements: usize) -> Result<Self, QuantError> {
        if elements.is_power_of_two() && 32 <= elements && elements <= 4096 {
            Ok(Self(elements as u16))
        } else {
            Err(QuantError::BlockSize { found: elements })
        }
    }

    /// Elements per block.
    #[must_use]
    pub const fn get(self) -> usize {
        self.0 as usize
    }

    /// Blocks, and so scales, of `elements` elements.
    #[must_use]
    pub const fn count(self, elements: usize) -> usize {
        elements.div_ceil(self.get())
    }
}

impl Default for BlockSize {
    /// [`BlockSize::NF4`].
    fn default() -> Self {
        Self::NF4
    }
}
