//! Plain numbers, one after another.

use crate::search::{Encoder, Lanes, Rows};

/// Decodes numbers of `N` bytes, which may start at any address.
fn each<const N: usize>(bytes: &[u8], out: &mut [f32], decode: impl Fn([u8; N]) -> f32) {
    let (numbers, _) = bytes.as_chunks::<N>();
    for (number, out) in numbers.iter().zip(out) {
        *out = decode(*number);
    }
}

pub(super) fn f32(bytes: &[u8], out: &mut [f32]) {
    each(bytes, out, f32::from_le_bytes);
}

pub(super) fn f16(bytes: &[u8], out: &mut [f32]) {
    // The slice conversion uses the processor's vector instruction, eight at a time.
    use half::slice::HalfFloatSliceExt;
    if cfg!(target_endian = "little")
        && let Ok(numbers) = bytemuck::try_cast_slice::<u8, half::f16>(bytes)
    {
        return numbers.convert_to_f32_slice(out);
    }
    each(bytes, out, |number| half::f16::from_le_bytes(number).to_f32());
}

pub(super) fn bf16(bytes: &[u8], out: &mut [f32]) {
    // A bf16 is the upper half of an f32.
    each(bytes, out, |number| f32::from_bits(u32::from(u16::from_le_bytes(number)) << 16));
}

pub(super) fn f64(bytes: &[u8], out: &mut [f32]) {
    each(bytes, out, |number| f64::from_le_bytes(number) as f32);
}

pub(super) fn i8(bytes: &[u8], out: &mut [f32]) {
    each(bytes, out, |number| f32::from(i8::from_le_bytes(number)));
}

pub(super) fn i16(bytes: &[u8], out: &mut [f32]) {
    each(bytes, out, |number| f32::from(i16::from_le_bytes(number)));
}

pub(super) fn i32(bytes: &[u8], out: &mut [f32]) {
    each(bytes, out, |number| i32::from_le_bytes(number) as f32);
}

pub(super) fn i64(bytes: &[u8], out: &mut [f32]) {
    each(bytes, out, |number| i64::from_le_bytes(number) as f32);
}

pub(super) struct F32;

impl Encoder for F32 {
    #[inline(always)]
    fn encode<V: Lanes>(rows: Rows<'_>, out: &mut [u8]) {
        for (out, x) in out.as_chunks_mut().0.iter_mut().zip(rows.values) {
            *out = x.to_le_bytes();
        }
    }
}

/// Rounded to the nearest, ties to even.
pub(super) struct F16;

impl Encoder for F16 {
    #[inline(always)]
    fn encode<V: Lanes>(rows: Rows<'_>, out: &mut [u8]) {
        use half::slice::HalfFloatSliceExt;
        // Aligned or not: converted in pieces, with the processor's vector instruction.
        let mut piece = [half::f16::ZERO; 64];
        for (values, out) in rows.values.chunks(64).zip(out.chunks_mut(128)) {
            let piece = &mut piece[..values.len()];
            piece.convert_from_f32_slice(values);
            for (out, half) in out.as_chunks_mut().0.iter_mut().zip(piece) {
                *out = half.to_le_bytes();
            }
        }
    }
}

/// Rounded to the nearest, ties to even.
pub(super) struct Bf16;

impl Encoder for Bf16 {
    #[inline(always)]
    fn encode<V: Lanes>(rows: Rows<'_>, out: &mut [u8]) {
        for (out, &x) in out.as_chunks_mut().0.iter_mut().zip(rows.values) {
            // As half::bf16::from_f32, without a branch.
            let bits = x.to_bits();
            let rounded = (bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16) as u16;
            let quiet_nan = (bits >> 16) as u16 | 0x40;
            *out = if x.is_nan() { quiet_nan } else { rounded }.to_le_bytes();
        }
    }
}
