use half::{bf16, f16};
use qlora_gguf::{GgmlType, Gguf, GgufError};
use safetensors::SafeTensors;

use crate::writer::File;

/// A file with one tensor of `rows` rows that hold `bytes`.
fn one_tensor(ggml_type: GgmlType, rows: u64, bytes: &[u8]) -> Gguf {
    let elements = bytes.len() / ggml_type.block_bytes() * ggml_type.block_len();
    let mut file = File::new();
    file.tensor(b"x", &[elements as u64 / rows, rows], ggml_type.id(), 0);
    file.data = bytes.to_vec();
    Gguf::from_bytes(file.bytes()).unwrap()
}

fn f32s(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect()
}

#[test]
fn quantized_formats_give_ggmls_values_to_the_bit() {
    let golden = include_bytes!("../golden/dequantized.safetensors");
    let golden = SafeTensors::deserialize(golden).unwrap();
    let grids = include_bytes!("../golden/dequantized_grids.safetensors");
    let grids = SafeTensors::deserialize(grids).unwrap();
    let formats: Vec<_> = GgmlType::ALL.iter().filter(|t| t.is_decodable() && t.block_len() > 1).collect();
    assert_eq!(formats.len(), 25);
    for &&format in &formats {
        if format == GgmlType::Q8K {
            continue; // Has its own test below: ggml never stores it in a file.
        }
        let golden = if golden.tensor(format.name()).is_ok() { &golden } else { &grids };
        let bytes = golden.tensor(format.name()).unwrap();
        let expected = f32s(golden.tensor(&format!("{format}.values")).unwrap().data());
        let found = one_tensor(format, 1, bytes.data()).tensor("x").unwrap().dequantize().unwrap();
        assert_eq!(found.len(), expected.len(), "{format}");
        for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
            assert_eq!(found, expected, "{format}, value {i}");
        }
    }
}

/// All twelve rows of the golden matrix, with and without importance matrix, lie as near to it as the bits allow.
#[test]
fn golden_blocks_lie_near_what_was_quantized() {
    let Some(path) = qlora_testing::golden("gguf/ggml_quantize.safetensors") else { return };
    let file = std::fs::read(path).unwrap();
    let golden = SafeTensors::deserialize(&file).unwrap();
    let input = f32s(golden.tensor("input").unwrap().data());
    let norm = |values: &[f32]| values.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt();
    // Relative error of a uniform quantizer of that many bits, with room for how the formats spend theirs.
    let bound = |format: GgmlType| match format {
        GgmlType::Q2K => 0.4,
        GgmlType::Q3K => 0.2,
        GgmlType::Q5_0 | GgmlType::Q5_1 | GgmlType::Q5K => 0.05,
        GgmlType::Q6K => 0.025,
        GgmlType::Q8_0 => 0.01,
        _ => 0.1,
    };
    let mut seen = 0;
    for name in golden.names() {
        let Some(&format) = GgmlType::ALL.iter().find(|t| name.split('.').next() == Some(t.name())) else {
            continue;
        };
        let gguf = one_tensor(format, 12, golden.tensor(name).unwrap().data());
        let found = gguf.tensor("x").unwrap().dequantize().unwrap();
        let difference: Vec<f32> = found.iter().zip(&input).map(|(a, b)| a - b).collect();
        let error = norm(&difference) / norm(&input);
        assert!(error < bound(format), "{name}: {error}");
        seen += 1;
    }
    assert_eq!(seen, 24);
}

#[test]
fn q8_k_is_scale_times_code() {
    let codes: [u8; 256] = std::array::from_fn(|i| i as u8);
    let block = [&0.25_f32.to_le_bytes()[..], &codes, &[0xff; 32]].concat();
    let values = one_tensor(GgmlType::Q8K, 1, &block).tensor("x").unwrap().dequantize().unwrap();
    let expected: Vec<f32> = codes.iter().map(|&code| 0.25 * f32::from(code as i8)).collect();
    assert_eq!(values, expected);
}

#[test]
fn plain_formats() {
    let values = [0.0_f32, -1.5, 3.0e-5, 65504.0, f32::INFINITY];
    let check = |format: GgmlType, bytes: Vec<u8>, expected: &[f32]| {
        let found = one_tensor(format, 1, &bytes).tensor("x").unwrap().dequantize().unwrap();
        assert_eq!(found, expected, "{format}");
    };
    check(GgmlType::F32, values.iter().flat_map(|v| v.to_le_bytes()).collect(), &values);
    check(GgmlType::F64, values.iter().flat_map(|&v| f64::from(v).to_le_bytes()).collect(), &values);
    let halves = values.map(f16::from_f32);
    check(GgmlType::F16, halves.iter().flat_map(|v| v.to_le_bytes()).collect(), &halves.map(f32::from));
    let brains = values.map(bf16::from_f32);
    check(GgmlType::Bf16, brains.iter().flat_map(|v| v.to_le_bytes()).collect(), &brains.map(f32::from));
    check(GgmlType::I8, vec![1, 0x80], &[1.0, -128.0]);
    check(GgmlType::I16, (-3_i16).to_le_bytes().to_vec(), &[-3.0]);
    check(GgmlType::I32, (-3_i32).to_le_bytes().to_vec(), &[-3.0]);
    check(GgmlType::I64, (-3_i64).to_le_bytes().to_vec(), &[-3.0]);
}

/// Alignment 1 lets data start at any address: no decoder may assume more.
#[test]
fn unaligned_data() {
    let mut file = File::new();
    file.alignment = 1;
    file.entry(b"general.alignment", 4, &1_u32.to_le_bytes());
    file.tensor(b"pad", &[1], GgmlType::I8.id(), 0);
    file.tensor(b"half", &[2], GgmlType::F16.id(), 1);
    file.tensor(b"single", &[1], GgmlType::F32.id(), 5);
    file.data = vec![0; 9];
    file.data[1..3].copy_from_slice(&f16::from_f32(1.5).to_le_bytes());
    file.data[3..5].copy_from_slice(&f16::from_f32(-1.0).to_le_bytes());
    file.data[5..9].copy_from_slice(&7.0_f32.to_le_bytes());
    let gguf = Gguf::from_bytes(file.bytes()).unwrap();
    assert_eq!(gguf.tensor("half").unwrap().dequantize().unwrap(), [1.5, -1.0]);
    assert_eq!(gguf.tensor("single").unwrap().dequantize().unwrap(), [7.0]);
}

/// Large enough for several tasks, the last one ragged: parallel and piecewise reads agree.
#[test]
fn pieces_equal_the_whole() {
    let golden = include_bytes!("../golden/dequantized.safetensors");
    let golden = SafeTensors::deserialize(golden).unwrap();
    let block = GgmlType::Q4K.block_bytes();
    let bytes: Vec<u8> =
        golden.tensor("Q4_K").unwrap().data().iter().copied().cycle().take(301 * block).collect();
    let gguf = one_tensor(GgmlType::Q4K, 1, &bytes);
    let tensor = gguf.tensor("x").unwrap();
    let whole = tensor.dequantize().unwrap();
    for start in (0..whole.len()).step_by(37 * 256) {
        let end = (start + 37 * 256).min(whole.len());
        let mut piece = vec![f32::NAN; end - start];
        tensor.dequantize_range(start..end, &mut piece).unwrap();
        assert_eq!(piece, whole[start..end]);
    }
    tensor.dequantize_range(256..256, &mut []).unwrap();
}

#[test]
#[should_panic(expected = "does not start and end at blocks of 256")]
fn a_range_inside_a_block_is_refused() {
    let gguf = one_tensor(GgmlType::Q6K, 1, &[0; 210]);
    let _ = gguf.tensor("x").unwrap().dequantize_range(0..16, &mut [0.0; 16]);
}

#[test]
fn formats_without_decoder_open_but_say_so() {
    let gguf = one_tensor(GgmlType::Nvfp4, 1, &[0; 36]);
    assert_eq!(gguf.tensors()[0].ggml_type.name(), "NVFP4");
    let error = gguf.tensor("x").unwrap().dequantize().unwrap_err();
    assert!(matches!(error, GgufError::NotDecodable { ggml_type: GgmlType::Nvfp4, .. }));
    let message = error.to_string();
    assert!(message.contains("NVFP4 (ggml type 40)") && message.contains("Q4_K"), "{message}");
}

#[test]
fn type_numbers_round_trip() {
    for &format in GgmlType::ALL {
        assert_eq!(GgmlType::from_id(format.id()), Some(format));
    }
    for removed in [4, 5, 9, 31, 36, 43, u32::MAX] {
        assert_eq!(GgmlType::from_id(removed), None);
    }
}
