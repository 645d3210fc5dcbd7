//! Metrics of an optimizer step, from those of its micro-batches.

use std::collections::BTreeMap;

use qlora_rl::{MetricKind, metric_kind};

/// Metrics of the micro-batches so far.
#[derive(Debug, Default)]
pub(super) struct StepLog {
    found: BTreeMap<&'static str, Vec<f64>>,
}

impl StepLog {
    pub(super) fn add(&mut self, metrics: impl IntoIterator<Item = (&'static str, f64)>) {
        for (name, value) in metrics {
            self.found.entry(name).or_default().push(value);
        }
    }

    /// The step's metrics; the log is empty afterwards. What is not finite is left out.
    pub(super) fn take(&mut self) -> BTreeMap<String, f64> {
        let combined = std::mem::take(&mut self.found).into_iter().map(|(name, values)| {
            let value = match metric_kind(name) {
                MetricKind::Mean => values.iter().sum::<f64>() / values.len() as f64,
                MetricKind::Min => values.iter().copied().fold(f64::INFINITY, f64::min),
                MetricKind::Max => values.iter().copied().fold(f64::NEG_INFINITY, f64::max),
            };
            (name.to_string(), value)
        });
        combined.filter(|(_, value)| value.is_finite()).collect()
    }
}
