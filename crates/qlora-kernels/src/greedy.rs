//! Greedy choice of tokens, without reading the logits back.

use burn::tensor::Tensor;
use burn::tensor::ops::FloatTensor;

use crate::KernelBackend;
use crate::primitive::{primitive, tensor};
use crate::sampling::likeliest;

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
    values.chunks_exact(vocabulary.max(1)).map(likeliest).collect()
}
