//! Generation at the sizes of known models: random weights in NF4 with double quantization, LoRA of rank 16 on all linear
//! layers, tokens drawn at temperature 1.
//!
//! ```text
//! cargo bench --bench generation --features cuda -- --model 1b --batch 512 --prompt 32 --new 256
//! ```
//!
//! Prints tokens a second, the time of a step, and the share of the floor: the time in which the device copies as many
//! bytes as weights, head and keys have, or multiplies as often as they ask for, whichever is longer.

use std::time::Instant;

use qlora_benches::arguments::Arguments;
use qlora_benches::devices::{Ceiling, default_backend};
use qlora_benches::shapes::random_model;
use qlora_core::kernels::device::{DeviceInfo, OnDevice, on_device};
use qlora_core::models::{Flow, Generator, GeneratorOptions, Request};
use qlora_core::prelude::*;

struct Generation {
    model: String,
    batches: Vec<usize>,
    completions: usize,
    prompt: usize,
    new: usize,
    sampling: Sampling,
}

impl OnDevice for Generation {
    type Output = ();

    fn run<B: KernelBackend>(self, device: &B::Device, name: &DeviceInfo) {
        let (compute, _) = Compute::fastest_on::<B>(device);
        let model = random_model::<B>(&self.model, compute, device);
        let ceiling = Ceiling::measure::<B>(device, compute, B::device_memory(device).is_some());
        B::memory_cleanup(device);
        for &batch in &self.batches {
            self.measure(&model, batch, compute, ceiling, device);
        }
        println!("{name}");
    }
}

impl Generation {
    fn measure<B: KernelBackend>(
        &self,
        model: &Decoder<B>,
        batch: usize,
        compute: Compute,
        ceiling: Ceiling,
        device: &B::Device,
    ) {
        let config = model.config();
        let completions = self.completions.min(batch);
        let requests = |new: usize| {
            (0..batch / completions).map(move |row| Request {
                completions,
                max_new_tokens: new,
                sampling: self.sampling,
                first_stream: (row * completions) as u64,
                ..Request::new(
                    (0..self.prompt)
                        .map(|i| ((row * 7919 + i * 104_729) % config.vocab_size) as u32)
                        .collect(),
                )
            })
        };
        let pages = batch * (self.prompt + self.new).div_ceil(16);
        let options = GeneratorOptions { max_sequences: batch, pages, ..GeneratorOptions::default() };
        let mut generator = Generator::new(model, options);
        let mut serve = |new: usize| {
            let start = Instant::now();
            for request in requests(new) {
                generator.submit(request).expect("it fits");
            }
            let mut first = 0.0;
            let mut steps = 0;
            loop {
                let more = generator.step(&mut |_| Flow::Continue).expect("served");
                steps += 1;
                if first == 0.0 {
                    first = start.elapsed().as_secs_f64();
                }
                if !more {
                    return (first, start.elapsed().as_secs_f64(), steps);
                }
            }
        };
        // Kernels are compiled in a run that is not counted: a whole one, since there are kernels for long sequences.
        serve(self.new);
        let (first, total, steps) = serve(self.new);
        let tokens = batch * self.new;
        let step = (total - first) / (steps - 1).max(1) as f64;

        let (hidden, kv) = (config.hidden_size, config.kv_heads * config.head_dim);
        let attention = 2 * hidden * config.heads * config.head_dim + 2 * hidden * kv;
        let weights = config.layers * (attention + 3 * hidden * config.intermediate_size);
        let element = compute.dtype().size();
        let seen = self.prompt + self.new / 2;
        let keys = 2 * config.layers * kv * seen * element * batch;
        let head = config.vocab_size * hidden;
        // 4 bits and a byte a block of 64; the head is not quantized.
        let bytes = weights as f64 * (0.5 + 1.0 / 64.0) + (head * element + keys) as f64;
        let scores = 4 * config.layers * config.heads * config.head_dim * seen;
        let operations = (2 * (weights + head) + scores) as f64 * batch as f64;
        let (by_bytes, by_operations) = (bytes / ceiling.bytes, operations / ceiling.operations);
        let (floor, bound) =
            if by_bytes > by_operations { (by_bytes, "bandwidth") } else { (by_operations, "arithmetic") };
        let memory = B::device_memory(device).unwrap_or_default();
        println!(
            "{:4} batch {batch:4} ({completions} a prompt) {}+{} {compute}: {:.0} tokens/s, first token after {:.0} ms, \
             {:.2} ms/step, floor {:.2} ms by {bound}: {:.0} %, {:.2} GiB",
            self.model,
            self.prompt,
            self.new,
            tokens as f64 / total,
            first * 1e3,
            step * 1e3,
            floor * 1e3,
            100.0 * floor / step,
            memory.reserved as f64 / f64::from(1 << 30),
        );
    }
}

fn main() {
    let arguments = Arguments::from_env();
    let backend = arguments.text("--backend", default_backend());
    let gpu = backend == "cuda";
    let batches = arguments.text("--batch", if gpu { "1,8,64,512" } else { "1,8" });
    let generation = Generation {
        model: arguments.text("--model", if gpu { "1b" } else { "135m" }),
        batches: batches.split(',').map(|batch| batch.parse().expect("batch sizes")).collect(),
        completions: arguments.count("--completions", 1),
        prompt: arguments.count("--prompt", 32),
        new: arguments.count("--new", if gpu { 256 } else { 64 }),
        sampling: Sampling {
            temperature: arguments.number("--temperature", 1.0),
            top_k: arguments.count("--top-k", 0),
            top_p: arguments.number("--top-p", 1.0),
            ..Sampling::default()
        },
    };
    on_device(&backend, None, generation).unwrap_or_else(|error| panic!("{error}"));
}
