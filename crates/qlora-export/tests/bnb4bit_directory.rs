//! NF4 checkpoints as bitsandbytes stores them.
#![cfg(feature = "flex")]

use std::fs;
use std::path::Path;

use qlora_export::{
    Bnb4BitOptions, ExportError, ExportSource, FloatType, MergeBase, Probe, SafetensorsOptions, Tolerance,
    Verification, VerifyError, export_bnb_4bit, export_safetensors, verify, verify_bnb_4bit,
};
use qlora_files::safetensors::{
    Checkpoint as Tensors, Dtype, SafetensorsFile, TensorBytes, write_safetensors,
};
use qlora_kernels::{Flex, FlexDevice};
use qlora_lora::AdapterFactors;
use qlora_models::{AdapterSet, Checkpoint};
use qlora_quant::Nf4Options;
use serde_json::{Value, json};

const HIDDEN: usize = 512;
const INNER: usize = 64;

/// A checkpoint of one layer whose `up_proj` is the golden matrix; the other numbers are any.
fn checkpoint(golden: &[f32], folder: &Path) -> Checkpoint {
    fs::create_dir_all(folder).unwrap();
    let config = json!({
        "model_type": "llama", "hidden_size": HIDDEN, "intermediate_size": INNER, "num_hidden_layers": 1,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 40, "max_position_embeddings": 64,
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu", "tie_word_embeddings": true,
    });
    fs::write(folder.join("config.json"), config.to_string()).unwrap();
    let layer = |name: &str| format!("model.layers.0.{name}.weight");
    let tensors: Vec<(String, Vec<usize>)> = vec![
        ("model.embed_tokens.weight".into(), vec![40, HIDDEN]),
        ("model.norm.weight".into(), vec![HIDDEN]),
        (layer("input_layernorm"), vec![HIDDEN]),
        (layer("post_attention_layernorm"), vec![HIDDEN]),
        (layer("self_attn.q_proj"), vec![HIDDEN, HIDDEN]),
        (layer("self_attn.k_proj"), vec![HIDDEN / 2, HIDDEN]),
        (layer("self_attn.v_proj"), vec![HIDDEN / 2, HIDDEN]),
        (layer("self_attn.o_proj"), vec![HIDDEN, HIDDEN]),
        (layer("mlp.gate_proj"), vec![INNER, HIDDEN]),
        (layer("mlp.up_proj"), vec![INNER, HIDDEN]),
        (layer("mlp.down_proj"), vec![HIDDEN, INNER]),
    ];
    let values: Vec<Vec<f32>> = tensors
        .iter()
        .map(|(name, shape)| match name.contains("up_proj") {
            true => golden.to_vec(),
            false => (0..shape.iter().product()).map(|i: usize| (i % 31) as f32 / 64.0 - 0.25).collect(),
        })
        .collect();
    let tensors =
        tensors.iter().zip(&values).map(|((name, shape), v)| TensorBytes::f32(name, shape.clone(), v));
    write_safetensors(folder.join("model.safetensors"), tensors, &[]).unwrap();
    Checkpoint::open(folder).unwrap()
}

fn export_and_verify(
    source: ExportSource<'_>,
    options: Bnb4BitOptions,
    out: &Path,
) -> Result<Verification, ExportError> {
    export_bnb_4bit(source, options, out, &mut |_, _| {})?;
    reopen(source, options, out)
}

fn reopen(
    source: ExportSource<'_>,
    options: Bnb4BitOptions,
    out: &Path,
) -> Result<Verification, ExportError> {
    let probe = Probe::of_checkpoint(source.checkpoint())?;
    verify_bnb_4bit::<Flex>(source, options, out, &probe, u64::MAX, &FlexDevice)
}

fn quantization_config(folder: &Path) -> Value {
    let config: Value = serde_json::from_slice(&fs::read(folder.join("config.json")).unwrap()).unwrap();
    config["quantization_config"].clone()
}

/// An adapter of rank 2 on every linear layer.
fn adapter(checkpoint: &Checkpoint) -> AdapterSet {
    let noise = |count: usize, seed: usize| -> Vec<f32> {
        (0..count).map(|i| ((i * 37 + seed * 11) as f32 * 0.61).sin() / 8.0).collect()
    };
    let layers = checkpoint.config().linears().enumerate().map(|(index, (path, [outputs, inputs]))| {
        let (a, b) = (noise(2 * inputs, index), noise(outputs * 2, index + 500));
        (path, (AdapterFactors { a, b, rank: 2, inputs, outputs, magnitude: None }, 0.5))
    });
    AdapterSet { layers: layers.collect() }
}

#[test]
fn bytes_are_those_of_bitsandbytes() {
    let Some(path) = qlora_testing::golden("nf4/bnb_nf4_golden.safetensors") else { return };
    let golden = SafetensorsFile::open(path).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = checkpoint(&golden.to_f32("input").unwrap(), &folder.path().join("source"));
    let weight = "model.layers.0.mlp.up_proj.weight";
    for (double_quant, name, shard_size) in [(true, "nested", 5_000_000_000), (false, "plain", 400_000)] {
        let out = folder.path().join(name);
        let nf4 = Nf4Options { double_quant, ..Nf4Options::default() };
        let options = Bnb4BitOptions { nf4, dtype: FloatType::F32, shard_size };
        let source = ExportSource::new(&checkpoint);
        let exported = export_bnb_4bit(source, options, &out, &mut |_, _| {}).unwrap();
        assert_eq!((exported.tensors, exported.files > 1), (11, !double_quant));
        let verified = reopen(source, options, &out).unwrap();
        assert_eq!((verified.tensors, verified.tensor_error), (11, 0.0));
        assert!(verified.logits.unwrap().relative < 1e-4, "{verified:?}");
        let written = Tensors::open(&out).unwrap();
        let parts: Vec<&str> = written.names().filter_map(|name| name.strip_prefix(weight)).collect();
        assert_eq!(parts.len(), if double_quant { 6 } else { 4 }, "{parts:?}");
        // Codes and their values are the same with and without double quantization; the golden has the former.
        for part in parts.into_iter().filter(|part| double_quant || ["", ".quant_map"].contains(part)) {
            let expected = golden.tensor(&format!("a.weight{part}")).unwrap();
            let found = written.tensor(&format!("{weight}{part}")).unwrap();
            assert_eq!((found.dtype(), found.shape()), (expected.dtype(), expected.shape()), "{part}");
            if part == ".nested_absmax" {
                // Of scales less their mean, which torch sums in f32.
                let [found, expected] = [found, expected].map(|tensor| tensor.to_f32().unwrap());
                assert!(found.iter().zip(&expected).all(|(a, b)| (a - b).abs() <= 1.2e-7));
            } else {
                assert!(found.bytes() == expected.bytes(), "{part}");
            }
        }
        if !double_quant {
            // The largest of each block, in f32.
            let input = golden.to_f32("input").unwrap();
            let largest =
                input.chunks(64).map(|block| block.iter().fold(0.0_f32, |most, x| most.max(x.abs())));
            let bytes: Vec<u8> = largest.flat_map(f32::to_le_bytes).collect();
            let found = written.tensor(&format!("{weight}.absmax")).unwrap();
            assert_eq!((found.dtype(), found.shape()), (Dtype::F32, &[512][..]));
            assert!(found.bytes() == bytes);
        }

        let quantization = quantization_config(&out);
        assert_eq!(quantization["llm_int8_skip_modules"], json!(["lm_head"]));
        assert_eq!(quantization["bnb_4bit_use_double_quant"], double_quant);
        assert_eq!(quantization["bnb_4bit_quant_type"], "nf4");
        assert_eq!(quantization["bnb_4bit_compute_dtype"], "float32");
    }
}

#[test]
fn verification_finds_a_flipped_code() {
    let golden: Vec<f32> = (0..INNER * HIDDEN).map(|i| (i as f32 * 0.37).sin()).collect();
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = checkpoint(&golden, &folder.path().join("source"));
    let (source, out) = (ExportSource::new(&checkpoint), folder.path().join("out"));
    let options = Bnb4BitOptions::default();
    export_bnb_4bit(source, options, &out, &mut |_, _| {}).unwrap();
    reopen(source, options, &out).unwrap();
    let path = out.join("model.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    let codes = SafetensorsFile::open(&path).unwrap();
    let name = "model.layers.0.mlp.down_proj.weight";
    let found = codes.tensor(name).unwrap().bytes();
    let at = bytes.windows(found.len()).position(|window| window == found).unwrap();
    drop(codes);
    bytes[at + 100] ^= 1;
    fs::write(&path, bytes).unwrap();
    let error = reopen(source, options, &out).unwrap_err();
    let ExportError::Verify(source) = &error else { panic!("{error}") };
    let VerifyError::Tensors { problem, .. } = &**source else { panic!("{error}") };
    assert!(problem.contains(name), "{error}");
}

#[test]
fn an_adapter_is_merged_before_weights_are_quantized() {
    let Some(source) = qlora_testing::golden("tiny/llama") else { return };
    let checkpoint = Checkpoint::open(source).unwrap();
    let set = adapter(&checkpoint);
    let folder = tempfile::tempdir().unwrap();
    let source = ExportSource::new(&checkpoint).with_adapter(&set).unwrap();
    let options = Bnb4BitOptions { dtype: FloatType::F32, ..Bnb4BitOptions::default() };
    for (name, source) in [
        ("original", source),
        ("dequantized", source.with_base(MergeBase::Dequantized(Nf4Options::default()))),
    ] {
        let out = folder.path().join(name);
        let verified = export_and_verify(source, options, &out).unwrap();
        assert_eq!(verified.tensors, checkpoint.config().tensors().len());
        let relative = verified.logits.unwrap().relative;
        assert!(relative > 1e-3 && relative < 0.6, "{name}: {relative}");
    }
    // The model without the adapter has other weights.
    let error = reopen(ExportSource::new(&checkpoint), options, &folder.path().join("original")).unwrap_err();
    assert!(matches!(error, ExportError::Verify(_)), "{error}");
}

#[test]
fn routers_of_experts_are_named_as_left_in_floats() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../qlora-models/tests/golden/qwen3_moe");
    let checkpoint = Checkpoint::open(golden).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let options = Bnb4BitOptions { dtype: FloatType::F32, ..Bnb4BitOptions::default() };
    let verified = export_and_verify(ExportSource::new(&checkpoint), options, &out).unwrap();
    assert!(verified.logits.unwrap().relative < 1e-4, "{verified:?}");
    let routers = (0..checkpoint.config().layers).map(|layer| format!("model.layers.{layer}.mlp.gate"));
    let expected: Vec<String> = ["lm_head".to_owned()].into_iter().chain(routers).collect();
    assert_eq!(quantization_config(&out)["llm_int8_skip_modules"], json!(expected));
    let written = Tensors::open(&out).unwrap();
    assert_eq!(written.tensor("model.layers.0.mlp.gate.weight").unwrap().dtype(), Dtype::F32);
    assert_eq!(written.tensor("model.layers.0.mlp.experts.0.up_proj.weight").unwrap().dtype(), Dtype::U8);
}

const LEFT_OUT: &str = "model.layers.1.mlp.down_proj";

/// The tiny llama in NF4 of this block size, one layer left in floats.
fn nf4_checkpoint(nf4: Nf4Options, folder: &Path) -> Option<Checkpoint> {
    let source = Checkpoint::open(qlora_testing::golden("tiny/llama")?).unwrap();
    let options = Bnb4BitOptions { nf4, dtype: FloatType::F32, ..Bnb4BitOptions::default() };
    export_bnb_4bit(ExportSource::new(&source), options, folder, &mut |_, _| {}).unwrap();
    let path = folder.join("model.safetensors");
    let file = SafetensorsFile::open(&path).unwrap();
    let mut kept: Vec<_> = file
        .tensors()
        .filter(|tensor| !tensor.name().starts_with(LEFT_OUT))
        .map(|t| (t.name().to_owned(), t.dtype(), t.shape().to_vec(), t.bytes().to_vec()))
        .collect();
    drop(file);
    let name = format!("{LEFT_OUT}.weight");
    let shape = vec![source.config().hidden_size, source.config().intermediate_size];
    let floats = source.tensor(&name, &shape).unwrap().into_iter().flat_map(f32::to_le_bytes).collect();
    kept.push((name, Dtype::F32, shape, floats));
    let tensors = kept.iter().map(|(name, dtype, shape, bytes)| {
        TensorBytes::new(name, *dtype, shape.as_slice(), bytes.as_slice())
    });
    write_safetensors(&path, tensors, &[]).unwrap();
    Some(Checkpoint::open(folder).unwrap())
}

#[test]
fn a_source_in_nf4_keeps_its_codes_and_its_floats() {
    let folder = tempfile::tempdir().unwrap();
    let stored =
        Nf4Options { block_size: qlora_quant::BlockSize::new(128).unwrap(), ..Nf4Options::default() };
    let Some(checkpoint) = nf4_checkpoint(stored, &folder.path().join("source")) else { return };
    let set = adapter(&checkpoint);
    let source = ExportSource::new(&checkpoint).with_adapter(&set).unwrap();
    // Blocks of 64 with double quantization would be other weights than those stored.
    let nf4 = Nf4Options { double_quant: true, ..Nf4Options::default() };
    let dequantized = source.with_base(MergeBase::Dequantized(nf4));
    for (path, shape) in checkpoint.config().linears() {
        let name = format!("{path}.weight");
        let [original, dequantized] =
            [source, dequantized].map(|source| source.tensor(&name, &shape).unwrap());
        assert!(original == dequantized, "{name}");
    }
    let out = folder.path().join("merged");
    let options = SafetensorsOptions { dtype: FloatType::F32, ..SafetensorsOptions::default() };
    export_safetensors(dequantized, options, &out, &mut |_, _| {}).unwrap();
    let probe = Probe::of_checkpoint(&checkpoint).unwrap();
    let tolerance = Tolerance { logits: 1e-5, ..FloatType::F32.tolerance() };
    verify::<Flex>(dequantized, &out, tolerance, &probe, u64::MAX, &FlexDevice).unwrap();

    let out = folder.path().join("nf4");
    let options = Bnb4BitOptions { nf4: stored, dtype: FloatType::F32, ..Bnb4BitOptions::default() };
    let verified = export_and_verify(ExportSource::new(&checkpoint), options, &out).unwrap();
    assert!(verified.logits.unwrap().relative < 1e-4, "{verified:?}");
    assert_eq!(quantization_config(&out)["llm_int8_skip_modules"], json!(["lm_head", LEFT_OUT]));
    let floats = Tensors::open(&out).unwrap().to_f32(&format!("{LEFT_OUT}.weight")).unwrap();
    let shape = [checkpoint.config().hidden_size, checkpoint.config().intermediate_size];
    assert!(floats == checkpoint.tensor(&format!("{LEFT_OUT}.weight"), &shape).unwrap());
}
