//! A penalty for saying the same again.

use std::collections::HashSet;

use super::{Reward, RewardError, RewardInput};

/// `max_penalty` times the share of word n-grams that were there before
/// (<https://arxiv.org/abs/2502.03373>, TRL's `get_repetition_penalty_reward`); 0 for fewer words than `n`.
#[derive(Clone, Debug)]
pub struct RepetitionPenalty {
    /// Name in metrics.
    pub name: String,
    /// Words of an n-gram; at least 1.
    pub ngram: usize,
    /// The reward of nothing but repetition; negative.
    pub max_penalty: f64,
}

impl Reward for RepetitionPenalty {
    fn name(&self) -> &str {
        &self.name
    }

    fn score(&self, input: &RewardInput<'_>) -> Result<Option<f64>, RewardError> {
        let text = input.completion.to_lowercase();
        let words: Vec<&str> = text.split_whitespace().collect();
        if self.ngram == 0 || words.len() < self.ngram {
            return Ok(Some(0.0));
        }
        let total = words.len() - self.ngram + 1;
        let distinct: HashSet<&[&str]> = words.windows(self.ngram).collect();
        Ok(Some(self.max_penalty * (1.0 - distinct.len() as f64 / total as f64)))
    }
}
