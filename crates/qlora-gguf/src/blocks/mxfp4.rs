//! `exponent | codes[16]`, value = 2^(exponent − 127) × the 4-bit float that the code is: a sign, two bits of exponent
//! and one of mantissa (OCP Microscaling Formats, MXFP4).

/// Twice the values of the codes without sign.
const DOUBLED: [f32; 8] = [0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0];

pub(super) fn decode(block: &[u8; 17], out: &mut [f32; 32]) {
    let half_scale = half_power_of_two(block[0]);
    let value = |code: u8| {
        let magnitude = DOUBLED[usize::from(code & 7)];
        // ggml has no negative zero here.
        (if code & 8 != 0 && magnitude != 0.0 { -magnitude } else { magnitude }) * half_scale
    };
    for (i, &byte) in block[1..].iter().enumerate() {
        out[i] = value(byte & 15);
        out[i + 16] = value(byte >> 4);
    }
}

/// 2^(exponent − 128): subnormal for 0 and 1.
fn half_power_of_two(exponent: u8) -> f32 {
    f32::from_bits(match exponent {
        0 | 1 => 0x20_0000 << exponent,
        _ => u32::from(exponent - 1) << 23,
    })
}
