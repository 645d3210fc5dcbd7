use proptest::prelude::*;
use qlora_gguf::{GgmlType, Gguf, QuantizeError};
use safetensors::SafeTensors;

use crate::writer::File;

fn f32s(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect()
}

fn formats() -> impl Iterator<Item = GgmlType> {
    GgmlType::ALL.iter().copied().filter(|format| format.is_encodable())
}

/// Compares all tensors of a file of goldens, and counts them.
fn compare_with(file: &[u8]) -> usize {
    let golden = SafeTensors::deserialize(file).unwrap();
    let input = f32s(golden.tensor("input").unwrap().data());
    let importance = f32s(golden.tensor("imatrix").unwrap().data());
    let columns = importance.len();
    let mut compared = 0;
    for format in formats() {
        for weighted in [false, true] {
            let name = format!("{format}{}", if weighted { ".imatrix" } else { "" });
            let Ok(expected) = golden.tensor(&name) else { continue };
            let found = format.quantize(&input, columns, weighted.then_some(&importance)).unwrap();
            let block = format.block_bytes();
            for (i, (found, expected)) in found.chunks(block).zip(expected.data().chunks(block)).enumerate() {
                let at = i * format.block_len();
                assert_eq!(
                    found,
                    expected,
                    "{name}, row {}, column {}: {:?}",
                    at / columns,
                    at % columns,
                    &input[at..at + format.block_len()]
                );
            }
            compared += 1;
        }
    }
    compared
}

/// Rows of every kind: outliers, zeros, lattices of ties, one sign, scales of many orders and below the smallest
/// f16, constants; an importance matrix with zeros.
#[test]
fn blocks_are_ggmls_to_the_byte() {
    assert_eq!(compare_with(include_bytes!("../golden/quantized.safetensors")), 28);
}

#[test]
fn golden_blocks_are_ggmls_to_the_byte() {
    let Some(path) = qlora_testing::golden("gguf/ggml_quantize.safetensors") else { return };
    assert!(compare_with(&std::fs::read(path).unwrap()) >= 24);
}

#[test]
fn what_cannot_be_quantized_is_named() {
    let error = |format: GgmlType, values: &[f32], columns, importance| {
        format.quantize(values, columns, importance).unwrap_err().to_string()
    };
    let zeros = [0.0; 512];
    assert_eq!(
        error(GgmlType::Q4K, &zeros[..480], 240, None),
        "rows of 240 values are not whole blocks of Q4_K, which hold 256 values; take another format for this \
         tensor, such as F16"
    );
    assert_eq!(error(GgmlType::Q8_0, &zeros[..480], 64, None), "480 values are not whole rows of 64");
    assert!(error(GgmlType::F16, &[], 0, None).starts_with("rows of 0 values"));
    assert!(
        error(GgmlType::Iq2Xxs, &zeros, 512, None)
            .starts_with("IQ2_XXS is not written; take one of F32, F16")
    );
    assert!(
        error(GgmlType::Q4K, &zeros, 512, Some(&zeros[..256])).starts_with("256 importances for rows of 512")
    );
    let mut importance = [1.0; 512];
    importance[7] = -1.0;
    assert!(
        error(GgmlType::Q4K, &zeros, 512, Some(&importance)).starts_with("the importance of column 7 is -1")
    );
    let mut values = vec![0.5; 70 * 512];
    values[69 * 512 + 3] = f32::NAN;
    values[69 * 512 + 4] = f32::INFINITY;
    assert!(error(GgmlType::Q4_0, &values, 512, None).starts_with("row 69, column 3 is NaN"));
    values[69 * 512 + 3] = 1e9;
    values[69 * 512 + 4] = 0.5;
    let error = GgmlType::Q4_0.quantize(&values, 512, None).unwrap_err();
    let expected =
        QuantizeError::ScaleOverflow { ggml_type: GgmlType::Q4_0, row: 69, column: 0, largest: 1e9 };
    assert_eq!(error, expected);
    // The plain formats have room, or say infinity.
    assert!(GgmlType::Bf16.quantize(&values, 512, None).is_ok());
    assert_eq!(GgmlType::F16.quantize(&[1e9], 1, None).unwrap(), half::f16::INFINITY.to_le_bytes());
}

#[test]
fn nothing_becomes_nothing() {
    for format in formats() {
        assert_eq!(format.quantize(&[], format.block_len(), None), Ok(Vec::new()));
    }
}

#[test]
fn threads_change_nothing() {
    let values: Vec<f32> = (0..300 * 512).map(|i| ((i * 7919 % 1009) as f32 / 504.0 - 1.0) * 0.1).collect();
    let importance: Vec<f32> = (0..512).map(|i| (i % 5) as f32).collect();
    for format in formats() {
        let quantize = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| format.quantize(&values, 512, Some(&importance)).unwrap())
        };
        let one = quantize(1);
        assert!(quantize(3) == one, "{format}");
        // Piece by piece.
        let mut pieces = vec![0; one.len()];
        let cut = format.byte_len(100 * 512).unwrap();
        format.quantize_into(&values[..100 * 512], 512, Some(&importance), &mut pieces[..cut]).unwrap();
        format.quantize_into(&values[100 * 512..], 512, Some(&importance), &mut pieces[cut..]).unwrap();
        assert!(pieces == one, "{format}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Any bits, any sizes: bytes of the right length or an error, never a panic; finite values that fit come back
    /// within a block's range.
    #[test]
    fn any_values(
        bits in prop::collection::vec(prop_oneof![3 => any::<u32>(), 1 => Just(0), 1 => Just(0x7fc0_0000)], 0..1100),
        columns in 0_usize..600,
        whole: bool,
        weighted: bool,
    ) {
        let columns = if whole { 256 } else { columns };
        let mut values: Vec<f32> = bits.into_iter().map(f32::from_bits).collect();
        if whole {
            values.truncate(values.len() / 256 * 256);
        }
        let importance = vec![1.0; columns];
        for format in formats() {
            let found = format.quantize(&values, columns, weighted.then_some(&importance));
            let ragged = columns == 0
                || !columns.is_multiple_of(format.block_len())
                || !values.len().is_multiple_of(columns);
            match found {
                Ok(bytes) => prop_assert_eq!(Some(bytes.len()), format.byte_len(values.len())),
                Err(QuantizeError::RaggedRow { .. } | QuantizeError::RaggedMatrix { .. }) => prop_assert!(ragged),
                Err(QuantizeError::NonFinite { row, column, .. }) => {
                    prop_assert!(!values[row * columns + column].is_finite());
                }
                Err(QuantizeError::ScaleOverflow { largest, .. }) => prop_assert!(largest > 60_000.0),
                Err(other) => prop_assert!(false, "{other}"),
            }
        }
    }

    /// What is written reads back near what it was: no value is further off than its block is wide.
    #[test]
    fn values_come_back(values in prop::collection::vec(-2.0_f32..2.0, 512), weighted: bool) {
        let importance = vec![1.0; 256];
        for format in formats() {
            let bytes = format.quantize(&values, 256, weighted.then_some(&importance)).unwrap();
            let mut file = File::new();
            file.tensor(b"x", &[256, 2], format.id(), 0);
            file.data = bytes;
            let found = Gguf::from_bytes(file.bytes()).unwrap().tensor("x").unwrap().dequantize().unwrap();
            let squares = |values: &mut dyn Iterator<Item = f32>| values.map(|x| f64::from(x).powi(2)).sum::<f64>();
            let error = squares(&mut found.iter().zip(&values).map(|(a, b)| a - b));
            // The fewest bits, two, leave about a third of the norm of uniform values.
            prop_assert!(error.sqrt() <= 0.4 * squares(&mut values.iter().copied()).sqrt(), "{}", format);
        }
    }
}
