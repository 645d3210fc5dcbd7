//! Everything a run needs to go on as if it had never stopped.
//!
//! `checkpoints/step-N/` holds `adapter.safetensors` (the trained parameters under their PEFT names, f32),
//! `optimizer.safetensors` (`NAME.exp_avg` and `NAME.exp_avg_sq`, f32 or in eight bits), `state.json` and, where the
//! objective has a state of its own, `objective.json`. The order of the data and
//! all random streams are functions of the seed and the step, so the step is all that has to be stored of them.
//! A checkpoint is built under another name, flushed and renamed: a kill leaves whole checkpoints only. The
//! digests of the other files are in `state.json`, so that a damaged one is noticed.

mod folder;
mod moment;
mod tensors;

pub use folder::{CheckpointFolder, FoundCheckpoint};
pub use moment::{MomentValues, NamedMoment};
pub use tensors::NamedTensor;

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::{LossScale, TrainError};

/// The layout of `state.json` that this version writes and reads.
const FORMAT: u32 = 1;

/// A run at the end of an optimizer step.
#[derive(Clone, Debug, PartialEq)]
pub struct Checkpoint {
    /// Counters, and what identifies the run.
    pub state: RunState,
    /// The trained parameters.
    pub parameters: Vec<NamedTensor>,
    /// First moments of the optimizer, in the order of the parameters.
    pub first_moments: Vec<NamedMoment>,
    /// Second moments of the optimizer, in the order of the parameters.
    pub second_moments: Vec<NamedMoment>,
    /// What the objective needs beside the number of the step, in its own form.
    pub objective: Option<String>,
}

/// Counters of a run, and what identifies it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunState {
    /// Optimizer steps done.
    pub step: u64,
    /// Epochs done.
    pub epoch: f64,
    /// Tokens that went through the model.
    pub tokens: u64,
    /// Tokens that the loss counted.
    pub trained_tokens: u64,
    /// Of the steps, those without a token that counts, which the optimizer did not make.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub empty_steps: u64,
    /// Seconds spent in optimizer steps.
    pub seconds: f64,
    /// The lowest evaluation loss and the step after which it was found.
    pub best: Option<BestEvaluation>,
    /// The factor of the loss, where gradients are f16.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss_scale: Option<LossScale>,
    /// The settings that decide how training goes, by key.
    pub settings: BTreeMap<String, String>,
    /// Digest of the tokens and weights trained on.
    pub data: String,
}

fn is_zero(count: &u64) -> bool {
    *count == 0
}

/// The evaluation with the lowest loss.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BestEvaluation {
    /// The step after which it was done.
    pub step: u64,
    /// Its loss.
    pub loss: f64,
}

impl Checkpoint {
    /// Makes sure that this checkpoint, found at `path`, is of a run with these settings, data and parameters.
    ///
    /// # Errors
    /// It is not: every difference is named.
    pub fn check<'a>(
        &self,
        path: &Path,
        settings: &BTreeMap<String, String>,
        data: &str,
        parameters: impl IntoIterator<Item = (&'a str, &'a [usize])>,
    ) -> Result<(), TrainError> {
        let mut changes = Vec::new();
        let keys: std::collections::BTreeSet<&String> =
            self.state.settings.keys().chain(settings.keys()).collect();
        for key in keys {
            let (before, now) = (self.state.settings.get(key), settings.get(key));
            if before != now {
                let shown = |value: Option<&String>| value.map_or("not set", String::as_str).to_string();
                changes.push(format!("{key} was {}, is {}", shown(before), shown(now)));
            }
        }
        if self.state.data != data {
            changes.push("the training data (its tokens or loss weights) changed".to_string());
        }
        let stored: BTreeMap<&str, &[usize]> =
            self.parameters.iter().map(|tensor| (tensor.name.as_str(), tensor.shape.as_slice())).collect();
        let needed: BTreeMap<&str, &[usize]> = parameters.into_iter().collect();
        if let Some((name, shape)) = needed.iter().find(|(name, shape)| stored.get(*name) != Some(*shape)) {
            let found = stored.get(name).map_or("absent".to_string(), |found| format!("of shape {found:?}"));
            changes.push(format!("parameter `{name}` is {found}, the model needs shape {shape:?}"));
        }
        if let Some(name) = stored.keys().find(|name| !needed.contains_key(*name)) {
            changes.push(format!("parameter `{name}` is not trained in this model"));
        }
        if changes.is_empty() {
            Ok(())
        } else {
            Err(TrainError::Changed { path: path.to_path_buf(), changes })
        }
    }
}
