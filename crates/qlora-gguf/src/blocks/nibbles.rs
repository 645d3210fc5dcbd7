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
    let mut bits = [0; 4];
    for (bits, codes) in bits.iter_mut().zip(codes.as_chunks::<8>().0) {
        // A product that moves bit 0 of byte i to bit 56 + i, where nothing else gets.
        let ones = u64::from_le_bytes(*codes) >> 4 & 0x0101_0101_0101_0101;
        *bits = (ones.wrapping_mul(0x0102_0408_1020_4080) >> 56) as u8;
    }
    bits
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
