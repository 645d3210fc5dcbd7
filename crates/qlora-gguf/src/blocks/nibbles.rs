//! Codes of 4 and 5 bits in blocks of 32: byte `i` holds value `i` in its lower and value `i + 16` in its upper
//! nibble. The fifth bit of value `i` is bit `i` of a 32-bit integer.

#[inline(always)]
pub(super) fn pack(codes: &[u8; 32], nibbles: &mut [u8]) {
    let (lower, upper) = codes.split_at(16);
    for ((byte, &lower), &upper) in nibbles.iter_mut().zip(lower).zip(upper) {
        *byte = lower & 15 | upper << 4;
    }
}

/// The integer of fifth bits.
#[inline(always)]
pub(super) fn fifth_bits(codes: &[u8; 32]) -> [u8; 4] {
    let mut bits = 0_u32;
    for (i, &code) in codes.iter().enumerate() {
        bits |= u32::from(code >> 4 & 1) << i;
    }
    bits.to_le_bytes()
}

pub(super) fn unpack_five(fifth: [u8; 4], nibbles: &[u8]) -> [u8; 32] {
    let fifth = u32::from_le_bytes(fifth);
    let bit = |i: usize| ((fifth >> i & 1) << 4) as u8;
    let mut codes = [0; 32];
    for (i, &byte) in nibbles.iter().enumerate() {
        codes[i] = byte & 15 | bit(i);
        codes[i + 16] = byte >> 4 | bit(i + 16);
    }
    codes
}
