//! The operations under burn's autodiff: one node each, with a hand-written backward pass.

mod attention;
mod gated_linear;
mod inject;
mod linear;
mod loss;
mod pointwise;

use burn::backend::Autodiff;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::tensor::DType;
use burn::tensor::backend::AutodiffBackend;
use burn::tensor::ops::{FloatTensor, IntTensor};

use crate::KernelBackend;
use crate::activation::Activation;
use crate::attention::AttentionSpec;
use crate::cross_entropy::{CrossEntropySpec, LossOutput, LossParts};
use crate::device::{ActivationSizes, DeviceMemory};
use crate::linear::LoraParts;
use crate::nf4::{AbsmaxParts, Nf4Parts};
use crate::norm::RmsNormOptions;
use crate::optimizer::AdamWStep;
use crate::paged::{CacheRows, PageTable};
use crate::quantized8::Quantized8Parts;
use crate::sampling::Draw;
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

fn inner_rows<B: KernelBackend, C: CheckpointStrategy>(rows: &CacheRows<Autodiff<B, C>>) -> CacheRows<B> {
    CacheRows { host: rows.host.clone(), device: rows.device.clone() }
}

/// A tensor that nothing is differentiated through.
fn constant<B: KernelBackend, C: CheckpointStrategy>(t: FloatTensor<B>) -> FloatTensor<Autodiff<B, C>> {
    <Autodiff<B, C> as AutodiffBackend>::from_inner(t)
}

impl<B: KernelBackend, C: CheckpointStrategy> KernelBackend for Autodiff<B, C> {
    fn activation_dtype(compute: Compute) -> DType {
        B::activation_dtype(compute)
    }

    fn computes_in(device: &Self::Device, compute: Compute) -> bool {
        B::computes_in(device, compute)
    }

    fn nf4_dequantize(w: &Nf4Parts<Self>, dtype: DType) -> FloatTensor<Self> {
        constant::<B, C>(B::nf4_dequantize(&inner_nf4(w), dtype))
    }

    fn embedding_rows(table: &WeightParts<Self>, ids: &[u32], dtype: DType) -> FloatTensor<Self> {
        constant::<B, C>(B::embedding_rows(&inner_weight(table), ids, dtype))
    }

    fn embedding_gradient(dout: FloatTensor<Self>, ids: &[u32], vocabulary: usize) -> FloatTensor<Self> {
        constant::<B, C>(B::embedding_gradient(dout.primitive, ids, vocabulary))
    }

    fn nf4_quantize(values: FloatTensor<Self>, block_size: usize) -> (IntTensor<Self>, FloatTensor<Self>) {
        let (codes, absmax) = B::nf4_quantize(values.primitive, block_size);
        (codes, constant::<B, C>(absmax))
    }

    fn sample(logits: FloatTensor<Self>, draws: &[Draw]) -> Vec<(u32, f32)> {
        B::sample(logits.primitive, draws)
    }

    fn greedy(logits: FloatTensor<Self>) -> Vec<(u32, f32)> {
        B::greedy(logits.primitive)
    }

    fn device_memory(device: &Self::Device) -> Option<DeviceMemory> {
        B::device_memory(device)
    }

    fn reserve_activations(device: &Self::Device, sizes: &ActivationSizes) {
        B::reserve_activations(device, sizes);
    }

    fn reserve_parameters(device: &Self::Device, elements: &[usize]) {
        B::reserve_parameters(device, elements);
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

    fn gated_linear(
        activation: Activation,
        gate: FloatTensor<Self>,
        up: FloatTensor<Self>,
        w: &WeightParts<Self>,
        bias: Option<FloatTensor<Self>>,
        lora: Option<LoraParts<Self>>,
    ) -> FloatTensor<Self> {
        let (w, bias) = (inner_weight(w), bias.map(|bias| bias.primitive));
        match lora {
            Some(lora) => gated_linear::adapted::<B, C>(activation, gate, up, w, bias, lora),
            None => gated_linear::frozen::<B, C>(activation, gate, up, w, bias),
        }
    }

    fn rms_norm(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        options: RmsNormOptions,
    ) -> FloatTensor<Self> {
        pointwise::rms_norm::<B, C>(x, weight, options)
    }

    fn add_to_residual(residual: FloatTensor<Self>, delta: FloatTensor<Self>) -> FloatTensor<Self> {
        pointwise::add_to_residual::<B, C>(residual, delta)
    }

    fn add_rms_norm(
        residual: FloatTensor<Self>,
        delta: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        options: RmsNormOptions,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        pointwise::add_rms_norm::<B, C>(residual, delta, weight, options)
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

    fn append_to_cache(
        cache: (FloatTensor<Self>, FloatTensor<Self>),
        new: (FloatTensor<Self>, FloatTensor<Self>),
        rows: &CacheRows<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let (cache, new) = ((cache.0.primitive, cache.1.primitive), (new.0.primitive, new.1.primitive));
        let (keys, values) = B::append_to_cache(cache, new, &inner_rows(rows));
        (constant::<B, C>(keys), constant::<B, C>(values))
    }

    fn gather_rows(cache: FloatTensor<Self>, rows: &CacheRows<Self>) -> FloatTensor<Self> {
        constant::<B, C>(B::gather_rows(cache.primitive, &inner_rows(rows)))
    }

    fn paged_attention(
        q: FloatTensor<Self>,
        keys: FloatTensor<Self>,
        values: FloatTensor<Self>,
        table: &PageTable<Self>,
        spec: &AttentionSpec,
    ) -> FloatTensor<Self> {
        let PageTable { page_size, lengths, pages, most_pages, device } = table.clone();
        let table = PageTable { page_size, lengths, pages, most_pages, device };
        constant::<B, C>(B::paged_attention(q.primitive, keys.primitive, values.primitive, &table, spec))
    }

    fn logits(hidden: FloatTensor<Self>, head: &WeightParts<Self>) -> FloatTensor<Self> {
        constant::<B, C>(B::logits(hidden.primitive, &inner_weight(head)))
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
        parts: LossParts,
    ) -> LossOutput<Self> {
        let out = B::linear_cross_entropy_forward(hidden.primitive, &inner_weight(head), spec, parts);
        LossOutput {
            loss: constant::<B, C>(out.loss),
            tokens: out.tokens,
            dhidden: out.dhidden.map(constant::<B, C>),
        }
    }

    fn inject_gradient(x: FloatTensor<Self>, gradient: FloatTensor<Self>) -> FloatTensor<Self> {
        inject::inject::<B, C>(x, gradient.primitive)
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

    fn adamw_all(tensors: Vec<[FloatTensor<Self>; 4]>, step: AdamWStep) -> Vec<[FloatTensor<Self>; 3]> {
        let tensors = tensors.into_iter().map(|each| each.map(|t| t.primitive)).collect();
        B::adamw_all(tensors, step).into_iter().map(|each| each.map(constant::<B, C>)).collect()
    }

    fn adamw8bit(
        param: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        first: Quantized8Parts<Self>,
        second: Quantized8Parts<Self>,
        step: AdamWStep,
    ) -> (FloatTensor<Self>, Quantized8Parts<Self>, Quantized8Parts<Self>) {
        let inner = |parts: Quantized8Parts<Self>| Quantized8Parts::<B> {
            codes: parts.codes,
            absmax: parts.absmax.primitive,
        };
        let outer = |parts: Quantized8Parts<B>| Quantized8Parts::<Self> {
            codes: parts.codes,
            absmax: constant::<B, C>(parts.absmax),
        };
        let (param, first, second) =
            B::adamw8bit(param.primitive, grad.primitive, inner(first), inner(second), step);
        (constant::<B, C>(param), outer(first), outer(second))
    }

    fn sum_of_squares(xs: Vec<FloatTensor<Self>>) -> f64 {
        B::sum_of_squares(xs.into_iter().map(|x| x.primitive).collect())
    }
}
