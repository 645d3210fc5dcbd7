//! From logits to a token: the processors of transformers, in its order.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::ModelError;

/// How the next token is chosen. The default is greedy.
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
    /// Logits of tokens seen before are divided by it where positive, else multiplied; 1 is off.
    pub repetition_penalty: f64,
}

impl Default for Sampling {
    fn default() -> Self {
        Self { temperature: 0.0, top_k: 0, top_p: 1.0, min_p: 0.0, repetition_penalty: 1.0 }
    }
}

impl Sampling {
    /// Whether the likeliest token is taken, whatever came before.
    pub(crate) fn is_greedy(&self) -> bool {
        self.temperature == 0.0 && self.repetition_penalty == 1.0
    }

    /// Refuses numbers outside of their ranges.
    ///
    /// # Errors
    /// When one is.
    pub fn validate(&self) -> Result<(), ModelError> {
        let checks = [
            (
                "temperature",
                self.temperature,
                self.temperature >= 0.0 && self.temperature.is_finite(),
                "0 or more",
            ),
            ("top_p", self.top_p, self.top_p > 0.0 && self.top_p <= 1.0, "above 0 and at most 1"),
            ("min_p", self.min_p, (0.0..=1.0).contains(&self.min_p), "from 0 to 1"),
            (
                "repetition_penalty",
                self.repetition_penalty,
                self.repetition_penalty > 0.0 && self.repetition_penalty.is_finite(),
                "a positive number",
            ),
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

    /// Chooses a token and gives its log-probability under the distribution that it was drawn from.
    ///
    /// `logits` is changed; `seen` are the tokens of the sequence so far.
    ///
    /// # Panics
    /// When there are no logits.
    pub fn sample(&mut self, logits: &mut [f32], seen: &[u32]) -> (u32, f32) {
        penalise(logits, seen, self.sampling.repetition_penalty);
        if self.sampling.temperature == 0.0 {
            let best = argmax(logits);
            let max = f64::from(logits[best]);
            let sum: f64 = logits.iter().map(|z| (f64::from(*z) - max).exp()).sum();
            return (best as u32, -sum.ln() as f32);
        }
        let kept = distribution(logits, &self.sampling);
        let mut rest = self.rng.random::<f64>();
        for (token, probability) in &kept {
            rest -= probability;
            if rest < 0.0 {
                return (*token, probability.ln() as f32);
            }
        }
        let (token, probability) = kept[kept.len() - 1];
        (token, probability.ln() as f32)
    }
}

fn argmax(logits: &[f32]) -> usize {
    let mut best = 0;
    for (index, logit) in logits.iter().enumerate() {
        if *logit > logits[best] || logits[best].is_nan() {
            best = index;
        }
    }
    best
}

fn penalise(logits: &mut [f32], seen: &[u32], penalty: f64) {
    if penalty == 1.0 {
        return;
    }
    let mut seen = seen.to_vec();
    seen.sort_unstable();
    seen.dedup();
    for token in seen {
        if let Some(logit) = logits.get_mut(token as usize) {
            let value = f64::from(*logit);
            *logit = (if value < 0.0 { value * penalty } else { value / penalty }) as f32;
        }
    }
}

/// The tokens that stay after temperature, top-k, top-p and min-p, with their probabilities, likeliest first.
///
/// As in transformers, ties with the k-th logit all stay, and each step renormalises.
fn distribution(logits: &[f32], sampling: &Sampling) -> Vec<(u32, f64)> {
    let mut kept: Vec<(u32, f64)> = logits
        .iter()
        .enumerate()
        .map(|(token, z)| (token as u32, f64::from(*z) / sampling.temperature))
        .collect();
    if sampling.top_k > 0 && sampling.top_k < kept.len() {
        let mut scores: Vec<f64> = kept.iter().map(|(_, z)| *z).collect();
        let (_, kth, _) = scores.select_nth_unstable_by(sampling.top_k - 1, |a, b| b.total_cmp(a));
        let kth = *kth;
        kept.retain(|(_, z)| *z >= kth);
    }
    // Likeliest first; among equals the larger id first, as an ascending stable sort read from its end.
    kept.sort_by(|a, b| b.1.total_cmp(&a.1).then(b.0.cmp(&a.0)));
    normalise(&mut kept);
    if sampling.top_p < 1.0 {
        // From the end, what adds up to at most 1 − top_p is dropped; the likeliest always stays.
        let mut tail = 0.0;
        let mut length = kept.len();
        while length > 1 && tail + kept[length - 1].1 <= 1.0 - sampling.top_p {
            tail += kept[length - 1].1;
            length -= 1;
        }
        kept.truncate(length);
        renormalise(&mut kept);
    }
    if sampling.min_p > 0.0 {
        let floor = kept[0].1 * sampling.min_p;
        kept.retain(|(_, p)| *p >= floor);
        renormalise(&mut kept);
    }
    kept
}

/// Scores to probabilities.
fn normalise(kept: &mut [(u32, f64)]) {
    let max = kept[0].1;
    kept.iter_mut().for_each(|(_, z)| *z = (*z - max).exp());
    renormalise(kept);
}

fn renormalise(kept: &mut [(u32, f64)]) {
    let sum: f64 = kept.iter().map(|(_, p)| p).sum();
    kept.iter_mut().for_each(|(_, p)| *p /= sum);
}

#[cfg(test)]
mod tests;
