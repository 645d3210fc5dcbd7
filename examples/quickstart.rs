//! Fine-tunes SmolLM2-135M-Instruct with QLoRA on a CPU, in a few minutes, and shows that it learned.
//!
//! The model is fetched when it is absent. The task is arithmetic with one- and two-digit numbers, made
//! from a seed; the model is asked for the bare result, which it never gives before. Run it with
//!
//! ```text
//! cargo run --release --example quickstart
//! cargo run --release --example quickstart --features cuda -- --backend cuda     # or wgpu: vulkan, metal, webgpu
//! ```

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use qlora_core::Result;
use qlora_core::data::Row;
use qlora_core::hub::ProgressBars;
use qlora_core::kernels::device::{DeviceInfo, OnDevice, on_device};
use qlora_core::prelude::*;
use qlora_core::train::schedule::{Schedule, ScheduleKind};
use qlora_examples::{backend_from_arguments, next_turns};

const SEED: u64 = 42;
const TRAIN_ROWS: usize = 800;
const HELD_OUT_ROWS: usize = 100;
const STEPS: u64 = 100;
const BATCH_SIZE: usize = 8;
const LEARNING_RATE: f64 = 1e-3;
const SYSTEM: &str = "Answer with the result only.";
const OUTPUT: &str = "runs/quickstart";

/// A question and its answer.
struct Problem {
    question: String,
    answer: String,
}

/// Sums and differences of numbers up to 99, all different, in an order that the seed decides.
fn problems(count: usize, seed: u64) -> Vec<Problem> {
    let mut state = seed;
    let mut draw = |below: u64| {
        // SplitMix64 (Steele et al. 2014): a few lines that give the same questions everywhere.
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % below
    };
    let (mut problems, mut seen) = (Vec::new(), HashSet::new());
    while problems.len() < count {
        let (a, b) = (draw(100), draw(100));
        let (question, answer) = match draw(2) {
            0 => (format!("What is {a} + {b}?"), a + b),
            _ => (format!("What is {} - {}?", a.max(b), a.min(b)), a.abs_diff(b)),
        };
        if seen.insert(question.clone()) {
            problems.push(Problem { question, answer: answer.to_string() });
        }
    }
    problems
}

fn conversation(problem: &Problem) -> Vec<Message> {
    vec![Message::system(SYSTEM), Message::user(&problem.question)]
}

/// What the model answers, greedily.
fn answers<B: KernelBackend>(
    model: &Decoder<B>,
    tokenizer: &Tokenizer,
    problems: &[Problem],
) -> Result<Vec<String>> {
    let mut answers = Vec::new();
    for problems in problems.chunks(25) {
        let asked: Vec<Vec<Message>> = problems.iter().map(conversation).collect();
        for ids in next_turns(model, tokenizer, &asked, 12)? {
            answers.push(tokenizer.decode_generated(&ids, true)?.trim().to_owned());
        }
    }
    Ok(answers)
}

fn exact_match(answers: &[String], problems: &[Problem]) -> usize {
    answers.iter().zip(problems).filter(|(answer, problem)| **answer == problem.answer).count()
}

struct Quickstart {
    start: Instant,
}

impl OnDevice for Quickstart {
    type Output = Result<()>;

    fn run<B: KernelBackend>(self, device: &B::Device, info: &DeviceInfo) -> Result<()> {
        run::<B>(self.start, device, info)
    }
}

fn main() -> Result<()> {
    let start = Instant::now();
    on_device(&backend_from_arguments("quickstart"), None, Quickstart { start })?
}

fn run<B: KernelBackend>(start: Instant, device: &B::Device, info: &DeviceInfo) -> Result<()> {
    let store = ModelStore::from_env()?;
    let fetched = store.fetch("smollm2-135m", &mut ProgressBars::new())?;
    println!("model     {}", fetched.path.path().display());
    let checkpoint = Checkpoint::open(fetched.path.path())?;
    let tokenizer = Arc::new(checkpoint.tokenizer()?);

    let quantization = Quantization::Nf4(Nf4Options { double_quant: true, ..Nf4Options::default() });
    let (compute, _) = Compute::fastest_on::<B>(device);
    let options = LoadOptions { quantization, compute };
    let mut model = load::<Autodiff<B>>(&checkpoint, options, device, &mut |_, _| {})?;
    let lora = LoraConfig { rank: 16, alpha: 32.0, ..LoraConfig::default() };
    let layers = model.attach(&lora, SEED)?;
    println!(
        "weights   NF4 in {:.0} MB on {info}, products in {}; {} trained parameters in {layers} adapters",
        model.weight_bytes() as f64 / 1e6,
        options.compute,
        model.trained_parameter_count(),
    );

    let mut training = problems(TRAIN_ROWS + HELD_OUT_ROWS, SEED);
    let held_out = training.split_off(TRAIN_ROWS);
    println!("data      {TRAIN_ROWS} questions to learn from, {HELD_OUT_ROWS} others to be asked\n");
    let before = answers(&model.valid(), &tokenizer, &held_out)?;
    println!("before    {} of {HELD_OUT_ROWS} answers are the result", exact_match(&before, &held_out));

    let encoder = Encoder::new(Arc::clone(&tokenizer));
    let mut samples = Vec::new();
    for (line, problem) in training.iter().enumerate() {
        let mut messages = conversation(problem);
        messages.push(Message::assistant(&problem.answer));
        let row = Row::Conversation { messages, trained_from: 0, tools: None, variables: None };
        samples.push(encoder.encode(&row, line + 1)?.sample);
    }
    let data = Dataset::from_samples(samples)?;
    let mut objective = SupervisedFineTuning::new(data, BATCH_SIZE, 1, Some(SEED))?;
    let options = EngineOptions {
        schedule: Schedule::new(ScheduleKind::Linear, LEARNING_RATE, 5.0, STEPS),
        seed: SEED,
        ..EngineOptions::linear(STEPS, LEARNING_RATE)
    }
    .for_compute::<B>(compute);
    Engine::new(options).with_observer(ProgressDisplay::new()).run(&mut model, &mut objective)?;

    let after = answers(&model.valid(), &tokenizer, &held_out)?;
    println!("after     {} of {HELD_OUT_ROWS} answers are the result\n", exact_match(&after, &held_out));
    println!("{:24}{:>8}  {:30}after", "question", "result", "before");
    for ((problem, before), after) in held_out.iter().zip(&before).zip(&after).take(8) {
        let short: String = before.replace('\n', " ").chars().take(28).collect();
        println!("{:24}{:>8}  {short:30}{after}", problem.question, problem.answer);
    }

    let adapter = Path::new(OUTPUT).join("adapter");
    model.save_adapter(&adapter, &lora, Some("HuggingFaceTB/SmolLM2-135M-Instruct"))?;
    println!("\nsaved     {} in {:.0} s, all told", adapter.display(), start.elapsed().as_secs_f64());
    println!("\nNow talk to it:");
    println!(
        "  cargo run --release --bin qlora -- generate --model smollm2-135m --quant nf4 \\\n    \
         --adapter {} --system \"{SYSTEM}\" --prompt \"What is 17 + 25?\"",
        adapter.display()
    );
    println!("and train on rows of your own, {{\"messages\": [...]}} a line:");
    println!("  cargo run --release --bin qlora -- train examples/sft.toml");
    Ok(())
}
