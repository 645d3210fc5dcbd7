//! Rank, scale and targets of adapters.

use crate::{LoraError, Targets};

/// How adapters are made.
#[derive(Clone, Debug, PartialEq)]
pub struct LoraConfig {
    /// Rank of the update.
    pub rank: usize,
    /// The update is scaled by `alpha / rank`, or by `alpha / √rank` with `rslora`.
    pub alpha: f64,
    /// Probability with which an input of the adapter is zeroed in training.
    pub dropout: f64,
    /// Rank-stabilised scale (Kalajdzievski 2023, <https://arxiv.org/abs/2312.03732>).
    pub rslora: bool,
    /// Which layers get an adapter.
    pub targets: Targets,
}

impl Default for LoraConfig {
    /// Rank 16, alpha 32, no dropout, all linear layers.
    fn default() -> Self {
        Self { rank: 16, alpha: 32.0, dropout: 0.0, rslora: false, targets: Targets::AllLinear }
    }
}

impl LoraConfig {
    /// Refuses numbers outside of their ranges.
    ///
    /// # Errors
    /// When the rank is 0, alpha is not positive and finite, or dropout is not in `[0, 1)`.
    pub fn validate(&self) -> Result<(), LoraError> {
        let wrong = |key, value: String, expected| Err(LoraError::OutOfRange { key, value, expected });
        if self.rank == 0 {
            return wrong("rank", "0".into(), "at least 1");
        }
        if !(self.alpha > 0.0 && self.alpha.is_finite()) {
            return wrong("alpha", self.alpha.to_string(), "a positive number");
        }
        if !(0.0..1.0).contains(&self.dropout) {
            return wrong("dropout", self.dropout.to_string(), "at least 0 and below 1");
        }
        self.targets.matcher().map(|_| ())
    }

    /// What the update is multiplied with.
    #[must_use]
    pub fn scale(&self) -> f64 {
        scale(self.alpha, self.rank, self.rslora)
    }
}

/// `alpha / rank`, or `alpha / √rank`.
pub(crate) fn scale(alpha: f64, rank: usize, rslora: bool) -> f64 {
    if rslora { alpha / (rank as f64).sqrt() } else { alpha / rank as f64 }
}
