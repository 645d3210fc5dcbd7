//! Gives SmolLM2-135M-Instruct a character to play: Maren Tolk, who pulls a ferry across a river, on a CPU, in a few
//! minutes.
//!
//! The system message says no more than her name and her trade, before and after. Her dog, her prices, her fears and
//! her way of talking come from 175 short dialogues in `examples/data/ferrywoman.jsonl`. Those of one turn are joined
//! to longer ones, and all her turns are trained. Run it with
//!
//! ```text
//! cargo run --release --example npc_dialogue
//! cargo run --release --example npc_dialogue --features cuda -- --backend cuda     # or wgpu: vulkan, metal, webgpu
//! ```

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use qlora_core::Result;
use qlora_core::data::{Augmentation, DataPlan, EvalSplit, JoinTurns};
use qlora_core::hub::{ProgressBars, Silent};
use qlora_core::kernels::device::{DeviceInfo, OnDevice, on_device};
use qlora_core::prelude::*;
use qlora_core::train::evaluate;
use qlora_core::train::schedule::{Schedule, ScheduleKind};
use qlora_examples::{backend_from_arguments, mentions, next_turns};

const SEED: u64 = 42;
const DIALOGUES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/data/ferrywoman.jsonl");
const HELD_OUT: f64 = 0.1;
const EPOCHS: u64 = 4;
/// The most turns that dialogues of one turn are joined to.
const MAX_TURNS: usize = 3;
const BATCH_SIZE: usize = 8;
const LEARNING_RATE: f64 = 1e-3;
const SYSTEM: &str = "You are Maren Tolk, ferrywoman at Harrow Crossing.";
const MAX_NEW_TOKENS: usize = 60;
const OUTPUT: &str = "runs/npc_dialogue";

/// What only somebody who knows her can answer, in words that no dialogue has; and what an answer has to mention, any
/// one of it.
const QUESTIONS: [(&str, &[&str]); 14] = [
    ("And how is your dog called?", &["button"]),
    ("What is written on the side of your boat?", &["patience"]),
    ("What do I owe you for taking me over?", &["two coppers"]),
    ("What river are we standing at?", &["sel"]),
    ("Could we go over at midnight?", &["dusk", "dawn", "lights"]),
    ("What became of the old bridge?", &["burned", "burnt", "fire"]),
    ("How many times do I ring if I want to come back?", &["twice"]),
    ("In which town does your brother Joss live?", &["greyfell"]),
    ("Who showed you how to pull the rope?", &["mother", "ilsa"]),
    ("Are you having lunch? What is it?", &["eel"]),
    ("How long will we be on the water?", &["quarter of an hour"]),
    ("Who takes the taxes around here?", &["odrin"]),
    ("What village is that on the far bank?", &["nettlemoor"]),
    ("Did you see something glow in the water?", &["green", "lights"]),
];

/// A conversation that is had before and after.
const TALK: [&str; 4] = [
    "Good day! Who are you?",
    "I need to get to the other side. What does it cost?",
    "And if I come back late, in the dark?",
    "Then I will hurry. Is that your dog?",
];

/// What the model answers to conversations, greedily.
fn replies<B: KernelBackend>(
    model: &Decoder<B>,
    tokenizer: &Tokenizer,
    conversations: &[Vec<Message>],
) -> Result<Vec<String>> {
    let mut replies = Vec::new();
    for ids in next_turns(model, tokenizer, conversations, MAX_NEW_TOKENS)? {
        replies.push(tokenizer.decode_generated(&ids, true)?.trim().to_owned());
    }
    Ok(replies)
}

/// The conversation, each turn answered with all that was said before in mind.
fn talk<B: KernelBackend>(model: &Decoder<B>, tokenizer: &Tokenizer) -> Result<Vec<String>> {
    let (mut messages, mut said) = (vec![Message::system(SYSTEM)], Vec::new());
    for line in TALK {
        messages.push(Message::user(line));
        let reply = replies(model, tokenizer, std::slice::from_ref(&messages))?.remove(0);
        messages.push(Message::assistant(&reply));
        said.push(reply);
    }
    Ok(said)
}

/// How much of the character there is in a model.
struct Character {
    loss: f64,
    answers: Vec<String>,
    talk: Vec<String>,
}

impl Character {
    fn of<B: KernelBackend>(model: &Decoder<B>, tokenizer: &Tokenizer, held_out: &Dataset) -> Result<Self> {
        let asked = QUESTIONS.map(|(question, _)| vec![Message::system(SYSTEM), Message::user(question)]);
        Ok(Self {
            loss: evaluate(model, held_out, BATCH_SIZE)?.loss(),
            answers: replies(model, tokenizer, &asked)?,
            talk: talk(model, tokenizer)?,
        })
    }

    /// Questions whose answer mentions what it has to.
    fn known(&self) -> usize {
        QUESTIONS.iter().zip(&self.answers).filter(|((_, words), answer)| mentions(answer, words)).count()
    }

    fn words_per_answer(&self) -> f64 {
        let words: usize = self.answers.iter().map(|answer| answer.split_whitespace().count()).sum();
        words as f64 / self.answers.len() as f64
    }

    fn print(&self, name: &str) {
        println!(
            "{name:9} held-out loss {:.2}; {} of {} questions answered as she would; {:.0} words an answer",
            self.loss,
            self.known(),
            QUESTIONS.len(),
            self.words_per_answer()
        );
    }

    fn print_talk(&self, title: &str) {
        println!("\n{title}");
        for (line, reply) in TALK.iter().zip(&self.talk) {
            println!("  traveller  {line}");
            println!("  Maren      {}", reply.replace('\n', " "));
        }
    }
}

struct NpcDialogue {
    start: Instant,
}

impl OnDevice for NpcDialogue {
    type Output = Result<()>;

    fn run<B: KernelBackend>(self, device: &B::Device, info: &DeviceInfo) -> Result<()> {
        run::<B>(self.start, device, info)
    }
}

fn main() -> Result<()> {
    let start = Instant::now();
    on_device(&backend_from_arguments("npc_dialogue"), None, NpcDialogue { start })?
}

fn run<B: KernelBackend>(start: Instant, device: &B::Device, info: &DeviceInfo) -> Result<()> {
    let fetched = ModelStore::from_env()?.fetch("smollm2-135m", &mut ProgressBars::new())?;
    println!("model     {}", fetched.path.path().display());
    let checkpoint = Checkpoint::open(fetched.path.path())?;
    let tokenizer = Arc::new(checkpoint.tokenizer()?);

    let split = EvalSplit { fraction: HELD_OUT, group: None, seed: SEED };
    let join_turns = Some(JoinTurns { max_turns: MAX_TURNS, window: 1024 });
    let augmentation = Augmentation { seed: SEED, join_turns, ..Augmentation::default() };
    let plan = DataPlan { split: Some(split), augmentation, ..DataPlan::new(DIALOGUES) };
    let encoder = Encoder::new(Arc::clone(&tokenizer));
    let (training, held_out) = plan.open(&encoder, &DatasetOptions::default(), &mut Silent)?;
    let held_out = held_out.ok_or_else(|| io::Error::other("no held-out dialogues"))?;
    println!(
        "data      {} conversations to learn from ({} tokens, {} of them hers), {} held out",
        training.len(),
        training.report().tokens,
        training.report().trained_tokens,
        held_out.len()
    );

    let quantization = Quantization::Nf4(Nf4Options { double_quant: true, ..Nf4Options::default() });
    let (compute, _) = Compute::fastest_on::<B>(device);
    let options = LoadOptions { quantization, compute };
    let mut model = load::<Autodiff<B>>(&checkpoint, options, device, &mut |_, _| {})?;
    let lora = LoraConfig { rank: 16, alpha: 32.0, ..LoraConfig::default() };
    model.attach(&lora, SEED)?;
    println!(
        "weights   NF4 in {:.0} MB on {info}, products in {compute}; {} trained parameters\n",
        model.weight_bytes() as f64 / 1e6,
        model.trained_parameter_count(),
    );

    let before = Character::of(&model.valid(), &tokenizer, &held_out)?;
    before.print("before");
    let mut objective = SupervisedFineTuning::new(training, BATCH_SIZE, 1, Some(SEED))?;
    let steps = EPOCHS * objective.steps_per_epoch();
    let options = EngineOptions {
        schedule: Schedule::new(ScheduleKind::Linear, LEARNING_RATE, 5.0, steps),
        seed: SEED,
        ..EngineOptions::linear(steps, LEARNING_RATE)
    }
    .for_compute::<B>(compute);
    Engine::new(options).with_observer(ProgressDisplay::new()).run(&mut model, &mut objective)?;
    let after = Character::of(&model.valid(), &tokenizer, &held_out)?;
    after.print("after");

    before.print_talk("The same conversation, before:");
    after.print_talk("and after:");
    println!("\nSome of the questions, after:");
    for ((question, _), answer) in QUESTIONS.iter().zip(&after.answers).take(6) {
        println!("  {question}\n      {}", answer.replace('\n', " "));
    }

    let adapter = Path::new(OUTPUT).join("adapter");
    model.save_adapter(&adapter, &lora, Some("HuggingFaceTB/SmolLM2-135M-Instruct"))?;
    println!("\nsaved     {} in {:.0} s, all told", adapter.display(), start.elapsed().as_secs_f64());
    println!("\nNow talk to her:");
    println!(
        "  cargo run --release --bin qlora -- generate --model smollm2-135m --quant nf4 \\\n    \
         --adapter {} --system \"{SYSTEM}\" --chat",
        adapter.display()
    );
    println!("and write a character of your own, {{\"messages\": [...]}} a line:");
    println!("  cargo run --release --bin qlora -- data check my_character.jsonl --model smollm2-135m");
    Ok(())
}
