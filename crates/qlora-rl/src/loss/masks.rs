//! What the policy loss of a token is multiplied by: masks and the correction of the sampler.

use super::{LossBatch, SamplerCorrection};

/// 1 for the tokens whose entropy is at or above the quantile `1 − share` of all counted tokens, else 0.
/// The quantile is interpolated as torch does.
pub(super) fn top_entropy(mask: &[bool], entropies: &[f32], share: f64) -> Vec<bool> {
    let mut counted: Vec<f64> =
        mask.iter().zip(entropies).filter(|(m, _)| **m).map(|(_, h)| f64::from(*h)).collect();
    if counted.is_empty() {
        return vec![false; mask.len()];
    }
    counted.sort_unstable_by(f64::total_cmp);
    let place = (1.0 - share) * (counted.len() - 1) as f64;
    let (low, high) = (counted[place.floor() as usize], counted[place.ceil() as usize]);
    let threshold = low + (high - low) * place.fract();
    mask.iter().zip(entropies).map(|(m, h)| *m && f64::from(*h) >= threshold).collect()
}

/// Whether a sequence stays: its advantage is not negative, or its tokens lost no more than `threshold` nats each
/// since they were sampled.
pub(super) fn is_on_policy(
    batch: &LossBatch<'_>,
    range: std::ops::Range<usize>,
    advantage: f64,
    threshold: f64,
) -> bool {
    let before = batch.sampling_log_probs.or(batch.old_log_probs).unwrap_or(batch.log_probs);
    let tokens = range.filter(|t| batch.mask[*t]);
    let (sum, count) = tokens.fold((0.0, 0.0), |(sum, count), t| {
        (sum + f64::from(before[t]) - f64::from(batch.log_probs[t]), count + 1.0)
    });
    advantage >= 0.0 || sum / f64::max(count, 1.0) <= threshold
}

/// The ratio of each token, old policy of the trainer over sampler, within the limits. Of sequences: the same number
/// for all its tokens.
#[must_use]
pub fn sampler_ratios(batch: &LossBatch<'_>, correction: &SamplerCorrection) -> Vec<f64> {
    let old = batch.old_log_probs.unwrap_or(batch.log_probs);
    let sampled = batch.sampling_log_probs.unwrap_or(old);
    let difference = |t: usize| if batch.mask[t] { f64::from(old[t]) - f64::from(sampled[t]) } else { 0.0 };
    let limited = |log_ratio: f64| {
        let ratio = log_ratio.exp();
        let low = correction.min.unwrap_or(f64::NEG_INFINITY);
        match correction.mode.is_mask() {
            true if ratio < low || ratio > correction.max => 0.0,
            true => ratio,
            false => ratio.max(low).min(correction.max),
        }
    };
    let mut ratios = Vec::with_capacity(batch.mask.len());
    for range in batch.ranges() {
        if correction.mode.is_sequence() {
            let ratio = limited(range.clone().map(difference).sum());
            ratios.extend(range.map(|_| ratio));
        } else {
            ratios.extend(range.map(|t| limited(difference(t))));
        }
    }
    ratios
}
