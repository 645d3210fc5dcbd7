//! f32 to codes and scales.

use rayon::prelude::*;

use super::{TASK_ELEMENTS, THRESHOLDS, packed_len};
use crate::normalizer::{INFINITY_BITS, Normalizer, absmax_bits};
use crate::{BlockSize, QuantError};

/// Elements encoded together; divides every block size.
const LANES: usize = 32;

/// Quantizes `values` to `codes` (`[packed_len(n)]`) and `absmax` (`[block_size.count(n)]`).
///
/// A tensor can be quantized piece by piece, as it is read: the pieces must start at multiples of the
/// block size, and each writes its own part of `codes` and `absmax`. Spread over rayon's threads; the
/// result does not depend on how many there are. A block of zeros gets code 7 and scale 0.
///
/// # Errors
/// [`QuantError::NonFinite`] with the index, within `values`, of the first NaN or infinity; the
/// outputs then hold nothing of use.
///
/// # Panics
/// When `codes` or `absmax` has another length than stated.
pub fn quantize_into(
    values: &[f32],
    block_size: BlockSize,
    codes: &mut [u8],
    absmax: &mut [f32],
) -> Result<(), QuantError> {
    assert_eq!(codes.len(), packed_len(values.len()), "codes");
    assert_eq!(absmax.len(), block_size.count(values.len()), "absmax");
    let encode = fastest();
    let finite = if values.len() <= TASK_ELEMENTS {
        encode(values, block_size, codes, absmax)
    } else {
        values
            .par_chunks(TASK_ELEMENTS)
            .zip(codes.par_chunks_mut(TASK_ELEMENTS / 2))
            .zip(absmax.par_chunks_mut(TASK_ELEMENTS / block_size.get()))
            .map(|((values, codes), absmax)| encode(values, block_size, codes, absmax))
            .reduce(|| true, |a, b| a && b)
    };
    if finite { Ok(()) } else { Err(QuantError::first_non_finite(values)) }
}

/// Quantizes on the calling thread; false when a value is not finite.
type Encoder = fn(&[f32], BlockSize, &mut [u8], &mut [f32]) -> bool;

fn fastest() -> Encoder {
    encoders().into_iter().flatten().last().expect("the portable encoder runs everywhere").1
}

/// The encoders that this processor runs, slowest first, with their names.
fn encoders() -> [Option<(&'static str, Encoder)>; 3] {
    #[allow(unused_mut)]
    let mut encoders: [Option<(&'static str, Encoder)>; 3] =
        [Some(("portable", encode_portable)), None, None];
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::is_x86_feature_detected as has;
        if has!("avx2") {
            // SAFETY: the processor has AVX2.
            encoders[1] = Some(("avx2", |values, block, codes, absmax| unsafe {
                x86::encode_avx2(values, block, codes, absmax)
            }));
        }
        if has!("avx512f") && has!("avx512bw") {
            // SAFETY: the processor has AVX-512 F and BW.
            encoders[2] = Some(("avx512", |values, block, codes, absmax| unsafe {
                x86::encode_avx512(values, block, codes, absmax)
            }));
        }
    }
    encoders
}

fn encode_portable(values: &[f32], block_size: BlockSize, codes: &mut [u8], absmax: &mut [f32]) -> bool {
    encode(values, block_size, codes, absmax, encode_lanes)
}

/// The part that all forms share; `encode_lanes` normalizes [`LANES`] values and packs their codes.
#[inline(always)]
fn encode(
    values: &[f32],
    block_size: BlockSize,
    codes: &mut [u8],
    absmax: &mut [f32],
    encode_lanes: impl Fn(&[f32; LANES], Normalizer, &mut [u8; LANES / 2]),
) -> bool {
    let block_size = block_size.get();
    let blocks = values.chunks(block_size).zip(codes.chunks_mut(block_size / 2)).zip(absmax);
    let mut finite = true;
    for ((values, codes), absmax) in blocks {
        let bits = absmax_bits(values);
        finite &= bits < INFINITY_BITS;
        *absmax = f32::from_bits(bits as u32);
        let normalizer = Normalizer::new(*absmax);

        let (lanes, rest) = values.as_chunks::<LANES>();
        let (bytes, rest_bytes) = codes.split_at_mut(lanes.len() * (LANES / 2));
        for (lanes, bytes) in lanes.iter().zip(bytes.as_chunks_mut::<{ LANES / 2 }>().0) {
            encode_lanes(lanes, normalizer, bytes);
        }
        if !rest.is_empty() {
            // Zeros beyond the end give the odd last byte the padding that bitsandbytes writes.
            let mut padded = [0.0; LANES];
            padded[..rest.len()].copy_from_slice(rest);
            let mut bytes = [0; LANES / 2];
            encode_lanes(&padded, normalizer, &mut bytes);
            rest_bytes.copy_from_slice(&bytes[..rest_bytes.len()]);
        }
    }
    finite
}

/// Counts the thresholds below each value, one after the other.
fn encode_lanes(values: &[f32; LANES], normalizer: Normalizer, bytes: &mut [u8; LANES / 2]) {
    let normalized = values.map(|value| normalizer.apply(value));
    let mut counts = [0u32; LANES];
    for threshold in THRESHOLDS {
        for (count, &x) in counts.iter_mut().zip(&normalized) {
            *count += u32::from(x > threshold);
        }
    }
    for (byte, pair) in bytes.iter_mut().zip(counts.as_chunks::<2>().0) {
        *byte = (pair[0] << 4 | pair[1]) as u8;
    }
}

/// Binary search in the tree of thresholds: a lane starts at node 1 and goes from node i to 2i or
/// 2i + 1, so that after four levels it is at 16 + code.
#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{BlockSize, THRESHOLDS, encode};

    /// Threshold of each node; node 0 is none.
    const TREE: [f32; 16] = {
        let mut tree = [0.0; 16];
        let mut node = 1usize;
        while node < 16 {
            let level = node.ilog2();
            tree[node] = THRESHOLDS[((2 * (node - (1 << level)) + 1) << (3 - level)) - 1];
            node += 1;
        }
        tree
    };

    #[target_feature(enable = "avx2")]
    pub(super) fn encode_avx2(
        values: &[f32],
        block_size: BlockSize,
        codes: &mut [u8],
        absmax: &mut [f32],
    ) -> bool {
        // The permutation looks at the low three bits of a node: enough to tell apart the nodes of one
        // level, of which the last has eight.
        // SAFETY: `TREE` has the 64 bytes that are read.
        let (top, bottom) =
            unsafe { (_mm256_loadu_ps(TREE.as_ptr()), _mm256_loadu_ps(TREE.as_ptr().add(8))) };
        let nibble = _mm256_set1_epi32(15);
        let gather = _mm256_setr_epi8(
            0, 8, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, //
            0, 8, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1,
        );
        encode(values, block_size, codes, absmax, |values, normalizer, bytes| {
            let (lift, reciprocal) = normalizer.factors();
            let (lift, reciprocal) = (_mm256_set1_ps(lift), _mm256_set1_ps(reciprocal));
            for (values, bytes) in values.as_chunks::<8>().0.iter().zip(bytes.as_chunks_mut::<4>().0) {
                // SAFETY: `values` has the 32 bytes that are read.
                let x = unsafe { _mm256_loadu_ps(values.as_ptr()) };
                let x = _mm256_mul_ps(_mm256_mul_ps(x, lift), reciprocal);
                let mut node = _mm256_set1_epi32(1);
                for level in 0..4 {
                    let threshold = _mm256_permutevar8x32_ps(if level < 3 { top } else { bottom }, node);
                    let right = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_GT_OQ>(x, threshold));
                    node = _mm256_sub_epi32(_mm256_add_epi32(node, node), right);
                }
                let code = _mm256_and_si256(node, nibble);
                let pairs = _mm256_or_si256(_mm256_slli_epi64::<4>(code), _mm256_srli_epi64::<32>(code));
                let packed = _mm256_shuffle_epi8(pairs, gather);
                let low = _mm256_extract_epi16::<0>(packed) as u32;
                let high = _mm256_extract_epi16::<8>(packed) as u32;
                *bytes = (low | high << 16).to_le_bytes();
            }
        })
    }

    #[target_feature(enable = "avx512f,avx512bw")]
    pub(super) fn encode_avx512(
        values: &[f32],
        block_size: BlockSize,
        codes: &mut [u8],
        absmax: &mut [f32],
    ) -> bool {
        // SAFETY: `TREE` has the 64 bytes that are read.
        let tree = unsafe { _mm512_loadu_ps(TREE.as_ptr()) };
        let one = _mm512_set1_epi32(1);
        encode(values, block_size, codes, absmax, |values, normalizer, bytes| {
            let (lift, reciprocal) = normalizer.factors();
            let (lift, reciprocal) = (_mm512_set1_ps(lift), _mm512_set1_ps(reciprocal));
            for (values, bytes) in values.as_chunks::<16>().0.iter().zip(bytes.as_chunks_mut::<8>().0) {
                // SAFETY: `values` has the 64 bytes that are read.
                let x = unsafe { _mm512_loadu_ps(values.as_ptr()) };
                let x = _mm512_mul_ps(_mm512_mul_ps(x, lift), reciprocal);
                let mut node = one;
                for _ in 0..4 {
                    let threshold = _mm512_permutexvar_ps(node, tree);
                    let right = _mm512_cmp_ps_mask::<_CMP_GT_OQ>(x, threshold);
                    let left = _mm512_add_epi32(node, node);
                    node = _mm512_mask_or_epi32(left, right, left, one);
                }
                // A 64-bit lane holds the code of an even element below that of an odd one.
                let code = _mm512_and_si512(node, _mm512_set1_epi32(15));
                let pairs = _mm512_or_si512(_mm512_slli_epi64::<4>(code), _mm512_srli_epi64::<32>(code));
                *bytes = _mm_cvtsi128_si64(_mm512_cvtepi64_epi8(pairs)).to_le_bytes();
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_encoder_gives_the_same_bytes() {
        let mut state = 1u32;
        let values: Vec<f32> = (0..5001)
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                ((state >> 8) as f32 / 8_388_608.0 - 1.0) * f32::powi(2.0, (state >> 4 & 63) as i32 - 32)
            })
            .collect();
        for block in [32, 64, 4096].map(|size| BlockSize::new(size).unwrap()) {
            let run = |encode: Encoder| {
                let mut codes = vec![0; packed_len(values.len())];
                let mut absmax = vec![0.0; block.count(values.len())];
                assert!(encode(&values, block, &mut codes, &mut absmax));
                (codes, absmax)
            };
            let expected = run(encode_portable);
            for (name, encode) in encoders().into_iter().flatten() {
                assert_eq!(run(encode), expected, "{name}, blocks of {}", block.get());
            }
        }
    }
}
