//! Plain numbers, one after another.

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
