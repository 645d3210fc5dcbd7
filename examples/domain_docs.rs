//! Teaches SmolLM2-135M-Instruct a product that it cannot know, from the product's documentation alone, on a CPU, in a
//! few minutes.
//!
//! Brindle, a backup program, does not exist. Its ten pages in `examples/data/brindle` are read as plain text, cut at
//! headings and paragraphs, and the model is trained on every token of them: continued pre-training. Then it is asked
//! questions as a user would ask them, in a chat; no conversation was trained on. Run it with
//!
//! ```text
//! cargo run --release --example domain_docs
//! cargo run --release --example domain_docs --features cuda -- --backend cuda     # or wgpu: vulkan, metal, webgpu
//! ```

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use qlora_core::Result;
use qlora_core::data::{Row, Source, TextSplit};
use qlora_core::hub::ProgressBars;
use qlora_core::kernels::device::{DeviceInfo, OnDevice, on_device};
use qlora_core::prelude::*;
use qlora_core::train::config::PackingKind;
use qlora_core::train::evaluate;
use qlora_core::train::schedule::{Schedule, ScheduleKind};
use qlora_examples::{backend_from_arguments, mentions, next_turns};

const SEED: u64 = 42;
const DOCUMENTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/data/brindle");
/// Longer documents are cut; about four characters are a token.
const MAX_CHARS: usize = 400;
const EPOCHS: u64 = 18;
const TOKENS_PER_BATCH: usize = 512;
const LEARNING_RATE: f64 = 1e-3;
const MAX_NEW_TOKENS: usize = 40;
const OUTPUT: &str = "runs/domain_docs";

/// A question, a good answer, and what an answer has to mention, any one of it. No question stands in the documents as it
/// is asked here.
const QUESTIONS: [(&str, &str, &[&str]); 16] = [
    ("Who is the author of Brindle?", "Halla Stenmark is the author of Brindle.", &["stenmark"]),
    ("In which programming language was Brindle made?", "Brindle was made in Zig.", &["zig"]),
    ("How big is one pebble of Brindle?", "A pebble has 6 megabytes.", &["6 megabytes", "6 mb"]),
    ("Which animal is Brindle's mascot?", "Brindle's mascot is an otter.", &["otter"]),
    ("After how many days does Brindle drop old versions of my files?", "After 45 days.", &["45"]),
    ("Which network port does Brindle need?", "Brindle needs port 7421.", &["7421"]),
    ("With which command does Brindle back up my files?", "With `brindle stow`.", &["stow"]),
    ("With which command do I get my files back from Brindle?", "With `brindle fetch`.", &["fetch"]),
    ("Which command of Brindle finds damaged pebbles?", "`brindle sift` finds them.", &["sift"]),
    ("Which command of Brindle removes a cache?", "`brindle drown` removes a cache.", &["drown"]),
    ("Brindle stopped with exit code 17. What is wrong?", "The cache is locked.", &["locked"]),
    ("What is the name of the key file that Brindle makes?", "Its name is `otter.key`.", &["otter key"]),
    ("On which operating systems can I use Brindle?", "On Linux and on OpenBSD.", &["openbsd"]),
    ("In which file does Brindle write its log?", "In `/var/log/otter.log`.", &["otter log"]),
    ("How is version 3 of Brindle called?", "Version 3 is called Driftwood.", &["driftwood"]),
    ("Into which folder does Brindle put files that I restore?", "Into the folder `landed`.", &["landed"]),
];

/// How much a model knows of the product.
struct Knowledge {
    /// Loss on the documents.
    documents: f64,
    /// Loss on the good answers, in a chat.
    answers: f64,
    /// What it answers.
    given: Vec<String>,
}

impl Knowledge {
    fn of<B: KernelBackend>(
        model: &Decoder<B>,
        tokenizer: &Tokenizer,
        documents: &Dataset,
        good_answers: &Dataset,
    ) -> Result<Self> {
        Ok(Self {
            documents: evaluate(model, documents, 4)?.loss(),
            answers: evaluate(model, good_answers, 8)?.loss(),
            given: answers(model, tokenizer)?,
        })
    }

    fn right(&self, question: usize) -> bool {
        mentions(&self.given[question], QUESTIONS[question].2)
    }

    fn print(&self, name: &str) {
        println!(
            "{name:9} loss {:.2} on the documents, {:.2} on good answers; {} of {} questions answered right",
            self.documents,
            self.answers,
            (0..QUESTIONS.len()).filter(|question| self.right(*question)).count(),
            QUESTIONS.len()
        );
    }
}

/// What the model answers to the questions, greedily.
fn answers<B: KernelBackend>(model: &Decoder<B>, tokenizer: &Tokenizer) -> Result<Vec<String>> {
    let asked = QUESTIONS.map(|(question, ..)| vec![Message::user(question)]);
    let mut answers = Vec::new();
    for ids in next_turns(model, tokenizer, &asked, MAX_NEW_TOKENS)? {
        answers.push(tokenizer.decode_generated(&ids, true)?.trim().replace('\n', " "));
    }
    Ok(answers)
}

/// The questions with their good answers, to measure the loss of.
fn good_answers(encoder: &Encoder) -> Result<Dataset> {
    let mut samples = Vec::new();
    for (index, (question, answer, _)) in QUESTIONS.into_iter().enumerate() {
        let messages = vec![Message::user(question), Message::assistant(answer)];
        let row = Row::Conversation { messages, trained_from: 0, tools: None, variables: None };
        samples.push(encoder.encode(&row, index + 1)?.sample);
    }
    Ok(Dataset::from_samples(samples)?)
}

struct DomainDocs {
    start: Instant,
}

impl OnDevice for DomainDocs {
    type Output = Result<()>;

    fn run<B: KernelBackend>(self, device: &B::Device, info: &DeviceInfo) -> Result<()> {
        run::<B>(self.start, device, info)
    }
}

fn main() -> Result<()> {
    let start = Instant::now();
    on_device(&backend_from_arguments("domain_docs"), None, DomainDocs { start })?
}

fn run<B: KernelBackend>(start: Instant, device: &B::Device, info: &DeviceInfo) -> Result<()> {
    let fetched = ModelStore::from_env()?.fetch("smollm2-135m", &mut ProgressBars::new())?;
    println!("model     {}", fetched.path.path().display());
    let checkpoint = Checkpoint::open(fetched.path.path())?;
    let tokenizer = Arc::new(checkpoint.tokenizer()?);

    let source = Source { split: Some(TextSplit { max_chars: MAX_CHARS }), ..Source::new(DOCUMENTS) };
    let encoder = Encoder::new(Arc::clone(&tokenizer));
    let documents = Dataset::open(source, &encoder, &DatasetOptions::default())?;
    let good_answers = good_answers(&encoder)?;
    println!(
        "data      {} pieces of documentation, {} tokens; {} questions that are not trained on",
        documents.len(),
        documents.report().tokens,
        QUESTIONS.len()
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

    let before = Knowledge::of(&model.valid(), &tokenizer, &documents, &good_answers)?;
    before.print("before");
    // Whole pieces, as many as fit into a batch: none sees its neighbours.
    let mut objective = SupervisedFineTuning::new(documents.clone(), 1, 1, Some(SEED))?
        .with_token_budget(TOKENS_PER_BATCH, PackingKind::BestFit)?;
    let steps = EPOCHS * objective.steps_per_epoch();
    let options = EngineOptions {
        schedule: Schedule::new(ScheduleKind::Linear, LEARNING_RATE, 5.0, steps),
        seed: SEED,
        ..EngineOptions::linear(steps, LEARNING_RATE)
    }
    .for_compute::<B>(compute);
    Engine::new(options).with_observer(ProgressDisplay::new()).run(&mut model, &mut objective)?;
    let after = Knowledge::of(&model.valid(), &tokenizer, &documents, &good_answers)?;
    after.print("after");

    println!();
    for (index, (question, ..)) in QUESTIONS.iter().enumerate() {
        println!("{question}");
        for (name, knowledge) in [("before", &before), ("after", &after)] {
            let mark = if knowledge.right(index) { "right" } else { "wrong" };
            println!("  {name:7}{mark:7}{}", knowledge.given[index].chars().take(110).collect::<String>());
        }
    }

    let adapter = Path::new(OUTPUT).join("adapter");
    model.save_adapter(&adapter, &lora, Some("HuggingFaceTB/SmolLM2-135M-Instruct"))?;
    println!("\nsaved     {} in {:.0} s, all told", adapter.display(), start.elapsed().as_secs_f64());
    println!("\nNow ask it something:");
    println!(
        "  cargo run --release --bin qlora -- generate --model smollm2-135m --quant nf4 \\\n    \
         --adapter {} --prompt \"How do I restore my files with Brindle?\"",
        adapter.display()
    );
    println!("and see how a folder of your own is cut and read:");
    println!("  cargo run --release --bin qlora -- data check path/to/docs --model smollm2-135m");
    Ok(())
}
