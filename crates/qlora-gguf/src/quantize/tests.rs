use proptest::prelude::*;

use super::*;

const FORMATS: [GgmlType; 15] = [
    GgmlType::F32,
    GgmlType::F16,
    GgmlType::Bf16,
    GgmlType::Q8_0,
    GgmlType::Q4_0,
    GgmlType::Q4_1,
    GgmlType::Q5_0,
    GgmlType::Q5_1,
    GgmlType::Q2K,
    GgmlType::Q3K,
    GgmlType::Q4K,
    GgmlType::Q5K,
    GgmlType::Q6K,
    GgmlType::Iq4Nl,
    GgmlType::Iq4Xs,
];

#[test]
fn these_are_all_that_are_written() {
    let encodable: Vec<_> = GgmlType::ALL.iter().filter(|t| t.is_encodable()).collect();
    assert_eq!(encodable.len(), FORMATS.len());
    assert!(FORMATS.iter().all(|format| encodable.contains(&format)));
}

/// Bit patterns: whatever an f32 can be, finite, mostly near 1.
fn finite() -> impl Strategy<Value = f32> {
    prop_oneof![
        8 => -1.0_f32..1.0,
        1 => Just(0.0),
        1 => Just(-0.0),
        1 => any::<u32>().prop_map(f32::from_bits).prop_filter("finite", |x| x.is_finite()),
        1 => any::<i8>().prop_map(|x| f32::from(x) / 16.0),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// However many values at a time: the same bytes, or the same refusal.
    #[test]
    fn every_instruction_set_gives_the_same_bytes(
        values in prop::collection::vec(finite(), 3 * 768),
        scale in prop_oneof![Just(1.0_f32), Just(1e-3), Just(1e-20), Just(1e3)],
        importance in prop::collection::vec(prop_oneof![0.0_f32..100.0, Just(0.0)], 768),
        weighted: bool,
    ) {
        let values: Vec<f32> =
            values.iter().map(|x| x * scale).map(|x| if x.is_finite() { x } else { 1.0 }).collect();
        let rows = Rows { values: &values, columns: 768, importance: weighted.then_some(&importance) };
        for format in FORMATS {
            let mut reference = vec![0xaa; format.byte_len(values.len()).unwrap()];
            let expected = format.quantize_rows(Isa::Scalar, rows, &mut reference);
            for isa in Isa::available() {
                let mut found = vec![0x55; reference.len()];
                prop_assert_eq!(format.quantize_rows(isa, rows, &mut found), expected.clone());
                if expected.is_ok() {
                    prop_assert!(found == reference, "{} with {:?}", format, isa);
                }
            }
        }
    }
}
