//! The fused update of AdamW (Loshchilov & Hutter 2019, <https://arxiv.org/abs/1711.05101>), as torch does it.
//!
//! `p ← p (1 − lr·wd)`; `m ← β₁m + (1−β₁)g`; `v ← β₂v + (1−β₂)g²`;
//! `p ← p − lr/(1−β₁ᵗ) · m / (√v/√(1−β₂ᵗ) + ε)`.

use burn::tensor::ops::FloatTensor;
use burn::tensor::{Shape, Tensor, TensorMetadata};
use qlora_quant::dynamic_map;

use crate::KernelBackend;
use crate::primitive::{primitive, tensor};
use crate::quantized8::{Quantized8, Quantized8Parts};

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

/// [`adamw`] for each `[parameter, gradient, first moment, second moment]`: the new parameters and moments.
#[must_use]
pub fn adamw_all<B: KernelBackend, const D: usize>(
    tensors: Vec<[Tensor<B, D>; 4]>,
    step: AdamWStep,
) -> Vec<[Tensor<B, D>; 3]> {
    let tensors = tensors.into_iter().map(|each| each.map(primitive)).collect();
    B::adamw_all(tensors, step).into_iter().map(|each| each.map(tensor)).collect()
}

/// One step of AdamW with moments in eight bits, as the CUDA kernels of bitsandbytes do it. With `c = √(1−β₂ᵗ)`:
///
/// `m ← β₁m + (1−β₁)g`; `v ← β₂v + (1−β₂)g²`; `p ← p − lr·c/(1−β₁ᵗ) · m / (√v + c·ε)`; **then** `p ← p (1 − lr·wd)`.
///
/// The first moment is stored with the signed dynamic map, the second with the unsigned one. A negative element of
/// the first whose nearest code is that of zero gets the code below. Where a gradient is infinite or NaN both
/// moments become 0 and the parameter stays as it is.
#[must_use]
pub fn adamw8bit<B: KernelBackend, const D: usize>(
    param: Tensor<B, D>,
    grad: Tensor<B, D>,
    first: Quantized8<B>,
    second: Quantized8<B>,
    step: AdamWStep,
) -> (Tensor<B, D>, Quantized8<B>, Quantized8<B>) {
    let (param, first, second) =
        B::adamw8bit(primitive(param), primitive(grad), first.into_parts(), second.into_parts(), step);
    (tensor(param), Quantized8::from_parts(first), Quantized8::from_parts(second))
}

/// `Σ x²` over all elements of all tensors.
#[must_use]
pub fn sum_of_squares<B: KernelBackend, const D: usize>(xs: Vec<Tensor<B, D>>) -> f64 {
    B::sum_of_squares(xs.into_iter().map(primitive).collect())
}

pub(crate) fn adamw_reference<B: KernelBackend>(
    param: FloatTensor<B>,
    grad: FloatTensor<B>,
    first: FloatTensor<B>,
    second: FloatTensor<B>,
    step: AdamWStep,
) -> (FloatTensor<B>, FloatTensor<B>, FloatTensor<B>) {
    let shape = param.shape();
    let AdamWStep { learning_rate, beta1, beta2, eps, weight_decay, step, grad_scale } = step;
    let (param, grad) = (flat::<B>(param), flat::<B>(grad) * grad_scale);
    let first = flat::<B>(first) * beta1 + grad.clone() * (1.0 - beta1);
    let second = flat::<B>(second) * beta2 + grad.powf_scalar(2.0) * (1.0 - beta2);
    let (correction1, correction2) = (1.0 - beta1.powi(step as i32), 1.0 - beta2.powi(step as i32));
    let denominator = second.clone().sqrt() / correction2.sqrt() + eps;
    let param = param * (1.0 - learning_rate * weight_decay)
        - first.clone() / denominator * (learning_rate / correction1);
    let shaped = |t: Tensor<B, 1>| B::float_reshape(primitive(t), shape.clone());
    (shaped(param), shaped(first), shaped(second))
}

pub(crate) fn adamw8bit_reference<B: KernelBackend>(
    param: FloatTensor<B>,
    grad: FloatTensor<B>,
    first: Quantized8Parts<B>,
    second: Quantized8Parts<B>,
    step: AdamWStep,
) -> (FloatTensor<B>, Quantized8Parts<B>, Quantized8Parts<B>) {
    let (shape, dtype) = (param.shape(), param.dtype());
    let count = shape.num_elements();
    let AdamWStep { learning_rate, beta1, beta2, eps, weight_decay, step, grad_scale } = step;
    let (signed, unsigned) = (dynamic_map::signed(), dynamic_map::unsigned());
    let decode = |parts, map| Quantized8::<B>::from_parts(parts).dequantize(map, count).cast(dtype);
    let (param, grad) = (flat::<B>(param), flat::<B>(grad) * grad_scale);
    let lost = grad.clone().is_finite().bool_not();
    let first = decode(first, signed) * beta1 + grad.clone() * (1.0 - beta1);
    let second = decode(second, unsigned) * beta2 + grad.clone() * grad * (1.0 - beta2);
    let correction1 = 1.0 - beta1.powi(step as i32);
    let correction2 = (1.0 - beta2.powi(step as i32)).sqrt();
    let ratio = first.clone() / (second.clone().sqrt() + correction2 * eps);
    let updated = (param.clone() - ratio * (learning_rate * correction2 / correction1))
        * (1.0 - learning_rate * weight_decay);
    let param = updated.mask_where(lost.clone(), param);
    let first = Quantized8::quantize(first.mask_fill(lost.clone(), 0.0), signed, true);
    let second = Quantized8::quantize(second.mask_fill(lost, 0.0), unsigned, false);
    (B::float_reshape(primitive(param), shape), first.into_parts(), second.into_parts())
}

/// One rank serves all: updates and sums are elementwise.
fn flat<B: KernelBackend>(t: FloatTensor<B>) -> Tensor<B, 1> {
    let count = t.shape().num_elements();
    tensor(B::float_reshape(t, Shape::new([count])))
}

pub(crate) fn sum_of_squares_reference<B: KernelBackend>(xs: Vec<FloatTensor<B>>) -> f64 {
    // One tensor of sums, so that a device is waited for once; they are added on the host, in f64.
    let sums: Vec<_> = xs.into_iter().map(|x| flat::<B>(x).powf_scalar(2.0).sum()).collect();
    if sums.is_empty() {
        return 0.0;
    }
    Tensor::cat(sums, 0).into_data().iter::<f64>().sum()
}
