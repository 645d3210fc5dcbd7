//! What can stop a run.

use std::path::PathBuf;

/// A run that can't start, go on or be resumed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrainError {
    /// A file of the run can't be read or written.
    #[error(transparent)]
    Files(#[from] qlora_files::Error),
    /// A checkpoint is incomplete or damaged.
    #[error("checkpoint {} can't be used: {reason}", path.display())]
    BadCheckpoint {
        /// The checkpoint's directory.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A checkpoint belongs to a run with other settings, data or parameters than this one.
    #[error(
        "checkpoint {} belongs to a different run: {}; restore what changed, or start anew in another directory \
         (lora.init_from continues from an adapter)",
        path.display(),
        changes.join("; ")
    )]
    Changed {
        /// The checkpoint's directory.
        path: PathBuf,
        /// Each difference, with both values.
        changes: Vec<String>,
    },
    /// The output directory holds a run already.
    #[error(
        "{} holds an earlier run; resume it (--resume), or choose another output.dir, or remove the directory",
        path.display()
    )]
    OutputExists {
        /// The output directory.
        path: PathBuf,
    },
    /// A line of the metrics file is damaged.
    #[error("{}:{line}: not a line of metrics: {source}; remove the line to go on", path.display())]
    BadMetrics {
        /// The metrics file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What the parser said.
        source: serde_json::Error,
    },
    /// A loss or gradient is infinite or not a number.
    #[error(
        "the {what} of step {step} is {value}{}; {}; lower train.learning_rate, or compute in f32",
        layer.as_ref().map(|layer| format!(", first in the output of {layer}")).unwrap_or_default(),
        after(checkpoint.as_deref())
    )]
    NotFinite {
        /// Which number.
        what: &'static str,
        /// The number.
        value: f64,
        /// The optimizer step, from 1.
        step: u64,
        /// The first part of the model whose output is not finite, where it was found.
        layer: Option<String>,
        /// The newest checkpoint, from before.
        checkpoint: Option<PathBuf>,
    },
    /// Gradients overflow whatever the loss is multiplied with.
    #[error(
        "the gradients of {skipped} steps in a row, the last of them step {step}, are infinite or not a number \
         although the loss scale fell to {scale}; {}; compute in bf16 or f32 (model.dtype), or lower \
         train.learning_rate",
        after(checkpoint.as_deref())
    )]
    LossScale {
        /// Steps in a row without an update.
        skipped: u64,
        /// The last of them, from 1.
        step: u64,
        /// The factor of the loss now.
        scale: f64,
        /// The newest checkpoint.
        checkpoint: Option<PathBuf>,
    },
    /// An optimizer step whose batches have no token with a loss weight.
    #[error("the rows of step {step} have no token to learn from: all their loss weights are 0")]
    NothingToLearn {
        /// The optimizer step, from 1.
        step: u64,
    },
    /// A step continues on a generation batch that the checkpoint does not hold.
    #[error(
        "step {step} goes on with completions of an earlier step, and the checkpoint does not hold them; resume from \
         another checkpoint"
    )]
    MissingRollout {
        /// The optimizer step, from 1.
        step: u64,
    },
    /// A trained parameter that the loss does not depend on.
    #[error("parameter `{name}` has no part in the loss; take its layer out of lora.targets")]
    NoGradient {
        /// The parameter's name.
        name: String,
    },
    /// The rows can't be sampled.
    #[error(transparent)]
    Data(#[from] qlora_data::Error),
    /// An objective failed.
    #[error("{source}")]
    Objective {
        /// What it says.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The handler of Ctrl-C can't be installed.
    #[error("can't handle Ctrl-C: {source}")]
    Interrupt {
        /// The operating system's answer.
        source: ctrlc::Error,
    },
}

fn after(checkpoint: Option<&std::path::Path>) -> String {
    checkpoint.map_or("there is no checkpoint from before".to_string(), |path| {
        format!("the last good checkpoint is {}", path.display())
    })
}
