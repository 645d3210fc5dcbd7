//! How long a completion is, in tokens.

use super::{Extract, NumericAnswer, Reward, RewardError, RewardInput};

/// 1 at a length, falling linearly to 0 at none and at twice that length, and 0 beyond.
#[derive(Clone, Debug)]
pub struct TargetLength {
    /// Name in metrics.
    pub name: String,
    /// The best length; at least 1.
    pub tokens: usize,
}

impl Reward for TargetLength {
    fn name(&self) -> &str {
        &self.name
    }

    fn score(&self, input: &RewardInput<'_>) -> Result<Option<f64>, RewardError> {
        let (length, target) = (input.completion_ids.len() as f64, self.tokens as f64);
        Ok(Some((1.0 - (length - target).abs() / target).max(0.0)))
    }
}

/// The correct answer is worth more when it is short, the wrong one when it is long: along half a cosine
/// (<https://arxiv.org/abs/2502.03373>; the constants and the curve are TRL's `get_cosine_scaled_reward`).
#[derive(Clone, Debug)]
pub struct CosineLength {
    /// Whether it is correct.
    pub answer: NumericAnswer,
    /// Wrong: the reward of no and of the longest completion.
    pub wrong: [f64; 2],
    /// Correct: the reward of no and of the longest completion.
    pub correct: [f64; 2],
    /// The longest completion, in tokens; at least 1.
    pub max_tokens: usize,
}

impl CosineLength {
    /// TRL's constants: from −1 to −0.5 where wrong, from 1 to 0.5 where correct.
    #[must_use]
    pub fn new(
        name: impl Into<String>,
        column: impl Into<String>,
        extract: Extract,
        max_tokens: usize,
    ) -> Self {
        let answer = NumericAnswer { name: name.into(), column: column.into(), extract, tolerance: 1e-6 };
        Self { answer, wrong: [-1.0, -0.5], correct: [1.0, 0.5], max_tokens }
    }
}

impl Reward for CosineLength {
    fn name(&self) -> &str {
        self.answer.name()
    }

    fn score(&self, input: &RewardInput<'_>) -> Result<Option<f64>, RewardError> {
        let is_correct = self.answer.score(input)? == Some(1.0);
        let [first, last] = if is_correct { self.correct } else { self.wrong };
        let progress = (input.completion_ids.len() as f64 / self.max_tokens as f64).min(1.0);
        Ok(Some(last + 0.5 * (first - last) * (1.0 + (progress * std::f64::consts::PI).cos())))
    }
}

/// 0 up to `max − cache` tokens, falling linearly to −1 at `max`, −1 beyond (DAPO,
/// <https://arxiv.org/abs/2503.14476>, equation 13).
#[derive(Clone, Debug)]
pub struct SoftOverlong {
    /// Name in metrics.
    pub name: String,
    /// The longest completion, in tokens.
    pub max_tokens: usize,
    /// Over how many tokens the punishment grows; at least 1 and at most `max_tokens`.
    pub cache: usize,
}

impl Reward for SoftOverlong {
    fn name(&self) -> &str {
        &self.name
    }

    fn score(&self, input: &RewardInput<'_>) -> Result<Option<f64>, RewardError> {
        let length = input.completion_ids.len() as f64;
        let start = self.max_tokens.saturating_sub(self.cache) as f64;
        Ok(Some(((start - length) / self.cache as f64).clamp(-1.0, 0.0)))
    }
}
