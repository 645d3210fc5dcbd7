//! Small checkpoints with random weights: logits, loss, gradients and greedy ids of transformers.
#![cfg(feature = "flex")]

use std::collections::BTreeMap;

use burn::backend::Autodiff;
use qlora_files::safetensors::SafetensorsFile;
use qlora_kernels::{Flex, FlexDevice};
use qlora_lora::AdapterFactors;
use qlora_models::{
    AdapterSet, Checkpoint, Decoder, GenerateOptions, LoadOptions, ModelError, Pass, TokenBatch, load,
};
use serde_json::Value;

struct Golden {
    checkpoint: Checkpoint,
    numbers: Value,
    tensors: SafetensorsFile,
}

fn golden(name: &str) -> Option<Golden> {
    let directory = qlora_testing::golden(&format!("tiny/{name}"))?;
    let numbers = serde_json::from_slice(&std::fs::read(directory.join("golden.json")).unwrap()).unwrap();
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
            found.insert(path, parameter.grad(&grads).unwrap().into_data().to_vec::<f32>().unwrap());
        }
    });
    let mut checked = 0;
    for tensor in golden.tensors.tensors().filter(|tensor| tensor.name().starts_with("grad.")) {
        let path = tensor.name().strip_prefix("grad.").unwrap().strip_suffix(".weight").unwrap().to_owned();
        let expected = tensor.to_f32().unwrap();
        let difference: f32 = found[&path].iter().zip(&expected).map(|(g, e)| (g - e) * (g - e)).sum();
        let norm: f32 = expected.iter().map(|e| e * e).sum();
        let error = (difference / norm).sqrt();
        assert!(error < 1e-3, "{name}: gradient of {path} is off by {error}");
        checked += 1;
    }
    assert_eq!(checked, 7, "{name}: gradients of all projections of a layer");

    let prompt = ids(&golden.numbers["greedy"]["prompt"]);
    let new = ids(&golden.numbers["greedy"]["new_ids"]);
    let options = GenerateOptions { max_new_tokens: new.len(), ..GenerateOptions::default() };
    let completions = model.generate(&[&prompt], &options, &mut |_| true).unwrap();
    assert_eq!(completions[0].ids, new, "{name}: greedy ids");
}

#[test]
fn llama() {
    check("llama");
}

#[test]
fn llama_with_tied_head_and_scaled_rope() {
    check("llama_tied_rope3");
}

#[test]
fn other_families_are_refused_by_name() {
    for name in ["gemma2", "gemma3", "qwen2", "qwen3", "phi3", "mistral_window"] {
        let Some(directory) = qlora_testing::golden(&format!("tiny/{name}")) else { return };
        let error = Checkpoint::open(directory).unwrap_err();
        assert!(matches!(error, ModelError::UnsupportedArchitecture { .. }), "{name}: {error}");
        assert!(error.to_string().contains("supported are llama"), "{error}");
    }
}

/// A batch of ragged prompts gives what each gives alone, and what full recomputation gives.
#[test]
fn cached_decoding_equals_recomputation() {
    let Some(golden) = golden("llama_tied_rope3") else { return };
    let model =
        load::<Flex>(&golden.checkpoint, LoadOptions::default(), &FlexDevice, &mut |_, _| {}).unwrap();
    let prompts: [&[u32]; 3] = [&[5, 9, 11, 3, 8, 40], &[7], &[60, 2, 33]];
    let options = GenerateOptions { max_new_tokens: 10, ..GenerateOptions::default() };
    let batched = model.generate(&prompts, &options, &mut |_| true).unwrap();
    for (prompt, completion) in prompts.iter().zip(&batched) {
        let alone = model.generate(&[prompt], &options, &mut |_| true).unwrap();
        assert_eq!(alone[0].ids, completion.ids);
        let mut sequence = prompt.to_vec();
        for &id in &completion.ids {
            let batch = TokenBatch { ids: &sequence, lengths: &[sequence.len()] };
            let logits = model.logits(model.hidden_states(batch, Pass::default()));
            let logits = logits.into_data().to_vec::<f32>().unwrap();
            let last = &logits[logits.len() - model.config().vocab_size..];
            let best = (0..last.len()).max_by(|a, b| last[*a].total_cmp(&last[*b])).unwrap();
            assert_eq!(best as u32, id);
            sequence.push(id);
        }
    }
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
