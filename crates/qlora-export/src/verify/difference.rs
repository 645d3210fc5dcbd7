//! How far two models are apart.

use super::Probe;

/// The logits of one model against those of a reference, over the same tokens.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Difference {
    /// Tokens compared.
    pub tokens: usize,
    /// Root mean square of the differences of logits, as a part of the reference's standard deviation.
    pub relative: f64,
    /// The largest difference of a logit.
    pub largest: f32,
    /// Mean Kullback-Leibler divergence of the model from the reference, in nats a token.
    pub kl: f64,
    /// Part of the tokens after which both find the same next token most probable.
    pub same_top: f64,
    /// Perplexity of the reference.
    pub reference_perplexity: f64,
    /// Perplexity of the model.
    pub perplexity: f64,
}

impl Difference {
    /// Compares logits of all rows of a probe, `[tokens, vocabulary]` one after the other.
    ///
    /// # Panics
    /// When they are not as long as the probe says.
    #[must_use]
    pub fn new(probe: &Probe, reference: &[f32], model: &[f32]) -> Self {
        let tokens: usize = probe.rows().iter().map(Vec::len).sum();
        assert_eq!(reference.len(), model.len(), "logits of the same tokens");
        let vocabulary = reference.len() / tokens;
        let targets = probe.rows().iter().flat_map(|row| row[1..].iter().copied().map(Some).chain([None]));
        let (mut squares, mut variance, mut largest, mut kl, mut same) = (0.0, 0.0, 0.0_f32, 0.0, 0);
        let (mut losses, mut predicted) = ([0.0; 2], 0);
        let rows = reference.chunks_exact(vocabulary).zip(model.chunks_exact(vocabulary));
        for ((reference, model), target) in rows.zip(targets) {
            let mean = mean(reference);
            // A constant added to all logits of a token changes nothing.
            let shift = self::mean(model) - mean;
            for (a, b) in reference.iter().zip(model) {
                let difference = f64::from(*b) - f64::from(*a) - shift;
                squares += difference * difference;
                variance += (f64::from(*a) - mean).powi(2);
                largest = largest.max(difference.abs() as f32);
            }
            let normal = [normalizer(reference), normalizer(model)];
            for (a, b) in reference.iter().zip(model) {
                let (p, q) = (f64::from(*a) - normal[0], f64::from(*b) - normal[1]);
                kl += p.exp() * (p - q);
            }
            same += usize::from(top(reference) == top(model));
            if let Some(target) = target {
                losses[0] += normal[0] - f64::from(reference[target as usize]);
                losses[1] += normal[1] - f64::from(model[target as usize]);
                predicted += 1;
            }
        }
        let perplexity = |loss: f64| (loss / f64::from(predicted.max(1))).exp();
        Self {
            tokens,
            relative: if squares == 0.0 { 0.0 } else { (squares / variance).sqrt() },
            largest,
            kl: kl / tokens as f64,
            same_top: same as f64 / tokens as f64,
            reference_perplexity: perplexity(losses[0]),
            perplexity: perplexity(losses[1]),
        }
    }
}

fn mean(logits: &[f32]) -> f64 {
    logits.iter().map(|logit| f64::from(*logit)).sum::<f64>() / logits.len() as f64
}

/// `ln Σ exp`.
fn normalizer(logits: &[f32]) -> f64 {
    let most = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    most + logits.iter().map(|logit| (f64::from(*logit) - most).exp()).sum::<f64>().ln()
}

fn top(logits: &[f32]) -> usize {
    logits.iter().enumerate().fold(0, |best, (index, logit)| if *logit > logits[best] { index } else { best })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_tokens_by_hand() {
        let probe = Probe::from_rows(vec![vec![0, 1]]);
        let reference = [1.0, 0.0, 0.0, 3.0];
        let equal = Difference::new(&probe, &reference, &reference.map(|logit| logit + 5.0));
        assert!(equal.relative < 1e-7 && equal.kl.abs() < 1e-7 && equal.same_top == 1.0);
        let e = std::f64::consts::E;
        // The second token is predicted with probability 1 / (1 + e).
        assert!((equal.perplexity - (1.0 + e)).abs() < 1e-9);
        let swapped = Difference::new(&probe, &reference, &[0.0, 1.0, 0.0, 3.0]);
        assert_eq!((swapped.same_top, swapped.largest), (0.5, 1.0));
        // KL between (p, 1 − p) and (1 − p, p) with p = e / (1 + e) is 2p − 1, over two tokens.
        let p = e / (1.0 + e);
        assert!((swapped.kl - (2.0 * p - 1.0) / 2.0).abs() < 1e-9, "{swapped:?}");
        // Σ d² = 2 of Σ (a − mean)² = 0.5 + 4.5.
        assert!((swapped.relative - 0.4_f64.sqrt()).abs() < 1e-9, "{swapped:?}");
    }
}
