//! The first formats of ggml: blocks of 32 values with one scale `d`, and a minimum `m` in the `_1` variants.
//!
//! Codes of 4 bits: byte `i` holds value `i` in its lower and value `i + 16` in its upper nibble. The fifth bit of
//! value `i` is bit `i` of a 32-bit integer.

use super::f16_at;

/// `d | codes[16]`, value = d (code − 8).
pub(super) fn q4_0(block: &[u8; 18], out: &mut [f32; 32]) {
    let d = f16_at(block, 0);
    for (i, &byte) in block[2..].iter().enumerate() {
        out[i] = (i32::from(byte & 15) - 8) as f32 * d;
        out[i + 16] = (i32::from(byte >> 4) - 8) as f32 * d;
    }
}

/// `d | m | codes[16]`, value = d code + m.
pub(super) fn q4_1(block: &[u8; 20], out: &mut [f32; 32]) {
    let (d, m) = (f16_at(block, 0), f16_at(block, 2));
    for (i, &byte) in block[4..].iter().enumerate() {
        out[i] = f32::from(byte & 15) * d + m;
        out[i + 16] = f32::from(byte >> 4) * d + m;
    }
}

/// `d | fifth bits | codes[16]`, value = d (code − 16).
pub(super) fn q5_0(block: &[u8; 22], out: &mut [f32; 32]) {
    let d = f16_at(block, 0);
    let codes = five_bits([block[2], block[3], block[4], block[5]], &block[6..]);
    for (out, code) in out.iter_mut().zip(codes) {
        *out = (i32::from(code) - 16) as f32 * d;
    }
}

/// `d | m | fifth bits | codes[16]`, value = d code + m.
pub(super) fn q5_1(block: &[u8; 24], out: &mut [f32; 32]) {
    let (d, m) = (f16_at(block, 0), f16_at(block, 2));
    let codes = five_bits([block[4], block[5], block[6], block[7]], &block[8..]);
    for (out, code) in out.iter_mut().zip(codes) {
        *out = f32::from(code) * d + m;
    }
}

fn five_bits(fifth: [u8; 4], nibbles: &[u8]) -> [u8; 32] {
    let fifth = u32::from_le_bytes(fifth);
    let bit = |i: usize| ((fifth >> i & 1) << 4) as u8;
    let mut codes = [0; 32];
    for (i, &byte) in nibbles.iter().enumerate() {
        codes[i] = byte & 15 | bit(i);
        codes[i + 16] = byte >> 4 | bit(i + 16);
    }
    codes
}

/// `d | i8[32]`, value = d code.
pub(super) fn q8_0(block: &[u8; 34], out: &mut [f32; 32]) {
    let d = f16_at(block, 0);
    for (out, &byte) in out.iter_mut().zip(&block[2..]) {
        *out = f32::from(byte as i8) * d;
    }
}
