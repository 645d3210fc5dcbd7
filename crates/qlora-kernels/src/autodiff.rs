//! The operations under burn's autodiff: one node each, with a hand-written backward pass.

mod attention;
mod linear;
mod loss;
mod pointwise;

use burn::backend::Autodiff;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::tensor::DType;
use burn::tensor::backend::AutodiffBackend;
use burn::tensor::ops::FloatTensor;

use crate::KernelBackend;
use crate::activation::Activation;
use crate::attention::AttentionSpec;
use crate::cross_entropy::{CrossEntropySpec, LossOutput};
use crate::linear::LoraParts;
use crate::nf4::{AbsmaxParts, Nf4Parts};
use crate::norm::RmsNormOptions;
use crate::optimizer::AdamWStep;
use crate::weight::{Compute, WeightParts};

/// The same handles, seen from the inner backend.
fn inner_weight<B: KernelBackend, C: CheckpointStrategy>(w: &WeightParts<Autodiff<B, C>>) -> WeightParts<B> {
    match w {
        WeightParts::Dense(values, compute) => WeightParts::Dense(values.primitive.clone(), *compute),
        WeightParts::Nf4(parts) => WeightParts::Nf4(inner_nf4(parts)),
    }
}

fn inner_nf4<B: KernelBackend, C: CheckpointStrategy>(w: &Nf4Parts<Autodiff<B, C>>) -> Nf4Parts<B> {
    let absmax = match &w.absmax {
        AbsmaxParts::Plain(absmax) => AbsmaxParts::Plain(absmax.primitive.clone()),
        AbsmaxParts::Double { codes, nested_absmax, offset, nested_block } => AbsmaxParts::Double {
            codes: codes.clone(),
            nested_absmax: nested_absmax.primitive.clone(),
            offset: *offset,
            nested_block: *nested_block,
        },
    };
    let Nf4Parts { codes, shape, block_size, codebook, compute, .. } = w.clone();
    Nf4Parts { codes, absmax, shape, block_size, codebook, compute }
}

/// A tensor that nothing is differentiated through.
fn constant<B: KernelBackend, C: CheckpointStrategy>(t: FloatTensor<B>) -> FloatTensor<Autodiff<B, C>> {
    <Autodiff<B, C> as AutodiffBackend>::from_inner(t)
}

impl<B: KernelBackend, C: CheckpointStrategy> KernelBackend for Autodiff<B, C> {
    fn activation_dtype(compute: Compute) -> DType {
        B::activation_dtype(compute)
    }

    fn nf4_dequantize(w: &Nf4Parts<Self>, dtype: DType) -> FloatTensor<Self> {
        constant::<B, C>(B::nf4_dequantize(&inner_nf4(w), dtype))
    }

    fn embedding_rows(table: &WeightParts<Self>, ids: &[u32], dtype: DType) -> FloatTensor<Self> {
        constant::<B, C>(B::embedding_rows(&inner_weight(table), ids, dtype))
    }

    fn adapted_linear(
        x: FloatTensor<Self>,
        w: &WeightParts<Self>,
        bias: Option<FloatTensor<Self>>,
        lora: Option<LoraParts<Self>>,
    ) -> FloatTensor<Self> {
        let bias = bias.map(|bias| bias.primitive);
        match lora {
            Some(lora) => linear::adapted::<B, C>(x, inner_weight(w), bias, lora),
            None => linear::frozen::<B, C>(x, inner_weight(w), bias),
        }
    }

    fn rms_norm(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        options: RmsNormOptions,
    ) -> FloatTensor<Self> {
        pointwise::rms_norm::<B, C>(x, weight, options)
    }

    fn rope(
        x: FloatTensor<Self>,
        cos: FloatTensor<Self>,
        sin: FloatTensor<Self>,
        inverse: bool,
    ) -> FloatTensor<Self> {
        pointwise::rope::<B, C>(x, cos.primitive, sin.primitive, inverse)
    }

    fn gated_activation(
        activation: Activation,
        gate: FloatTensor<Self>,
        up: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        pointwise::gated_activation::<B, C>(activation, gate, up)
    }

    fn causal_attention(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        spec: &AttentionSpec,
    ) -> FloatTensor<Self> {
        attention::attention::<B, C>(q, k, v, spec)
    }

    fn write_rows(cache: FloatTensor<Self>, rows: FloatTensor<Self>, at: &[usize]) -> FloatTensor<Self> {
        constant::<B, C>(B::write_rows(cache.primitive, rows.primitive, at))
    }

    fn linear_cross_entropy(
        hidden: FloatTensor<Self>,
        head: &WeightParts<Self>,
        spec: &CrossEntropySpec,
    ) -> FloatTensor<Self> {
        loss::linear_cross_entropy::<B, C>(hidden, &inner_weight(head), spec)
    }

    fn linear_cross_entropy_forward(
        hidden: FloatTensor<Self>,
        head: &WeightParts<Self>,
        spec: &CrossEntropySpec,
        grad: bool,
    ) -> LossOutput<Self> {
        let out = B::linear_cross_entropy_forward(hidden.primitive, &inner_weight(head), spec, grad);
        LossOutput {
            loss: constant::<B, C>(out.loss),
            tokens: out.tokens,
            dhidden: out.dhidden.map(constant::<B, C>),
        }
    }

    fn adamw(
        param: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        first: FloatTensor<Self>,
        second: FloatTensor<Self>,
        step: AdamWStep,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        let (param, first, second) =
            B::adamw(param.primitive, grad.primitive, first.primitive, second.primitive, step);
        (constant::<B, C>(param), constant::<B, C>(first), constant::<B, C>(second))
    }

    fn sum_of_squares(x: FloatTensor<Self>) -> f64 {
        B::sum_of_squares(x.primitive)
    }
}
