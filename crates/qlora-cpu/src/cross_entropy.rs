//! Cross entropy of rows of logits, its gradient in place, and what training reports per token.

use crate::dispatch::{current_isa, per_isa};
use crate::exp::{exp, tanh};
use crate::parallel::{for_each, rows_per_task};
use crate::softmax::maximum;
use crate::vector::Vector;

#[cfg(test)]
mod tests;

/// What happens between a model's logits and its loss.
///
/// With logits `x`: `z = logit_scale · x`, then `z = softcap · tanh(z / softcap)`, and with `p = softmax(z)`,
/// `ε = label_smoothing`, `V` the size of the vocabulary: `loss = −(1 − ε) ln p[target] − ε/V · Σⱼ ln p[j]`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CrossEntropy {
    /// Bound of the logits (Gemma 2).
    pub softcap: Option<f32>,
    /// Factor of the logits, applied before the bound (Cohere, Granite).
    pub logit_scale: f32,
    /// Probability mass spread evenly over the vocabulary.
    pub label_smoothing: f32,
}

impl Default for CrossEntropy {
    fn default() -> Self {
        Self { softcap: None, logit_scale: 1.0, label_smoothing: 0.0 }
    }
}

/// The loss of one token and what else its row of logits tells; without the row's weight.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct TokenStats {
    /// Cross entropy, with label smoothing.
    pub loss: f32,
    /// Log-probability of the target.
    pub logprob: f32,
    /// Entropy of the predicted distribution, in nats.
    pub entropy: f32,
    /// The target is the first of the most probable tokens.
    pub correct: bool,
}

/// Loss of each row, and, with `want_grad`, `weights[row] · d loss / d logits` in place of the logits.
///
/// `logits` is `[rows, vocab]`; `targets`, `weights` and `stats` are `[rows]`. Without `want_grad` the
/// logits hold scratch values afterwards. The gradient of a row of weight 0 is 0; such a row may have a target
/// outside the vocabulary, and has all-zero statistics then.
///
/// # Panics
/// When the lengths of the slices do not agree, or a row of another weight has a target outside the vocabulary.
pub fn cross_entropy_rows(
    logits: &mut [f32],
    vocab: usize,
    targets: &[u32],
    weights: &[f32],
    settings: &CrossEntropy,
    want_grad: bool,
    stats: &mut [TokenStats],
) {
    let rows = targets.len();
    assert!(vocab > 0 && logits.len() == rows * vocab, "logits are not {rows} rows of {vocab}");
    assert!(weights.len() == rows && stats.len() == rows, "targets, weights and stats differ in length");
    for (row, (&target, &weight)) in targets.iter().zip(weights).enumerate() {
        assert!(weight == 0.0 || (target as usize) < vocab, "row {row}: target {target} of {vocab} tokens");
    }
    let isa = current_isa();
    let step = rows_per_task(vocab, 8);
    let inputs = logits.chunks_mut(step * vocab).zip(targets.chunks(step)).zip(weights.chunks(step));
    for_each(inputs.zip(stats.chunks_mut(step)), |(((logits, targets), weights), stats)| {
        let rows = logits.chunks_exact_mut(vocab).zip(targets).zip(weights).zip(stats);
        for (((logits, &target), &weight), stats) in rows {
            let target = target as usize;
            if target < vocab {
                *stats = row(isa, logits, target, weight, *settings, want_grad);
            } else {
                *stats = TokenStats::default();
                logits.fill(0.0);
            }
        }
    });
}

/// Elements summed in `f32` before the sums go on in `f64`.
const BLOCK: usize = 2048;

#[inline(always)]
fn row_body<V: Vector>(
    logits: &mut [f32],
    target: usize,
    weight: f32,
    settings: CrossEntropy,
    want_grad: bool,
) -> TokenStats {
    let CrossEntropy { softcap, logit_scale, label_smoothing } = settings;
    let vocab = logits.len();
    if let Some(cap) = softcap {
        let (scale, cap) = (V::splat(logit_scale / cap), V::splat(cap));
        for x in logits.chunks_mut(V::LANES) {
            (tanh(V::load(x) * scale) * cap).store(x);
        }
    } else if logit_scale != 1.0 {
        let scale = V::splat(logit_scale);
        for x in logits.chunks_mut(V::LANES) {
            (V::load(x) * scale).store(x);
        }
    }
    let max = maximum::<V>(logits);
    let target_logit = logits[target];
    let correct = target_logit == max && !logits[..target].contains(&max);

    let keep = want_grad && softcap.is_none();
    let (mut sum, mut sum_distance, mut sum_logits) = (0.0f64, 0.0f64, 0.0f64);
    let max_lanes = V::splat(max);
    for block in logits.chunks_mut(BLOCK) {
        let (mut s, mut d, mut z) = (V::zero(), V::zero(), V::zero());
        if label_smoothing != 0.0 {
            for x in block.chunks(V::LANES) {
                z = z + V::load(x);
            }
        }
        for x in block.chunks_mut(V::LANES) {
            // Below −104 the exponential is 0; bounded, so that 0 · −∞ does not reach the entropy.
            let distance = V::splat(-104.0).max(V::load_or(x, f32::NEG_INFINITY) - max_lanes);
            let e = exp(distance);
            s = s + e;
            d = e.mul_add(distance, d);
            if keep {
                e.store(x);
            }
        }
        sum += f64::from(s.sum());
        sum_distance += f64::from(d.sum());
        sum_logits += f64::from(z.sum());
    }
    let log_sum = sum.ln();
    let logprob = f64::from(target_logit) - f64::from(max) - log_sum;
    let mut loss = -logprob;
    let smoothing = f64::from(label_smoothing);
    if label_smoothing != 0.0 {
        let uniform = f64::from(max) + log_sum - sum_logits / vocab as f64;
        loss = (1.0 - smoothing) * loss + smoothing * uniform;
    }

    if want_grad && weight == 0.0 {
        logits.fill(0.0);
    } else if want_grad {
        let scale = weight * logit_scale;
        let factor = V::splat((f64::from(scale) / sum) as f32);
        let uniform = V::splat((-f64::from(scale) * smoothing / vocab as f64) as f32);
        let mut pull = scale * (1.0 - label_smoothing);
        if let Some(cap) = softcap {
            let inverse = V::splat(1.0 / cap);
            let ratio = target_logit / cap;
            pull *= 1.0 - ratio * ratio;
            for x in logits.chunks_mut(V::LANES) {
                let z = V::load(x);
                let ratio = z * inverse;
                let slope = V::splat(1.0) - ratio * ratio;
                (exp(z - max_lanes).mul_add(factor, uniform) * slope).store(x);
            }
        } else {
            for x in logits.chunks_mut(V::LANES) {
                V::load(x).mul_add(factor, uniform).store(x);
            }
        }
        logits[target] -= pull;
    }
    TokenStats {
        loss: loss as f32,
        logprob: logprob as f32,
        entropy: (log_sum - sum_distance / sum) as f32,
        correct,
    }
}

per_isa!(fn row = row_body(
    logits: &mut [f32], target: usize, weight: f32, settings: CrossEntropy, want_grad: bool
) -> TokenStats);
