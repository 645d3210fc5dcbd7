//! What a run minimizes: where its batches come from and what their loss is.

use std::collections::BTreeMap;

use burn::module::AutodiffModule;
use qlora_kernels::TrainBackend;
use qlora_lora::Pass;

use crate::samples::SampleRecord;
use crate::{Loss, TrainError};

/// A way of training a model `M`: supervised, by reinforcement, ...
///
/// Everything it draws must be a function of its own seed and of the step, so that a resumed run gets the same
/// batches as one that was never stopped.
pub trait Objective<B: TrainBackend, M: AutodiffModule<B>> {
    /// What goes through the model at a time.
    type Batch;

    /// Optimizer steps in which every row is seen once.
    fn steps_per_epoch(&self) -> u64;

    /// Digest of what is trained on; a run is not resumed when it has changed.
    fn fingerprint(&self) -> String;

    /// Whether the micro-batches of this step are made with the model, which then needs the device's memory for
    /// something else than training.
    fn generates(&self, step: u64) -> bool {
        let _ = step;
        false
    }

    /// The micro-batches of an optimizer step, counted from 0: at least one.
    ///
    /// # Errors
    /// They can't be made.
    fn micro_batches(&mut self, model: &M, step: u64) -> Result<Vec<Self::Batch>, TrainError>;

    /// How much a batch counts.
    fn size(&self, batch: &Self::Batch) -> BatchSize;

    /// The sum over a batch's tokens of weight times loss.
    fn loss(&self, model: &M, batch: &Self::Batch, pass: Pass) -> Loss<B, M>;

    /// The name of the first part of the model whose output for a batch is not finite: asked after the loss of that
    /// batch was infinite or not a number. `None` if it can't be found.
    fn first_non_finite_layer(
        &self,
        model: &M::InnerModule,
        batch: &Self::Batch,
        pass: Pass,
    ) -> Option<String> {
        let _ = (model, batch, pass);
        None
    }

    /// What there is to tell of the optimizer step that was just done: asked once after each.
    fn finish_step(&mut self) -> StepReport {
        StepReport::default()
    }

    /// What a checkpoint has to hold of this objective beside the number of the step; `None` if nothing.
    ///
    /// # Errors
    /// It can't be written down.
    fn save_state(&self) -> Result<Option<String>, TrainError> {
        Ok(None)
    }

    /// Goes on from what [`save_state`](Self::save_state) gave.
    ///
    /// # Errors
    /// It is not what this objective writes.
    fn restore_state(&mut self, state: &str) -> Result<(), TrainError> {
        let _ = state;
        Ok(())
    }

    /// The model on data held out, or `None` if there is none.
    ///
    /// # Errors
    /// It can't be evaluated.
    fn evaluate(&self, model: &M::InnerModule) -> Result<Option<Evaluation>, TrainError> {
        let _ = model;
        Ok(None)
    }
}

/// What an objective tells of an optimizer step.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StepReport {
    /// Numbers by name, for the metrics file.
    pub metrics: BTreeMap<String, f64>,
    /// Completions with their rewards, for the report.
    pub samples: Vec<SampleRecord>,
    /// What is not as expected.
    pub warnings: Vec<String>,
}

/// How much a batch counts.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct BatchSize {
    /// Tokens that go through the model.
    pub tokens: u64,
    /// Of these, tokens with a loss weight that is not 0.
    pub trained_tokens: u64,
    /// Sum of the loss weights: what the sum of weighted losses is divided by.
    pub weight: f64,
}

impl std::iter::Sum for BatchSize {
    fn sum<I: Iterator<Item = Self>>(sizes: I) -> Self {
        sizes.fold(Self::default(), |a, b| Self {
            tokens: a.tokens + b.tokens,
            trained_tokens: a.trained_tokens + b.trained_tokens,
            weight: a.weight + b.weight,
        })
    }
}

/// Sums over held-out tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Evaluation {
    /// `Σ weight · loss`, in nats.
    pub loss_sum: f64,
    /// `Σ weight`.
    pub weight: f64,
    /// Tokens with a weight that is not 0.
    pub tokens: u64,
    /// Of these, those that were the model's first choice.
    pub correct: u64,
}

impl Evaluation {
    /// Weighted mean loss.
    #[must_use]
    pub fn loss(&self) -> f64 {
        self.loss_sum / self.weight
    }

    /// `exp` of the mean loss.
    #[must_use]
    pub fn perplexity(&self) -> f64 {
        self.loss().exp()
    }

    /// Share of the counted tokens that were the model's first choice.
    #[must_use]
    pub fn accuracy(&self) -> f64 {
        self.correct as f64 / self.tokens as f64
    }
}
