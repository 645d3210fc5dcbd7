//! Rewards for reasoning aloud: `<think>…</think><answer>…</answer>`, and the right answer in the second.
//!
//! Meant for a GPU and a model of a billion parameters or more; with the defaults it runs small on a CPU, where
//! SmolLM2-135M learns the form within a few steps and hardly more.
//!
//! ```text
//! cargo run --release --example grpo_reasoning
//! cargo run --release --example grpo_reasoning --features cuda -- --backend cuda --model organisation/name \
//!     --task word_problem --steps 200 --prompts 16 --tokens 256
//! ```

use std::path::PathBuf;
use std::sync::Arc;

use qlora_core::Result;
use qlora_core::hub::ProgressBars;
use qlora_core::kernels::device::{DeviceInfo, OnDevice, on_device};
use qlora_core::prelude::*;
use qlora_core::rl::{Extract, LossKind, LossOptions, Reward, SoftOverlong, TagFormat, Task, TaskAnswer};
use qlora_core::train::grpo::{Grpo, GrpoOptions, PromptOptions, PromptSet, TaskPrompts, text_decoder};

const SYSTEM: &str = "Think first, then answer. Write <think>your thoughts</think><answer>the number</answer> and \
                      nothing else.";
const GROUP: usize = 8;

/// What to run; `--name value` each.
struct Options {
    backend: String,
    model: String,
    task: Task,
    steps: u64,
    prompts: usize,
    tokens: usize,
    output: PathBuf,
}

impl Options {
    fn parse() -> std::result::Result<Self, String> {
        let mut options = Self {
            backend: "cpu".into(),
            model: "smollm2-135m".into(),
            task: Task::Arithmetic,
            steps: 10,
            prompts: 2,
            tokens: 48,
            output: "runs/grpo_reasoning".into(),
        };
        let mut arguments = std::env::args().skip(1);
        while let Some(name) = arguments.next() {
            let value = arguments.next().ok_or_else(|| format!("{name} needs a value"))?;
            let number = || value.parse().ok().filter(|n: &usize| *n > 0).ok_or(format!("{name}: {value}?"));
            match name.as_str() {
                "--backend" => options.backend = value,
                "--model" => options.model = value,
                "--task" => options.task = Task::from_name(&value).ok_or(format!("no task {value}"))?,
                "--steps" => options.steps = number()? as u64,
                "--prompts" => options.prompts = number()?,
                "--tokens" => options.tokens = number()?,
                "--output" => options.output = value.into(),
                _ => return Err(format!("unknown option {name}")),
            }
        }
        Ok(options)
    }
}

impl OnDevice for Options {
    type Output = Result<()>;

    fn run<B: KernelBackend>(self, device: &B::Device, info: &DeviceInfo) -> Result<()> {
        println!("{} on {info}", self.model);
        run::<B>(&self, device)
    }
}

fn main() -> Result<()> {
    let options = Options::parse().unwrap_or_else(|problem| {
        eprintln!("{problem}; options are --backend --model --task --steps --prompts --tokens --output");
        std::process::exit(2);
    });
    on_device(&options.backend.clone(), None, options)?
}

fn run<B: KernelBackend>(run: &Options, device: &B::Device) -> Result<()> {
    let fetched = ModelStore::from_env()?.fetch(&run.model, &mut ProgressBars::new())?;
    let checkpoint = Checkpoint::open(fetched.path.path())?;
    let tokenizer = Arc::new(checkpoint.tokenizer()?);
    let (compute, _) = Compute::fastest_on::<B>(device);
    let quantization = Quantization::Nf4(Nf4Options { double_quant: true, ..Nf4Options::default() });
    let mut model =
        load::<Autodiff<B>>(&checkpoint, LoadOptions { quantization, compute }, device, &mut |_, _| {})?;
    let lora = LoraConfig { rank: 32, alpha: 32.0, ..LoraConfig::default() };
    model.attach(&lora, 42)?;

    let wanted =
        TaskPrompts { task: run.task, count: 1000, seed: 42, system: Some(SYSTEM.into()), prefill: None };
    let context = checkpoint.config().context_length();
    let fitting = PromptOptions {
        max_tokens: context.saturating_sub(run.tokens),
        skip_bad_rows: false,
        skip_long_rows: false,
    };
    let prompts = PromptSet::from_task(&wanted, &tokenizer, None, fitting)?;
    let form = TagFormat {
        name: "form".into(),
        tags: ["think", "answer"].map(String::from).to_vec(),
        partial: true,
    };
    let right = TaskAnswer { name: "right".into(), extract: Extract::Tag };
    let short = SoftOverlong { name: "short".into(), max_tokens: run.tokens, cache: run.tokens.div_ceil(4) };
    let rewards: Vec<(Box<dyn Reward>, f64)> =
        vec![(Box::new(form), 0.5), (Box::new(right), 1.0), (Box::new(short), 0.5)];
    let options = GrpoOptions {
        loss: LossOptions {
            kind: LossKind::Dapo,
            epsilon_high: 0.28,
            max_completion_length: run.tokens,
            ..LossOptions::default()
        },
        num_generations: GROUP,
        batch_size: GROUP,
        accumulate: run.prompts,
        checkpointing: Checkpointing::Layers,
        stop_tokens: tokenizer.eos().to_vec(),
        ..GrpoOptions::default()
    };
    let decode = text_decoder(Arc::clone(&tokenizer));
    let mut objective = Grpo::new(prompts, rewards, decode, options).map_err(|mut p| p.remove(0))?;
    Engine::new(EngineOptions::linear(run.steps, 2e-4).for_compute::<B>(compute))
        .with_directory(RunDirectory::without_config(&run.output))
        .with_observer(ProgressDisplay::new())
        .run(&mut model, &mut objective)?;
    model.save_adapter(run.output.join("adapter"), &lora, None)?;
    println!("adapter, metrics, curves and sample completions: {}", run.output.display());
    Ok(())
}
