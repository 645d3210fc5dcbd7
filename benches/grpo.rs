//! Whole GRPO steps at the sizes of known models: random weights in NF4 with double quantization, LoRA of rank 16 on all
//! linear layers, completions drawn at temperature 1 and never stopped early.
//!
//! ```text
//! cargo bench --bench grpo --features cuda -- --model 1b --prompts 64 --group 8 --prompt 32 --new 256
//! ```
//!
//! Prints the time of a step and of its parts, the difference of log-probabilities between sampler and trainer, and the
//! memory of the device.

use std::sync::Arc;
use std::time::Instant;

use qlora_benches::arguments::Arguments;
use qlora_benches::devices::default_backend;
use qlora_benches::shapes::random_model;
use qlora_core::kernels::device::{DeviceInfo, OnDevice, on_device};
use qlora_core::prelude::*;
use qlora_core::rl::{LossOptions, Reward, RewardInput, reward_fn};
use qlora_core::train::grpo::{Grpo, GrpoOptions, Prompt, PromptSet, TextDecoder};
use qlora_core::train::schedule::{Schedule, ScheduleKind};
use qlora_core::train::{AdamWOptions, MomentStorage, on_step};

struct Steps {
    model: String,
    prompts: usize,
    group: usize,
    prompt: usize,
    new: usize,
    /// Completions of a micro-batch.
    micro: usize,
    steps: u64,
}

impl OnDevice for Steps {
    type Output = ();

    fn run<B: KernelBackend>(self, device: &B::Device, name: &DeviceInfo) {
        let (compute, _) = Compute::fastest_on::<B>(device);
        let mut model = random_model::<Autodiff<B>>(&self.model, compute, device);
        let vocabulary = model.config().vocab_size;

        let prompts = (0..self.prompts * self.steps as usize).map(|row| Prompt {
            ids: (0..self.prompt).map(|i| ((row * 7919 + i * 104_729) % vocabulary) as u32).collect(),
            text: format!("{row}").into(),
            columns: Arc::default(),
        });
        // There is no tokenizer: a text is its token ids, and the reward the share of even ones.
        let decode: TextDecoder =
            Arc::new(|ids| Ok(ids.iter().map(u32::to_string).collect::<Vec<_>>().join(" ")));
        let even = reward_fn("even", |input: &RewardInput<'_>| {
            let ids = input.completion_ids;
            Some(ids.iter().filter(|id| **id % 2 == 0).count() as f64 / ids.len().max(1) as f64)
        });
        let rewards: Vec<(Box<dyn Reward>, f64)> = vec![(Box::new(even), 1.0)];
        let options = GrpoOptions {
            loss: LossOptions { max_completion_length: self.new, ..LossOptions::default() },
            num_generations: self.group,
            batch_size: self.micro,
            accumulate: self.prompts * self.group / self.micro,
            ..GrpoOptions::default()
        };
        let prompts = PromptSet::new(prompts.collect()).expect("prompts");
        let mut objective = Grpo::new(prompts, rewards, decode, options).expect("options");
        let engine = EngineOptions {
            schedule: Schedule::new(ScheduleKind::Constant, 1e-5, 0.0, self.steps),
            optimizer: AdamWOptions { moments: MomentStorage::EightBit, ..AdamWOptions::default() },
            ..EngineOptions::linear(self.steps, 1e-5)
        }
        .for_compute::<B>(compute);
        let mut last = Instant::now();
        let print = on_step(|metrics| {
            let of = |name: &str| metrics.objective.get(name).copied().unwrap_or(f64::NAN);
            let whole = last.elapsed().as_secs_f64();
            last = Instant::now();
            let rollout = of("seconds/rollout");
            println!(
                "{:4} {}x{} {}+{} {compute} step {}: {whole:.2} s, rollout and rewards {rollout:.2} s, update {:.2} s; \
                 sampler and trainer differ by {:.4} in the mean, {:.3} at most; {:.2} GiB at most",
                self.model,
                self.prompts,
                self.group,
                self.prompt,
                self.new,
                metrics.step,
                whole - rollout,
                of("sampling/sampling_logp_difference/mean"),
                of("sampling/sampling_logp_difference/max"),
                metrics.memory.unwrap_or(0.0) * 1e6 / f64::from(1 << 30),
            );
        });
        Engine::new(engine).with_observer(print).run(&mut model, &mut objective).expect("steps");
        println!("{name}");
    }
}

fn main() {
    let arguments = Arguments::from_env();
    let backend = arguments.text("--backend", default_backend());
    let gpu = backend == "cuda";
    let steps = Steps {
        model: arguments.text("--model", if gpu { "1b" } else { "135m" }),
        prompts: arguments.count("--prompts", if gpu { 64 } else { 2 }),
        group: arguments.count("--group", if gpu { 8 } else { 4 }),
        prompt: arguments.count("--prompt", 32),
        new: arguments.count("--new", if gpu { 256 } else { 16 }),
        micro: arguments.count("--micro", if gpu { 16 } else { 8 }),
        steps: arguments.count("--steps", 3) as u64,
    };
    on_device(&backend, None, steps).unwrap_or_else(|error| panic!("{error}"));
}
