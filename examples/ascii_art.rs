//! Teaches SmolLM2-135M-Instruct to draw cows in ASCII art, on a CPU, in a few minutes.
//!
//! 342 captioned drawings in `examples/data/cows.json`, read as they are. A drawing is white space as much as ink, so
//! this is a test of what happens to text on its way: every drawing is compared with what its trained tokens spell,
//! and what the model draws is scored by how wide its rows are and of which characters they are made. Run it with
//!
//! ```text
//! cargo run --release --example ascii_art
//! cargo run --release --example ascii_art --features cuda -- --backend cuda     # or wgpu: vulkan, metal, webgpu
//! ```

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use qlora_core::Result;
use qlora_core::data::{DataPlan, EvalSplit, Record, Records, Row};
use qlora_core::hub::{ProgressBars, Silent};
use qlora_core::kernels::device::{DeviceInfo, OnDevice, on_device};
use qlora_core::prelude::*;
use qlora_core::train::evaluate;
use qlora_core::train::schedule::{Schedule, ScheduleKind};
use qlora_examples::{backend_from_arguments, next_turns};

const SEED: u64 = 42;
const DRAWINGS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/data/cows.json");
const HELD_OUT: f64 = 0.1;
const STEPS: u64 = 60;
const BATCH_SIZE: usize = 8;
const LEARNING_RATE: f64 = 2e-3;
/// Held-out captions that are drawn, and how many of these are shown.
const DRAWN: usize = 12;
const SHOWN: usize = 3;
const MAX_NEW_TOKENS: usize = 120;
const OUTPUT: &str = "runs/ascii_art";

/// A caption, as a request, and its drawing.
struct Drawing {
    caption: String,
    art: String,
}

/// All drawings of the file, untouched: these are what tokens are compared with.
fn drawings() -> Result<Vec<Drawing>> {
    let mut drawings = Vec::new();
    for record in Records::open(DRAWINGS, OnBadRow::Stop, &mut Silent)? {
        let (place, record) = record?;
        let Record::Row(Row::Conversation { messages, .. }) = record else {
            return Err(io::Error::other(format!("{place}: expected a caption and a drawing")).into());
        };
        let texts: Vec<&str> = messages.iter().filter_map(Message::text).collect();
        let [caption, art] = texts[..] else {
            return Err(io::Error::other(format!("{place}: expected a caption and a drawing")).into());
        };
        drawings.push(Drawing { caption: caption.to_owned(), art: art.to_owned() });
    }
    Ok(drawings)
}

/// The drawings that the samples of a data set stand for, after making sure that the trained tokens of each spell its
/// drawing and the end of the turn: no space lost, none added.
fn verified<'a>(data: &Dataset, drawings: &'a [Drawing], tokenizer: &Tokenizer) -> Result<Vec<&'a Drawing>> {
    let mut found = Vec::new();
    for (index, sample) in data.iter().enumerate() {
        let place = data.location(index).ok_or_else(|| io::Error::other("a sample from no file"))?;
        let drawing = &drawings[place.position.number - 1];
        let trained = sample.ids.iter().zip(&sample.weights).filter(|(_, weight)| **weight != 0.0);
        let spelt = tokenizer.decode(&trained.map(|(id, _)| *id).collect::<Vec<_>>(), false)?;
        let end = tokenizer.eos().first().and_then(|id| tokenizer.token(*id)).unwrap_or_default();
        if spelt != format!("{}{end}", drawing.art) {
            return Err(io::Error::other(format!("{place}: the trained tokens spell\n{spelt}")).into());
        }
        found.push(drawing);
    }
    Ok(found)
}

/// What the model draws for captions, greedily.
fn draw<B: KernelBackend>(
    model: &Decoder<B>,
    tokenizer: &Tokenizer,
    wanted: &[&Drawing],
) -> Result<Vec<String>> {
    let captions: Vec<Vec<Message>> =
        wanted.iter().map(|drawing| vec![Message::user(&drawing.caption)]).collect();
    let mut drawn = Vec::new();
    for ids in next_turns(model, tokenizer, &captions, MAX_NEW_TOKENS)? {
        // Token by token, as a chat prints it: that must be the same text, white space and all.
        let mut stream = TokenStream::new(tokenizer, true);
        let mut art = String::new();
        for id in &ids {
            art.push_str(&stream.push_generated(*id)?);
        }
        art.push_str(&stream.finish()?);
        if art != tokenizer.decode_generated(&ids, true)? {
            return Err(io::Error::other(format!("streaming changes the text:\n{art}")).into());
        }
        drawn.push(art);
    }
    Ok(drawn)
}

/// How alike the outlines of two drawings are, 0 to 1: the columns that their rows share, of those that either has,
/// `Σ min(a, b) / Σ max(a, b)` over the widths of rows.
fn outline(a: &str, b: &str) -> f64 {
    let widths = |art: &str| art.lines().map(|row| row.chars().count()).collect::<Vec<_>>();
    let (a, b) = (widths(a), widths(b));
    let width = |rows: &[usize], row: usize| rows.get(row).copied().unwrap_or(0);
    let rows = 0..a.len().max(b.len());
    let shared: usize = rows.clone().map(|row| width(&a, row).min(width(&b, row))).sum();
    let either: usize = rows.map(|row| width(&a, row).max(width(&b, row))).sum();
    shared as f64 / either.max(1) as f64
}

/// How often each character is there, white space left out.
fn characters<'a>(drawings: impl IntoIterator<Item = &'a str>) -> BTreeMap<char, f64> {
    let mut counts = BTreeMap::new();
    for character in drawings.into_iter().flat_map(str::chars).filter(|character| !character.is_whitespace())
    {
        *counts.entry(character).or_default() += 1.0;
    }
    counts
}

/// What two distributions have in common, 0 to 1: `Σ min(p, q)`.
fn overlap(a: &BTreeMap<char, f64>, b: &BTreeMap<char, f64>) -> f64 {
    let (all_a, all_b): (f64, f64) = (a.values().sum(), b.values().sum());
    a.iter().map(|(key, count)| (count / all_a).min(b.get(key).copied().unwrap_or(0.0) / all_b)).sum()
}

fn percent(share: f64) -> String {
    format!("{:.0} %", 100.0 * share)
}

/// A drawing behind a margin, so that its own white space shows.
fn show(title: &str, art: &str) {
    println!("  {title}");
    for row in art.lines().take(14) {
        println!("    |{}", row.chars().take(90).collect::<String>());
    }
}

struct AsciiArt {
    start: Instant,
}

impl OnDevice for AsciiArt {
    type Output = Result<()>;

    fn run<B: KernelBackend>(self, device: &B::Device, info: &DeviceInfo) -> Result<()> {
        run::<B>(self.start, device, info)
    }
}

fn main() -> Result<()> {
    let start = Instant::now();
    on_device(&backend_from_arguments("ascii_art"), None, AsciiArt { start })?
}

fn run<B: KernelBackend>(start: Instant, device: &B::Device, info: &DeviceInfo) -> Result<()> {
    let fetched = ModelStore::from_env()?.fetch("smollm2-135m", &mut ProgressBars::new())?;
    println!("model     {}", fetched.path.path().display());
    let checkpoint = Checkpoint::open(fetched.path.path())?;
    let tokenizer = Arc::new(checkpoint.tokenizer()?);

    // Rows of one drawing are on one side, so that no held-out drawing is trained on under another caption.
    let split = EvalSplit { fraction: HELD_OUT, group: Some("output".into()), seed: SEED };
    let plan = DataPlan { split: Some(split), ..DataPlan::new(DRAWINGS) };
    let encoder = Encoder::new(Arc::clone(&tokenizer));
    let (training, held_out) = plan.open(&encoder, &DatasetOptions::default(), &mut Silent)?;
    let held_out = held_out.ok_or_else(|| io::Error::other("no held-out drawings"))?;
    let drawings = drawings()?;
    let trained_on = verified(&training, &drawings, &tokenizer)?;
    let wanted = verified(&held_out, &drawings, &tokenizer)?;
    println!(
        "data      {} drawings to learn from, {} held out; the tokens of all {} spell them to the space",
        training.len(),
        held_out.len(),
        trained_on.len() + wanted.len()
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

    let drawn: Vec<&Drawing> = wanted.iter().copied().take(DRAWN).collect();
    let loss_before = evaluate(&model.valid(), &held_out, BATCH_SIZE)?.loss();
    let before = draw(&model.valid(), &tokenizer, &drawn)?;
    println!("before    held-out loss {loss_before:.2}");

    let mut objective = SupervisedFineTuning::new(training, BATCH_SIZE, 1, Some(SEED))?;
    let options = EngineOptions {
        schedule: Schedule::new(ScheduleKind::Linear, LEARNING_RATE, 5.0, STEPS),
        seed: SEED,
        ..EngineOptions::linear(STEPS, LEARNING_RATE)
    }
    .for_compute::<B>(compute);
    Engine::new(options).with_observer(ProgressDisplay::new()).run(&mut model, &mut objective)?;

    let loss_after = evaluate(&model.valid(), &held_out, BATCH_SIZE)?.loss();
    let after = draw(&model.valid(), &tokenizer, &drawn)?;
    println!("after     held-out loss {loss_after:.2}\n");
    for ((drawing, before), after) in drawn.iter().zip(&before).zip(&after).take(SHOWN) {
        println!("{}", drawing.caption);
        show("before", before);
        show("after", after);
        show("the drawing that the model never saw", &drawing.art);
        println!();
    }

    let real: Vec<&str> = drawn.iter().map(|drawing| drawing.art.as_str()).collect();
    let others: Vec<&str> = trained_on.iter().map(|drawing| drawing.art.as_str()).take(DRAWN).collect();
    println!("in common with the {DRAWN} drawings that the model never saw");
    println!("  {:24}{:>16}{:>12}", "", "widths of rows", "characters");
    for (name, art) in [
        ("before", before.iter().map(String::as_str).collect()),
        ("after", after.iter().map(String::as_str).collect()),
        ("other drawings instead", others),
    ] {
        let outlines: f64 = art.iter().zip(&real).map(|(art, real)| outline(art, real)).sum();
        let used = overlap(&characters(art.iter().copied()), &characters(real.iter().copied()));
        println!("  {name:24}{:>16}{:>12}", percent(outlines / DRAWN as f64), percent(used));
    }

    let adapter = Path::new(OUTPUT).join("adapter");
    model.save_adapter(&adapter, &lora, Some("HuggingFaceTB/SmolLM2-135M-Instruct"))?;
    println!("\nsaved     {} in {:.0} s, all told", adapter.display(), start.elapsed().as_secs_f64());
    println!("\nNow let it draw:");
    println!(
        "  cargo run --release --bin qlora -- generate --model smollm2-135m --quant nf4 \\\n    \
         --adapter {} --prompt \"Draw this in ASCII art: Cow at the beach\"",
        adapter.display()
    );
    println!("and see what training sees, spaces and all:");
    println!("  cargo run --release --bin qlora -- data show examples/data/cows.json --model smollm2-135m");
    Ok(())
}
