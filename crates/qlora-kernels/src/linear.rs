//! The adapted linear layer: a frozen weight, and a low-rank update in training.
//!
//! `y = x Wᵀ + b + s (x Aᵀ) Bᵀ`, with W `[out, in]`, A `[rank, in]`, B `[out, rank]` (Hu et al. 2021,
//! <https://arxiv.org/abs/2106.09685>). Neither `B A` nor the gradient of `W` is ever formed: every
//! intermediate has a side of length `rank`.

use burn::tensor::ops::FloatTensor;
use burn::tensor::{DType, Tensor, TensorMetadata};

use crate::KernelBackend;
use crate::activation::Activation;
use crate::primitive::{primitive, statistics_dtype, tensor};
use crate::weight::{FrozenWeight, WeightParts};

/// The trained factors of an adapted layer.
#[derive(Clone, Debug)]
pub struct LoraOperands<B: KernelBackend> {
    /// `[rank, in]`, f32.
    pub a: Tensor<B, 2>,
    /// `[out, rank]`, f32.
    pub b: Tensor<B, 2>,
    /// `alpha / rank`, or what else the update is multiplied with.
    pub scale: f32,
}

/// The primitives of [`LoraOperands`].
#[derive(Clone, Debug)]
pub struct LoraParts<B: KernelBackend> {
    /// `[rank, in]`.
    pub a: FloatTensor<B>,
    /// `[out, rank]`.
    pub b: FloatTensor<B>,
    /// Factor of the update.
    pub scale: f32,
}

/// What the forward pass gives.
#[derive(Clone, Debug)]
pub struct LinearOutput<B: KernelBackend> {
    /// `[tokens, out]`.
    pub y: FloatTensor<B>,
    /// `x Aᵀ`, `[tokens, rank]`, without the scale; present where the layer is adapted.
    pub xa: Option<FloatTensor<B>>,
}

/// What the first half of the backward pass gives.
#[derive(Clone, Debug)]
pub struct GradInput<B: KernelBackend> {
    /// `[tokens, in]`.
    pub dx: FloatTensor<B>,
    /// `dY B`, `[tokens, rank]`, without the scale; present where the layer is adapted.
    pub dyb: Option<FloatTensor<B>>,
}

/// `y = x Wᵀ + b + s (x Aᵀ) Bᵀ`, differentiable with respect to x, A and B.
///
/// `x` is `[tokens, in]`, `bias` `[out]` and constant; the result is `[tokens, out]` in the type of `x`.
///
/// # Panics
/// When the inner sizes differ.
#[must_use]
pub fn linear<B: KernelBackend>(
    x: Tensor<B, 2>,
    w: &FrozenWeight<B>,
    bias: Option<Tensor<B, 1>>,
    lora: Option<LoraOperands<B>>,
) -> Tensor<B, 2> {
    let [out, inputs] = w.shape();
    assert_eq!(x.dims()[1], inputs, "the weight is [{out}, {inputs}]");
    let lora = lora.map(|lora| LoraParts { a: primitive(lora.a), b: primitive(lora.b), scale: lora.scale });
    tensor(B::adapted_linear(primitive(x), &w.parts(), bias.map(primitive), lora))
}

/// [`linear()`] of `act(gate) ⊙ up`, differentiable with respect to gate, up, A and B.
///
/// `gate` and `up` are `[tokens, in]`. The product of the two is computed again in the backward pass.
///
/// # Panics
/// When the inner sizes differ.
#[must_use]
pub fn gated_linear<B: KernelBackend>(
    activation: Activation,
    gate: Tensor<B, 2>,
    up: Tensor<B, 2>,
    w: &FrozenWeight<B>,
    bias: Option<Tensor<B, 1>>,
    lora: Option<LoraOperands<B>>,
) -> Tensor<B, 2> {
    let [out, inputs] = w.shape();
    assert_eq!(gate.dims()[1], inputs, "the weight is [{out}, {inputs}]");
    assert_eq!(gate.dims(), up.dims(), "gate and up are of one shape");
    let lora = lora.map(|lora| LoraParts { a: primitive(lora.a), b: primitive(lora.b), scale: lora.scale });
    let (gate, up) = (primitive(gate), primitive(up));
    tensor(B::gated_linear(activation, gate, up, &w.parts(), bias.map(primitive), lora))
}

/// Operands of one product: rounded to what it computes in, in a type that holds sums.
fn operand<B: KernelBackend>(x: FloatTensor<B>, dtype: DType, w: &WeightParts<B>) -> Tensor<B, 2> {
    w.compute().round(tensor::<B, 2>(x).cast(dtype)).cast(statistics_dtype(dtype))
}

/// The result is rounded once, update and bias included: a product on the grid of bf16 loses what is less than half a
/// step of it.
pub(crate) fn forward<B: KernelBackend>(
    x: FloatTensor<B>,
    w: &WeightParts<B>,
    bias: Option<FloatTensor<B>>,
    lora: Option<&LoraParts<B>>,
) -> LinearOutput<B> {
    let dtype = x.dtype();
    let x = operand(x, dtype, w);
    let mut y = x.clone().matmul(operand(w.dequantize(dtype), dtype, w).transpose());
    if let Some(bias) = bias {
        y = y.clone() + tensor::<B, 1>(bias).cast(y.dtype()).unsqueeze();
    }
    let xa = lora.map(|lora| {
        let xa = x.matmul(operand(lora.a.clone(), dtype, w).transpose()).cast(dtype);
        let update = w.compute().round(xa.clone() * lora.scale).cast(y.dtype());
        y = y.clone() + update.matmul(operand(lora.b.clone(), dtype, w).transpose());
        primitive(xa)
    });
    LinearOutput { y: primitive(y.cast(dtype)), xa }
}

pub(crate) fn grad_input<B: KernelBackend>(
    dy: FloatTensor<B>,
    w: &WeightParts<B>,
    lora: Option<&LoraParts<B>>,
) -> GradInput<B> {
    let dtype = dy.dtype();
    let dy = operand(dy, dtype, w);
    let mut dx = dy.clone().matmul(operand(w.dequantize(dtype), dtype, w));
    let dyb = lora.map(|lora| {
        let dyb = dy.matmul(operand(lora.b.clone(), dtype, w)).cast(dtype);
        let update = w.compute().round(dyb.clone() * lora.scale).cast(dx.dtype());
        dx = dx.clone() + update.matmul(operand(lora.a.clone(), dtype, w));
        primitive(dyb)
    });
    GradInput { dx: primitive(dx.cast(dtype)), dyb }
}

pub(crate) fn lora_grads<B: KernelBackend>(
    x: FloatTensor<B>,
    xa: FloatTensor<B>,
    dy: FloatTensor<B>,
    dyb: FloatTensor<B>,
    scale: f32,
) -> (FloatTensor<B>, FloatTensor<B>) {
    // The factors are f32 whatever the activations are: so are their gradients.
    let wide = |t: FloatTensor<B>| {
        let t = tensor::<B, 2>(t);
        let dtype = statistics_dtype(t.dtype());
        t.cast(dtype)
    };
    let da = wide(dyb).transpose().matmul(wide(x)) * scale;
    let db = wide(dy).transpose().matmul(wide(xa)) * scale;
    (primitive(da), primitive(db))
}
