//! Codes and scales to f32, bf16 or f16.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use rayon::prelude::*;

use super::{TASK_ELEMENTS, packed_len};
use crate::BlockSize;

/// An NF4 tensor's codes and f32 scales, borrowed.
#[derive(Clone, Copy, Debug)]
pub struct Nf4View<'a> {
    codes: &'a [u8],
    absmax: &'a [f32],
    block_size: BlockSize,
    codebook: &'a [f32; 16],
}

impl<'a> Nf4View<'a> {
    /// `codes` with one scale of `absmax` per block; `codebook` is [`super::CODEBOOK`], unless a
    /// checkpoint brought its own.
    ///
    /// # Panics
    /// When there are not as many scales as blocks of the elements that `codes` holds (the last nibble
    /// may be padding).
    #[must_use]
    pub fn new(codes: &'a [u8], absmax: &'a [f32], block_size: BlockSize, codebook: &'a [f32; 16]) -> Self {
        assert_eq!(absmax.len(), block_size.count(codes.len() * 2), "absmax");
        Self { codes, absmax, block_size, codebook }
    }

    /// Writes elements `start..start + out.len()` as `q[code] · absmax`: an f32 product, rounded once to
    /// the type of `out`. Spread over rayon's threads.
    ///
    /// # Panics
    /// When the view holds fewer than `start + out.len()` elements.
    pub fn dequantize_into<T: Output>(&self, start: usize, out: &mut [T]) {
        let end = start.checked_add(out.len()).map(packed_len);
        assert!(end.is_some_and(|end| end <= self.codes.len()), "the range ends beyond the codes");
        let fill = T::fill();
        if out.len() <= TASK_ELEMENTS {
            self.run(fill, start, out);
        } else {
            out.par_chunks_mut(TASK_ELEMENTS)
                .enumerate()
                .for_each(|(task, out)| self.run(fill, start + task * TASK_ELEMENTS, out));
        }
    }

    fn run<T: Output>(&self, fill: Fill<T>, start: usize, out: &mut [T]) {
        let block_size = self.block_size.get();
        let (mut start, mut out) = (start, out);
        while !out.is_empty() {
            let block = start / block_size;
            let length = (block_size - start % block_size).min(out.len());
            let (head, tail) = out.split_at_mut(length);
            // A block has 32 elements or more and sixteen values: each value is scaled and rounded once.
            let absmax = self.absmax[block];
            let table = T::round_table(self.codebook.map(|q| q * absmax));
            let even = if start % 2 == 1 {
                head[0] = table[usize::from(self.codes[start / 2] & 15)];
                &mut head[1..]
            } else {
                head
            };
            let first = start.div_ceil(2);
            fill(&table, &self.codes[first..first + packed_len(even.len())], even);
            start += length;
            out = tail;
        }
    }
}

/// A type that NF4 is dequantized to: f32, bf16 or f16.
pub trait Output: sealed::Output {}

impl Output for f32 {}
impl Output for bf16 {}
impl Output for f16 {}

mod sealed {
    pub trait Output: Copy + Send + Sync {
        fn round_table(values: [f32; 16]) -> [Self; 16];
        fn fill() -> super::Fill<Self>;
    }
}

/// Writes `table[code]` for the codes of packed bytes: as many as `out` has elements, the first being a
/// high nibble.
type Fill<T> = fn(table: &[T; 16], codes: &[u8], out: &mut [T]);

impl sealed::Output for f32 {
    fn round_table(values: [f32; 16]) -> [f32; 16] {
        values
    }

    fn fill() -> Fill<Self> {
        fastest(fills_f32())
    }
}

impl sealed::Output for bf16 {
    fn round_table(values: [f32; 16]) -> [bf16; 16] {
        // `bf16::from_f32` branches on NaN, and so is not vectorised.
        let mut rounded = [bf16::ZERO; 16];
        for (rounded, value) in rounded.iter_mut().zip(values) {
            let bits = value.to_bits();
            let nearest_even = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
            *rounded = bf16::from_bits(if value.is_nan() { 0x7fc0 } else { nearest_even as u16 });
        }
        rounded
    }

    fn fill() -> Fill<Self> {
        fastest(fills_u16())
    }
}

impl sealed::Output for f16 {
    fn round_table(values: [f32; 16]) -> [f16; 16] {
        let mut rounded = [f16::ZERO; 16];
        rounded.convert_from_f32_slice(&values);
        rounded
    }

    fn fill() -> Fill<Self> {
        fastest(fills_u16())
    }
}

/// The forms of [`Fill`] that this processor runs, slowest first, with their names.
type Forms<T> = [Option<(&'static str, Fill<T>)>; 3];

fn fastest<T>(forms: Forms<T>) -> Fill<T> {
    let fastest = forms.into_iter().flatten().last();
    fastest.expect("the portable form runs everywhere").1
}

fn fills_f32() -> Forms<f32> {
    #[allow(unused_mut)]
    let mut forms: Forms<f32> = [Some(("portable", fill_portable)), None, None];
    #[cfg(target_arch = "x86_64")]
    {
        if std::arch::is_x86_feature_detected!("avx2") {
            // SAFETY: the processor has AVX2.
            forms[1] = Some(("avx2", |table, codes, out| unsafe { x86::fill_f32_avx2(table, codes, out) }));
        }
        if std::arch::is_x86_feature_detected!("avx512f") {
            // SAFETY: the processor has AVX-512 F.
            forms[2] =
                Some(("avx512", |table, codes, out| unsafe { x86::fill_f32_avx512(table, codes, out) }));
        }
    }
    forms
}

fn fills_u16<T: TwoBytes>() -> Forms<T> {
    #[allow(unused_mut)]
    let mut forms: Forms<T> = [Some(("portable", fill_portable)), None, None];
    #[cfg(target_arch = "x86_64")]
    {
        if std::arch::is_x86_feature_detected!("ssse3") {
            // SAFETY: the processor has SSSE3.
            forms[1] = Some(("ssse3", |table, codes, out| unsafe { x86::fill_u16_ssse3(table, codes, out) }));
        }
        if std::arch::is_x86_feature_detected!("avx512bw") {
            // SAFETY: the processor has AVX-512 BW, and F with it.
            forms[2] =
                Some(("avx512", |table, codes, out| unsafe { x86::fill_u16_avx512(table, codes, out) }));
        }
    }
    forms
}

/// A type of two bytes, any value of which is valid.
trait TwoBytes: Copy {}

impl TwoBytes for bf16 {}
impl TwoBytes for f16 {}

#[inline(always)]
fn fill_portable<T: Copy>(table: &[T; 16], codes: &[u8], out: &mut [T]) {
    let (pairs, last) = out.as_chunks_mut::<2>();
    for (pair, &byte) in pairs.iter_mut().zip(codes) {
        *pair = [table[usize::from(byte >> 4)], table[usize::from(byte & 15)]];
    }
    if let ([last], Some(byte)) = (last, codes.last()) {
        *last = table[usize::from(byte >> 4)];
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{TwoBytes, fill_portable};

    #[target_feature(enable = "avx512f")]
    pub(super) fn fill_f32_avx512(table: &[f32; 16], codes: &[u8], out: &mut [f32]) {
        let (lanes, rest) = out.as_chunks_mut::<16>();
        let (bytes, _) = codes.as_chunks::<8>();
        // SAFETY: `table` has the 64 bytes that are read.
        let values = unsafe { _mm512_loadu_ps(table.as_ptr()) };
        let shifts = _mm512_set1_epi64(4);
        for (lanes, bytes) in lanes.iter_mut().zip(bytes) {
            // 64-bit lane i holds byte i in both halves; the lower half is shifted down to the high
            // nibble. The permutation looks at the low four bits of a lane only.
            let byte = _mm512_cvtepu8_epi64(_mm_cvtsi64_si128(i64::from_le_bytes(*bytes)));
            let both = _mm512_or_si512(byte, _mm512_slli_epi64::<32>(byte));
            let codes = _mm512_srlv_epi32(both, shifts);
            // SAFETY: `lanes` has the 64 bytes that are written.
            unsafe { _mm512_storeu_ps(lanes.as_mut_ptr(), _mm512_permutexvar_ps(codes, values)) };
        }
        fill_portable(table, &codes[lanes.len() * 8..], rest);
    }

    #[target_feature(enable = "avx2")]
    pub(super) fn fill_f32_avx2(table: &[f32; 16], codes: &[u8], out: &mut [f32]) {
        let (lanes, rest) = out.as_chunks_mut::<8>();
        let (bytes, _) = codes.as_chunks::<4>();
        // SAFETY: `table` has the 64 bytes that are read.
        let (low, high) =
            unsafe { (_mm256_loadu_ps(table.as_ptr()), _mm256_loadu_ps(table.as_ptr().add(8))) };
        let shifts = _mm256_set1_epi64x(4);
        for (lanes, bytes) in lanes.iter_mut().zip(bytes) {
            let byte = _mm256_cvtepu8_epi64(_mm_cvtsi32_si128(i32::from_le_bytes(*bytes)));
            let both = _mm256_or_si256(byte, _mm256_slli_epi64::<32>(byte));
            let codes = _mm256_srlv_epi32(both, shifts);
            // The permutations look at the low three bits; the fourth, moved to the sign, selects.
            let upper = _mm256_castsi256_ps(_mm256_slli_epi32::<28>(codes));
            let values = _mm256_blendv_ps(
                _mm256_permutevar8x32_ps(low, codes),
                _mm256_permutevar8x32_ps(high, codes),
                upper,
            );
            // SAFETY: `lanes` has the 32 bytes that are written.
            unsafe { _mm256_storeu_ps(lanes.as_mut_ptr(), values) };
        }
        fill_portable(table, &codes[lanes.len() * 4..], rest);
    }

    #[target_feature(enable = "avx512bw")]
    pub(super) fn fill_u16_avx512<T: TwoBytes>(table: &[T; 16], codes: &[u8], out: &mut [T]) {
        let (lanes, rest) = out.as_chunks_mut::<32>();
        let (bytes, _) = codes.as_chunks::<16>();
        // SAFETY: `table` has the 32 bytes that are read.
        let values = _mm512_broadcast_i64x4(unsafe { _mm256_loadu_si256(table.as_ptr().cast()) });
        let shifts = _mm512_set1_epi32(4);
        for (lanes, bytes) in lanes.iter_mut().zip(bytes) {
            // SAFETY: `bytes` has the 16 bytes that are read.
            let byte = _mm512_cvtepu8_epi32(unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) });
            let both = _mm512_or_si512(byte, _mm512_slli_epi32::<16>(byte));
            let codes = _mm512_srlv_epi16(both, shifts);
            // The permutation looks at five bits of a lane; both halves of `values` are the table, so the
            // fifth does not matter.
            let values = _mm512_permutexvar_epi16(codes, values);
            // SAFETY: `lanes` has the 64 bytes that are written, and any two bytes are a value of T.
            unsafe { _mm512_storeu_si512(lanes.as_mut_ptr().cast(), values) };
        }
        fill_portable(table, &codes[lanes.len() * 16..], rest);
    }

    /// The two bytes of each value are looked up apart, with byte shuffles, and then interleaved.
    #[target_feature(enable = "ssse3")]
    pub(super) fn fill_u16_ssse3<T: TwoBytes>(table: &[T; 16], codes: &[u8], out: &mut [T]) {
        let (lanes, rest) = out.as_chunks_mut::<16>();
        let (bytes, _) = codes.as_chunks::<8>();
        // SAFETY: `table` has the 32 bytes that are read.
        let (first, second) = unsafe {
            let table: *const __m128i = table.as_ptr().cast();
            (_mm_loadu_si128(table), _mm_loadu_si128(table.add(1)))
        };
        let low_byte = _mm_set1_epi16(0xff);
        let low = _mm_packus_epi16(_mm_and_si128(first, low_byte), _mm_and_si128(second, low_byte));
        let high = _mm_packus_epi16(_mm_srli_epi16::<8>(first), _mm_srli_epi16::<8>(second));
        let nibble = _mm_set1_epi8(15);
        for (lanes, bytes) in lanes.iter_mut().zip(bytes) {
            let byte = _mm_cvtsi64_si128(i64::from_le_bytes(*bytes));
            let upper = _mm_and_si128(_mm_srli_epi16::<4>(byte), nibble);
            let codes = _mm_unpacklo_epi8(upper, _mm_and_si128(byte, nibble));
            let (low, high) = (_mm_shuffle_epi8(low, codes), _mm_shuffle_epi8(high, codes));
            let out: *mut __m128i = lanes.as_mut_ptr().cast();
            // SAFETY: `lanes` has the 32 bytes that are written, and any two bytes are a value of T.
            unsafe {
                _mm_storeu_si128(out, _mm_unpacklo_epi8(low, high));
                _mm_storeu_si128(out.add(1), _mm_unpackhi_epi8(low, high));
            }
        }
        fill_portable(table, &codes[lanes.len() * 8..], rest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_gives_the_same_values() {
        let codes: Vec<u8> = (0..=255).collect();
        for elements in [0, 1, 7, 8, 15, 16, 17, 33, 511, 512] {
            let codes = &codes[..packed_len(elements)];
            check(fills_f32(), codes, elements, |i| (i as f32).exp2());
            check(fills_u16(), codes, elements, |i| bf16::from_bits(0x0101 * (i as u16 + 3)));
        }
    }

    fn check<T: Copy + PartialEq + std::fmt::Debug>(
        forms: Forms<T>,
        codes: &[u8],
        elements: usize,
        value: impl Fn(usize) -> T,
    ) {
        let table = std::array::from_fn(value);
        let expected: Vec<T> =
            (0..elements).map(|i| table[usize::from(codes[i / 2] >> (4 * (1 - i % 2)) & 15)]).collect();
        for (name, fill) in forms.into_iter().flatten() {
            let mut out = vec![table[0]; elements];
            fill(&table, codes, &mut out);
            assert_eq!(out, expected, "{name}, {elements} elements");
        }
    }
}
