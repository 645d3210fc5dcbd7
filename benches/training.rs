//! Whole training steps at the sizes of Llama-3.2-1B and Llama-3.1-8B: random weights in NF4 with double quantization,
//! LoRA of rank 16 on all linear layers, AdamW with 8-bit states, random tokens.
//!
//! ```text
//! cargo bench --bench training --features cuda -- --model 8b --checkpointing none
//! ```
//!
//! Prints the time of a step, tokens a second, device memory, and the time from the start of the program to the end
//! of its first step.

use std::time::Instant;

use qlora_benches::arguments::Arguments;
use qlora_benches::devices::default_backend;
use qlora_benches::shapes::random_model;
use qlora_core::data::Sample;
use qlora_core::kernels::device::{DeviceInfo, OnDevice, on_device};
use qlora_core::models::Checkpointing;
use qlora_core::prelude::*;
use qlora_core::train::schedule::{Schedule, ScheduleKind};
use qlora_core::train::{AdamWOptions, MomentStorage, on_step};

struct Training {
    started: Instant,
    model: String,
    batch: usize,
    length: usize,
    steps: u64,
    checkpointing: Checkpointing,
    moments: MomentStorage,
}

impl OnDevice for Training {
    type Output = ();

    fn run<B: KernelBackend>(self, device: &B::Device, name: &DeviceInfo) {
        let (compute, _) = Compute::fastest_on::<B>(device);
        let mut model = random_model::<Autodiff<B>>(&self.model, compute, device);
        let vocabulary = model.config().vocab_size;
        let loaded = self.started.elapsed().as_secs_f64();
        let samples = (0..self.batch * self.steps as usize).map(|row| {
            let ids = (0..self.length).map(|i| ((row * 7919 + i * 104_729) % vocabulary) as u32).collect();
            Sample::new(ids, vec![1.0; self.length], row + 1)
        });
        let data = Dataset::from_samples(samples.collect()).expect("rows");
        let mut objective = SupervisedFineTuning::new(data, self.batch, 1, None)
            .expect("rows")
            .with_checkpointing(self.checkpointing);
        let options = EngineOptions {
            schedule: Schedule::new(ScheduleKind::Constant, 1e-4, 0.0, self.steps),
            optimizer: AdamWOptions { moments: self.moments, ..AdamWOptions::default() },
            ..EngineOptions::linear(self.steps, 1e-4)
        };
        let mut times = Vec::new();
        let mut last = Instant::now();
        let mut first_step = 0.0;
        let mut losses = Vec::new();
        let mut peak = 0.0f64;
        let timer = on_step(|metrics| {
            peak = peak.max(metrics.memory.unwrap_or(0.0));
            times.push(last.elapsed().as_secs_f64());
            last = Instant::now();
            losses.push(metrics.loss);
            if metrics.step == 1 {
                first_step = self.started.elapsed().as_secs_f64();
            }
        });
        Engine::new(options).with_observer(timer).run(&mut model, &mut objective).expect("steps");
        let mut steady: Vec<f64> = times.iter().skip(3.min(times.len() - 1)).copied().collect();
        steady.sort_by(f64::total_cmp);
        let step = steady[steady.len() / 2];
        let tokens = (self.batch * self.length) as f64;
        let memory = B::device_memory(device).unwrap_or_default();
        let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
        println!(
            "{:5} {}x{} {compute} checkpointing {:?} {:?}: {:.1} ms/step (fastest {:.1}), {:.0} tokens/s, {:.2} GiB \
             taken ({:.2} in use after), loaded after {loaded:.1} s, first step done after {first_step:.1} s, losses \
             {:.3} to {:.3} ({name})",
            self.model,
            self.batch,
            self.length,
            self.checkpointing,
            self.moments,
            step * 1e3,
            steady[0] * 1e3,
            tokens / step,
            peak * 1e6 / f64::from(1 << 30),
            gib(memory.in_use),
            losses[0],
            losses[losses.len() - 1],
        );
    }
}

fn main() {
    let started = Instant::now();
    let arguments = Arguments::from_env();
    let backend = arguments.text("--backend", default_backend());
    let gpu = backend == "cuda";
    let training = Training {
        started,
        model: arguments.text("--model", if gpu { "1b" } else { "135m" }),
        batch: arguments.count("--batch", 2),
        length: arguments.count("--length", if gpu { 2048 } else { 128 }),
        steps: arguments.count("--steps", 12) as u64,
        checkpointing: match arguments.text("--checkpointing", "none").as_str() {
            "layers" => Checkpointing::Layers,
            "offload" => Checkpointing::Offload,
            _ => Checkpointing::None,
        },
        moments: match arguments.text("--optimizer", "adamw8bit").as_str() {
            "adamw" => MomentStorage::F32,
            _ => MomentStorage::EightBit,
        },
    };
    on_device(&backend, None, training).unwrap_or_else(|error| panic!("{error}"));
}
