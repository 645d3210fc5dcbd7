//! Equality with tensors written by bitsandbytes 0.50.2 on a CPU: `golden/bnb_nf4_golden.safetensors`.

use half::bf16;
use qlora_quant::bnb::{self, BnbDtype, BnbError, RawTensor};
use qlora_quant::{Nf4Options, Nf4Tensor, SourceDtype, dynamic_map};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};

fn golden() -> Vec<u8> {
    std::fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/bnb_nf4_golden.safetensors")).unwrap()
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks::<4>().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect()
}

fn raw<'a>(view: &'a TensorView<'a>) -> RawTensor<'a> {
    let dtype = match view.dtype() {
        Dtype::U8 => BnbDtype::U8,
        Dtype::F32 => BnbDtype::F32,
        other => panic!("{other:?}"),
    };
    RawTensor { dtype, shape: view.shape(), bytes: view.data() }
}

/// The quantized weights of the golden: name, the values it was made from, and their type.
fn weights(golden: &SafeTensors<'_>) -> [(&'static str, Vec<f32>, Vec<usize>, SourceDtype); 3] {
    let values = |name: &str| floats(golden.tensor(name).unwrap().data());
    let rounded = values("input").into_iter().map(|value| bf16::from_f32(value).to_f32()).collect();
    [
        ("a", values("input"), vec![64, 512], SourceDtype::F32),
        ("b16", rounded, vec![64, 512], SourceDtype::Bf16),
        ("tail", values("tail.input"), vec![3, 37], SourceDtype::F32),
    ]
}

#[test]
fn writes_what_bitsandbytes_writes() {
    let file = golden();
    let golden = SafeTensors::deserialize(&file).unwrap();
    for (name, values, shape, dtype) in weights(&golden) {
        let options = Nf4Options { double_quant: true, dtype, ..Nf4Options::default() };
        let weight = Nf4Tensor::quantize(&values, &shape, options).unwrap();
        let tensors = bnb::to_tensors(&weight);
        let stored = golden.names().into_iter().filter(|n| n.starts_with(&format!("{name}.weight"))).count();
        assert_eq!(tensors.len(), stored);
        for tensor in tensors {
            let full = format!("{name}.weight{}", tensor.suffix);
            let expected = golden.tensor(&full).unwrap();
            assert_eq!(
                (tensor.dtype, tensor.shape.as_slice()),
                (raw(&expected).dtype, expected.shape()),
                "{full}"
            );
            if tensor.suffix.starts_with(".quant_state") {
                // The offset is torch's mean, summed in f32: the last digits may differ.
                let split = |json: &[u8]| {
                    let json = std::str::from_utf8(json).unwrap().to_owned();
                    let (text, offset) = json.split_once("\"nested_offset\": ").unwrap();
                    (text.to_owned(), offset.trim_end_matches('}').parse::<f32>().unwrap())
                };
                let ((text, offset), (expected, expected_offset)) =
                    (split(&tensor.bytes), split(expected.data()));
                assert_eq!(text, expected);
                let ulps = offset.to_bits().abs_diff(expected_offset.to_bits());
                assert!(ulps <= 1, "{full}: {offset} and {expected_offset}");
            } else if tensor.suffix == ".nested_absmax" {
                for (found, expected) in floats(&tensor.bytes).into_iter().zip(floats(expected.data())) {
                    assert!((found - expected).abs() <= 1.2e-7, "{full}: {found} and {expected}");
                }
            } else {
                assert_eq!(tensor.bytes, expected.data(), "{full}");
            }
        }
    }
}

#[test]
fn reads_what_bitsandbytes_wrote_and_writes_it_back() {
    let file = golden();
    let golden = SafeTensors::deserialize(&file).unwrap();
    let views: Vec<(String, TensorView<'_>)> = golden.tensors();
    let get = |name: &str| views.iter().find(|(n, _)| n == name).map(|(_, view)| raw(view));
    for (name, _, shape, dtype) in weights(&golden) {
        let name = format!("{name}.weight");
        assert!(bnb::is_nf4(&name, |name| get(name).is_some()));
        let weight = bnb::from_tensors(&name, get).unwrap();
        assert_eq!((weight.shape(), weight.dtype()), (shape.as_slice(), dtype));
        for tensor in bnb::to_tensors(&weight) {
            assert_eq!(tensor.bytes, get(&format!("{name}{}", tensor.suffix)).unwrap().bytes);
        }
        let expected = golden.tensor(&name.replace("weight", "dequant")).unwrap();
        if dtype == SourceDtype::Bf16 {
            let mut values = vec![bf16::ZERO; weight.len()];
            weight.dequantize_into(0, &mut values);
            let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
            assert_eq!(bytes, expected.data());
        } else {
            assert_eq!(weight.dequantize(), floats(expected.data()));
        }
    }
}

#[test]
fn dynamic_maps_are_those_of_bitsandbytes() {
    let file = golden();
    let golden = SafeTensors::deserialize(&file).unwrap();
    for (name, map) in [("signed", dynamic_map::signed()), ("unsigned", dynamic_map::unsigned())] {
        let expected = golden.tensor(&format!("dynamic_map_{name}")).unwrap();
        assert_eq!(map.values().as_slice(), floats(expected.data()));
        assert_eq!(map.values()[usize::from(map.zero())], 0.0);
    }
}

type Changed = (BnbDtype, Vec<usize>, Vec<u8>);

/// One tensor of a good checkpoint is replaced or taken away; the error must name it.
#[test]
fn damaged_checkpoints_name_the_tensor() {
    let values: Vec<f32> = (0..4 * 33).map(|i| (i as f32).sin()).collect();
    let options = Nf4Options { double_quant: true, ..Nf4Options::default() };
    let weight = Nf4Tensor::quantize(&values, &[4, 33], options).unwrap();
    let tensors = bnb::to_tensors(&weight);
    let read = |suffix: &str, change: &dyn Fn(RawTensor<'_>) -> Option<Changed>| {
        let changed = tensors.iter().find(|tensor| tensor.suffix == suffix).unwrap();
        let changed =
            change(RawTensor { dtype: changed.dtype, shape: &changed.shape, bytes: &changed.bytes });
        bnb::from_tensors("w", |name| {
            let name = name.strip_prefix('w')?;
            if name == suffix {
                return changed.as_ref().map(|(dtype, shape, bytes)| RawTensor {
                    dtype: *dtype,
                    shape,
                    bytes,
                });
            }
            let tensor = tensors.iter().find(|tensor| tensor.suffix == name)?;
            Some(RawTensor { dtype: tensor.dtype, shape: &tensor.shape, bytes: &tensor.bytes })
        })
    };
    let keep = |raw: RawTensor<'_>| Some((raw.dtype, raw.shape.to_vec(), raw.bytes.to_vec()));
    assert_eq!(read("", &keep), Ok(weight.clone()));

    for tensor in &tensors {
        let suffix = tensor.suffix;
        let full = format!("w{suffix}");
        let missing = read(suffix, &|_| None).unwrap_err();
        assert!(matches!(&missing, BnbError::Missing { tensor, .. } if *tensor == full), "{missing}");

        let shorter = read(suffix, &|raw| {
            let size = if raw.dtype == BnbDtype::F32 { 4 } else { 1 };
            let shape = vec![raw.bytes.len() / size - 1];
            let bytes = raw.bytes[..shape[0] * size].to_vec();
            Some((raw.dtype, shape, bytes))
        });
        let shorter = shorter.unwrap_err();
        assert!(shorter.to_string().contains(&format!("`{full}`")), "{shorter}");

        let lying =
            read(suffix, &|raw| Some((raw.dtype, vec![usize::MAX, 3], raw.bytes.to_vec()))).unwrap_err();
        assert!(matches!(&lying, BnbError::Length { tensor, .. } if *tensor == full), "{lying}");

        if tensor.dtype == BnbDtype::F32 {
            let nan = read(suffix, &|raw| {
                let mut bytes = raw.bytes.to_vec();
                bytes[..4].copy_from_slice(&f32::NAN.to_le_bytes());
                Some((raw.dtype, raw.shape.to_vec(), bytes))
            });
            let nan = nan.unwrap_err();
            assert!(matches!(&nan, BnbError::NonFinite { index: 0, .. }), "{nan}");
        } else if !suffix.is_empty() {
            let other =
                read(suffix, &|raw| Some((BnbDtype::F32, vec![raw.bytes.len()], raw.bytes.repeat(4))));
            let other = other.unwrap_err();
            assert!(matches!(&other, BnbError::Dtype { tensor, .. } if *tensor == full), "{other}");
        }
    }

    let huge = read(".quant_state.bitsandbytes__nf4", &|raw| {
        let json = String::from_utf8(raw.bytes.to_vec()).unwrap();
        let json = json.replace("[4, 33]", "[18446744073709551615, 18446744073709551615]");
        Some((raw.dtype, vec![json.len()], json.into_bytes()))
    });
    assert!(matches!(huge, Err(BnbError::QuantState { key: "shape", .. })), "{huge:?}");
}
