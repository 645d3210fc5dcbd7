//! The ten golden training steps, on any backend.

use std::cell::RefCell;
use std::path::Path;
use std::rc::Rc;

use qlora_core::files::safetensors::SafetensorsFile;
use qlora_core::models::{AdapterSet, Checkpointing};
use qlora_core::prelude::*;
use qlora_core::train::metrics::StepMetrics;
use qlora_core::train::schedule::{Schedule, ScheduleKind};
use qlora_core::train::{AdamWOptions, Observer};
use serde_json::Value;

/// What transformers + PEFT computed, and what it was computed from.
pub(crate) struct Golden {
    pub(crate) numbers: Value,
    pub(crate) initial: AdapterSet,
    pub(crate) gguf: std::path::PathBuf,
}

/// `None` where the golden or the model is absent.
pub(crate) fn golden() -> Option<Golden> {
    let path = qlora_testing::golden("sft/sft_golden.json")?;
    let numbers = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let initial = adapter_set(&qlora_testing::golden("sft/lora_init.safetensors")?);
    Some(Golden { numbers, initial, gguf: qlora_testing::model()? })
}

/// A PEFT state of rank 4 and alpha 8, without its configuration.
fn adapter_set(path: &Path) -> AdapterSet {
    let file = SafetensorsFile::open(path).unwrap();
    let mut set = AdapterSet::default();
    for a in file.tensors().filter(|tensor| tensor.name().ends_with(".lora_A.weight")) {
        let path =
            a.name().strip_prefix("base_model.model.").unwrap().strip_suffix(".lora_A.weight").unwrap();
        let b = file.tensor(&a.name().replace("lora_A", "lora_B")).unwrap();
        let factors = qlora_core::lora::AdapterFactors {
            a: a.to_f32().unwrap(),
            b: b.to_f32().unwrap(),
            rank: a.shape()[0],
            inputs: a.shape()[1],
            outputs: b.shape()[0],
            magnitude: None,
        };
        set.layers.insert(path.to_owned(), (factors, 2.0));
    }
    assert_eq!(set.layers.len(), 210);
    set
}

/// The model with the golden's adapters.
pub(crate) fn model<B: KernelBackend>(
    golden: &Golden,
    quantization: Quantization,
    compute: Compute,
    device: &B::Device,
) -> Decoder<B> {
    let checkpoint = Checkpoint::open(&golden.gguf).unwrap();
    let mut model =
        load::<B>(&checkpoint, LoadOptions { quantization, compute }, device, &mut |_, _| {}).unwrap();
    model.attach_set(&golden.initial, 0.0).unwrap();
    model
}

/// The golden's rows.
pub(crate) fn data(golden: &Golden) -> Dataset {
    let rows = golden.numbers["input_ids"].as_array().unwrap().iter();
    let labels = golden.numbers["labels"].as_array().unwrap();
    let lines: Vec<String> = rows
        .zip(labels)
        .map(|(ids, labels)| serde_json::json!({"input_ids": ids, "labels": labels}).to_string())
        .collect();
    let encoder = Encoder::token_ids_only();
    Dataset::from_reader(lines.join("\n").as_bytes(), "golden.jsonl", &encoder, &DatasetOptions::default())
        .unwrap()
}

#[derive(Clone, Default)]
struct Steps(Rc<RefCell<Vec<StepMetrics>>>);

impl Observer for Steps {
    fn stepped(&mut self, metrics: &StepMetrics) {
        self.0.borrow_mut().push(metrics.clone());
    }
}

/// Ten steps. The parameters after them are in the model.
pub(crate) fn train<B: TrainBackend>(
    golden: &Golden,
    model: &mut Decoder<B>,
    checkpointing: Checkpointing,
) -> Vec<StepMetrics> {
    let objective = SupervisedFineTuning::new(data(golden), 4, 1, None).unwrap();
    let steps = Steps::default();
    let options = EngineOptions {
        schedule: Schedule::new(ScheduleKind::Constant, 1e-3, 0.0, 10),
        optimizer: AdamWOptions { weight_decay: 0.01, ..AdamWOptions::default() },
        ..EngineOptions::linear(10, 1e-3)
    };
    Engine::new(options)
        .with_observer(steps.clone())
        .run(model, &mut objective.with_checkpointing(checkpointing))
        .unwrap();
    steps.0.take()
}

/// Compares losses and gradient norms with those of the golden.
pub(crate) fn check_curve(
    golden: &Golden,
    name: &str,
    steps: &[StepMetrics],
    tolerance: f64,
    norm_tolerance: f64,
) {
    let expected = golden.numbers[name].as_array().unwrap();
    assert_eq!(steps.len(), expected.len());
    for (got, expected) in steps.iter().zip(expected) {
        let relative = |got: f64, key: &str| {
            let expected = expected[key].as_f64().unwrap();
            (got - expected).abs() / expected
        };
        let norm = got.grad_norm;
        let (loss_error, norm_error) = (relative(got.loss, "loss"), relative(norm, "grad_norm"));
        println!(
            "{name} step {}: loss {} off by {loss_error:.1e}, norm by {norm_error:.1e}",
            got.step, got.loss
        );
        assert!(
            loss_error < tolerance,
            "{name}, step {}: loss {} is off by {loss_error:.1e}",
            got.step,
            got.loss
        );
        assert!(
            norm_error < norm_tolerance,
            "{name}, step {}: norm {norm} is off by {norm_error:.1e}",
            got.step
        );
    }
}
