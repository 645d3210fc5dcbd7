//! [`Lanes`] of AVX2 and AVX-512.
//!
//! SAFETY, for every `unsafe` block here: the intrinsics need nothing but their instruction set, and values of
//! these types exist only inside the functions of [`Isa`](super::Isa), which are called after asking the
//! processor. Loads and stores go through arrays that are at least as long as the vector.

use std::arch::x86_64::*;
use std::ops::{Add, Div, Mul, Sub};

use super::lanes::{Lanes, MAX_LANES, ROUNDED_BITS, ROUNDED_ZERO, ROUNDING};

/// Eight lanes: AVX2.
#[derive(Clone, Copy)]
pub(super) struct F32x8(__m256);

/// Sixteen lanes: AVX-512.
#[derive(Clone, Copy)]
pub(super) struct F32x16(__m512);

macro_rules! arithmetic {
    ($vector:ident: $($operator:ident $method:ident $intrinsic:ident),*) => {
        $(impl $operator for $vector {
            type Output = Self;

            #[inline(always)]
            fn $method(self, other: Self) -> Self {
                Self(unsafe { $intrinsic(self.0, other.0) })
            }
        })*
    };
}

arithmetic!(F32x8: Add add _mm256_add_ps, Sub sub _mm256_sub_ps, Mul mul _mm256_mul_ps, Div div _mm256_div_ps);
arithmetic!(F32x16: Add add _mm512_add_ps, Sub sub _mm512_sub_ps, Mul mul _mm512_mul_ps, Div div _mm512_div_ps);

impl Lanes for F32x8 {
    const COUNT: usize = 8;
    type Mask = __m256;

    #[inline(always)]
    fn splat(value: f32) -> Self {
        Self(unsafe { _mm256_set1_ps(value) })
    }

    #[inline(always)]
    fn load(values: &[f32; MAX_LANES]) -> Self {
        Self(unsafe { _mm256_loadu_ps(values.as_ptr()) })
    }

    #[inline(always)]
    fn store(self, values: &mut [f32; MAX_LANES]) {
        unsafe { _mm256_storeu_ps(values.as_mut_ptr(), self.0) }
    }

    #[inline(always)]
    fn abs(self) -> Self {
        Self(unsafe { _mm256_andnot_ps(_mm256_set1_ps(-0.0), self.0) })
    }

    #[inline(always)]
    fn nearest_within(self, lowest: i32, highest: i32) -> Self {
        unsafe {
            let bits = _mm256_castps_si256(_mm256_add_ps(self.0, _mm256_set1_ps(ROUNDING)));
            let bits = _mm256_and_si256(bits, _mm256_set1_epi32(ROUNDED_BITS));
            let whole = _mm256_sub_epi32(bits, _mm256_set1_epi32(ROUNDED_ZERO));
            let whole = _mm256_max_epi32(whole, _mm256_set1_epi32(lowest));
            Self(_mm256_cvtepi32_ps(_mm256_min_epi32(whole, _mm256_set1_epi32(highest))))
        }
    }

    #[inline(always)]
    fn lt(self, other: Self) -> __m256 {
        unsafe { _mm256_cmp_ps::<_CMP_LT_OQ>(self.0, other.0) }
    }

    #[inline(always)]
    fn le(self, other: Self) -> __m256 {
        unsafe { _mm256_cmp_ps::<_CMP_LE_OQ>(self.0, other.0) }
    }

    #[inline(always)]
    fn and(a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_and_ps(a, b) }
    }

    #[inline(always)]
    fn any(mask: __m256) -> bool {
        unsafe { _mm256_movemask_ps(mask) != 0 }
    }

    #[inline(always)]
    fn select(mask: __m256, yes: Self, no: Self) -> Self {
        Self(unsafe { _mm256_blendv_ps(no.0, yes.0, mask) })
    }

    #[inline(always)]
    fn truncated_bytes(values: &[f32; 16], minimum: f32, factor: f32, offset: f32) -> [u8; 16] {
        let mut bytes = [0; 16];
        unsafe {
            let codes = |start: usize| {
                let x = _mm256_sub_ps(_mm256_loadu_ps(values[start..].as_ptr()), _mm256_set1_ps(minimum));
                let x = _mm256_add_ps(_mm256_mul_ps(x, _mm256_set1_ps(factor)), _mm256_set1_ps(offset));
                _mm256_and_si256(_mm256_cvttps_epi32(x), _mm256_set1_epi32(0xff))
            };
            // Packing works within halves of a register: the quarters are put in order afterwards.
            let words = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packus_epi32(codes(0), codes(8)));
            let (low, high) = (_mm256_castsi256_si128(words), _mm256_extracti128_si256::<1>(words));
            _mm_storeu_si128(bytes.as_mut_ptr().cast(), _mm_packus_epi16(low, high));
        }
        bytes
    }
}

impl Lanes for F32x16 {
    const COUNT: usize = 16;
    type Mask = __mmask16;

    #[inline(always)]
    fn splat(value: f32) -> Self {
        Self(unsafe { _mm512_set1_ps(value) })
    }

    #[inline(always)]
    fn load(values: &[f32; MAX_LANES]) -> Self {
        Self(unsafe { _mm512_loadu_ps(values.as_ptr()) })
    }

    #[inline(always)]
    fn store(self, values: &mut [f32; MAX_LANES]) {
        unsafe { _mm512_storeu_ps(values.as_mut_ptr(), self.0) }
    }

    #[inline(always)]
    fn abs(self) -> Self {
        Self(unsafe { _mm512_abs_ps(self.0) })
    }

    #[inline(always)]
    fn nearest_within(self, lowest: i32, highest: i32) -> Self {
        unsafe {
            let bits = _mm512_castps_si512(_mm512_add_ps(self.0, _mm512_set1_ps(ROUNDING)));
            let bits = _mm512_and_si512(bits, _mm512_set1_epi32(ROUNDED_BITS));
            let whole = _mm512_sub_epi32(bits, _mm512_set1_epi32(ROUNDED_ZERO));
            let whole = _mm512_max_epi32(whole, _mm512_set1_epi32(lowest));
            Self(_mm512_cvtepi32_ps(_mm512_min_epi32(whole, _mm512_set1_epi32(highest))))
        }
    }

    #[inline(always)]
    fn lt(self, other: Self) -> __mmask16 {
        unsafe { _mm512_cmp_ps_mask::<_CMP_LT_OQ>(self.0, other.0) }
    }

    #[inline(always)]
    fn le(self, other: Self) -> __mmask16 {
        unsafe { _mm512_cmp_ps_mask::<_CMP_LE_OQ>(self.0, other.0) }
    }

    #[inline(always)]
    fn and(a: __mmask16, b: __mmask16) -> __mmask16 {
        a & b
    }

    #[inline(always)]
    fn any(mask: __mmask16) -> bool {
        mask != 0
    }

    #[inline(always)]
    fn select(mask: __mmask16, yes: Self, no: Self) -> Self {
        Self(unsafe { _mm512_mask_blend_ps(mask, no.0, yes.0) })
    }

    #[inline(always)]
    fn truncated_bytes(values: &[f32; 16], minimum: f32, factor: f32, offset: f32) -> [u8; 16] {
        let mut bytes = [0; 16];
        unsafe {
            let x = _mm512_sub_ps(_mm512_loadu_ps(values.as_ptr()), _mm512_set1_ps(minimum));
            let x = _mm512_add_ps(_mm512_mul_ps(x, _mm512_set1_ps(factor)), _mm512_set1_ps(offset));
            _mm_storeu_si128(bytes.as_mut_ptr().cast(), _mm512_cvtepi32_epi8(_mm512_cvttps_epi32(x)));
        }
        bytes
    }
}
