//! One training step of SmolLM2-135M: forward, loss, backward, clipping, AdamW; LoRA of rank 16 on all
//! linear layers of a base in NF4 with double quantization, or dense.
//!
//! `cargo bench --bench step` (the model: `qlora fetch smollm2-135m`)

use qlora_benches::{Measurement, Runs, main as run_all, measure};
use qlora_core::data::Sample;
use qlora_core::prelude::*;
use qlora_core::train::AdamWOptions;
use qlora_core::train::schedule::{Schedule, ScheduleKind};

fn run(name: &str) -> Measurement {
    let (kind, dtype) = name.split_once('/').expect("name/dtype");
    let compute = if dtype == "bf16" { Compute::Bf16 } else { Compute::F32 };
    let (rows, length) = if kind.ends_with("4x64") { (4, 64) } else { (1, 512) };
    let quantization = match kind.starts_with("step_qlora") {
        true => Quantization::Nf4(Nf4Options { double_quant: true, ..Nf4Options::default() }),
        false => Quantization::None,
    };
    let path = ModelStore::from_env().and_then(|store| store.resolve("smollm2-135m"));
    let path = path.unwrap_or_else(|error| panic!("{error}"));
    let checkpoint = Checkpoint::open(path.path()).expect("a checkpoint");
    let options = LoadOptions { quantization, compute };
    let mut model = load::<Autodiff<Cpu>>(&checkpoint, options, &CpuDevice, &mut |_, _| {}).expect("a model");
    model.attach(&LoraConfig::default(), 1).expect("linear layers");
    let samples = (0..rows).map(|row| {
        let ids = (0..length).map(|i: usize| (row * 7919 + i * 104_729) as u32 % 49_000).collect();
        Sample::new(ids, vec![1.0; length], row + 1)
    });
    let data = Dataset::from_samples(samples.collect()).expect("rows");
    let mut objective = SupervisedFineTuning::new(data, rows, 1, None).expect("rows");
    let options = EngineOptions {
        steps: 1,
        schedule: Schedule::new(ScheduleKind::Constant, 1e-4, 0.0, 1),
        optimizer: AdamWOptions::default(),
        clip: 1.0,
        checkpoint_every: 0,
        eval_every: 0,
        seed: 0,
        loss_scaling: None,
    };
    // An engine of one step: its moments start anew each time, which costs what keeping them does.
    measure(Runs { warmup: 2, counted: 7 }, || {
        Engine::new(options).run(&mut model, &mut objective).expect("a step");
    })
}

fn main() {
    let configurations = [
        "step_qlora_4x64/f32",
        "step_qlora_1x512/f32",
        "step_qlora_4x64/bf16",
        "step_qlora_1x512/bf16",
        "step_lora_4x64/f32",
    ];
    run_all("step.py", &configurations, run);
}
