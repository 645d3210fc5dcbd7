//! What a run over the rows would be.

use crate::Packing;
use serde::Serialize;

/// What a run is supposed to be, for the estimate of its steps, tokens and time.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RunPlan {
    /// A micro-batch.
    pub batch: PlannedBatch,
    /// Micro-batches of an optimizer step.
    pub accumulate: usize,
    /// How long it is.
    pub length: PlannedLength,
    /// Tokens that go through training in a second, as measured; without it there is no estimate of time.
    pub tokens_per_second: Option<f64>,
}

/// What a micro-batch holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PlannedBatch {
    /// So many rows.
    Rows(usize),
    /// Whole rows of at most so many tokens together, put together by best-fit decreasing.
    BestFit(usize),
    /// The same, rows of similar length together.
    ByLength(usize),
}

/// How long a run is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum PlannedLength {
    /// Times that every row is seen.
    Epochs(f64),
    /// Optimizer steps.
    Steps(u64),
}

impl Default for RunPlan {
    fn default() -> Self {
        Self {
            batch: PlannedBatch::Rows(8),
            accumulate: 1,
            length: PlannedLength::Epochs(1.0),
            tokens_per_second: None,
        }
    }
}

/// What a run comes to.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[non_exhaustive]
pub struct RunEstimate {
    /// Optimizer steps.
    pub steps: u64,
    /// Times that every row is seen.
    pub epochs: f64,
    /// Tokens that go through the model in training, those of evaluations not counted.
    #[serde(rename = "run_tokens")]
    pub tokens: u64,
    /// Seconds that this takes, where a speed was given.
    #[serde(rename = "run_seconds")]
    pub seconds: Option<f64>,
}

impl PlannedBatch {
    /// The most tokens of a batch, where those are counted.
    pub(super) fn budget(self) -> Option<usize> {
        match self {
            Self::Rows(_) => None,
            Self::BestFit(budget) | Self::ByLength(budget) => Some(budget.max(1)),
        }
    }

    /// Batches of samples of these lengths. What no batch can hold counts as large as one.
    pub(super) fn packed(self, lengths: &[usize], budget: usize) -> Option<Packing> {
        let lengths: Vec<usize> = lengths.iter().map(|&length| length.min(budget)).collect();
        match self {
            Self::ByLength(_) => Packing::by_length(&lengths, budget).ok(),
            Self::Rows(_) | Self::BestFit(_) => Packing::best_fit_decreasing(&lengths, budget).ok(),
        }
    }
}

impl RunPlan {
    /// What a run over samples of these lengths comes to; `None` when there are none.
    pub(super) fn estimate(&self, lengths: &[usize]) -> Option<RunEstimate> {
        let batches = match self.batch {
            PlannedBatch::Rows(rows) => lengths.len().div_ceil(rows.max(1)),
            PlannedBatch::BestFit(_) | PlannedBatch::ByLength(_) => {
                self.batch.packed(lengths, self.batch.budget()?)?.packs().len()
            }
        };
        let an_epoch = batches.div_ceil(self.accumulate.max(1));
        if an_epoch == 0 {
            return None;
        }
        let (steps, epochs) = match self.length {
            PlannedLength::Steps(steps) => (steps, steps as f64 / an_epoch as f64),
            PlannedLength::Epochs(epochs) => ((an_epoch as f64 * epochs).ceil() as u64, epochs),
        };
        let tokens = lengths.iter().sum::<usize>() as f64 * epochs;
        let seconds = self.tokens_per_second.map(|speed| tokens / speed);
        Some(RunEstimate { steps, epochs, tokens: tokens as u64, seconds })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_epochs_tokens_and_time_follow_from_one_another() {
        let lengths = [60, 50, 40, 30, 20];
        let found = |batch, accumulate, length| {
            let plan = RunPlan { batch, accumulate, length, tokens_per_second: Some(50.0) };
            let RunEstimate { steps, epochs, tokens, seconds } = plan.estimate(&lengths).unwrap();
            (steps, epochs, tokens, seconds.unwrap())
        };
        use PlannedBatch::{BestFit, ByLength, Rows};
        use PlannedLength::{Epochs, Steps};
        assert_eq!(found(Rows(2), 1, Epochs(1.0)), (3, 1.0, 200, 4.0));
        assert_eq!(found(Rows(2), 2, Epochs(1.5)), (3, 1.5, 300, 6.0));
        assert_eq!(found(Rows(2), 1, Steps(60)), (60, 20.0, 4000, 80.0));
        assert_eq!(found(BestFit(100), 1, Epochs(1.0)).0, 2);
        assert_eq!(found(ByLength(100), 1, Epochs(1.0)).0, 3);
        assert_eq!(RunPlan::default().estimate(&[]), None);
    }
}
