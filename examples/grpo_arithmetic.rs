//! Teaches SmolLM2-135M-Instruct to add by reward alone, on a CPU, in a few minutes: nobody shows it a sum.
//!
//! The model is asked "What is a + b?", its answer begins with "a + b =", and what it writes next is scored: one for
//! the right number, a half for a number and nothing else. Run it with
//!
//! ```text
//! cargo run --release --example grpo_arithmetic
//! cargo run --release --example grpo_arithmetic --features cuda -- --backend cuda     # or wgpu: vulkan, metal, webgpu
//! ```

use std::sync::Arc;
use std::time::Instant;

use qlora_core::Result;
use qlora_core::hub::ProgressBars;
use qlora_core::kernels::device::{DeviceInfo, OnDevice, on_device};
use qlora_core::prelude::*;
use qlora_core::rl::{Extract, LossOptions, NumericAnswer, PatternFormat, Reward};
use qlora_core::train::grpo::{Grpo, GrpoOptions, Prompt, PromptSet, text_decoder};
use qlora_core::train::schedule::{Schedule, ScheduleKind};
use qlora_core::train::{AdamWOptions, on_step};
use qlora_examples::backend_from_arguments;

const SEED: u64 = 42;
const STEPS: u64 = 25;
const PROMPTS: usize = 4;
const GROUP: usize = 8;
const MAX_NEW_TOKENS: usize = 5;
const LEARNING_RATE: f64 = 5e-4;
const HELD_OUT: usize = 32;
const SYSTEM: &str = "Answer with the number.";

/// Sums of numbers up to 15, all different pairs, the held-out ones last.
fn sums() -> Vec<(u64, u64)> {
    let mut pairs: Vec<(u64, u64)> = (1..=15).flat_map(|a| (1..=15).map(move |b| (a, b))).collect();
    let mut state = SEED;
    for last in (1..pairs.len()).rev() {
        // SplitMix64 (Steele et al. 2014): the same order everywhere.
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        pairs.swap(last, ((z ^ (z >> 31)) % (last as u64 + 1)) as usize);
    }
    pairs
}

fn prompt(tokenizer: &Tokenizer, (a, b): (u64, u64)) -> Result<Prompt> {
    let messages = [Message::system(SYSTEM), Message::user(format!("What is {a} + {b}?"))];
    let input = RenderInput { messages: &messages, add_generation_prompt: true, ..RenderInput::default() };
    let text = format!("{}{a} + {b} =", tokenizer.chat_template()?.render(&input)?.text);
    let columns = [("answer".to_string(), (a + b).into())].into_iter().collect();
    Ok(Prompt { ids: tokenizer.encode(&text)?, text: text.into(), columns: Arc::new(columns) })
}

/// How many of the prompts are answered right, greedily.
fn right<B: KernelBackend>(model: &Decoder<B>, tokenizer: &Tokenizer, prompts: &[Prompt]) -> Result<usize> {
    let ids: Vec<&[u32]> = prompts.iter().map(|prompt| prompt.ids.as_slice()).collect();
    let stop_tokens = tokenizer.eos().to_vec();
    let options =
        GenerateOptions { max_new_tokens: MAX_NEW_TOKENS, stop_tokens, ..GenerateOptions::default() };
    let mut right = 0;
    for (completion, prompt) in model.generate(&ids, &options, &mut |_| true)?.iter().zip(prompts) {
        let text = tokenizer.decode_generated(&completion.ids, true)?;
        right += usize::from(
            Extract::FirstNumber.answer(&text) == Some(prompt.columns["answer"].to_string().as_str()),
        );
    }
    Ok(right)
}

struct Arithmetic;

impl OnDevice for Arithmetic {
    type Output = Result<()>;

    fn run<B: KernelBackend>(self, device: &B::Device, info: &DeviceInfo) -> Result<()> {
        run::<B>(device, info)
    }
}

fn main() -> Result<()> {
    on_device(&backend_from_arguments("grpo_arithmetic"), None, Arithmetic)?
}

fn run<B: KernelBackend>(device: &B::Device, info: &DeviceInfo) -> Result<()> {
    let start = Instant::now();
    let fetched = ModelStore::from_env()?.fetch("smollm2-135m", &mut ProgressBars::new())?;
    let checkpoint = Checkpoint::open(fetched.path.path())?;
    let tokenizer = Arc::new(checkpoint.tokenizer()?);
    let (compute, _) = Compute::fastest_on::<B>(device);
    let quantization = Quantization::Nf4(Nf4Options { double_quant: true, ..Nf4Options::default() });
    let mut model =
        load::<Autodiff<B>>(&checkpoint, LoadOptions { quantization, compute }, device, &mut |_, _| {})?;
    let lora = LoraConfig { rank: 16, alpha: 32.0, ..LoraConfig::default() };
    model.attach(&lora, SEED)?;
    println!(
        "model     NF4 on {info}, products in {compute}, {} trained parameters",
        model.trained_parameter_count()
    );

    let mut prompts = sums().into_iter().map(|sum| prompt(&tokenizer, sum)).collect::<Result<Vec<_>>>()?;
    let held_out = prompts.split_off(prompts.len() - HELD_OUT);
    let before = right(&model.valid(), &tokenizer, &held_out)?;
    println!("before    {before} of {HELD_OUT} held-out sums are right, greedily");

    let correct = NumericAnswer {
        name: "correct".into(),
        column: "answer".into(),
        extract: Extract::FirstNumber,
        tolerance: 0.0,
    };
    let rewards: Vec<(Box<dyn Reward>, f64)> =
        vec![(Box::new(correct), 1.0), (Box::new(PatternFormat::new("bare", r"\s*\d+\.?\s*")?), 0.5)];
    let options = GrpoOptions {
        loss: LossOptions { max_completion_length: MAX_NEW_TOKENS, ..LossOptions::default() },
        num_generations: GROUP,
        batch_size: PROMPTS * GROUP,
        stop_tokens: tokenizer.eos().to_vec(),
        seed: SEED,
        ..GrpoOptions::default()
    };
    let decode = text_decoder(Arc::clone(&tokenizer));
    let mut objective =
        Grpo::new(PromptSet::new(prompts)?, rewards, decode, options).map_err(|mut p| p.remove(0))?;
    let options = EngineOptions {
        schedule: Schedule::new(ScheduleKind::Constant, LEARNING_RATE, 2.0, STEPS),
        optimizer: AdamWOptions::default(),
        seed: SEED,
        ..EngineOptions::linear(STEPS, LEARNING_RATE)
    }
    .for_compute::<B>(compute);
    let mut curve = Vec::new();
    let print = on_step(|metrics| {
        let of = |name: &str| metrics.objective.get(name).copied().unwrap_or(f64::NAN);
        curve.push(of("reward"));
        println!(
            "step {:3}  reward {:.3} of 1.5 (right {:.2}, bare {:.2})  entropy {:.2}  length {:.1}  rollout {:.1} s",
            metrics.step,
            of("reward"),
            of("rewards/correct/mean"),
            of("rewards/bare/mean"),
            of("entropy"),
            of("completions/mean_length"),
            of("seconds/rollout"),
        );
    });
    Engine::new(options).with_observer(print).run(&mut model, &mut objective)?;

    let after = right(&model.valid(), &tokenizer, &held_out)?;
    let last = &curve[curve.len().saturating_sub(5)..];
    println!("after     {after} of {HELD_OUT} held-out sums are right, greedily ({before} before)");
    println!(
        "reward    {:.2} in the first step, {:.2} in the mean of the last {}",
        curve[0],
        last.iter().sum::<f64>() / last.len() as f64,
        last.len()
    );
    println!("{:.0} s, all told", start.elapsed().as_secs_f64());
    Ok(())
}
