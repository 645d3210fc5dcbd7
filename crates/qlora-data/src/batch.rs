use crate::Sample;
use std::borrow::Borrow;

/// Sequences one after another, without padding, shifted for next-token prediction.
///
/// Position `i` of a sequence predicts the id at `i + 1`: `targets[i] = ids[i + 1]` with the weight of that id.
/// The last position of each sequence predicts nothing: its target is 0 and its weight 0.
#[derive(Debug, Clone, PartialEq)]
pub struct Batch {
    /// Token ids, `[tokens]`.
    pub ids: Vec<u32>,
    /// The id that follows each token, `[tokens]`.
    pub targets: Vec<u32>,
    /// The weight of the loss at each position, `[tokens]`.
    pub weights: Vec<f32>,
    /// Tokens of each sequence; they add up to the number of tokens.
    pub lengths: Vec<usize>,
}

impl Batch {
    /// The samples, in order.
    ///
    /// # Panics
    /// When a sample is empty.
    #[must_use]
    pub fn from_samples(samples: &[impl Borrow<Sample>]) -> Self {
        let tokens = samples.iter().map(|sample| sample.borrow().len()).sum();
        let mut batch = Self {
            ids: Vec::with_capacity(tokens),
            targets: Vec::with_capacity(tokens),
            weights: Vec::with_capacity(tokens),
            lengths: Vec::with_capacity(samples.len()),
        };
        for sample in samples {
            let sample: &Sample = sample.borrow();
            assert!(!sample.is_empty(), "a sample without tokens (line {})", sample.line);
            batch.ids.extend_from_slice(&sample.ids);
            batch.targets.extend_from_slice(&sample.ids[1..]);
            batch.targets.push(0);
            batch.weights.extend_from_slice(&sample.weights[1..]);
            batch.weights.push(0.0);
            batch.lengths.push(sample.len());
        }
        batch
    }

    /// Number of tokens of all sequences.
    #[must_use]
    pub fn tokens(&self) -> usize {
        self.ids.len()
    }

    /// Sum of the weights: what a sum of weighted token losses is divided by.
    #[must_use]
    pub fn trained_weight(&self) -> f64 {
        self.weights.iter().map(|&weight| f64::from(weight)).sum()
    }

    /// Number of positions whose weight is not 0.
    #[must_use]
    pub fn trained_tokens(&self) -> usize {
        self.weights.iter().filter(|&&weight| weight != 0.0).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_sequence_is_shifted_within_itself() {
        let a = Sample::new(vec![5, 6, 7], vec![1.0, 0.0, 0.5], 1);
        let b = Sample::new(vec![8], vec![1.0], 2);
        let c = Sample::new(vec![9, 10], vec![0.0, 1.0], 3);
        let batch = Batch::from_samples(&[&a, &b, &c]);
        assert_eq!(batch.ids, [5, 6, 7, 8, 9, 10]);
        assert_eq!(batch.targets, [6, 7, 0, 0, 10, 0]);
        assert_eq!(batch.weights, [0.0, 0.5, 0.0, 0.0, 1.0, 0.0]);
        assert_eq!(batch.lengths, [3, 1, 2]);
        assert_eq!((batch.tokens(), batch.trained_tokens(), batch.trained_weight()), (6, 2, 1.5));
    }
}
