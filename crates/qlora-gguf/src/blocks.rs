//! Between blocks and values. One file per format; each says how a block lies in memory, decodes whole blocks, and,
//! where the format is written too, encodes rows, in the order of operations of ggml, so that values and blocks
//! are ggml's to the bit.

mod grid;
mod iq1_m;
mod iq1_s;
mod iq2_s;
mod iq2_xs;
mod iq2_xxs;
mod iq3_s;
mod iq3_xxs;
mod iq4_nl;
mod iq4_xs;
mod k_groups;
mod mxfp4;
mod nibbles;
mod plain;
mod q1_0;
mod q2_0;
mod q2_k;
mod q3_k;
mod q4_0;
mod q4_1;
mod q4_k;
mod q5_0;
mod q5_1;
mod q5_k;
mod q6_k;
mod q8_0;
mod q8_k;
mod quarters;
mod rounding;
mod searched32;
mod ternary;

use half::f16;
use rayon::prelude::*;

use crate::GgmlType;
use crate::search::{Isa, Rows};

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
        GgmlType::Q4_0 => each_block(bytes, out, q4_0::decode),
        GgmlType::Q4_1 => each_block(bytes, out, q4_1::decode),
        GgmlType::Q5_0 => each_block(bytes, out, q5_0::decode),
        GgmlType::Q5_1 => each_block(bytes, out, q5_1::decode),
        GgmlType::Q8_0 => each_block(bytes, out, q8_0::decode),
        GgmlType::Q2K => each_block(bytes, out, q2_k::decode),
        GgmlType::Q3K => each_block(bytes, out, q3_k::decode),
        GgmlType::Q4K => each_block(bytes, out, q4_k::decode),
        GgmlType::Q5K => each_block(bytes, out, q5_k::decode),
        GgmlType::Q6K => each_block(bytes, out, q6_k::decode),
        GgmlType::Q8K => each_block(bytes, out, q8_k::decode),
        GgmlType::Iq4Nl => each_block(bytes, out, iq4_nl::decode),
        GgmlType::Iq4Xs => each_block(bytes, out, iq4_xs::decode),
        GgmlType::Iq2Xxs => each_block(bytes, out, iq2_xxs::decode),
        GgmlType::Iq2Xs => each_block(bytes, out, iq2_xs::decode),
        GgmlType::Iq2S => each_block(bytes, out, iq2_s::decode),
        GgmlType::Iq3Xxs => each_block(bytes, out, iq3_xxs::decode),
        GgmlType::Iq3S => each_block(bytes, out, iq3_s::decode),
        GgmlType::Iq1S => each_block(bytes, out, iq1_s::decode),
        GgmlType::Iq1M => each_block(bytes, out, iq1_m::decode),
        GgmlType::Tq1_0 => each_block(bytes, out, ternary::decode_tq1_0),
        GgmlType::Tq2_0 => each_block(bytes, out, ternary::decode_tq2_0),
        GgmlType::Mxfp4 => each_block(bytes, out, mxfp4::decode),
        GgmlType::Q1_0 => each_block(bytes, out, q1_0::decode),
        GgmlType::Q2_0 => each_block(bytes, out, q2_0::decode),
        GgmlType::Nvfp4 => panic!("{ggml_type} is not decodable"),
    }
}

/// Encodes rows with code for `isa`.
///
/// # Panics
/// When `out` does not hold exactly the rows' blocks, or the format is not encodable.
pub(crate) fn quantize_serial(isa: Isa, ggml_type: GgmlType, rows: Rows<'_>, out: &mut [u8]) {
    assert_eq!(ggml_type.byte_len(rows.values.len()), Some(out.len()), "{ggml_type} blocks");
    match ggml_type {
        GgmlType::F32 => isa.encode::<plain::F32>(rows, out),
        GgmlType::F16 => isa.encode::<plain::F16>(rows, out),
        GgmlType::Bf16 => isa.encode::<plain::Bf16>(rows, out),
        GgmlType::Q4_0 => isa.encode::<q4_0::Q4_0>(rows, out),
        GgmlType::Q4_1 => isa.encode::<q4_1::Q4_1>(rows, out),
        GgmlType::Q5_0 => isa.encode::<q5_0::Q5_0>(rows, out),
        GgmlType::Q5_1 => isa.encode::<q5_1::Q5_1>(rows, out),
        GgmlType::Q8_0 => isa.encode::<q8_0::Q8_0>(rows, out),
        GgmlType::Q2K => isa.encode::<q2_k::Q2K>(rows, out),
        GgmlType::Q3K => isa.encode::<q3_k::Q3K>(rows, out),
        GgmlType::Q4K => isa.encode::<q4_k::Q4K>(rows, out),
        GgmlType::Q5K => isa.encode::<q5_k::Q5K>(rows, out),
        GgmlType::Q6K => isa.encode::<q6_k::Q6K>(rows, out),
        GgmlType::Iq4Nl => isa.encode::<iq4_nl::Iq4Nl>(rows, out),
        GgmlType::Iq4Xs => isa.encode::<iq4_xs::Iq4Xs>(rows, out),
        _ => panic!("{ggml_type} is not encodable"),
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
