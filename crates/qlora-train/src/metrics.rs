//! `metrics.jsonl`: one JSON object per optimizer step and per evaluation.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};

use qlora_files::{Error as FileError, atomic};
use serde::{Deserialize, Deserializer, Serialize};

use crate::TrainError;

/// A line of the metrics file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Record {
    /// An optimizer step.
    Step(StepMetrics),
    /// An evaluation after a step.
    Evaluation(EvalMetrics),
}

/// What an optimizer step tells.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepMetrics {
    /// Number of the step, from 1.
    pub step: u64,
    /// Epochs done after this step; a fraction within an epoch.
    pub epoch: f64,
    /// Weighted mean loss of the step's tokens, in nats.
    pub loss: f64,
    /// Global L2 norm of the gradients before clipping; NaN (`null` in the file) where the step was skipped.
    #[serde(deserialize_with = "number_or_null")]
    pub grad_norm: f64,
    /// Learning rate.
    pub lr: f64,
    /// Tokens that went through the model in this step.
    pub tokens: u64,
    /// Of these, tokens that the loss counted.
    pub trained_tokens: u64,
    /// Tokens a second, over the time of this step.
    pub tokens_per_s: f64,
    /// Most memory held so far, in MB: of the device where it has its own, else of the process; absent where the
    /// system does not tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<f64>,
    /// What the loss was multiplied with for the backward pass; absent where it is not scaled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss_scale: Option<f64>,
    /// Steps so far that changed nothing because gradients overflowed; absent where the loss is not scaled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub skipped_steps: Option<u64>,
    /// What the objective tells of the step, by name: keys of the same object in the file. Finite numbers.
    #[serde(flatten)]
    pub objective: BTreeMap<String, f64>,
}

fn number_or_null<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or(f64::NAN))
}

/// What an evaluation tells.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct EvalMetrics {
    /// The step after which it was done; 0 before the first.
    pub step: u64,
    /// Epochs done at that time.
    pub epoch: f64,
    /// Weighted mean loss of the evaluated tokens, in nats.
    pub eval_loss: f64,
    /// `exp(eval_loss)`.
    pub eval_perplexity: f64,
    /// Share of the counted tokens that were the model's first choice.
    pub eval_accuracy: f64,
    /// How many tokens were counted.
    pub eval_tokens: u64,
}

impl Record {
    /// The step it belongs to.
    #[must_use]
    pub fn step(&self) -> u64 {
        match self {
            Self::Step(metrics) => metrics.step,
            Self::Evaluation(metrics) => metrics.step,
        }
    }
}

/// The metrics file of a run, open for appending. Every line is handed to the system as soon as it is recorded:
/// a kill loses at most the line it interrupts.
#[derive(Debug)]
pub struct MetricsFile {
    path: PathBuf,
    file: File,
}

impl MetricsFile {
    /// Starts a file, replacing any other.
    ///
    /// # Errors
    /// The file can't be created.
    pub fn create(path: impl AsRef<Path>) -> Result<Self, TrainError> {
        let path = path.as_ref();
        let file = File::create(path).map_err(FileError::io("create", path))?;
        Ok(Self { path: path.to_path_buf(), file })
    }

    /// Continues a file after `step`: lines of later steps, which the resumed run will record again, and an
    /// unfinished last line are dropped. A missing file is started.
    ///
    /// # Errors
    /// A line is damaged, or the file can't be read or written.
    pub fn resume(path: impl AsRef<Path>, step: u64) -> Result<Self, TrainError> {
        let path = path.as_ref();
        let records = read_metrics(path)?;
        let kept = records.iter().filter(|record| record.step() <= step);
        let mut text = String::new();
        for record in kept {
            text.push_str(&line(path, record)?);
        }
        atomic::write_bytes(path, text)?;
        let file = OpenOptions::new().append(true).open(path).map_err(FileError::io("open", path))?;
        Ok(Self { path: path.to_path_buf(), file })
    }

    /// Appends a line.
    ///
    /// # Errors
    /// The file can't be written.
    pub fn record(&mut self, record: &Record) -> Result<(), TrainError> {
        let text = line(&self.path, record)?;
        // One write, so that no reader sees half a line of a running job.
        self.file.write_all(text.as_bytes()).map_err(FileError::io("append to", &self.path))?;
        Ok(())
    }
}

/// All lines of a metrics file. An unfinished last line, left by a kill, is dropped; a missing file has no lines.
///
/// # Errors
/// A finished line is damaged, or the file can't be read.
pub fn read_metrics(path: impl AsRef<Path>) -> Result<Vec<Record>, TrainError> {
    let path = path.as_ref();
    let text = match fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(FileError::io("read", path)(source).into()),
    };
    text.split_inclusive(|&byte| byte == b'\n')
        .filter(|line| line.ends_with(b"\n"))
        .enumerate()
        .map(|(index, line)| {
            serde_json::from_slice(line).map_err(|source| TrainError::BadMetrics {
                path: path.to_path_buf(),
                line: index + 1,
                source,
            })
        })
        .collect()
}

fn line(path: &Path, record: &Record) -> Result<String, TrainError> {
    let mut line = serde_json::to_string(record)
        .map_err(|source| FileError::ToJson { path: path.to_path_buf(), source })?;
    line.push('\n');
    Ok(line)
}
