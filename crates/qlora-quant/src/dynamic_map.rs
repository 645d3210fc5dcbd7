//! The 8-bit dynamic maps of bitsandbytes, and block-wise quantization with them.
//!
//! A dynamic map spends its codes on a floating range of magnitudes: seven decades from 1e-6 to 1,
//! each with twice as many values as the one below ("8-bit Optimizers via Block-wise Quantization",
//! <https://arxiv.org/abs/2110.02861>, §1.3). The signed map serves double quantization and first
//! moments, the unsigned one second moments.

use std::sync::LazyLock;

use rayon::prelude::*;

use crate::normalizer::{INFINITY_BITS, Normalizer, absmax_bits};
use crate::{BlockSize, QuantError};

/// Elements that one task of the thread pool takes: a multiple of every block size.
const TASK_ELEMENTS: usize = 16 * 1024;

/// 256 values in ascending order, with what it takes to find the nearest quickly.
#[derive(Debug)]
pub struct DynamicMap {
    values: [f32; 256],
    /// The code of x is the number of thresholds below x. The last is infinity, which nothing exceeds.
    thresholds: [f32; 256],
    /// Thresholds below every f32 that starts with these sixteen bits. At most one threshold lies among
    /// the numbers that share their sixteen upper bits, so one comparison completes the count.
    below: Box<[u8; 1 << 16]>,
    zero: u8,
}

/// The signed map: 256 values from -0.99297 to 1, code 127 is zero.
#[must_use]
pub fn signed() -> &'static DynamicMap {
    static MAP: LazyLock<DynamicMap> = LazyLock::new(|| DynamicMap::new(true));
    &MAP
}

/// The unsigned map: 256 values from 0, which is code 0, to 1.
#[must_use]
pub fn unsigned() -> &'static DynamicMap {
    static MAP: LazyLock<DynamicMap> = LazyLock::new(|| DynamicMap::new(false));
    &MAP
}

impl DynamicMap {
    fn new(signed: bool) -> Self {
        let values = values(signed);
        let mut thresholds = [f32::INFINITY; 256];
        for code in 0..255 {
            let midpoint = (values[code] + values[code + 1]) * 0.5;
            // A tie goes to the even code: the binary search of bitsandbytes always ends on one. Going
            // up from an odd code takes "not less than", hence "more than the number before".
            thresholds[code] = if code % 2 == 0 { midpoint } else { midpoint.next_down() };
        }
        let mut below: Box<[u8; 1 << 16]> =
            vec![0; 1 << 16].try_into().expect("the length is that of the array");
        for (upper, below) in (0u32..).zip(below.iter_mut()) {
            let least = f32::from_bits(if upper < 0x8000 { upper << 16 } else { upper << 16 | 0xffff });
            *below = thresholds.partition_point(|&threshold| threshold < least).min(255) as u8;
        }
        let zero = values.iter().position(|&value| value == 0.0).expect("both maps have a zero") as u8;
        Self { values, thresholds, below, zero }
    }

    /// The value of each code, in ascending order.
    #[must_use]
    pub fn values(&self) -> &[f32; 256] {
        &self.values
    }

    /// 255 ascending thresholds and infinity: the code of x is the number of those below x.
    #[must_use]
    pub fn thresholds(&self) -> &[f32; 256] {
        &self.thresholds
    }

    /// The code of zero.
    #[must_use]
    pub fn zero(&self) -> u8 {
        self.zero
    }

    /// The code whose value is nearest to `x`. Halfway between two, it is the even code, as the CUDA
    /// kernels of bitsandbytes have it. (Its CPU form is approximate: it misses the nearest code in up to
    /// three of a hundred cases.) NaN has an arbitrary code.
    #[inline]
    #[must_use]
    pub fn nearest(&self, x: f32) -> u8 {
        let below = self.below[(x.to_bits() >> 16) as usize];
        below + u8::from(x > self.thresholds[usize::from(below)])
    }

    /// Quantizes `values` to `codes` (as many) and `absmax` (`[block_size.count(n)]`): the code nearest
    /// to x / absmax, absmax being the largest magnitude of the block. Spread over rayon's threads; the
    /// result does not depend on how many there are. A block of zeros gets the code of zero.
    ///
    /// # Errors
    /// [`QuantError::NonFinite`] with the index of the first NaN or infinity; the outputs then hold
    /// nothing of use.
    ///
    /// # Panics
    /// When `codes` or `absmax` has another length than stated.
    pub fn quantize_into(
        &self,
        values: &[f32],
        block_size: BlockSize,
        codes: &mut [u8],
        absmax: &mut [f32],
    ) -> Result<(), QuantError> {
        assert_eq!(codes.len(), values.len(), "codes");
        assert_eq!(absmax.len(), block_size.count(values.len()), "absmax");
        let finite = if values.len() <= TASK_ELEMENTS {
            self.encode(values, block_size, codes, absmax)
        } else {
            values
                .par_chunks(TASK_ELEMENTS)
                .zip(codes.par_chunks_mut(TASK_ELEMENTS))
                .zip(absmax.par_chunks_mut(TASK_ELEMENTS / block_size.get()))
                .map(|((values, codes), absmax)| self.encode(values, block_size, codes, absmax))
                .reduce(|| true, |a, b| a && b)
        };
        if finite { Ok(()) } else { Err(QuantError::first_non_finite(values)) }
    }

    /// Quantizes on the calling thread; false when a value is not finite.
    fn encode(&self, values: &[f32], block_size: BlockSize, codes: &mut [u8], absmax: &mut [f32]) -> bool {
        let mut finite = true;
        let blocks = values.chunks(block_size.get()).zip(codes.chunks_mut(block_size.get())).zip(absmax);
        for ((values, codes), absmax) in blocks {
            let bits = absmax_bits(values);
            finite &= bits < INFINITY_BITS;
            *absmax = f32::from_bits(bits as u32);
            let normalizer = Normalizer::new(*absmax);
            for (code, &value) in codes.iter_mut().zip(values) {
                *code = self.nearest(normalizer.apply(value));
            }
        }
        finite
    }

    /// Writes `value[code] · absmax` for every code. The inverse of [`DynamicMap::quantize_into`], up to
    /// rounding to the nearest code.
    ///
    /// # Panics
    /// When `out` has another length than `codes`, or `absmax` is not one per block.
    pub fn dequantize_into(&self, codes: &[u8], absmax: &[f32], block_size: BlockSize, out: &mut [f32]) {
        assert_eq!(codes.len(), out.len(), "out");
        assert_eq!(absmax.len(), block_size.count(codes.len()), "absmax");
        let decode = |codes: &[u8], absmax: &[f32], out: &mut [f32]| {
            let blocks = out.chunks_mut(block_size.get()).zip(codes.chunks(block_size.get())).zip(absmax);
            for ((out, codes), absmax) in blocks {
                for (value, &code) in out.iter_mut().zip(codes) {
                    *value = self.values[usize::from(code)] * absmax;
                }
            }
        };
        if codes.len() <= TASK_ELEMENTS {
            decode(codes, absmax, out);
        } else {
            codes
                .par_chunks(TASK_ELEMENTS)
                .zip(absmax.par_chunks(TASK_ELEMENTS / block_size.get()))
                .zip(out.par_chunks_mut(TASK_ELEMENTS))
                .for_each(|((codes, absmax), out)| decode(codes, absmax, out));
        }
    }
}

/// The values of a map: for each decade 10ⁱ⁻⁶, i = 0..6, the midpoints of 2ⁱ (signed) or 2ⁱ⁺¹ equal parts
/// of 0.1..1; with both signs if signed; and 0 and 1.
///
/// The roundings are those of torch's f32 `linspace`, which counts from both ends with one rounding a
/// point, so that the values equal those stored in checkpoints to the last bit.
fn values(signed: bool) -> [f32; 256] {
    let mut values = vec![0.0, 1.0];
    for (decade, scale) in (0..).zip([1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0f32]) {
        let parts: usize = 1 << if signed { decade } else { decade + 1 };
        let step = (1.0 - 0.1f32) / parts as f32;
        let boundary = |i: usize| {
            if i < parts.div_ceil(2) {
                step.mul_add(i as f32, 0.1)
            } else {
                step.mul_add(-((parts - i) as f32), 1.0)
            }
        };
        for part in 0..parts {
            let value = scale * ((boundary(part) + boundary(part + 1)) / 2.0);
            values.push(value);
            if signed {
                values.push(-value);
            }
        }
    }
    values.sort_by(f32::total_cmp);
    values.try_into().expect("both maps have 256 values")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The search of bitsandbytes' CUDA kernel, which defines the codes.
    fn binary_search(values: &[f32; 256], x: f32) -> u8 {
        let (mut lower, mut pivot, mut upper) = (0, 127, 255);
        for step in [64, 32, 16, 8, 4, 2, 1] {
            if x > values[pivot] {
                lower = pivot;
                pivot += step;
            } else {
                upper = pivot;
                pivot -= step;
            }
        }
        let midpoint = |a: usize, b: usize| (values[a] + values[b]) * 0.5;
        (if x > values[pivot] {
            if x > midpoint(upper, pivot) { upper } else { pivot }
        } else if x < midpoint(lower, pivot) {
            lower
        } else {
            pivot
        }) as u8
    }

    #[test]
    fn codes_are_those_of_the_binary_search() {
        for map in [signed(), unsigned()] {
            let around = |x: f32| [x.next_down(), x, x.next_up(), -x];
            let midpoints = map.values.windows(2).map(|pair| (pair[0] + pair[1]) * 0.5);
            let hard = map.values.into_iter().chain(midpoints).flat_map(around);
            let even = (0..100_000).map(|i| i as f32 / 50_000.0 - 1.0);
            let small = (0..100_000).map(|i| f32::from_bits(i * 10_000));
            for x in hard.chain(even).chain(small).filter(|x| x.abs() <= 1.0) {
                assert_eq!(map.nearest(x), binary_search(&map.values, x), "{x:e}");
            }
        }
    }
}
