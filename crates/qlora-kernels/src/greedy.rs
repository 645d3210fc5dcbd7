//! Greedy choice of tokens, without reading the logits back.

use burn::tensor::Tensor;
use burn::tensor::ops::FloatTensor;

use crate::KernelBackend;
use crate::primitive::{primitive, tensor};

/// The likeliest token of each row of `logits` `[rows, vocabulary]`, the first of equals, and its log-probability.
#[must_use]
pub fn greedy<B: KernelBackend>(logits: Tensor<B, 2>) -> Vec<(u32, f32)> {
    B::greedy(primitive(logits))
}

/// Reference: on the host.
pub(crate) fn reference<B: KernelBackend>(logits: FloatTensor<B>) -> Vec<(u32, f32)> {
    let logits = tensor::<B, 2>(logits);
    let [_, vocabulary] = logits.dims();
    let values: Vec<f32> = logits.into_data().iter::<f32>().collect();
    let likeliest = |row: &[f32]| {
        let mut best = 0;
        for (index, logit) in row.iter().enumerate() {
            if *logit > row[best] || row[best].is_nan() {
                best = index;
            }
        }
        let most = f64::from(row[best]);
        let sum: f64 = row.iter().map(|logit| (f64::from(*logit) - most).exp()).sum();
        (best as u32, -sum.ln() as f32)
    };
    values.chunks_exact(vocabulary.max(1)).map(likeliest).collect()
}
