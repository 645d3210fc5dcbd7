//! How far two models are apart.

use qlora_kernels::KernelBackend;
use qlora_models::{Decoder, Pass, TokenBatch};

use super::Probe;

/// The logits of one model against those of a reference, over the same tokens.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Difference {
    /// Tokens that both models read, all of the probe.
    pub tokens: usize,
    /// Tokens whose logits were compared, the first: all where both models were in memory at once, else at most 512.
    pub compared: usize,
    /// Root mean square of the differences of logits, as a part of the reference's standard deviation.
    pub relative: f64,
    /// The largest difference of a logit.
    pub largest: f32,
    /// Mean Kullback-Leibler divergence of the model from the reference, in nats a token.
    pub kl: f64,
    /// Part of the tokens after which both find the same next token most probable.
    pub same_top: f64,
    /// Perplexity of the reference, of all tokens.
    pub reference_perplexity: f64,
    /// Perplexity of the model, of all tokens.
    pub perplexity: f64,
}

impl Difference {
    /// Compares two models that are both in memory. The logits of one row of the probe are at a time.
    #[must_use]
    pub fn between<B: KernelBackend>(probe: &Probe, reference: &Decoder<B>, model: &Decoder<B>) -> Self {
        let (mut sums, mut losses) = (Sums::default(), [0.0; 2]);
        for row in probe.rows() {
            let logits = [reference, model].map(|model| row_logits(model, row));
            for (sum, logits) in losses.iter_mut().zip(&logits) {
                *sum += loss(row, logits);
            }
            sums.add(&logits[0], &logits[1], model.config().vocab_size);
        }
        sums.difference(probe, losses)
    }
}

/// The logits of a row, `[tokens, vocabulary]`.
pub(super) fn row_logits<B: KernelBackend>(model: &Decoder<B>, row: &[u32]) -> Vec<f32> {
    let hidden = model.hidden_states(TokenBatch { ids: row, lengths: &[row.len()] }, Pass::default());
    model.logits(hidden).into_data().iter::<f32>().collect()
}

/// `Σ −ln p` of the tokens of a row, each after those before it.
pub(super) fn loss(row: &[u32], logits: &[f32]) -> f64 {
    let vocabulary = logits.len() / row.len();
    let predictions = logits.chunks_exact(vocabulary).zip(&row[1..]);
    predictions.map(|(logits, target)| normalizer(logits) - f64::from(logits[*target as usize])).sum()
}

/// What is added up over the tokens that are compared.
#[derive(Default)]
pub(super) struct Sums {
    compared: usize,
    squares: f64,
    variance: f64,
    largest: f32,
    kl: f64,
    same: usize,
}

impl Sums {
    /// Adds tokens, `[tokens, vocabulary]` of each model.
    pub(super) fn add(&mut self, reference: &[f32], model: &[f32], vocabulary: usize) {
        assert_eq!(reference.len(), model.len(), "logits of the same tokens");
        for (reference, model) in reference.chunks_exact(vocabulary).zip(model.chunks_exact(vocabulary)) {
            let mean = mean(reference);
            // A constant added to all logits of a token changes nothing.
            let shift = self::mean(model) - mean;
            let normal = [normalizer(reference), normalizer(model)];
            for (a, b) in reference.iter().zip(model) {
                let (a, b) = (f64::from(*a), f64::from(*b));
                let difference = b - a - shift;
                self.squares += difference * difference;
                self.variance += (a - mean).powi(2);
                self.largest = self.largest.max(difference.abs() as f32);
                let (p, q) = (a - normal[0], b - normal[1]);
                self.kl += p.exp() * (p - q);
            }
            self.same += usize::from(top(reference) == top(model));
            self.compared += 1;
        }
    }

    /// With the losses of the reference and of the model over all tokens.
    pub(super) fn difference(self, probe: &Probe, losses: [f64; 2]) -> Difference {
        let Self { compared, squares, variance, largest, kl, same } = self;
        let predicted = probe.tokens() - probe.rows().len();
        let [reference_perplexity, perplexity] = losses.map(|loss| (loss / predicted.max(1) as f64).exp());
        Difference {
            tokens: probe.tokens(),
            compared,
            relative: if squares == 0.0 { 0.0 } else { (squares / variance).sqrt() },
            largest,
            kl: kl / compared as f64,
            same_top: same as f64 / compared as f64,
            reference_perplexity,
            perplexity,
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

    fn difference(probe: &Probe, reference: &[f32], model: &[f32]) -> Difference {
        let mut sums = Sums::default();
        sums.add(reference, model, reference.len() / probe.tokens());
        sums.difference(probe, [reference, model].map(|logits| loss(&probe.rows()[0], logits)))
    }

    #[test]
    fn two_tokens_by_hand() {
        let probe = Probe::from_rows(vec![vec![0, 1]]);
        let reference = [1.0, 0.0, 0.0, 3.0];
        let equal = difference(&probe, &reference, &reference.map(|logit| logit + 5.0));
        assert!(equal.relative < 1e-7 && equal.kl.abs() < 1e-7 && equal.same_top == 1.0);
        assert_eq!((equal.tokens, equal.compared), (2, 2));
        let e = std::f64::consts::E;
        // The second token is predicted with probability 1 / (1 + e).
        assert!((equal.perplexity - (1.0 + e)).abs() < 1e-9);
        let swapped = difference(&probe, &reference, &[0.0, 1.0, 0.0, 3.0]);
        assert_eq!((swapped.same_top, swapped.largest), (0.5, 1.0));
        // KL between (p, 1 − p) and (1 − p, p) with p = e / (1 + e) is 2p − 1, over two tokens.
        let p = e / (1.0 + e);
        assert!((swapped.kl - (2.0 * p - 1.0) / 2.0).abs() < 1e-9, "{swapped:?}");
        // Σ d² = 2 of Σ (a − mean)² = 0.5 + 4.5.
        assert!((swapped.relative - 0.4_f64.sqrt()).abs() < 1e-9, "{swapped:?}");
    }
}
