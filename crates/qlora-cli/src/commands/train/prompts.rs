//! The prompts and rewards of a run with `[grpo]`.

use std::sync::Arc;

use qlora_core::data::OnBadRow;
use qlora_core::models::Checkpoint;
use qlora_core::rl::Reward;
use qlora_core::train::config::{GrpoConfig, RunConfig};
use qlora_core::train::grpo::{Grpo, GrpoOptions, PromptOptions, PromptSet, text_decoder};

use crate::failure::Failure;

/// Reads the prompts, starts the rewards, and makes them the objective.
pub(super) fn objective(
    config: &RunConfig,
    grpo: &GrpoConfig,
    checkpoint: &Checkpoint,
    quiet: bool,
) -> Result<Grpo, Failure> {
    let tokenizer = Arc::new(checkpoint.tokenizer()?);
    let prompts = match config.data.task() {
        Some((task, count)) => PromptSet::from_task(task, count, config.data.seed, None, &tokenizer, None)?,
        None => {
            let context = checkpoint.config().max_position_embeddings.min(config.data.max_length);
            let room = context.saturating_sub(grpo.options.loss.max_completion_length);
            if room == 0 {
                return Err(Failure::usage(format!(
                    "grpo.max_completion_length {} leaves no room for a prompt within {context} tokens (the smaller \
                     of data.max_length and the model's context)",
                    grpo.options.loss.max_completion_length
                )));
            }
            let skip = config.data.on_bad_row == OnBadRow::Skip;
            let options = PromptOptions { max_tokens: room, skip_bad_rows: skip };
            PromptSet::from_jsonl(config.data.train.to_string(), &tokenizer, None, options)?
        }
    };
    let rewards = grpo.rewards.iter().map(|reward| {
        let built =
            reward.build().map_err(|error| Failure::message(format!("reward {}: {error}", reward.name)));
        built.map(|built| (built, reward.weight))
    });
    let rewards: Vec<(Box<dyn Reward>, f64)> = rewards.collect::<Result<_, _>>()?;
    if !quiet {
        eprintln!("prompts {}: {}", config.data.train, prompts.prompts().len());
        for (line, problem) in prompts.skipped() {
            eprintln!("  line {line} was left out: {problem}");
        }
        for warning in grpo.options.loss.warnings() {
            eprintln!("warning: {warning}");
        }
    }
    let options = GrpoOptions { stop_tokens: tokenizer.eos().to_vec(), ..grpo.options.clone() };
    Grpo::new(prompts, rewards, text_decoder(tokenizer), options).map_err(|problems| {
        let problems: Vec<String> = problems.iter().map(|problem| format!("grpo.{problem}")).collect();
        Failure::usage(problems.join("\n"))
    })
}
