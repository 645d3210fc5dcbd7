//! The fused update of AdamW (Loshchilov & Hutter 2019, <https://arxiv.org/abs/1711.05101>), as torch does it.
//!
//! `p ← p (1 − lr·wd)`; `m ← β₁m + (1−β₁)g`; `v ← β₂v + (1−β₂)g²`;
//! `p ← p − lr/(1−β₁ᵗ) · m / (√v/√(1−β₂ᵗ) + ε)`.

use burn::tensor::Tensor;
use burn::tensor::ops::FloatTensor;

use crate::KernelBackend;
use crate::primitive::{primitive, tensor};

/// The numbers of one optimizer step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamWStep {
    /// Learning rate of this step.
    pub learning_rate: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Number of this step, from 1.
    pub step: usize,
    /// What gradients are multiplied with first: the coefficient of clipping.
    pub grad_scale: f64,
}

/// One step of AdamW: the new parameter and the new first and second moments, all of one shape, f32.
#[must_use]
pub fn adamw<B: KernelBackend, const D: usize>(
    param: Tensor<B, D>,
    grad: Tensor<B, D>,
    first: Tensor<B, D>,
    second: Tensor<B, D>,
    step: AdamWStep,
) -> (Tensor<B, D>, Tensor<B, D>, Tensor<B, D>) {
    let (param, first, second) =
        B::adamw(primitive(param), primitive(grad), primitive(first), primitive(second), step);
    (tensor(param), tensor(first), tensor(second))
}

/// `Σ x²`.
#[must_use]
pub fn sum_of_squares<B: KernelBackend, const D: usize>(x: Tensor<B, D>) -> f64 {
    B::sum_of_squares(primitive(x))
}

pub(crate) fn adamw_reference<B: KernelBackend>(
    param: FloatTensor<B>,
    grad: FloatTensor<B>,
    first: FloatTensor<B>,
    second: FloatTensor<B>,
    step: AdamWStep,
) -> (FloatTensor<B>, FloatTensor<B>, FloatTensor<B>) {
    // One rank serves all: the update is elementwise.
    let flat = |t: FloatTensor<B>| {
        use burn::tensor::TensorMetadata;
        let count = t.shape().num_elements();
        tensor::<B, 1>(B::float_reshape(t, burn::tensor::Shape::new([count])))
    };
    let shape = burn::tensor::TensorMetadata::shape(&param);
    let AdamWStep { learning_rate, beta1, beta2, eps, weight_decay, step, grad_scale } = step;
    let (param, grad) = (flat(param), flat(grad) * grad_scale);
    let first = flat(first) * beta1 + grad.clone() * (1.0 - beta1);
    let second = flat(second) * beta2 + grad.powf_scalar(2.0) * (1.0 - beta2);
    let (correction1, correction2) = (1.0 - beta1.powi(step as i32), 1.0 - beta2.powi(step as i32));
    let denominator = second.clone().sqrt() / correction2.sqrt() + eps;
    let param = param * (1.0 - learning_rate * weight_decay)
        - first.clone() / denominator * (learning_rate / correction1);
    let shaped = |t: Tensor<B, 1>| B::float_reshape(primitive(t), shape.clone());
    (shaped(param), shaped(first), shaped(second))
}

pub(crate) fn sum_of_squares_reference<B: KernelBackend>(x: FloatTensor<B>) -> f64 {
    use burn::tensor::TensorMetadata;
    let count = x.shape().num_elements();
    let x = tensor::<B, 1>(B::float_reshape(x, burn::tensor::Shape::new([count])));
    x.powf_scalar(2.0).sum().into_data().iter::<f64>().next().unwrap_or(0.0)
}
