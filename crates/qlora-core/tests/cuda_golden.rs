//! The goldens of the real model on an NVIDIA GPU. Run with `--ignored`.
#![cfg(feature = "cuda")]

mod sft;

use qlora_core::kernels::{Cuda, device};
use qlora_core::models::Checkpointing;
use qlora_core::prelude::*;
use serde_json::Value;

use sft::{check_curve, golden};

fn nf4() -> Quantization {
    Quantization::Nf4(Nf4Options { double_quant: false, ..Nf4Options::default() })
}

fn curve(name: &str, quantization: Quantization, compute: Compute, tolerance: f64) {
    let Some(golden) = golden() else { return };
    let (device, _) = device::cuda(0).expect("a CUDA device");
    let mut model = sft::model::<Autodiff<Cuda>>(&golden, quantization, compute, &device);
    let steps = sft::train(&golden, &mut model, Checkpointing::None);
    // Norms of bf16 gradients are sums of rounded numbers: they are looked at, with a wide bound.
    let norm_tolerance = if compute == Compute::F32 { 1e-2 } else { 0.1 };
    check_curve(&golden, name, &steps, tolerance, norm_tolerance);
}

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn losses_in_f32() {
    curve("lora_f32", Quantization::None, Compute::F32, 1e-3);
    curve("qlora_nf4", nf4(), Compute::F32, 1e-3);
}

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn losses_in_bf16() {
    curve("lora_f32", Quantization::None, Compute::Bf16, 3e-2);
    curve("qlora_nf4", nf4(), Compute::Bf16, 3e-2);
}

/// The first choice is that of transformers wherever the golden's first two are further apart than rounding.
#[test]
#[ignore = "needs an NVIDIA GPU"]
fn first_choices_in_bf16() {
    let Some(path) = qlora_testing::golden("smollm2/gguf_f32.json") else { return };
    let Some(model) = qlora_testing::model() else { return };
    let golden: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let (device, _) = device::cuda(0).expect("a CUDA device");
    let options = LoadOptions { quantization: Quantization::None, compute: Compute::Bf16 };
    let model = load::<Cuda>(&Checkpoint::open(model).unwrap(), options, &device, &mut |_, _| {}).unwrap();
    let (mut compared, mut worst) = (0, 0f64);
    for prompt in golden["prompts"].as_array().unwrap() {
        let ids: Vec<u32> = serde_json::from_value(prompt["input_ids"].clone()).unwrap();
        let hidden = model.hidden_states(TokenBatch { ids: &ids, lengths: &[ids.len()] }, Pass::default());
        let logits: Vec<f32> =
            model.logits(hidden.narrow(0, ids.len() - 1, 1)).into_data().to_vec().expect("logits are f32");
        let top: Vec<(usize, f64)> = serde_json::from_value(prompt["last_logits_top20"].clone())
            .expect("pairs of a token and a logit");
        for (token, expected) in &top {
            worst = worst.max((f64::from(logits[*token]) - expected).abs());
        }
        if top[0].1 - top[1].1 > 0.3 {
            let best = (0..logits.len()).max_by(|a, b| logits[*a].total_cmp(&logits[*b])).unwrap();
            assert_eq!(best, top[0].0, "{}", prompt["prompt"]);
            compared += 1;
        }
    }
    println!("{compared} first choices equal; a logit is off by {worst:.3} at most");
    assert!(compared > 0, "there was something to compare");
}

/// Gradients are the same bits whatever is kept: so are the parameters after ten steps.
#[test]
#[ignore = "needs an NVIDIA GPU"]
fn checkpointing_gives_the_same_bits() {
    let Some(golden) = golden() else { return };
    let (device, _) = device::cuda(0).expect("a CUDA device");
    for compute in [Compute::F32, Compute::Bf16] {
        let runs =
            [Checkpointing::None, Checkpointing::Layers, Checkpointing::Offload].map(|checkpointing| {
                let mut model = sft::model::<Autodiff<Cuda>>(&golden, nf4(), compute, &device);
                let steps = sft::train(&golden, &mut model, checkpointing);
                let norms: Vec<u64> = steps.iter().map(|step| step.grad_norm.to_bits()).collect();
                let mut bits = Vec::new();
                model.visit_parameters(&mut |_, parameter| {
                    bits.extend(parameter.clone().inner().into_data().iter::<f32>().map(f32::to_bits));
                });
                (norms, bits)
            });
        assert!(runs[0] == runs[1], "layers, {compute}");
        assert!(runs[0] == runs[2], "offload, {compute}");
    }
}
