//! How the next token of a sequence is chosen.

use qlora_kernels::{Draw, Warpers};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::ModelError;

/// How the next token is chosen: the processors of transformers, in its order. The default is greedy.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// Logits are divided by it; 0 is greedy.
    pub temperature: f64,
    /// Keep the most likely `top_k` tokens; 0 keeps all.
    pub top_k: usize,
    /// Keep the most likely tokens whose probabilities add up to at least `top_p`; 1 keeps all.
    pub top_p: f64,
    /// Keep tokens at least `min_p` times as likely as the likeliest; 0 keeps all.
    pub min_p: f64,
    /// Keep the tokens whose surprise is nearest to the entropy, up to this mass; 1 keeps all.
    pub typical_p: f64,
    /// Keep the likeliest tokens that have at most this share of the entropy; 0 keeps all.
    pub top_h: f64,
    /// Keep tokens of at least this probability; 0 keeps all.
    pub epsilon_cutoff: f64,
    /// As `epsilon_cutoff`, less strict where the entropy is high; 0 keeps all.
    pub eta_cutoff: f64,
    /// Tokens that top-p, min-p, typical-p and the cutoffs leave at least.
    pub min_tokens_to_keep: usize,
    /// Logits of tokens seen before are divided by it where positive, else multiplied; 1 is off.
    pub repetition_penalty: f64,
}

impl Default for Sampling {
    fn default() -> Self {
        let Warpers {
            top_h,
            top_k,
            top_p,
            min_p,
            typical_p,
            epsilon_cutoff,
            eta_cutoff,
            min_tokens_to_keep,
            ..
        } = Warpers::default();
        Self {
            temperature: 0.0,
            top_k,
            top_p,
            min_p,
            typical_p,
            top_h,
            epsilon_cutoff,
            eta_cutoff,
            min_tokens_to_keep,
            repetition_penalty: 1.0,
        }
    }
}

impl Sampling {
    /// What the logits go through after the penalty.
    #[must_use]
    pub fn warpers(&self) -> Warpers {
        Warpers {
            temperature: self.temperature,
            top_h: self.top_h,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            typical_p: self.typical_p,
            epsilon_cutoff: self.epsilon_cutoff,
            eta_cutoff: self.eta_cutoff,
            min_tokens_to_keep: self.min_tokens_to_keep,
        }
    }

    /// Refuses numbers outside of their ranges.
    ///
    /// # Errors
    /// When one is.
    pub fn validate(&self) -> Result<(), ModelError> {
        let share = |value: f64| (0.0..1.0).contains(&value);
        let part = |value: f64| value > 0.0 && value <= 1.0;
        let (least, penalty) = (self.min_tokens_to_keep, self.repetition_penalty);
        let (part_expected, share_expected) = ("above 0 and at most 1", "0 or more and less than 1");
        let warm = self.temperature >= 0.0 && self.temperature.is_finite();
        let checks = [
            ("temperature", self.temperature, warm, "0 or more"),
            ("top_p", self.top_p, part(self.top_p), part_expected),
            ("min_p", self.min_p, (0.0..=1.0).contains(&self.min_p), "from 0 to 1"),
            ("typical_p", self.typical_p, part(self.typical_p), part_expected),
            ("top_h", self.top_h, (0.0..=1.0).contains(&self.top_h), "from 0 to 1"),
            ("epsilon_cutoff", self.epsilon_cutoff, share(self.epsilon_cutoff), share_expected),
            ("eta_cutoff", self.eta_cutoff, share(self.eta_cutoff), share_expected),
            ("min_tokens_to_keep", least as f64, least > 0, "1 or more"),
            ("repetition_penalty", penalty, penalty > 0.0 && penalty.is_finite(), "a positive number"),
        ];
        for (key, value, good, expected) in checks {
            if !good {
                return Err(ModelError::Sampling { key, value: value.to_string(), expected });
            }
        }
        Ok(())
    }
}

/// A random stream that tokens of one sequence are drawn from.
#[derive(Clone, Debug)]
pub struct Sampler {
    sampling: Sampling,
    rng: ChaCha8Rng,
}

impl Sampler {
    /// The sampler of sequence `stream` of a request: ChaCha8 keyed by `seed`, at that stream.
    #[must_use]
    pub fn new(sampling: Sampling, seed: u64, stream: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(stream);
        Self { sampling, rng }
    }

    /// How the next token is drawn: one number of the stream a token, none at temperature 0.
    pub fn draw(&mut self) -> Draw {
        let uniform = if self.sampling.temperature == 0.0 { 0.0 } else { self.rng.random::<f64>() };
        Draw { warpers: self.sampling.warpers(), uniform }
    }

    pub(crate) fn penalty(&self) -> f64 {
        self.sampling.repetition_penalty
    }

    /// Applies the penalty to the logits of the tokens in `seen`, once each.
    pub(crate) fn penalise(&self, logits: &mut [f32], seen: &[&[u32]]) {
        penalise(logits, seen, self.sampling.repetition_penalty);
    }
}

fn penalise(logits: &mut [f32], seen: &[&[u32]], penalty: f64) {
    if penalty == 1.0 {
        return;
    }
    let mut seen = seen.concat();
    seen.sort_unstable();
    seen.dedup();
    for token in seen {
        if let Some(logit) = logits.get_mut(token as usize) {
            let value = f64::from(*logit);
            *logit = (if value < 0.0 { value * penalty } else { value / penalty }) as f32;
        }
    }
}

#[cfg(test)]
mod tests;
