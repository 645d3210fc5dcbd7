//! Ten training steps on the real model: losses, gradient norms and gradients of transformers + PEFT.
#![cfg(feature = "flex")]

mod sft;

use qlora_core::files::safetensors::SafetensorsFile;
use qlora_core::models::Checkpointing;
use qlora_core::prelude::*;
use serde_json::Value;

use sft::{Golden, check_curve, data, golden};

fn check(name: &str, quantization: Quantization, tolerance: f64) {
    let Some(golden) = golden() else { return };
    let mut model = sft::model::<Autodiff<Cpu>>(&golden, quantization, Compute::F32, &CpuDevice);
    check_first_gradients(&golden, &model, name);
    let steps = sft::train(&golden, &mut model, Checkpointing::None);
    check_curve(&golden, name, &steps, tolerance, 1e-2);
}

/// The gradients before the first step. They are not clipped: their norm is below 1.
fn check_first_gradients(golden: &Golden, model: &Decoder<Autodiff<Cpu>>, name: &str) {
    let Some(path) = qlora_testing::golden(&format!("sft/{name}_grads.safetensors")) else { return };
    let file = SafetensorsFile::open(path).unwrap();
    let data = data(golden);
    let batch = Batch::from_samples(&data.samples().iter().collect::<Vec<_>>());
    let tokens = TokenBatch { ids: &batch.ids, lengths: &batch.lengths };
    let loss = model.loss(tokens, &batch.targets, &batch.weights, Pass::default()) / batch.trained_weight();
    let grads = loss.backward();
    let mut checked = 0;
    model.visit_parameters(&mut |parameter, tensor| {
        let key = format!("grad_step0_clipped.{parameter}");
        if !file.contains(&key) {
            return;
        }
        let expected = file.to_f32(&key).unwrap();
        let got = tensor.grad(&grads).unwrap().into_data().to_vec::<f32>().unwrap();
        let difference: f64 = got.iter().zip(&expected).map(|(g, e)| f64::from(g - e).powi(2)).sum();
        let norm: f64 = expected.iter().map(|e| f64::from(*e).powi(2)).sum();
        // B is zero, and with it the gradient of A: then both must be.
        let error = (difference / norm.max(1e-20)).sqrt();
        assert!(error < 1e-3, "{name}: gradient of {parameter} is off by {error:.1e}");
        checked += 1;
    });
    assert_eq!(checked, file.names().len(), "{name}: every golden gradient was compared");
}

#[test]
fn lora_f32() {
    check("lora_f32", Quantization::None, 1e-4);
}

#[test]
fn qlora_nf4() {
    let options = Nf4Options { double_quant: false, ..Nf4Options::default() };
    check("qlora_nf4", Quantization::Nf4(options), 1e-3);
}

/// A PEFT adapter gives the logits that it gives in PEFT, merged or not, and none of them when taken off.
#[test]
fn peft_adapter_gives_its_logits() {
    let Some(golden) = golden() else { return };
    let Some(logits) = qlora_testing::golden("sft/adapter_logits.json") else { return };
    let expected: Value = serde_json::from_slice(&std::fs::read(logits).unwrap()).unwrap();
    let adapter = PeftAdapter::read(qlora_testing::golden("sft/peft_adapter").unwrap()).unwrap();
    let checkpoint = Checkpoint::open(&golden.gguf).unwrap();
    let mut model = load::<Cpu>(&checkpoint, LoadOptions::default(), &CpuDevice, &mut |_, _| {}).unwrap();
    let ids: Vec<Vec<u32>> = serde_json::from_value(golden.numbers["input_ids"].clone()).unwrap();
    let last = |model: &Decoder<Cpu>, pass| -> Vec<Vec<f32>> {
        let lengths: Vec<usize> = ids.iter().map(Vec::len).collect();
        let hidden = model.hidden_states(TokenBatch { ids: &ids.concat(), lengths: &lengths }, pass);
        let mut end = 0;
        let rows = lengths.iter().map(|length| {
            end += length;
            model.logits(hidden.clone().narrow(0, end - 1, 1)).into_data().to_vec().unwrap()
        });
        rows.collect()
    };
    let base = last(&model, Pass::default());
    model.attach_set(&adapter.adapter_set(), 0.0).unwrap();
    let adapted = last(&model, Pass::default());
    for (row, expected) in adapted.iter().zip(expected["adapted_last_top20"].as_array().unwrap()) {
        for pair in expected.as_array().unwrap() {
            let (token, expected) = (pair[0].as_u64().unwrap() as usize, pair[1].as_f64().unwrap() as f32);
            let difference = (row[token] - expected).abs();
            assert!(difference < 5e-3, "logit of token {token} is off by {difference}");
        }
    }
    assert_eq!(last(&model, Pass::base()), base, "with adapters off the model is its base");
    model.merge(Compute::F32);
    for (merged, adapted) in last(&model, Pass::default()).iter().zip(&adapted) {
        let difference = merged.iter().zip(adapted).map(|(m, a)| (m - a).abs()).fold(0.0, f32::max);
        assert!(difference < 1e-3, "merged logits are off by {difference}");
    }
    model.unmerge();
    assert_eq!(last(&model, Pass::default()), adapted, "unmerging restores every bit");
}
