//! What holds for any values: error bounds, round trips, pieces and ranges.

use half::{bf16, f16};
use proptest::prelude::*;
use qlora_quant::bnb::{self, RawTensor};
use qlora_quant::nf4::{CODEBOOK, THRESHOLDS, ZERO_CODE, packed_len, quantize_into};
use qlora_quant::{
    BlockSize, DoubleQuantized, Nf4Options, Nf4Tensor, QuantError, Scales, SourceDtype, dynamic_map,
};

fn block_sizes() -> impl Iterator<Item = BlockSize> {
    (5..=12).map(|log2| BlockSize::new(1 << log2).unwrap())
}

fn any_block() -> impl Strategy<Value = BlockSize> {
    (5..=12u32).prop_map(|log2| BlockSize::new(1 << log2).unwrap())
}

fn any_values() -> impl Strategy<Value = Vec<f32>> {
    let value = prop_oneof![
        8 => -1.0f32..1.0,
        1 => prop::num::f32::NORMAL | prop::num::f32::SUBNORMAL | prop::num::f32::ZERO,
        1 => Just(0.0),
    ];
    prop::collection::vec(value, 0..700)
}

fn code(codes: &[u8], i: usize) -> u8 {
    codes[i / 2] >> (4 * (1 - i % 2)) & 15
}

#[test]
fn thresholds_are_the_midpoints() {
    for (k, &threshold) in THRESHOLDS.iter().enumerate() {
        let midpoint = (f64::from(CODEBOOK[k]) + f64::from(CODEBOOK[k + 1])) / 2.0;
        let half_ulp = f64::from(threshold.next_up() - threshold) / 2.0;
        assert!((f64::from(threshold) - midpoint).abs() <= half_ulp, "{threshold} {midpoint}");
    }
}

#[test]
fn block_sizes_are_checked() {
    for good in block_sizes() {
        assert_eq!(BlockSize::new(good.get()), Ok(good));
    }
    for found in [0, 1, 16, 48, 8192, usize::MAX] {
        assert_eq!(BlockSize::new(found), Err(QuantError::BlockSize { found }));
    }
}

#[test]
fn a_tie_takes_the_lower_code() {
    let mut values = THRESHOLDS.to_vec();
    values.push(1.0);
    let weight = Nf4Tensor::quantize(&values, &[16], Nf4Options::default()).unwrap();
    for k in 0..15 {
        assert_eq!(usize::from(code(weight.codes(), k)), k);
    }
}

#[test]
fn zeros_and_odd_tails() {
    for block_size in block_sizes() {
        for elements in [0, 1, 31, 33, block_size.get(), block_size.get() + 1, 3 * block_size.get() - 1] {
            for double_quant in [false, true] {
                let options = Nf4Options { block_size, double_quant, ..Nf4Options::default() };
                let weight = Nf4Tensor::quantize(&vec![0.0; elements], &[elements], options).unwrap();
                assert_eq!(weight.codes(), vec![ZERO_CODE << 4 | ZERO_CODE; packed_len(elements)]);
                assert_eq!(weight.absmax().into_owned(), vec![0.0; block_size.count(elements)]);
                assert_eq!(weight.dequantize(), vec![0.0; elements]);

                let ones = Nf4Tensor::quantize(&vec![-1.0; elements], &[1, elements], options).unwrap();
                assert_eq!(ones.dequantize(), vec![-1.0; elements]);
                if elements % 2 == 1 {
                    assert_eq!(ones.codes().last(), Some(&ZERO_CODE));
                }
            }
        }
    }
}

#[test]
fn non_finite_values_are_found() {
    for bad in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for (elements, index) in [(1, 0), (100, 99), (200_000, 199_998), (200_000, 3)] {
            let mut values = vec![0.5; elements];
            values[index] = bad;
            values[elements - 1] = bad;
            let error = Nf4Tensor::quantize(&values, &[elements], Nf4Options::default()).unwrap_err();
            assert!(matches!(error, QuantError::NonFinite { index: found, .. } if found == index), "{error}");
            assert!(
                matches!(DoubleQuantized::quantize(&values), Err(QuantError::NonFinite { index: found, .. }) if found == index)
            );
        }
    }
}

#[test]
fn parts_must_fit() {
    let scales = || Scales::Plain(vec![1.0; 2]);
    let make = |shape: &[usize], codes, scales| {
        Nf4Tensor::from_parts(
            shape.to_vec(),
            BlockSize::NF4,
            vec![0; codes],
            scales,
            CODEBOOK,
            SourceDtype::F32,
        )
    };
    assert!(make(&[3, 37], 56, scales()).is_ok());
    let length = |result: Result<Nf4Tensor, QuantError>| match result {
        Err(QuantError::Length { part, expected, found, .. }) => (part, expected, found),
        other => panic!("{other:?}"),
    };
    assert_eq!(length(make(&[3, 37], 55, scales())), ("codes", 56, 55));
    assert_eq!(length(make(&[3, 37], 56, Scales::Plain(vec![1.0; 3]))), ("absmax", 2, 3));
    assert!(matches!(make(&[usize::MAX, 2], 56, scales()), Err(QuantError::ShapeOverflow { .. })));
    let short = Nf4Tensor::quantize(&[0.0; 5], &[2, 3], Nf4Options::default());
    assert_eq!(length(short), ("values", 6, 5));
}

/// Pieces on many threads and the whole on one: a size that several tasks share.
#[test]
fn pieces_equal_the_whole() {
    let values: Vec<f32> = (0..100_003).map(|i| (i as f32 * 0.37).sin() * (i as f32 * 1e-3).cos()).collect();
    for block_size in block_sizes() {
        let options = Nf4Options { block_size, ..Nf4Options::default() };
        let whole = Nf4Tensor::quantize(&values, &[values.len()], options).unwrap();
        let (mut codes, mut absmax) = (Vec::new(), Vec::new());
        for piece in values.chunks(3 * block_size.get()) {
            let (mut c, mut a) = (vec![0; packed_len(piece.len())], vec![0.0; block_size.count(piece.len())]);
            quantize_into(piece, block_size, &mut c, &mut a).unwrap();
            codes.extend(c);
            absmax.extend(a);
        }
        assert_eq!((whole.codes(), whole.absmax().as_ref()), (codes.as_slice(), absmax.as_slice()));
    }
}

proptest! {
    /// Every code is the one of the threshold rule, and so |x - x̂| is at most half the widest gap
    /// between neighbours of the codebook, times absmax.
    #[test]
    fn nf4_error_is_bounded(values in any_values(), block_size in any_block()) {
        let options = Nf4Options { block_size, ..Nf4Options::default() };
        let weight = Nf4Tensor::quantize(&values, &[values.len()], options).unwrap();
        let absmax = weight.absmax();
        for (i, (&x, back)) in values.iter().zip(weight.dequantize()).enumerate() {
            let absmax = absmax[i / block_size.get()];
            let reciprocal = 1.0 / absmax;
            if reciprocal.is_finite() {
                let expected = THRESHOLDS.iter().filter(|&&threshold| x * reciprocal > threshold).count();
                prop_assert_eq!(usize::from(code(weight.codes(), i)), expected);
            }
            let error = (f64::from(x) - f64::from(back)).abs();
            prop_assert!(error <= f64::from(absmax) * 0.1520 + 2e-45, "{} {} {}", x, back, absmax);
        }
    }

    #[test]
    fn double_quantization_error_is_bounded(scales in prop::collection::vec(0.0f32..10.0, 1..600)) {
        let double = DoubleQuantized::quantize(&scales).unwrap();
        prop_assert_eq!(double.len(), scales.len());
        let back = double.dequantize();
        for (i, (scale, back)) in scales.iter().zip(&back).enumerate() {
            // Half the widest gap of the signed map, which is 0.0141.
            let bound = double.nested_absmax()[i / 256] * 0.00705 + 2e-6;
            prop_assert!((scale - back).abs() <= bound, "{scale} {back}");
        }
        let mut some = vec![0.0; scales.len() - scales.len() / 3];
        double.dequantize_into(scales.len() / 3, &mut some);
        prop_assert_eq!(&some, &back[scales.len() / 3..]);
    }

    /// Any range in any type equals the whole in f32, rounded once.
    #[test]
    fn ranges_equal_the_whole(
        values in any_values(),
        block_size in any_block(),
        double_quant: bool,
        cut in (0.0..1.0f64, 0.0..1.0f64),
    ) {
        let options = Nf4Options { block_size, double_quant, ..Nf4Options::default() };
        let weight = Nf4Tensor::quantize(&values, &[values.len()], options).unwrap();
        let whole = weight.dequantize();
        let start = (values.len() as f64 * cut.0) as usize;
        let length = ((values.len() - start) as f64 * cut.1) as usize;
        let expected = &whole[start..start + length];

        let (mut single, mut brain, mut half) = (vec![0.0f32; length], vec![bf16::ZERO; length], vec![f16::ZERO; length]);
        weight.dequantize_into(start, &mut single);
        weight.dequantize_into(start, &mut brain);
        weight.dequantize_into(start, &mut half);
        prop_assert_eq!(&single, expected);
        prop_assert_eq!(brain, expected.iter().map(|&value| bf16::from_f32(value)).collect::<Vec<_>>());
        prop_assert_eq!(half, expected.iter().map(|&value| f16::from_f32(value)).collect::<Vec<_>>());
    }

    #[test]
    fn checkpoint_tensors_read_back_equal(values in any_values(), block_size in any_block(), double_quant: bool) {
        let dtype = if values.len() % 2 == 0 { SourceDtype::F16 } else { SourceDtype::Bf16 };
        let weight = Nf4Tensor::quantize(&values, &[1, values.len()], Nf4Options { block_size, double_quant, dtype });
        let weight = weight.unwrap();
        let tensors = bnb::to_tensors(&weight);
        let back = bnb::from_tensors("layer.weight", |name| {
            let tensor = tensors.iter().find(|t| Some(t.suffix) == name.strip_prefix("layer.weight"))?;
            Some(RawTensor { dtype: tensor.dtype, shape: &tensor.shape, bytes: &tensor.bytes })
        });
        prop_assert_eq!(back, Ok(weight));
    }

    #[test]
    fn eight_bit_codes_are_nearest(values in any_values(), block_size in any_block()) {
        let (mut codes, mut absmax) = (vec![0; values.len()], vec![0.0; block_size.count(values.len())]);
        let map = dynamic_map::signed();
        map.quantize_into(&values, block_size, &mut codes, &mut absmax).unwrap();
        let mut back = vec![0.0; values.len()];
        map.dequantize_into(&codes, &absmax, block_size, &mut back);
        for (i, (&x, &back)) in values.iter().zip(&back).enumerate() {
            let absmax = f64::from(absmax[i / block_size.get()]);
            let distance = |value: f32| (f64::from(value) * absmax - f64::from(x)).abs();
            let least = map.values().iter().map(|&value| distance(value)).fold(f64::INFINITY, f64::min);
            let found = distance(map.values()[usize::from(codes[i])]);
            prop_assert!(found <= least + absmax * 2e-7, "{x}: {back}, {found} and {least}");
        }
    }
}

/// Read in pieces from several threads, a weight becomes the same bits; the place of a bad number is that in the whole.
#[test]
fn a_weight_in_pieces_is_the_weight_whole() {
    let shape = [77, 1111];
    let mut values: Vec<f32> =
        (0..77 * 1111).map(|i| ((i * 7919 % 10_007) as f32 / 5000.0 - 1.0) * 0.3).collect();
    for (block_size, double_quant) in [(64, true), (32, false), (4096, true)] {
        let block_size = BlockSize::new(block_size).unwrap();
        let options = Nf4Options { block_size, double_quant, ..Nf4Options::default() };
        let read = |range: std::ops::Range<usize>, piece: &mut [f32]| {
            piece.copy_from_slice(&values[range]);
            Ok::<(), QuantError>(())
        };
        let whole = Nf4Tensor::quantize(&values, &shape, options).unwrap();
        assert!(Nf4Tensor::quantize_pieces(&shape, options, read).unwrap() == whole);
    }
    values[70_001] = f32::NAN;
    let read = |range: std::ops::Range<usize>, piece: &mut [f32]| {
        piece.copy_from_slice(&values[range]);
        Ok::<(), QuantError>(())
    };
    let error = Nf4Tensor::quantize_pieces(&shape, Nf4Options::default(), read).unwrap_err();
    assert!(matches!(error, QuantError::NonFinite { index: 70_001, .. }), "{error}");
    let failing =
        |_: std::ops::Range<usize>, _: &mut [f32]| Err(QuantError::ShapeOverflow { shape: vec![1] });
    assert!(Nf4Tensor::quantize_pieces(&shape, Nf4Options::default(), failing).is_err());
}
