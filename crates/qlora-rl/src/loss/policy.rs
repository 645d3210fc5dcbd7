//! The policy loss of a token as a function of its ratio, and its derivatives.

use super::{LossBatch, LossKind, LossOptions};

/// A term of the loss of one token.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Term {
    /// Its value.
    pub(super) value: f64,
    /// Its derivative with respect to the token's log-probability, the ratio held fixed.
    pub(super) direct: f64,
    /// Its derivative with respect to the logarithm of the ratio.
    pub(super) through_ratio: f64,
}

/// `−min(min(w, δ)·A, clip(w, 1−ε, 1+ε_high)·A)`.
pub(super) fn clipped(options: &LossOptions, ratio: f64, advantage: f64) -> Term {
    let (low, high) = (1.0 - options.epsilon, 1.0 + options.epsilon_high);
    let (first, first_slope) = match options.delta {
        Some(delta) if ratio > delta => (delta, 0.0),
        _ => (ratio, 1.0),
    };
    let second = ratio.clamp(low, high);
    let second_slope = f64::from(u8::from((low..=high).contains(&ratio)));
    let (a, b) = (first * advantage, second * advantage);
    // Of equal terms each has half of the gradient, as in torch.
    let slope = match a.total_cmp(&b) {
        std::cmp::Ordering::Less => first_slope,
        std::cmp::Ordering::Greater => second_slope,
        std::cmp::Ordering::Equal => 0.5 * (first_slope + second_slope),
    };
    Term { value: -a.min(b), direct: 0.0, through_ratio: -slope * advantage * ratio }
}

/// `−A·(4/τ)·σ(τ(w − 1))`.
pub(super) fn sigmoid_gate(options: &LossOptions, ratio: f64, advantage: f64) -> Term {
    let temperature =
        if advantage > 0.0 { options.sapo_temperature_pos } else { options.sapo_temperature_neg };
    let gate = 1.0 / (1.0 + (-temperature * (ratio - 1.0)).exp());
    Term {
        value: -advantage * 4.0 / temperature * gate,
        direct: 0.0,
        through_ratio: -advantage * 4.0 * gate * (1.0 - gate) * ratio,
    }
}

/// `−weight·A·ln π`, the weight not differentiated.
pub(super) fn weighted_log_prob(weight: f64, advantage: f64, log_prob: f64) -> Term {
    let direct = -weight * advantage;
    Term { value: direct * log_prob, direct, through_ratio: 0.0 }
}

/// The k3 estimate of the divergence from the reference, `e^d − d − 1` of `d = ln π_ref − ln π`
/// (<http://joschu.net/blog/kl-approx.html>), times the ratio if it is to be corrected.
pub(super) fn divergence(log_prob: f64, reference: f64, ratio: Option<f64>) -> Term {
    let d = reference - log_prob;
    let value = d.exp() - d - 1.0;
    let slope = 1.0 - d.exp();
    match ratio {
        Some(ratio) => Term { value: value * ratio, direct: slope * ratio, through_ratio: value * ratio },
        None => Term { value, direct: slope, through_ratio: 0.0 },
    }
}

/// VESPO's weight of a sequence, `exp(λ + k·ln W − λ·W)` of `W = π/π_old` of the whole sequence, each logarithm kept
/// within ±20 and that of `W` at least ln 1e-8. `sampler` are the ratios of the sampler's correction.
pub(super) fn gamma_weight(
    options: &LossOptions,
    batch: &LossBatch<'_>,
    range: std::ops::Range<usize>,
    advantage: f64,
    sampler: Option<&[f64]>,
) -> f64 {
    debug_assert_eq!(options.kind, LossKind::Vespo);
    let lowest = 1e-8_f64.ln();
    let old = batch.old_log_probs.unwrap_or(batch.log_probs);
    let mut log_w = 0.0;
    for t in range {
        if batch.mask[t] {
            log_w += (f64::from(batch.log_probs[t]) - f64::from(old[t])).clamp(-20.0, 20.0);
        }
        if let Some(ratios) = sampler {
            log_w += ratios[t].ln().clamp(lowest, 20.0);
        }
    }
    let log_w = log_w.clamp(lowest, 20.0);
    let constants = options.vespo;
    let (k, lambda) = match advantage >= 0.0 {
        true => (constants.k_pos, constants.lambda_pos),
        false => (constants.k_neg, constants.lambda_neg),
    };
    let weight = (lambda + k * log_w - lambda * log_w.exp()).exp();
    if weight.is_finite() { weight } else { 0.0 }
}
