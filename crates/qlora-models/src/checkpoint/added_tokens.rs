//! Special tokens that a checkpoint did not come with: a larger tokenizer, and rows for it in the embedding and the
//! head.

use std::ops::Range;

use qlora_text::Tokenizer;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::{Checkpoint, TABLES};
use crate::ModelError;

/// Rows of a table that are in memory at a time while its mean is taken.
const PIECE: usize = 4096;

/// How far a new row is from the mean, as a share of the spread of the rows: so little that no new token is likely before
/// it is trained, but no two are the same, which would make them equally likely for ever.
const SPREAD: f64 = 0.1;

/// What a checkpoint has beside its files.
#[derive(Debug)]
pub(super) struct AddedTokens {
    /// Their texts.
    tokens: Vec<String>,
    /// Rows of the tables in the files.
    stored: usize,
    /// Tokens that rows were trained for; rows after them, if any, are padding.
    trained: usize,
    /// The new tokens.
    ids: Vec<u32>,
}

impl Checkpoint {
    /// Makes special tokens of texts, and gives their ids. Each that was no token before gets a row of the embedding and of
    /// the head: the mean of the rows of all tokens (Hewitt 2021), plus a tenth of their spread in a direction of its own.
    /// Rows that the files have in reserve are taken first; the vocabulary grows when they do not suffice.
    ///
    /// The files stay as they are. What is loaded or exported from this value has the tokens, so that an export is a
    /// checkpoint that any program trains and runs. Called again, it replaces what was added.
    ///
    /// # Errors
    /// When the checkpoint has no tokenizer, or a text can't be a token.
    pub fn add_special_tokens(&mut self, tokens: &[&str]) -> Result<Vec<u32>, ModelError> {
        let stored = self.stored_rows();
        let mut tokenizer = self.stored_tokenizer()?;
        let trained = tokenizer.vocab_size();
        let all = tokenizer.add_special_tokens(tokens)?;
        self.config.vocab_size = stored.max(tokenizer.vocab_size());
        let mut ids: Vec<u32> = all.iter().copied().filter(|&id| id as usize >= trained).collect();
        ids.dedup();
        let tokens = tokens.iter().map(|&token| token.to_owned()).collect();
        self.added = Some(AddedTokens { tokens, stored, trained, ids });
        Ok(all)
    }

    /// Whether tokens were added.
    #[must_use]
    pub fn has_added_tokens(&self) -> bool {
        self.added.is_some()
    }

    /// The tokenizer of the files, with the tokens that were added.
    pub(super) fn grown_tokenizer(&self) -> Result<Tokenizer, ModelError> {
        let mut tokenizer = self.stored_tokenizer()?;
        if let Some(added) = &self.added {
            let tokens: Vec<&str> = added.tokens.iter().map(String::as_str).collect();
            tokenizer.add_special_tokens(&tokens)?;
        }
        Ok(tokenizer)
    }

    /// Rows of the embedding in the files.
    pub(super) fn stored_rows(&self) -> usize {
        self.added.as_ref().map_or(self.config.vocab_size, |added| added.stored)
    }

    /// Rows of a table with those of new tokens in it.
    pub(super) fn grown_rows(&self, name: &str, rows: Range<usize>) -> Result<Vec<f32>, ModelError> {
        let Some(added) = &self.added else { return self.stored_table(name, rows) };
        let hidden = self.config.hidden_size;
        let stored = rows.start.min(added.stored)..rows.end.min(added.stored);
        let mut values = match stored.is_empty() {
            true => Vec::new(),
            false => self.stored_table(name, stored)?,
        };
        values.resize(rows.len() * hidden, 0.0);
        let mut new = added.ids.iter().map(|&id| id as usize).filter(|id| rows.contains(id)).peekable();
        if new.peek().is_some() {
            let spread = self.spread(name, added)?;
            for id in new {
                let at = (id - rows.start) * hidden;
                spread.draw(name, id, &mut values[at..at + hidden]);
            }
        }
        Ok(values)
    }

    /// Mean and standard deviation of each column over the rows that were trained.
    fn spread(&self, name: &str, added: &AddedTokens) -> Result<Spread, ModelError> {
        let hidden = self.config.hidden_size;
        let trained = added.trained.min(added.stored);
        let (mut sums, mut squares) = (vec![0.0; hidden], vec![0.0; hidden]);
        for start in (0..trained).step_by(PIECE) {
            let values = self.stored_table(name, start..trained.min(start + PIECE))?;
            for row in values.chunks_exact(hidden) {
                for ((sum, square), &value) in sums.iter_mut().zip(&mut squares).zip(row) {
                    let value = f64::from(value);
                    *sum += value;
                    *square += value * value;
                }
            }
        }
        let count = trained.max(1) as f64;
        let mean: Vec<f64> = sums.iter().map(|sum| sum / count).collect();
        let deviation =
            mean.iter().zip(&squares).map(|(mean, square)| (square / count - mean * mean).max(0.0).sqrt());
        Ok(Spread { deviation: deviation.collect(), mean })
    }
}

struct Spread {
    mean: Vec<f64>,
    deviation: Vec<f64>,
}

impl Spread {
    /// The row of a token: the same whenever it is asked for.
    fn draw(&self, name: &str, id: usize, row: &mut [f32]) {
        let mut random = ChaCha8Rng::seed_from_u64(id as u64);
        // The embedding and the head are different tables.
        random.set_stream(TABLES.iter().position(|table| *table == name).unwrap_or_default() as u64);
        for ((value, mean), deviation) in row.iter_mut().zip(&self.mean).zip(&self.deviation) {
            // Uniform, with a standard deviation of 1.
            let draw = 3.0_f64.sqrt() * random.random_range(-1.0..1.0);
            *value = (mean + SPREAD * deviation * draw) as f32;
        }
    }
}
