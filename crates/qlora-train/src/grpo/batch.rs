//! A micro-batch: prompts with their completions, and what the loss needs of each token.

use qlora_models::TokenBatch;
use qlora_rl::Normalization;

use super::prompts::Prompt;
use super::state::Row;

/// A micro-batch. Slices of completions have one element a token of a completion, one completion after the other.
#[derive(Clone, Debug)]
pub struct GrpoBatch {
    /// Prompts and completions, one sequence after the other.
    pub(super) ids: Vec<u32>,
    /// Tokens of each sequence.
    pub(super) lengths: Vec<usize>,
    /// The token that follows each.
    pub(super) targets: Vec<u32>,
    /// Positions in `ids` that predict a token of a completion.
    pub(super) places: Vec<usize>,
    /// Tokens of each completion.
    pub(super) completion_lengths: Vec<usize>,
    pub(super) mask: Vec<bool>,
    pub(super) sampled: Vec<f32>,
    pub(super) old: Option<Vec<f32>>,
    pub(super) reference: Option<Vec<f32>>,
    pub(super) advantages: Vec<f32>,
    pub(super) norm: Normalization,
}

impl GrpoBatch {
    pub(super) fn new(prompts: &[Prompt], rows: &[Row], norm: Normalization) -> Self {
        let mut batch = Self {
            ids: Vec::new(),
            lengths: Vec::new(),
            targets: Vec::new(),
            places: Vec::new(),
            completion_lengths: Vec::new(),
            mask: Vec::new(),
            sampled: Vec::new(),
            old: rows.iter().all(|row| row.old.len() == row.ids.len()).then(Vec::new),
            reference: rows.iter().all(|row| row.reference.len() == row.ids.len()).then(Vec::new),
            advantages: Vec::new(),
            norm,
        };
        for row in rows {
            let prompt = &prompts[row.prompt].ids;
            let start = batch.ids.len();
            batch.ids.extend(prompt);
            batch.ids.extend(&row.ids);
            batch.targets.extend_from_slice(&batch.ids[start + 1..]);
            batch.targets.push(0);
            let first = start + prompt.len() - 1;
            batch.places.extend(first..first + row.ids.len());
            batch.lengths.push(prompt.len() + row.ids.len());
            batch.completion_lengths.push(row.ids.len());
            batch.mask.extend(row.ids.iter().map(|_| !row.masked));
            batch.sampled.extend(&row.sampled);
            if let Some(old) = &mut batch.old {
                old.extend(&row.old);
            }
            if let Some(reference) = &mut batch.reference {
                reference.extend(&row.reference);
            }
            batch.advantages.push(row.advantage);
        }
        batch
    }

    /// Prompts and completions.
    #[must_use]
    pub fn tokens(&self) -> TokenBatch<'_> {
        TokenBatch { ids: &self.ids, lengths: &self.lengths }
    }

    /// The token that follows each; 0 at the end of a sequence.
    #[must_use]
    pub fn targets(&self) -> &[u32] {
        &self.targets
    }

    /// Positions that predict a token of a completion.
    #[must_use]
    pub fn places(&self) -> &[usize] {
        &self.places
    }

    /// Tokens of each completion.
    #[must_use]
    pub fn completion_lengths(&self) -> &[usize] {
        &self.completion_lengths
    }

    /// The advantage of each completion.
    #[must_use]
    pub fn advantages(&self) -> &[f32] {
        &self.advantages
    }

    /// Numbers of completion tokens at the positions that predict them, 0 elsewhere.
    pub(super) fn at_places(&self, values: impl Iterator<Item = f32>) -> Vec<f32> {
        let mut all = vec![0.0; self.ids.len()];
        self.places.iter().zip(values).for_each(|(place, value)| all[*place] = value);
        all
    }

    /// 1 at every position that predicts a token of a completion.
    pub(super) fn every_token(&self) -> Vec<f32> {
        self.at_places(std::iter::repeat(1.0))
    }
}
