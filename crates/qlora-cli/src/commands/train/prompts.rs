//! The prompts and rewards of a run with `[grpo]`.

use std::sync::Arc;

use qlora_core::data::{OnBadRow, OnLong};
use qlora_core::models::Checkpoint;
use qlora_core::rl::Reward;
use qlora_core::text::Tokenizer;
use qlora_core::train::config::{GrpoConfig, RunConfig};
use qlora_core::train::grpo::{Grpo, GrpoOptions, PromptOptions, PromptSet, TaskPrompts, text_decoder};

use crate::failure::Failure;

/// Reads the prompts, starts the rewards, and makes them the objective.
pub(super) fn objective(
    config: &RunConfig,
    grpo: &GrpoConfig,
    checkpoint: &Checkpoint,
) -> Result<Grpo, Failure> {
    let tokenizer = Arc::new(checkpoint.tokenizer()?);
    let prompts = prompts(config, grpo, checkpoint, &tokenizer)?;
    let rewards = grpo.rewards.iter().map(|reward| {
        let built =
            reward.build().map_err(|error| Failure::message(format!("reward {}: {error}", reward.name)));
        built.map(|built| (built, reward.weight))
    });
    let rewards: Vec<(Box<dyn Reward>, f64)> = rewards.collect::<Result<_, _>>()?;
    for warning in grpo.options.loss.warnings() {
        eprintln!("warning: {warning}");
    }
    let options = GrpoOptions { stop_tokens: tokenizer.eos().to_vec(), ..grpo.options.clone() };
    Grpo::new(prompts, rewards, text_decoder(tokenizer), options).map_err(|problems| {
        let problems: Vec<String> = problems.iter().map(|problem| format!("grpo.{problem}")).collect();
        Failure::usage(problems.join("\n"))
    })
}

/// Rows that were left out and are told one by one.
const TOLD: usize = 10;

/// Reads the prompts, and tells what was left out.
fn prompts(
    config: &RunConfig,
    grpo: &GrpoConfig,
    checkpoint: &Checkpoint,
    tokenizer: &Tokenizer,
) -> Result<PromptSet, Failure> {
    let context = checkpoint.config().context_length().min(config.data.max_length);
    let completion = grpo.options.loss.max_completion_length;
    let room = context.saturating_sub(completion);
    if room == 0 {
        return Err(Failure::usage(format!(
            "grpo.max_completion_length {completion} leaves no room for a prompt within {context} tokens (the smaller of \
             data.max_length and the model's context)"
        )));
    }
    let options = PromptOptions {
        max_tokens: room,
        skip_bad_rows: config.data.on_bad_row == OnBadRow::Skip,
        skip_long_rows: config.data.on_long == OnLong::Skip,
    };
    let (prompts, unit) = match config.data.task() {
        Some((task, count)) => {
            let (system, prefill) = (grpo.system.clone(), grpo.prefill.clone());
            let wanted = TaskPrompts { task, count, seed: config.data.seed, system, prefill };
            (PromptSet::from_task(&wanted, tokenizer, None, options)?, "problem")
        }
        None => (PromptSet::from_jsonl(config.data.train.to_string(), tokenizer, None, options)?, "line"),
    };
    eprintln!("prompts {}: {}", config.data.train, prompts.prompts().len());
    let skipped = prompts.skipped();
    for (number, problem) in &skipped[..skipped.len().min(TOLD)] {
        eprintln!("  {unit} {number} was left out: {problem}");
    }
    if skipped.len() > TOLD {
        eprintln!("  {} more were left out", skipped.len() - TOLD);
    }
    Ok(prompts)
}
