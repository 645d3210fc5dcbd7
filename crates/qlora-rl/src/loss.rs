//! The losses of group-relative policy optimization, with their gradients in closed form.
//!
//! With `w` the ratio of new to old probability (of the token, or of the sequence: the geometric mean over its
//! tokens), `A` the advantage, `M` the mask, and `GA` the micro-batches of an optimizer step:
//!
//! | loss | of a token | averaged |
//! |---|---|---|
//! | grpo | `−min(min(w, δ)·A, clip(w, 1−ε, 1+ε_high)·A)` | over the tokens of a sequence, then sequences; / GA |
//! | bnpo | the same | over the tokens of the micro-batch; / GA |
//! | dr_grpo | the same | sum / (sequences · max_completion_length); / GA |
//! | dapo | the same | sum / tokens of the optimizer step |
//! | luspo | the same | sum / sequences, sequences weighted by their length; / GA |
//! | cispo | `−min(w, ε_high)·A·ln π`, the weight not differentiated | as dapo |
//! | sapo | `−A·(4/τ)·σ(τ(w−1))` | as grpo |
//! | vespo | `−φ(W)·A·ln π`, the weight not differentiated | as dapo |
//!
//! In this order: the policy loss, the off-policy mask, the entropy mask, the sampler's correction, `+ β·KL`, the
//! average, `− entropy_coef` times the mean entropy. The numbers are those of TRL 1.15 (`GRPOTrainer._compute_loss`),
//! computed in f64.

mod batch;
mod masks;
mod metrics;
mod options;
mod policy;

pub use batch::{LossBatch, Normalization};
pub use masks::sampler_ratios;
pub use metrics::{MetricKind, metric_kind, sampling_metrics};
pub use options::{CorrectionMode, ImportanceLevel, LossKind, LossOptions, SamplerCorrection, VespoOptions};

use std::collections::BTreeMap;

use policy::Term;

/// A loss and its gradient.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LossOutput {
    /// The micro-batch's part of the loss of the optimizer step: these parts are added up.
    pub loss: f64,
    /// Its derivative with respect to each token's log-probability.
    pub d_log_probs: Vec<f64>,
    /// Its derivative with respect to each token's entropy, where `entropy_coef` is not 0.
    pub d_entropies: Option<Vec<f64>>,
    /// TRL's metrics of the micro-batch by TRL's names. What is not a number there is absent here.
    pub metrics: BTreeMap<&'static str, f64>,
}

/// The loss of a micro-batch.
///
/// # Panics
/// When slices differ in length, or the reference log-probabilities or entropies that the options need are absent.
#[must_use]
pub fn loss(options: &LossOptions, batch: &LossBatch<'_>, norm: Normalization) -> LossOutput {
    let ranges = batch.ranges();
    let tokens = batch.mask.len();
    let log_prob = |t: usize| f64::from(batch.log_probs[t]);
    let log_ratio = |t: usize| batch.old_log_probs.map_or(0.0, |old| log_prob(t) - f64::from(old[t]));
    let counts: Vec<f64> =
        ranges.iter().map(|range| batch.mask[range.clone()].iter().filter(|m| **m).count() as f64).collect();
    let total: f64 = counts.iter().sum();

    // Factors of the policy loss.
    let kept = (options.top_entropy_quantile < 1.0).then(|| {
        let entropies = batch.entropies.expect("masking by entropy needs entropies");
        masks::top_entropy(batch.mask, entropies, options.top_entropy_quantile)
    });
    let sampler = options.sampler_correction.map(|correction| sampler_ratios(batch, &correction));

    let mut terms = vec![Term::default(); tokens];
    let mut ratios = vec![0.0; tokens];
    let mut divergences = (options.beta != 0.0).then(|| vec![0.0; tokens]);
    let mut weights = Vec::new();
    for (index, range) in ranges.iter().enumerate() {
        let advantage = f64::from(batch.advantages[index]);
        let masked = range.clone().filter(|t| batch.mask[*t]);
        let of_sequence = (masked.map(log_ratio).sum::<f64>() / counts[index].max(1.0)).exp();
        let stays = options
            .off_policy_mask_threshold
            .is_none_or(|limit| masks::is_on_policy(batch, range.clone(), advantage, limit));
        let vespo = (options.kind == LossKind::Vespo)
            .then(|| policy::gamma_weight(options, batch, range.clone(), advantage, sampler.as_deref()));
        weights.extend(vespo);
        for t in range.clone() {
            let ratio = match options.importance {
                ImportanceLevel::Token => log_ratio(t).exp(),
                ImportanceLevel::Sequence => of_sequence,
            };
            ratios[t] = ratio;
            if !batch.mask[t] {
                continue;
            }
            let policy = match options.kind {
                LossKind::Cispo => {
                    policy::weighted_log_prob(ratio.min(options.epsilon_high), advantage, log_prob(t))
                }
                LossKind::Vespo => {
                    policy::weighted_log_prob(vespo.unwrap_or_default(), advantage, log_prob(t))
                }
                LossKind::Sapo => policy::sigmoid_gate(options, ratio, advantage),
                _ => policy::clipped(options, ratio, advantage),
            };
            let mut factor = f64::from(u8::from(stays && kept.as_ref().is_none_or(|kept| kept[t])));
            if let (Some(sampler), true) = (&sampler, options.kind != LossKind::Vespo) {
                factor *= sampler[t];
            }
            let term = &mut terms[t];
            *term = Term {
                value: factor * policy.value,
                direct: factor * policy.direct,
                through_ratio: factor * policy.through_ratio,
            };
            if let Some(divergences) = &mut divergences {
                let reference = batch.ref_log_probs.expect("beta needs a reference")[t];
                let corrected = options.bias_correction_kl.then_some(ratio);
                let kl = policy::divergence(log_prob(t), f64::from(reference), corrected);
                divergences[t] = kl.value;
                term.value += options.beta * kl.value;
                term.direct += options.beta * kl.direct;
                term.through_ratio += options.beta * kl.through_ratio;
            }
        }
    }

    let coefficient = |index: usize| coefficient(options, batch, norm, &counts, index);
    let mut out = LossOutput { d_log_probs: vec![0.0; tokens], ..LossOutput::default() };
    for (index, range) in ranges.iter().enumerate() {
        let coefficient = coefficient(index);
        let sum = |part: fn(&Term) -> f64| terms[range.clone()].iter().map(part).sum::<f64>() * coefficient;
        out.loss += sum(|term| term.value);
        let shared = sum(|term| term.through_ratio) / counts[index].max(1.0);
        for t in range.clone().filter(|t| batch.mask[*t]) {
            let through = match options.importance {
                ImportanceLevel::Token => coefficient * terms[t].through_ratio,
                ImportanceLevel::Sequence => shared,
            };
            out.d_log_probs[t] = coefficient * terms[t].direct + through;
        }
    }

    out.metrics = metrics::of_loss(options, batch, &ranges, &ratios, divergences.as_deref(), &weights);
    if options.entropy_coef != 0.0 {
        let entropies = batch.entropies.expect("an entropy bonus needs entropies");
        let counted: Vec<bool> = kept.unwrap_or_else(|| batch.mask.to_vec());
        let count = counted.iter().filter(|c| **c).count().max(1) as f64;
        let factor = options.entropy_coef / (count * norm.accumulate);
        let pairs = || counted.iter().zip(entropies).filter(|(c, _)| **c);
        out.metrics.insert("policy_loss", out.loss);
        out.metrics.insert("entropy_coef", options.entropy_coef);
        out.loss -= factor * pairs().map(|(_, h)| f64::from(*h)).sum::<f64>();
        out.d_entropies = Some(counted.iter().map(|c| if *c { -factor } else { 0.0 }).collect());
    }
    debug_assert!(total >= 0.0);
    out
}

/// What the loss of each counted token of a sequence is multiplied by.
fn coefficient(
    options: &LossOptions,
    batch: &LossBatch<'_>,
    norm: Normalization,
    counts: &[f64],
    index: usize,
) -> f64 {
    let sequences = batch.lengths.len().max(1) as f64;
    let count = counts[index].max(1.0);
    match options.kind {
        LossKind::Grpo | LossKind::Sapo => 1.0 / (count * sequences * norm.accumulate),
        LossKind::Bnpo => 1.0 / (counts.iter().sum::<f64>().max(1.0) * norm.accumulate),
        LossKind::DrGrpo => 1.0 / (sequences * options.max_completion_length as f64 * norm.accumulate),
        LossKind::Luspo => 1.0 / (sequences * norm.accumulate),
        LossKind::Dapo | LossKind::Cispo | LossKind::Vespo => 1.0 / norm.items.max(1.0),
    }
}
