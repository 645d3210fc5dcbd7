//! Small checkpoints with random weights: logits, loss, gradients and greedy ids of transformers.
#![cfg(feature = "flex")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use burn::backend::Autodiff;
use qlora_files::safetensors::{SafetensorsFile, TensorBytes, write_safetensors};
use qlora_kernels::{Flex, FlexDevice};
use qlora_lora::AdapterFactors;
use qlora_models::{
    AdapterSet, Checkpoint, Decoder, GenerateOptions, LoadOptions, ModelError, Pass, RopeScaling, TokenBatch,
    load,
};
use serde_json::Value;

struct Golden {
    checkpoint: Checkpoint,
    numbers: Value,
    tensors: SafetensorsFile,
}

/// A checkpoint of the workspace's goldens, or of those beside this file, which `make_tiny.py` has made.
fn directory(name: &str) -> Option<PathBuf> {
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    if own.exists() { Some(own) } else { qlora_testing::golden(&format!("tiny/{name}")) }
}

fn golden(name: &str) -> Option<Golden> {
    let directory = directory(name)?;
    let numbers = serde_json::from_slice(&fs::read(directory.join("golden.json")).unwrap()).unwrap();
    let tensors = SafetensorsFile::open(directory.join("golden.safetensors")).unwrap();
    Some(Golden { checkpoint: Checkpoint::open(directory).unwrap(), numbers, tensors })
}

fn rows(value: &Value) -> Vec<Vec<i64>> {
    serde_json::from_value(value.clone()).unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    serde_json::from_value(value.clone()).unwrap()
}

fn max_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

/// Adapters that are nothing but a view of the weights: with A the identity and B zero, the gradient of
/// B is the gradient of the weight.
fn weight_views(model: &Decoder<Autodiff<Flex>>) -> AdapterSet {
    let layers = model.linears().map(|(path, linear)| {
        let [outputs, inputs] = linear.shape();
        let a = (0..inputs * inputs).map(|i| f32::from(i / inputs == i % inputs)).collect();
        let factors = AdapterFactors {
            a,
            b: vec![0.0; outputs * inputs],
            rank: inputs,
            inputs,
            outputs,
            magnitude: None,
        };
        (path, (factors, 1.0))
    });
    AdapterSet { layers: layers.collect() }
}

fn check(name: &str) {
    let Some(golden) = golden(name) else { return };
    let mut model =
        load::<Autodiff<Flex>>(&golden.checkpoint, LoadOptions::default(), &FlexDevice, &mut |_, _| {})
            .unwrap();
    let labels = rows(&golden.numbers["labels"]);
    let sequences: Vec<Vec<u32>> = golden.numbers["input_ids"].as_array().unwrap().iter().map(ids).collect();
    let lengths: Vec<usize> = sequences.iter().map(Vec::len).collect();
    let all = sequences.concat();
    let batch = TokenBatch { ids: &all, lengths: &lengths };

    let logits =
        model.logits(model.hidden_states(batch, Pass::default())).into_data().to_vec::<f32>().unwrap();
    assert!(max_difference(&logits, &golden.tensors.to_f32("logits").unwrap()) < 2e-4, "{name}: logits");

    model.attach_set(&weight_views(&model), 0.0).unwrap();
    let (mut targets, mut weights) = (Vec::new(), Vec::new());
    for labels in &labels {
        for position in 0..labels.len() {
            let label = labels.get(position + 1).copied().filter(|label| *label >= 0);
            targets.push(label.unwrap_or(0) as u32);
            weights.push(f32::from(label.is_some()));
        }
    }
    let count: f32 = weights.iter().sum();
    let loss = model.loss(batch, &targets, &weights, Pass::default()) / count;
    let expected = golden.numbers["loss"].as_f64().unwrap();
    let grads = loss.backward();
    let loss = f64::from(loss.into_scalar());
    assert!((loss - expected).abs() < 1e-5, "{name}: loss {loss}, expected {expected}");

    let mut found = BTreeMap::new();
    model.visit_parameters(&mut |name, parameter| {
        if let Some(path) = name.strip_suffix(".lora_B.weight") {
            let path = path.strip_prefix("base_model.model.").unwrap().to_owned();
            // An expert that no token was sent to has none.
            let gradient =
                parameter.grad(&grads).map(|gradient| gradient.into_data().to_vec::<f32>().unwrap());
            found.insert(path, gradient);
        }
    });
    let mut checked = BTreeSet::new();
    // Biases are frozen here.
    let of_weight = |name: &str| name.starts_with("grad.") && name.ends_with(".weight");
    for tensor in golden.tensors.tensors().filter(|tensor| of_weight(tensor.name())) {
        let path = tensor.name().strip_prefix("grad.").unwrap().strip_suffix(".weight").unwrap().to_owned();
        let expected = tensor.to_f32().unwrap();
        let norm: f32 = expected.iter().map(|e| e * e).sum();
        match &found[&path] {
            None => assert_eq!(norm, 0.0, "{name}: {path} has no gradient"),
            Some(found) => {
                let difference: f32 = found.iter().zip(&expected).map(|(g, e)| (g - e) * (g - e)).sum();
                let error = (difference / norm).sqrt();
                assert!(error < 1e-3, "{name}: gradient of {path} is off by {error}");
            }
        }
        checked.insert(path);
    }
    let layer = checked.first().expect("a gradient").split('.').take(3).collect::<Vec<_>>().join(".");
    let of_layer = |path: &String| path.starts_with(&format!("{layer}."));
    let all: BTreeSet<String> = found.into_keys().filter(of_layer).collect();
    assert_eq!(checked, all, "{name}: gradients of all projections of a layer");

    let greedy = &golden.numbers["greedy"];
    if greedy["min_top2_gap"].as_f64().unwrap() > 4e-4 {
        let (prompt, new) = (ids(&greedy["prompt"]), ids(&greedy["new_ids"]));
        let options = GenerateOptions { max_new_tokens: new.len(), ..GenerateOptions::default() };
        let completions = model.generate(&[&prompt], &options, &mut |_| true).unwrap();
        assert_eq!(completions[0].ids, new, "{name}: greedy ids");
    }
    check_cache(name, &golden.checkpoint);
}

/// A batch of ragged prompts gives what each gives alone, and what full recomputation gives. The longest goes beyond the
/// 16 tokens that are the original context of some.
fn check_cache(name: &str, checkpoint: &Checkpoint) {
    let model = load::<Flex>(checkpoint, LoadOptions::default(), &FlexDevice, &mut |_, _| {}).unwrap();
    let prompts: [&[u32]; 3] = [&[5, 9, 11, 3, 8, 40], &[7], &[60, 2, 33]];
    let options = GenerateOptions { max_new_tokens: 16, ..GenerateOptions::default() };
    let batched = model.generate(&prompts, &options, &mut |_| true).unwrap();
    // Beyond it, `dynamic` keeps keys as they were rotated.
    let comparable = match model.config().rope_scaling {
        RopeScaling::Dynamic { original_max_position_embeddings: original, .. } => original,
        _ => usize::MAX,
    };
    for (prompt, completion) in prompts.iter().zip(&batched) {
        let alone = model.generate(&[prompt], &options, &mut |_| true).unwrap();
        assert_eq!(alone[0].ids, completion.ids, "{name}");
        let mut sequence = prompt.to_vec();
        for &id in completion.ids.iter().take(comparable.saturating_sub(prompt.len() - 1)) {
            let batch = TokenBatch { ids: &sequence, lengths: &[sequence.len()] };
            let logits = model.logits(model.hidden_states(batch, Pass::default()));
            let logits = logits.into_data().to_vec::<f32>().unwrap();
            let last = &logits[logits.len() - model.config().vocab_size..];
            let best = (0..last.len()).max_by(|a, b| last[*a].total_cmp(&last[*b])).unwrap();
            assert_eq!(best as u32, id, "{name}: token {} of {}", sequence.len(), sequence.len());
            sequence.push(id);
        }
    }
}

macro_rules! checkpoints {
    ($($name:ident)*) => {
        $(
            #[test]
            fn $name() {
                check(stringify!($name));
            }
        )*
    };
}

checkpoints! {
    llama llama_tied_rope3 llama_linear llama_dynamic llama_yarn mistral_window smollm3 qwen2 qwen2_window qwen3
    qwen3_bias qwen3_moe qwen3_moe_mixed gemma gemma2 gemma2_caps gemma3 gemma3_linear phi3 phi3_partial phi3_short olmo2 granite cohere cohere_qk_norm
}

/// A copy of a checkpoint, with tensors and configuration changed.
fn changed(
    folder: &Path,
    config: impl FnOnce(&mut Value),
    tensors: impl FnOnce(&mut Vec<(String, Vec<usize>, Vec<f32>)>),
) -> Option<Checkpoint> {
    let source = directory("llama")?;
    let mut keys: Value = serde_json::from_slice(&fs::read(source.join("config.json")).unwrap()).unwrap();
    config(&mut keys);
    fs::write(folder.join("config.json"), keys.to_string()).unwrap();
    let file = SafetensorsFile::open(source.join("model.safetensors")).unwrap();
    let mut all = file
        .tensors()
        .map(|tensor| (tensor.name().to_owned(), tensor.shape().to_vec(), tensor.to_f32().unwrap()))
        .collect();
    tensors(&mut all);
    let tensors = all.iter().map(|(name, shape, values)| TensorBytes::f32(name, shape.clone(), values));
    write_safetensors(folder.join("model.safetensors"), tensors, &[]).unwrap();
    Some(Checkpoint::open(folder).unwrap())
}

#[test]
fn tensors_that_do_not_fit_are_named_together() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = changed(
        folder.path(),
        |_| {},
        |tensors| {
            tensors.retain(|(name, ..)| name != "model.norm.weight");
            tensors.push(("model.layers.0.self_attn.q_proj.bias".into(), vec![1], vec![0.0]));
            let up =
                tensors.iter_mut().find(|(name, ..)| name.ends_with("layers.1.mlp.up_proj.weight")).unwrap();
            up.1.reverse();
        },
    );
    let Some(checkpoint) = checkpoint else { return };
    let loaded = load::<Flex>(&checkpoint, LoadOptions::default(), &FlexDevice, &mut |_, _| {});
    let ModelError::Tensors { problems, .. } = loaded.unwrap_err() else { panic!("another error") };
    assert_eq!(problems.missing, ["model.norm.weight"]);
    assert_eq!(problems.extra, ["model.layers.0.self_attn.q_proj.bias"]);
    let expected = ("model.layers.1.mlp.up_proj.weight".to_owned(), vec![48, 80], vec![80, 48]);
    assert_eq!(problems.misshapen, [expected]);
    let said = problems.to_string();
    for part in ["missing tensors: `model.norm.weight`", "is [48, 80], the configuration says [80, 48]"] {
        assert!(said.contains(part), "{said}");
    }
}

#[test]
fn tensors_of_a_model_that_also_sees_are_found_below_their_prefix() {
    let folder = tempfile::tempdir().unwrap();
    let vision = |keys: &mut Value| {
        let text = keys.take();
        *keys = serde_json::json!({ "text_config": text, "vision_config": {}, "model_type": "other" });
    };
    let prefixed = |tensors: &mut Vec<(String, Vec<usize>, Vec<f32>)>| {
        tensors.iter_mut().for_each(|(name, ..)| name.insert_str(0, "language_model."));
        tensors.push(("vision_tower.weight".into(), vec![1], vec![0.0]));
    };
    let Some(checkpoint) = changed(folder.path(), vision, prefixed) else { return };
    let model = |checkpoint: &Checkpoint| {
        load::<Flex>(checkpoint, LoadOptions::default(), &FlexDevice, &mut |_, _| {}).unwrap()
    };
    let plain = golden("llama").unwrap().checkpoint;
    let batch = TokenBatch { ids: &[5, 9, 11], lengths: &[3] };
    let hidden = |checkpoint| model(checkpoint).hidden_states(batch, Pass::default()).into_data();
    assert_eq!(hidden(&checkpoint), hidden(&plain));
}

#[test]
fn requests_that_cannot_be_served() {
    let Some(golden) = golden("llama") else { return };
    let model =
        load::<Flex>(&golden.checkpoint, LoadOptions::default(), &FlexDevice, &mut |_, _| {}).unwrap();
    let run = |prompt: &[u32], max_new_tokens| {
        let options = GenerateOptions { max_new_tokens, ..GenerateOptions::default() };
        model.generate(&[prompt], &options, &mut |_| true).map(|_| ())
    };
    assert!(matches!(run(&[], 1), Err(ModelError::EmptyPrompt { index: 0 })));
    assert!(matches!(run(&[97], 1), Err(ModelError::TokenOutOfRange { id: 97, vocabulary: 97 })));
    assert!(matches!(run(&[1], 1000), Err(ModelError::ContextTooLong { tokens: 1000, limit: 128 })));
    assert!(run(&[1; 20], 109).is_ok(), "the last token is never fed back, so 20 + 109 − 1 fit");
}

macro_rules! gguf_files {
    ($($name:ident)*) => {
        /// The same checkpoints as GGUF files, written by `make_gguf.py`: what transformers computes from safetensors.
        mod gguf {
            $(
                #[test]
                fn $name() {
                    super::check_gguf(stringify!($name));
                }
            )*
        }
    };
}

gguf_files! {
    llama_linear llama_yarn smollm3 qwen3_bias qwen3_moe gemma gemma2_caps gemma3_linear phi3_partial olmo2 granite
    cohere cohere_qk_norm
}

fn check_gguf(name: &str) {
    let golden = golden(name).expect("a checkpoint beside this file");
    let file = Checkpoint::open(directory(name).unwrap().join("model.gguf")).unwrap();
    let model = load::<Flex>(&file, LoadOptions::default(), &FlexDevice, &mut |_, _| {}).unwrap();
    assert_eq!(file.config().family, golden.checkpoint.config().family, "{name}");
    let sequences: Vec<Vec<u32>> = golden.numbers["input_ids"].as_array().unwrap().iter().map(ids).collect();
    let lengths: Vec<usize> = sequences.iter().map(Vec::len).collect();
    let all = sequences.concat();
    let batch = TokenBatch { ids: &all, lengths: &lengths };
    let logits =
        model.logits(model.hidden_states(batch, Pass::default())).into_data().to_vec::<f32>().unwrap();
    let difference = max_difference(&logits, &golden.tensors.to_f32("logits").unwrap());
    assert!(difference < 2e-4, "{name}: logits are off by {difference}");
}
