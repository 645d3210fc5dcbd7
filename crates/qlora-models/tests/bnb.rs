//! Checkpoints that bitsandbytes has quantized: taken as they are.
#![cfg(feature = "flex")]

use std::fs;
use std::path::Path;

use qlora_files::safetensors::{Dtype, SafetensorsFile, TensorBytes, write_safetensors};
use qlora_kernels::{Compute, Flex, FlexDevice};
use qlora_models::{Checkpoint, Decoder, LoadOptions, Pass, Quantization, TokenBatch, load};
use qlora_quant::bnb::{BnbDtype, to_tensors};
use qlora_quant::{Nf4Options, Nf4Tensor};
use serde_json::{Value, json};

const SKIPPED: &str = "model.layers.1.mlp.down_proj";

/// The tiny llama as transformers would save it after loading it in 4 bits, one layer left out.
fn write(folder: &Path, options: Nf4Options) -> Option<()> {
    let source = qlora_testing::golden("tiny/llama")?;
    let mut config: Value = serde_json::from_slice(&fs::read(source.join("config.json")).unwrap()).unwrap();
    config["quantization_config"] = json!({
        "quant_method": "bitsandbytes",
        "load_in_4bit": true,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": options.double_quant,
        "llm_int8_skip_modules": ["lm_head", SKIPPED],
    });
    fs::write(folder.join("config.json"), config.to_string()).unwrap();
    let file = SafetensorsFile::open(source.join("model.safetensors")).unwrap();
    let mut stored: Vec<(String, Dtype, Vec<usize>, Vec<u8>)> = Vec::new();
    for tensor in file.tensors() {
        let (name, values) = (tensor.name(), tensor.to_f32().unwrap());
        if !name.contains("_proj") || name.starts_with(SKIPPED) {
            let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
            stored.push((name.into(), Dtype::F32, tensor.shape().to_vec(), bytes));
            continue;
        }
        let weight = Nf4Tensor::quantize(&values, tensor.shape(), options).unwrap();
        for part in to_tensors(&weight) {
            let dtype = if part.dtype == BnbDtype::F32 { Dtype::F32 } else { Dtype::U8 };
            stored.push((format!("{name}{}", part.suffix), dtype, part.shape, part.bytes.into_owned()));
        }
    }
    let tensors = stored.iter().map(|(name, dtype, shape, bytes)| {
        TensorBytes::new(name, *dtype, shape.as_slice(), bytes.as_slice())
    });
    write_safetensors(folder.join("model.safetensors"), tensors, &[]).unwrap();
    Some(())
}

fn logits(model: &Decoder<Flex>) -> Vec<f32> {
    let batch = TokenBatch { ids: &[5, 9, 11, 3], lengths: &[4] };
    model.logits(model.hidden_states(batch, Pass::default())).into_data().to_vec().unwrap()
}

#[test]
fn stored_codes_are_taken_and_layers_left_out_stay_dense() {
    for double_quant in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let options = Nf4Options { double_quant, ..Nf4Options::default() };
        let Some(()) = write(folder.path(), options) else { return };
        let checkpoint = Checkpoint::open(folder.path()).unwrap();
        let open = |quantization| {
            let options = LoadOptions { quantization, compute: Compute::F32 };
            load::<Flex>(&checkpoint, options, &FlexDevice, &mut |_, _| {}).unwrap()
        };
        // The options are those of what would be quantized here: nothing.
        let quantized = open(Quantization::Nf4(Nf4Options::default()));
        let dense: Vec<String> = quantized
            .linears()
            .filter(|(_, linear)| matches!(linear.weight(), qlora_kernels::FrozenWeight::Dense(_)))
            .map(|(path, _)| path)
            .collect();
        assert_eq!(dense, [SKIPPED]);
        let difference = logits(&quantized)
            .iter()
            .zip(logits(&open(Quantization::None)))
            .map(|(a, b)| (a - b).abs())
            .fold(0.0, f32::max);
        assert!(difference < 1e-4, "off by {difference}");
        assert!(!checkpoint.config_json().unwrap().contains_key("quantization_config"));
    }
}

#[test]
fn other_quantizations_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let Some(()) = write(folder.path(), Nf4Options::default()) else { return };
    let path = folder.path().join("config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    for (keys, said) in [
        (json!({ "quant_method": "gptq", "bits": 4 }), "`gptq`"),
        (json!({ "quant_method": "bitsandbytes", "load_in_8bit": true }), "another type than NF4"),
    ] {
        config["quantization_config"] = keys;
        fs::write(&path, config.to_string()).unwrap();
        let error = Checkpoint::open(folder.path()).unwrap_err().to_string();
        assert!(error.contains("`quantization_config`") && error.contains(said), "{error}");
    }
}

#[test]
fn a_damaged_part_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let Some(()) = write(folder.path(), Nf4Options::default()) else { return };
    let path = folder.path().join("model.safetensors");
    let file = SafetensorsFile::open(&path).unwrap();
    let lost = "model.layers.0.self_attn.q_proj.weight.absmax";
    let kept: Vec<_> = file
        .tensors()
        .filter(|tensor| tensor.name() != lost)
        .map(|t| (t.name().to_owned(), t.dtype(), t.shape().to_vec(), t.bytes().to_vec()))
        .collect();
    drop(file);
    let tensors = kept.iter().map(|(name, dtype, shape, bytes)| {
        TensorBytes::new(name, *dtype, shape.as_slice(), bytes.as_slice())
    });
    write_safetensors(&path, tensors, &[]).unwrap();
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let loaded = load::<Flex>(&checkpoint, LoadOptions::default(), &FlexDevice, &mut |_, _| {});
    let error = loaded.unwrap_err().to_string();
    assert!(error.contains(lost), "{error}");
}
