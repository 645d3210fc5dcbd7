//! Checkpoint directories written, loaded again, and compared with what transformers computes.
#![cfg(feature = "flex")]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use burn::tensor::Tensor;
use qlora_export::{
    ExportError, ExportSource, ExportedCheckpoint, FloatType, PeftAdapter, SafetensorsOptions,
    export_safetensors,
};
use qlora_files::safetensors::{SafetensorsFile, TensorBytes, write_safetensors};
use qlora_kernels::{Flex, FlexDevice};
use qlora_lora::{AdapterFactors, LoraError};
use qlora_models::{AdapterSet, Checkpoint, Decoder, GenerateOptions, LoadOptions, Pass, TokenBatch, load};
use serde_json::{Value, json};

fn export(
    checkpoint: &Checkpoint,
    adapter: Option<&AdapterSet>,
    dtype: FloatType,
    directory: &Path,
) -> Result<ExportedCheckpoint, ExportError> {
    let mut source = ExportSource::new(checkpoint);
    if let Some(adapter) = adapter {
        source = source.with_adapter(adapter)?;
    }
    let options = SafetensorsOptions { dtype, ..SafetensorsOptions::default() };
    export_safetensors(source, options, directory, &mut |_, _| {})
}

fn load_f32(checkpoint: &Checkpoint) -> Decoder<Flex> {
    load(checkpoint, LoadOptions::default(), &FlexDevice, &mut |_, _| {}).unwrap()
}

fn json_file(path: impl AsRef<Path>) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    serde_json::from_value(value.clone()).unwrap()
}

fn values(tensor: Tensor<Flex, 2>) -> Vec<f32> {
    tensor.into_data().to_vec().unwrap()
}

fn logits(model: &Decoder<Flex>, ids: &[u32]) -> Vec<f32> {
    values(model.logits(model.hidden_states(TokenBatch { ids, lengths: &[ids.len()] }, Pass::default())))
}

/// The small checkpoint with one number of `model.norm.weight` replaced.
fn tiny_with(number: f32, folder: &Path) -> Option<Checkpoint> {
    let source = qlora_testing::golden("tiny/llama")?;
    fs::create_dir(folder).unwrap();
    fs::copy(source.join("config.json"), folder.join("config.json")).unwrap();
    let file = SafetensorsFile::open(source.join("model.safetensors")).unwrap();
    let mut tensors: Vec<(String, Vec<usize>, Vec<f32>)> = file
        .tensors()
        .map(|tensor| (tensor.name().to_owned(), tensor.shape().to_vec(), tensor.to_f32().unwrap()))
        .collect();
    let norm = tensors.iter_mut().find(|(name, ..)| name == "model.norm.weight").unwrap();
    norm.2[5] = number;
    let tensors = tensors.iter().map(|(name, shape, values)| TensorBytes::f32(name, shape.clone(), values));
    write_safetensors(folder.join("model.safetensors"), tensors, &[]).unwrap();
    Some(Checkpoint::open(folder).unwrap())
}

#[test]
fn a_gguf_file_in_bf16_is_what_transformers_computes() {
    let (Some(model), Some(golden)) = (qlora_testing::model(), qlora_testing::golden("smollm2/hf_bf16.json"))
    else {
        return;
    };
    let golden = json_file(golden);
    let folder = tempfile::tempdir().unwrap();
    let directory = folder.path().join("new/smollm2");
    let exported = export(&Checkpoint::open(model).unwrap(), None, FloatType::Bf16, &directory).unwrap();
    assert_eq!((exported.tensors, exported.merged, exported.tokenizer), (272, 0, true));
    let config = json_file(directory.join("config.json"));
    for (key, expected) in [
        ("dtype", json!("bfloat16")),
        ("torch_dtype", json!("bfloat16")),
        ("rms_norm_eps", json!(1e-5)),
        ("bos_token_id", json!(1)),
        ("eos_token_id", json!(2)),
        ("pad_token_id", json!(2)),
    ] {
        assert_eq!(config[key], expected, "{key}");
    }
    assert_eq!(json_file(directory.join("generation_config.json"))["eos_token_id"], json!(2));

    let checkpoint = Checkpoint::open(&directory).unwrap();
    let tokenizer = checkpoint.tokenizer().unwrap();
    assert!(tokenizer.chat_template_source().is_some());
    let model = load_f32(&checkpoint);
    for prompt in golden["prompts"].as_array().unwrap() {
        let name = prompt["prompt"].as_str().unwrap();
        let input = ids(&prompt["input_ids"]);
        assert_eq!(tokenizer.encode(prompt["text"].as_str().unwrap()).unwrap(), input, "{name}: ids");
        let logits = logits(&model, &input);
        let last = &logits[logits.len() - model.config().vocab_size..];
        for pair in prompt["last_logits_top20"].as_array().unwrap() {
            let (token, expected) = (pair[0].as_u64().unwrap() as usize, pair[1].as_f64().unwrap() as f32);
            let difference = (last[token] - expected).abs();
            assert!(difference < 2e-3, "{name}: logit of {token} is off by {difference}");
        }
        let (targets, mut weights) = ([&input[1..], &[0]].concat(), vec![1.0; input.len()]);
        weights[input.len() - 1] = 0.0;
        let batch = TokenBatch { ids: &input, lengths: &[input.len()] };
        let losses = model.token_losses(batch, &targets, &weights, Pass::default());
        let expected = prompt["prompt_token_logprobs"].as_array().unwrap();
        for (got, expected) in losses.log_probs.iter().zip(expected) {
            assert!((f64::from(*got) - expected.as_f64().unwrap()).abs() < 2e-3, "{name}: log-probability");
        }
        let greedy = ids(&prompt["greedy_ids"]);
        let options = GenerateOptions { max_new_tokens: greedy.len(), ..GenerateOptions::default() };
        let completions = model.generate(&[&input], &options, &mut |_| true).unwrap();
        assert_eq!(completions[0].ids, greedy, "{name}: greedy ids");
    }
}

#[test]
fn a_merged_adapter_computes_what_an_attached_one_does() {
    let (Some(model), Some(adapter), Some(rows)) = (
        qlora_testing::model(),
        qlora_testing::golden("sft/peft_adapter"),
        qlora_testing::golden("sft/sft_golden.json"),
    ) else {
        return;
    };
    let checkpoint = Checkpoint::open(model).unwrap();
    let adapter = PeftAdapter::read(adapter).unwrap().adapter_set();
    let folder = tempfile::tempdir().unwrap();
    let directory = folder.path().join("merged");
    let exported = export(&checkpoint, Some(&adapter), FloatType::F32, &directory).unwrap();
    assert_eq!(exported.merged, 210);
    let input = ids(&json_file(rows)["input_ids"][0]);
    let mut live = load_f32(&checkpoint);
    let base = logits(&live, &input);
    live.attach_set(&adapter, 0.0).unwrap();
    let (live, merged) =
        (logits(&live, &input), logits(&load_f32(&Checkpoint::open(&directory).unwrap()), &input));
    let most = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(most(&live, &base) > 1.0, "the adapter does something");
    assert!(most(&live, &merged) < 1e-3, "logits are off by {}", most(&live, &merged));
}

#[test]
fn a_directory_in_f32_comes_back_equal() {
    for name in ["llama", "llama_tied_rope3"] {
        let Some(source) = qlora_testing::golden(&format!("tiny/{name}")) else { return };
        let folder = tempfile::tempdir().unwrap();
        let directory = folder.path().join("copy");
        let checkpoint = Checkpoint::open(&source).unwrap();
        let mut calls = Vec::new();
        let options = SafetensorsOptions { dtype: FloatType::F32, ..SafetensorsOptions::default() };
        let source_of = ExportSource::new(&checkpoint);
        let exported = export_safetensors(source_of, options, &directory, &mut |done, total| {
            calls.push((done, total));
        })
        .unwrap();
        let files =
            [&source, &directory].map(|d| SafetensorsFile::open(d.join("model.safetensors")).unwrap());
        let [original, copy] = files.each_ref().map(|file| {
            let tensors =
                file.tensors().map(|t| (t.name().to_owned(), (t.shape().to_vec(), t.to_f32().unwrap())));
            tensors.collect::<BTreeMap<_, _>>()
        });
        assert_eq!(copy, original);
        assert_eq!((exported.tensors, exported.tokenizer), (copy.len(), false));
        let total = copy.len();
        assert_eq!(calls, (1..=total).map(|done| (done, total)).collect::<Vec<_>>());
        assert_eq!(Checkpoint::open(&directory).unwrap().config(), checkpoint.config());
        for file in ["config.json", "generation_config.json"] {
            let (original, copy) = (json_file(source.join(file)), json_file(directory.join(file)));
            for (key, value) in original.as_object().unwrap() {
                assert_eq!(&copy[key], value, "{key} of {file}");
            }
        }
    }
}

#[test]
fn a_failed_export_leaves_nothing() {
    for (number, dtype, message) in [
        (1e6, FloatType::F16, "`model.norm.weight` has 1000000 at index 5, which float16 cannot hold"),
        (f32::NAN, FloatType::Bf16, "`model.norm.weight` has NaN at index 5; the checkpoint is damaged"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let Some(checkpoint) = tiny_with(number, &folder.path().join("source")) else { return };
        let error = export(&checkpoint, None, dtype, &folder.path().join("out")).unwrap_err();
        assert!(matches!(error, ExportError::Unfit { index: 5, .. }), "{error}");
        assert!(error.to_string().contains(message), "{error}");
        let left: Vec<_> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["source"]);
    }
}

#[test]
fn directories_with_files_and_adapters_of_other_models_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("source");
    let Some(checkpoint) = tiny_with(1.0, &source) else { return };
    let error = export(&checkpoint, None, FloatType::F32, &source).unwrap_err();
    assert!(matches!(&error, ExportError::NotEmpty { path } if *path == source), "{error}");
    assert!(source.join("model.safetensors").exists());

    let out = folder.path().join("out");
    let adapter = |layer: &str, inputs| {
        let factors = AdapterFactors {
            a: vec![0.0; inputs],
            b: vec![0.0; 80],
            rank: 1,
            inputs,
            outputs: 80,
            magnitude: None,
        };
        AdapterSet { layers: BTreeMap::from([(layer.to_owned(), (factors, 1.0))]) }
    };
    let refused =
        |layer, inputs| match export(&checkpoint, Some(&adapter(layer, inputs)), FloatType::F32, &out) {
            Err(ExportError::Lora(error)) => error,
            other => panic!("{other:?}"),
        };
    assert!(matches!(refused("model.layers.3.mlp.up_proj", 48), LoraError::UnknownLayer { .. }));
    assert!(matches!(refused("model.layers.0.mlp.up_proj", 47), LoraError::ShapeMismatch { .. }));
    assert!(!out.exists());
}
