//! From blocks to values. One file per group of formats; each holds pure functions from the bytes of whole
//! blocks to `f32`, in the order of operations of ggml, so that the values are ggml's to the bit.

mod iq4;
mod k_quants;
mod legacy;
mod plain;

use half::f16;
use rayon::prelude::*;

use crate::GgmlType;

/// Values that one task decodes: large enough to outweigh handing the task over (about 1 µs against 20 µs), small
/// enough that its output stays in the L2 cache. A multiple of every block length.
const TASK_LEN: usize = 1 << 15;

/// Decodes the blocks in `bytes` into `out`.
///
/// # Panics
/// When `out` does not hold exactly the blocks' values, or the format is not decodable.
pub(crate) fn dequantize(ggml_type: GgmlType, bytes: &[u8], out: &mut [f32]) {
    assert_eq!(
        ggml_type.byte_len(out.len()),
        Some(bytes.len()),
        "{ggml_type} blocks for {} values",
        out.len()
    );
    if out.len() <= TASK_LEN {
        return dequantize_serial(ggml_type, bytes, out);
    }
    let task_bytes = TASK_LEN / ggml_type.block_len() * ggml_type.block_bytes();
    out.par_chunks_mut(TASK_LEN)
        .zip(bytes.par_chunks(task_bytes))
        .for_each(|(out, bytes)| dequantize_serial(ggml_type, bytes, out));
}

fn dequantize_serial(ggml_type: GgmlType, bytes: &[u8], out: &mut [f32]) {
    match ggml_type {
        GgmlType::F32 => plain::f32(bytes, out),
        GgmlType::F16 => plain::f16(bytes, out),
        GgmlType::Bf16 => plain::bf16(bytes, out),
        GgmlType::F64 => plain::f64(bytes, out),
        GgmlType::I8 => plain::i8(bytes, out),
        GgmlType::I16 => plain::i16(bytes, out),
        GgmlType::I32 => plain::i32(bytes, out),
        GgmlType::I64 => plain::i64(bytes, out),
        GgmlType::Q4_0 => each_block(bytes, out, legacy::q4_0),
        GgmlType::Q4_1 => each_block(bytes, out, legacy::q4_1),
        GgmlType::Q5_0 => each_block(bytes, out, legacy::q5_0),
        GgmlType::Q5_1 => each_block(bytes, out, legacy::q5_1),
        GgmlType::Q8_0 => each_block(bytes, out, legacy::q8_0),
        GgmlType::Q2K => each_block(bytes, out, k_quants::q2_k),
        GgmlType::Q3K => each_block(bytes, out, k_quants::q3_k),
        GgmlType::Q4K => each_block(bytes, out, k_quants::q4_k),
        GgmlType::Q5K => each_block(bytes, out, k_quants::q5_k),
        GgmlType::Q6K => each_block(bytes, out, k_quants::q6_k),
        GgmlType::Q8K => each_block(bytes, out, k_quants::q8_k),
        GgmlType::Iq4Nl => each_block(bytes, out, iq4::iq4_nl),
        GgmlType::Iq4Xs => each_block(bytes, out, iq4::iq4_xs),
        GgmlType::Iq2Xxs
        | GgmlType::Iq2Xs
        | GgmlType::Iq2S
        | GgmlType::Iq3Xxs
        | GgmlType::Iq3S
        | GgmlType::Iq1S
        | GgmlType::Iq1M
        | GgmlType::Tq1_0
        | GgmlType::Tq2_0
        | GgmlType::Mxfp4 => panic!("{ggml_type} is not decodable"),
    }
}

/// Applies `decode` to every block. Block sizes are types, so that the inner loops have constant bounds.
fn each_block<const BYTES: usize, const LEN: usize>(
    bytes: &[u8],
    out: &mut [f32],
    decode: impl Fn(&[u8; BYTES], &mut [f32; LEN]),
) {
    let (blocks, _) = bytes.as_chunks();
    let (outs, _) = out.as_chunks_mut();
    for (block, out) in blocks.iter().zip(outs) {
        decode(block, out);
    }
}

/// The little-endian f16 at `at`, as f32 (exact).
fn f16_at(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}
