//! The rows of a run.

use qlora_core::data::{Augmentation, DataPlan, Dataset, DatasetOptions};
use qlora_core::hub::ProgressBars;
use qlora_core::models::Checkpoint;
use qlora_core::train::SupervisedFineTuning;
use qlora_core::train::config::{DataConfig, RunConfig};

use crate::failure::Failure;
use crate::model::encoder;

/// Reads and checks the rows, prints what became of them, and makes them the objective.
pub(super) fn objective(
    config: &RunConfig,
    checkpoint: &Checkpoint,
) -> Result<SupervisedFineTuning, Failure> {
    let context = checkpoint.config().context_length();
    if config.data.max_length > context {
        eprintln!(
            "data.max_length is {}: lowered to the model's context of {context}",
            config.data.max_length
        );
    }
    let encoder = encoder(checkpoint)?.with_train_on(config.data.train_on);
    let options = options(&config.data, context);
    let told = |name: &str, sources: &dyn std::fmt::Display, data: Dataset| {
        eprintln!("{name} data {sources}: {}", data.report());
        data
    };
    let (train, split) = plan(&config.data).open(&encoder, &options, &mut ProgressBars::new())?;
    let train = told("training", &config.data.train, train);
    let training_tokens = train.report().tokens;
    let eval = match &config.data.eval {
        Some(sources) => {
            let plan = DataPlan::new(sources.clone());
            let (eval, _) = plan.open(&encoder, &options, &mut ProgressBars::new())?;
            Some(told("evaluation", sources, eval))
        }
        None => split.map(|eval| told("evaluation", &"split off", eval)),
    };
    let shuffle = config.data.shuffle.then_some(config.data.seed);
    let mut objective =
        SupervisedFineTuning::new(train, config.train.batch_size, config.train.accumulate, shuffle)?
            .with_checkpointing(config.train.checkpointing);
    if let Some(tokens) = config.train.tokens_per_batch {
        objective = objective.with_token_budget(tokens, config.data.packing.unwrap_or_default())?;
        let batches = objective.batches_per_epoch();
        let full = 100.0 * training_tokens as f64 / (batches as f64 * tokens as f64);
        eprintln!("{batches} batches of at most {tokens} tokens, {full:.1} % full");
    }
    if let Some(eval) = eval {
        objective = objective.with_evaluation(eval);
    }
    Ok(objective)
}

/// The rows of `data.train`.
fn plan(data: &DataConfig) -> DataPlan {
    DataPlan {
        sources: data.train.clone(),
        mixing: data.mixing.unwrap_or_default(),
        // Its seed also chooses which rows a source repeats.
        augmentation: data
            .augmentation
            .clone()
            .unwrap_or_else(|| Augmentation { seed: data.seed, ..Augmentation::default() }),
        split: data.eval_split.clone(),
    }
}

fn options(data: &DataConfig, context: usize) -> DatasetOptions {
    DatasetOptions {
        shape: None,
        max_length: Some(data.max_length.min(context)),
        on_long: data.on_long,
        on_bad_row: data.on_bad_row,
    }
}
