//! The 4-bit normal float: codebook, thresholds, and conversion of flat slices.
//!
//! The sixteen values are quantiles of a normal distribution, scaled to -1..=1, with an exact zero
//! (QLoRA, <https://arxiv.org/abs/2305.14314>, §3). A block of x is stored as
//! absmax = max |x| and codes cᵢ = #{k : xᵢ · (1/absmax) > tₖ}, and read back as `q[cᵢ] · absmax`.
//!
//! Two codes share a byte: element 2i is the high nibble, 2i+1 the low one. When the last low nibble
//! has no element, it holds the code of zero.

mod decode;
mod encode;

pub use decode::{Nf4View, Output};
pub use encode::quantize_into;

/// The value of each code, in ascending order.
pub const CODEBOOK: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

/// The midpoints between neighbours of [`CODEBOOK`]. A value equal to a midpoint takes the lower code.
///
/// Half of the midpoints lie halfway between two f32 numbers, so which of the two is meant is decided by
/// the decimals that bitsandbytes has in its source; they are given in full.
#[allow(clippy::excessive_precision)]
pub const THRESHOLDS: [f32; 15] = [
    -0.848_096_400_499_343_9,
    -0.610_632_926_225_662_2,
    -0.459_995_269_775_390_6,
    -0.339_679_434_895_515_44,
    -0.234_607_405_960_559_84,
    -0.137_911_733_239_889_14,
    -0.045_525_018_125_772_476,
    0.039_790_149_778_127_67,
    0.120_255_250_483_751_3,
    0.203_521_251_678_466_8,
    0.292_013_771_831_989_3,
    0.389_312_535_524_368_3,
    0.501_663_416_624_069_2,
    0.642_786_920_070_648_2,
    0.861_478_417_811_801_1,
];

/// The code of zero.
pub const ZERO_CODE: u8 = 7;

/// Bytes that hold the codes of `elements` elements.
#[must_use]
pub const fn packed_len(elements: usize) -> usize {
    elements.div_ceil(2)
}

/// Elements that one task of the thread pool takes: a multiple of every block size, small enough
/// that a few rows of a weight already spread over the threads.
pub(crate) const TASK_ELEMENTS: usize = 32 * 1024;
