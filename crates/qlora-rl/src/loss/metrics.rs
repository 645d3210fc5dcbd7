//! TRL's metrics of a micro-batch.

use std::collections::BTreeMap;
use std::ops::Range;

use super::{ImportanceLevel, LossBatch, LossKind, LossOptions, sampler_ratios};

/// How a metric of micro-batches becomes one of the optimizer step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetricKind {
    /// The mean.
    Mean,
    /// The lowest.
    Min,
    /// The highest.
    Max,
}

/// How a metric, by its name, is combined.
#[must_use]
pub fn metric_kind(name: &str) -> MetricKind {
    match name.rsplit(['/', '_']).next() {
        Some("min") => MetricKind::Min,
        Some("max") => MetricKind::Max,
        _ => MetricKind::Mean,
    }
}

/// The means of a quantity over the counted tokens: of all, and of each sequence that has any.
struct Means {
    all: f64,
    sequences: Vec<f64>,
}

pub(super) fn of_loss(
    options: &LossOptions,
    batch: &LossBatch<'_>,
    ranges: &[Range<usize>],
    ratios: &[f64],
    divergences: Option<&[f64]>,
    weights: &[f64],
) -> BTreeMap<&'static str, f64> {
    let mut metrics = BTreeMap::new();
    let token_mean = |value: &dyn Fn(usize) -> f64| {
        let counted = (0..batch.mask.len()).filter(|t| batch.mask[*t]);
        let (sum, count) = counted.fold((0.0, 0.0), |(sum, count), t| (sum + value(t), count + 1.0));
        sum / f64::max(count, 1.0)
    };
    if let Some(divergences) = divergences {
        metrics.insert("kl", token_mean(&|t| divergences[t]));
    }
    if let Some(entropies) = batch.entropies {
        metrics.insert("entropy", token_mean(&|t| f64::from(entropies[t])));
    }
    // Of a condition on ratio and advantage: with ratios of sequences each sequence counts once, masked or not.
    let share = |condition: &dyn Fn(f64, f64) -> bool| -> Means {
        let holds = |t: usize, index: usize| {
            f64::from(u8::from(condition(ratios[t], f64::from(batch.advantages[index]))))
        };
        let (mut sum, mut count, mut sequences) = (0.0, 0.0, Vec::new());
        for (index, range) in ranges.iter().enumerate() {
            let tokens: Vec<usize> = match options.importance {
                ImportanceLevel::Token => range.clone().filter(|t| batch.mask[*t]).collect(),
                ImportanceLevel::Sequence => range.clone().take(1).collect(),
            };
            let of_sequence: f64 = tokens.iter().map(|t| holds(*t, index)).sum();
            sum += of_sequence;
            count += tokens.len() as f64;
            if !tokens.is_empty() {
                sequences.push(of_sequence / tokens.len() as f64);
            }
        }
        Means { all: sum / f64::max(count, 1.0), sequences }
    };
    let (low, high) = (1.0 - options.epsilon, 1.0 + options.epsilon_high);
    if options.kind.is_clipped() {
        let is_low = |w: f64, a: f64| w < low && a < 0.0;
        let limited = |w: f64| options.delta.map_or(w, |delta| w.min(delta));
        let is_high = |w: f64, a: f64| limited(w) > high && a > 0.0;
        let (lows, highs) = (share(&is_low), share(&is_high));
        metrics.insert("clip_ratio/low_mean", lows.all);
        metrics.insert("clip_ratio/high_mean", highs.all);
        metrics.insert("clip_ratio/region_mean", share(&|w, a| is_low(w, a) || is_high(w, a)).all);
        if let Some(least) = lows.sequences.iter().copied().reduce(f64::min) {
            metrics.insert("clip_ratio/low_min", least);
        }
        if let Some(most) = highs.sequences.iter().copied().reduce(f64::max) {
            metrics.insert("clip_ratio/high_max", most);
        }
    }
    if options.kind == LossKind::Cispo {
        metrics.insert("cispo_clip_ratio", share(&|w, a| w > options.epsilon_high && a > 0.0).all);
    }
    if !weights.is_empty() {
        metrics.insert("vespo/phi_seq_mean", weights.iter().sum::<f64>() / weights.len() as f64);
    }
    metrics
}

/// How far the sampler's log-probabilities are from the trainer's old ones, and the correction's ratios if there is
/// one: `sampling/sampling_logp_difference/{mean,max}`, `sampling/importance_sampling_ratio/{min,mean,max}`.
///
/// # Panics
/// When slices differ in length.
#[must_use]
pub fn sampling_metrics(options: &LossOptions, batch: &LossBatch<'_>) -> BTreeMap<&'static str, f64> {
    let mut metrics = BTreeMap::new();
    let ranges = batch.ranges();
    let Some(sampled) = batch.sampling_log_probs else { return metrics };
    let old = batch.old_log_probs.unwrap_or(batch.log_probs);
    let counted: Vec<usize> = (0..batch.mask.len()).filter(|t| batch.mask[*t]).collect();
    if counted.is_empty() {
        return metrics;
    }
    let mut summarize = |values: Vec<f64>, [min, mean, max]: [&'static str; 3]| {
        metrics.insert(mean, values.iter().sum::<f64>() / values.len() as f64);
        metrics.insert(max, values.iter().copied().fold(f64::NEG_INFINITY, f64::max));
        if !min.is_empty() {
            metrics.insert(min, values.iter().copied().fold(f64::INFINITY, f64::min));
        }
    };
    let differences = counted.iter().map(|t| (f64::from(old[*t]) - f64::from(sampled[*t])).abs());
    summarize(
        differences.collect(),
        ["", "sampling/sampling_logp_difference/mean", "sampling/sampling_logp_difference/max"],
    );
    if let Some(correction) = options.sampler_correction {
        let ratios = sampler_ratios(batch, &correction);
        let values = match correction.mode.is_sequence() {
            true => ranges.iter().filter(|r| !r.is_empty()).map(|r| ratios[r.start]).collect(),
            false => counted.iter().map(|t| ratios[*t]).collect(),
        };
        summarize(
            values,
            [
                "sampling/importance_sampling_ratio/min",
                "sampling/importance_sampling_ratio/mean",
                "sampling/importance_sampling_ratio/max",
            ],
        );
    }
    metrics
}
