//! From logits to a token that is drawn: the warpers of transformers, in its order.
//!
//! Temperature, top-h, top-k, top-p, min-p, typical-p, epsilon and eta cutoffs; each renormalises what the one
//! before it left. What stays is drawn from by inversion: the token at which the running sum of the probabilities
//! exceeds a uniform number. The sum runs over the ids in [`LANES`] strides (0, 256, 512, …, 1, 257, …), an order in
//! which a GPU reads a row at full speed; the same number therefore draws the same token on every backend, up to
//! rounding.

use burn::tensor::Tensor;
use burn::tensor::ops::FloatTensor;
use rayon::prelude::*;

use crate::KernelBackend;
use crate::primitive::{primitive, tensor};

/// Strides of the order in which tokens are drawn.
pub const LANES: usize = 256;
/// Tokens that top-h looks at.
const TOP_H_TOKENS: usize = 100;

/// Which tokens can be drawn, and how likely each is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Warpers {
    /// Logits are divided by it; 0 is greedy.
    pub temperature: f64,
    /// Keep the likeliest tokens whose entropy adds up to at most this share of that of the likeliest hundred; 0 is
    /// off (<https://arxiv.org/abs/2509.02510>).
    pub top_h: f64,
    /// Keep the likeliest `top_k` tokens and their equals; 0 keeps all.
    pub top_k: usize,
    /// Keep the likeliest tokens whose probabilities add up to at least `top_p`; 1 keeps all.
    pub top_p: f64,
    /// Keep tokens at least `min_p` times as likely as the likeliest; 0 keeps all.
    pub min_p: f64,
    /// Keep the tokens whose surprise is nearest to the entropy, up to this mass; 1 keeps all
    /// (<https://arxiv.org/abs/2202.00666>).
    pub typical_p: f64,
    /// Keep tokens of at least this probability; 0 keeps all (<https://arxiv.org/abs/2210.15191>).
    pub epsilon_cutoff: f64,
    /// Keep tokens of at least `min(η, √η · exp(−entropy))`; 0 keeps all (same paper).
    pub eta_cutoff: f64,
    /// Tokens that top-p, min-p, typical-p and the cutoffs leave at least.
    pub min_tokens_to_keep: usize,
}

impl Default for Warpers {
    /// The model's own distribution.
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_h: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            typical_p: 1.0,
            epsilon_cutoff: 0.0,
            eta_cutoff: 0.0,
            min_tokens_to_keep: 1,
        }
    }
}

impl Warpers {
    /// Whether all tokens stay.
    #[must_use]
    pub fn keeps_all(&self) -> bool {
        self.top_k == 0 && self.keeps_all_but_top_k()
    }

    fn keeps_all_but_top_k(&self) -> bool {
        let plain = self.top_p >= 1.0 && self.min_p <= 0.0;
        plain && !self.is_entropic()
    }

    /// Whether the warpers that need the entropy, or the order of all tokens, are on.
    pub(crate) fn is_entropic(&self) -> bool {
        self.top_h > 0.0 || self.typical_p < 1.0 || self.epsilon_cutoff > 0.0 || self.eta_cutoff > 0.0
    }
}

/// How the next token of one row is drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Draw {
    /// What can be drawn.
    pub warpers: Warpers,
    /// A uniform number of `[0, 1)`. Not used at temperature 0.
    pub uniform: f64,
}

/// Draws a token from each row of `logits` `[rows, vocabulary]`, with its log-probability under the distribution that
/// it was drawn from; at temperature 0, the likeliest and its log-probability at temperature 1.
///
/// # Panics
/// When there is not one draw a row.
#[must_use]
pub fn sample<B: KernelBackend>(logits: Tensor<B, 2>, draws: &[Draw]) -> Vec<(u32, f32)> {
    assert_eq!(logits.dims()[0], draws.len(), "one draw a row");
    B::sample(primitive(logits), draws)
}

/// Reference: on the host, in parallel over rows.
pub(crate) fn reference<B: KernelBackend>(logits: FloatTensor<B>, draws: &[Draw]) -> Vec<(u32, f32)> {
    let logits = tensor::<B, 2>(logits);
    let vocabulary = logits.dims()[1].max(1);
    let values: Vec<f32> = logits.into_data().iter::<f32>().collect();
    values.par_chunks_exact(vocabulary).zip(draws).map(|(row, draw)| sample_row(row, draw)).collect()
}

/// Draws from one row of logits.
///
/// # Panics
/// When there are no logits.
#[must_use]
pub fn sample_row(logits: &[f32], draw: &Draw) -> (u32, f32) {
    if draw.warpers.temperature == 0.0 {
        return likeliest(logits);
    }
    if draw.warpers.keeps_all() {
        return draw_from_all(logits, draw);
    }
    let mut kept = distribution(logits, &draw.warpers);
    kept.sort_by_key(|(token, _)| (*token as usize % LANES, *token));
    let mut rest = draw.uniform;
    for (token, probability) in &kept {
        rest -= probability;
        if rest < 0.0 {
            return (*token, probability.ln() as f32);
        }
    }
    // Rounding: the probabilities add up to a little less than the uniform number.
    let (token, probability) = kept[kept.len() - 1];
    (token, probability.ln() as f32)
}

/// The likeliest token, the first of equals, and its log-probability.
pub(crate) fn likeliest(logits: &[f32]) -> (u32, f32) {
    let mut best = 0;
    for (index, logit) in logits.iter().enumerate() {
        if *logit > logits[best] || logits[best].is_nan() {
            best = index;
        }
    }
    let most = f64::from(logits[best]);
    let sum: f64 = logits.iter().map(|logit| (f64::from(*logit) - most).exp()).sum();
    (best as u32, -sum.ln() as f32)
}

/// Without a list of the tokens: the mass of each lane, then the tokens of the lane that is hit.
fn draw_from_all(logits: &[f32], draw: &Draw) -> (u32, f32) {
    let inverse = 1.0 / draw.warpers.temperature;
    let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let score = |logit: f32| f64::from(logit - most) * inverse;
    let mut lanes = [0f64; LANES];
    for row in logits.chunks(LANES) {
        for (lane, logit) in lanes.iter_mut().zip(row) {
            *lane += score(*logit).exp();
        }
    }
    let total: f64 = lanes.iter().sum();
    let mut rest = draw.uniform * total;
    let last = lanes.iter().rposition(|mass| *mass > 0.0).unwrap_or(0);
    let mut lane = 0;
    while lane < last && rest >= lanes[lane] {
        rest -= lanes[lane];
        lane += 1;
    }
    let mut chosen = lane;
    for token in (lane..logits.len()).step_by(LANES) {
        let mass = score(logits[token]).exp();
        if mass > 0.0 {
            chosen = token;
        }
        rest -= mass;
        if rest < 0.0 {
            break;
        }
    }
    (chosen as u32, (score(logits[chosen]) - total.ln()) as f32)
}

/// The tokens that stay, with their probabilities, likeliest first.
///
/// As in transformers, ties with the k-th logit all stay.
///
/// # Panics
/// When there are no logits.
#[must_use]
pub fn distribution(logits: &[f32], warpers: &Warpers) -> Vec<(u32, f64)> {
    let mut kept: Vec<(u32, f64)> = logits
        .iter()
        .enumerate()
        .map(|(token, z)| (token as u32, f64::from(*z) / warpers.temperature))
        .collect();
    if warpers.top_h == 0.0 && warpers.top_k > 0 && warpers.top_k < kept.len() {
        // Before sorting, of which little is then left to do.
        let mut scores: Vec<f64> = kept.iter().map(|(_, z)| *z).collect();
        let (_, kth, _) = scores.select_nth_unstable_by(warpers.top_k - 1, |a, b| b.total_cmp(a));
        let kth = *kth;
        kept.retain(|(_, z)| *z >= kth);
    }
    // Likeliest first; among equals the larger id first, as an ascending stable sort read from its end.
    kept.sort_by(|a, b| b.1.total_cmp(&a.1).then(b.0.cmp(&a.0)));
    if warpers.top_h > 0.0 {
        keep_top_h(&mut kept, warpers.top_h);
        if let Some((_, kth)) = warpers.top_k.checked_sub(1).and_then(|last| kept.get(last)).copied() {
            kept.retain(|(_, z)| *z >= kth);
        }
    }
    normalise(&mut kept);
    let least = warpers.min_tokens_to_keep.max(1);
    if warpers.top_p < 1.0 {
        // From the end, what adds up to at most 1 − top_p is dropped.
        let mut tail = 0.0;
        let mut length = kept.len();
        while length > least && tail + kept[length - 1].1 <= 1.0 - warpers.top_p {
            tail += kept[length - 1].1;
            length -= 1;
        }
        kept.truncate(length);
        renormalise(&mut kept);
    }
    if warpers.min_p > 0.0 {
        let floor = kept[0].1 * warpers.min_p;
        keep_above(&mut kept, floor, least);
    }
    if warpers.typical_p < 1.0 {
        keep_typical(&mut kept, warpers.typical_p, least);
    }
    if warpers.epsilon_cutoff > 0.0 {
        keep_above(&mut kept, warpers.epsilon_cutoff, least);
    }
    if warpers.eta_cutoff > 0.0 {
        let eta = warpers.eta_cutoff;
        let floor = eta.min(eta.sqrt() * (-entropy(&kept)).exp());
        keep_above(&mut kept, floor, least);
    }
    kept
}

/// In nats.
fn entropy(kept: &[(u32, f64)]) -> f64 {
    -kept.iter().filter(|(_, p)| *p > 0.0).map(|(_, p)| p * p.ln()).sum::<f64>()
}

/// The probabilities of at least `floor`, and in any case the `least` likeliest with their equals.
fn keep_above(kept: &mut Vec<(u32, f64)>, floor: f64, least: usize) {
    let nth = kept[least.min(kept.len()) - 1].1;
    kept.retain(|(_, p)| *p >= floor.min(nth));
    renormalise(kept);
}

/// Of scores, likeliest first.
fn keep_top_h(kept: &mut Vec<(u32, f64)>, share: f64) {
    kept.truncate(TOP_H_TOKENS);
    let mut probabilities = kept.clone();
    normalise(&mut probabilities);
    let most = share * entropy(&probabilities);
    let mut running = 0.0;
    let within = probabilities.iter().take_while(|(_, p)| {
        running -= p * p.ln();
        running <= most
    });
    let count = within.count().max(1);
    kept.truncate(count);
}

fn keep_typical(kept: &mut Vec<(u32, f64)>, mass: f64, least: usize) {
    let entropy = entropy(kept);
    let distance = |p: f64| (-p.ln() - entropy).abs();
    let mut by_distance: Vec<(f64, f64)> = kept.iter().map(|(_, p)| (distance(*p), *p)).collect();
    by_distance.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mut sum = 0.0;
    let below = by_distance.iter().take_while(|(_, p)| {
        sum += p;
        sum < mass
    });
    let last = below.count().min(by_distance.len() - 1).max(least.min(by_distance.len()) - 1);
    let farthest = by_distance[last].0;
    kept.retain(|(_, p)| distance(*p) <= farthest);
    renormalise(kept);
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
