//! The operation trait: what a model asks of a backend.

use burn::tensor::DType;
use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::ops::{FloatTensor, IntTensor};

use crate::activation::{self, Activation};
use crate::attention::{self, AttentionSpec};
use crate::cross_entropy::{self, CrossEntropySpec, LossOutput, LossParts};
use crate::device::{ActivationSizes, DeviceMemory};
use crate::linear::{self, GradInput, LinearOutput, LoraParts};
use crate::nf4::{self, Nf4Parts};
use crate::norm::{self, NormOutput, RmsNormOptions, SavedNorm};
use crate::optimizer::{self, AdamWStep};
use crate::paged::{self, CacheRows, PageTable};
use crate::quantized8::Quantized8Parts;
use crate::sampling::{self, Draw};
use crate::weight::{Compute, WeightParts};
use crate::{embedding, greedy, injection, rope};

/// A backend that can run and train decoder-only language models.
///
/// Every method has a default body: the reference, in plain tensor operations. Operations that a model
/// calls and that autodiff must see (`adapted_linear`, `rms_norm`, `rope`, `gated_activation`, `causal_attention`,
/// `linear_cross_entropy`) come with the pair of raw functions that their backward pass is made of;
/// `Autodiff<B>` overrides the former and calls the latter on `B`.
///
/// Tokens are rows: hidden states are `[tokens, features]`, whatever sequences they belong to.
pub trait KernelBackend: Backend {
    /// The type of activations when products are computed in `compute`.
    fn activation_dtype(compute: Compute) -> DType {
        compute.dtype()
    }

    /// Whether the device computes in this type in hardware.
    fn computes_in(device: &Self::Device, compute: Compute) -> bool {
        Self::supports_dtype(device, compute.dtype())
    }

    /// The dense matrix `[out, in]` of packed NF4 codes.
    fn nf4_dequantize(w: &Nf4Parts<Self>, dtype: DType) -> FloatTensor<Self> {
        nf4::dequantize(w, dtype)
    }

    /// Rows `ids` of a frozen table `[vocabulary, hidden]`, in the given type: `[ids, hidden]`.
    fn embedding_rows(table: &WeightParts<Self>, ids: &[u32], dtype: DType) -> FloatTensor<Self> {
        embedding::reference(table, ids, dtype)
    }

    /// The gradient `[vocabulary, hidden]`, f32, of a table of which rows `ids` were looked up, from that of the rows.
    fn embedding_gradient(dout: FloatTensor<Self>, ids: &[u32], vocabulary: usize) -> FloatTensor<Self> {
        embedding::gradient_reference::<Self>(dout, ids, vocabulary)
    }

    /// Codes (U32 words) and scales (f32, one a block) of a matrix of floats; a block of zeros gets code 7.
    fn nf4_quantize(values: FloatTensor<Self>, block_size: usize) -> (IntTensor<Self>, FloatTensor<Self>) {
        nf4::quantize_reference::<Self>(values, block_size)
    }

    /// Draws a token from each row of logits `[rows, vocabulary]`, each in its own way; its log-probability is that under
    /// the distribution it was drawn from.
    fn sample(logits: FloatTensor<Self>, draws: &[Draw]) -> Vec<(u32, f32)> {
        sampling::reference::<Self>(logits, draws)
    }

    /// The likeliest token of each row of logits `[rows, vocabulary]`, the first of equals, and its log-probability.
    fn greedy(logits: FloatTensor<Self>) -> Vec<(u32, f32)> {
        greedy::reference::<Self>(logits)
    }

    /// What this process holds of the device's memory; `None` where that is the memory of the process itself.
    fn device_memory(device: &Self::Device) -> Option<DeviceMemory> {
        let _ = device;
        None
    }

    /// Says of what sizes the buffers of the coming passes will be, so that a device can keep some of exactly those
    /// sizes. Undone by `memory_cleanup`.
    ///
    /// Pools cut buffers from large pages, which costs a gigabyte or two that is never used. Buffers of exact sizes
    /// are worth keeping while all batches are of one size.
    fn reserve_activations(device: &Self::Device, sizes: &ActivationSizes) {
        let _ = (device, sizes);
    }

    /// Says of how many elements the trained parameters are, so that a device can keep buffers of exactly the sizes of
    /// gradients, moments and casts. Undone by `memory_cleanup`.
    ///
    /// There are hundreds of them, and pools go through all that they hold at every allocation.
    fn reserve_parameters(device: &Self::Device, elements: &[usize]) {
        let _ = (device, elements);
    }

    /// `y = x Wᵀ + b + s (x Aᵀ) Bᵀ`: `[tokens, in]` to `[tokens, out]`. `W` and `b` are frozen.
    fn adapted_linear(
        x: FloatTensor<Self>,
        w: &WeightParts<Self>,
        bias: Option<FloatTensor<Self>>,
        lora: Option<LoraParts<Self>>,
    ) -> FloatTensor<Self> {
        Self::linear_forward(x, w, bias, lora.as_ref()).y
    }

    /// [`adapted_linear`](KernelBackend::adapted_linear) and what its backward pass needs.
    fn linear_forward(
        x: FloatTensor<Self>,
        w: &WeightParts<Self>,
        bias: Option<FloatTensor<Self>>,
        lora: Option<&LoraParts<Self>>,
    ) -> LinearOutput<Self> {
        linear::forward(x, w, bias, lora)
    }

    /// `dX = dY W + s (dY B) A`, and `dY B`, which the gradients of A and B need.
    fn linear_grad_input(
        dy: FloatTensor<Self>,
        w: &WeightParts<Self>,
        lora: Option<&LoraParts<Self>>,
    ) -> GradInput<Self> {
        linear::grad_input(dy, w, lora)
    }

    /// `dA = s (dY B)ᵀ x` and `dB = s dYᵀ (x Aᵀ)`.
    fn lora_grads(
        x: FloatTensor<Self>,
        xa: FloatTensor<Self>,
        dy: FloatTensor<Self>,
        dyb: FloatTensor<Self>,
        scale: f32,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        linear::lora_grads::<Self>(x, xa, dy, dyb, scale)
    }

    /// [`adapted_linear`](KernelBackend::adapted_linear) of `act(gate) ⊙ up`: the second half of a gated MLP.
    ///
    /// Under autodiff gate and up are kept and their product, the widest activation of a layer, is not.
    fn gated_linear(
        activation: Activation,
        gate: FloatTensor<Self>,
        up: FloatTensor<Self>,
        w: &WeightParts<Self>,
        bias: Option<FloatTensor<Self>>,
        lora: Option<LoraParts<Self>>,
    ) -> FloatTensor<Self> {
        Self::adapted_linear(Self::gated_activation(activation, gate, up), w, bias, lora)
    }

    /// `y = x / sqrt(mean(x²) + ε) · w`, row by row.
    fn rms_norm(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        options: RmsNormOptions,
    ) -> FloatTensor<Self> {
        Self::rms_norm_forward(x, weight, options).y
    }

    /// [`rms_norm`](KernelBackend::rms_norm), and what its backward pass reads.
    fn rms_norm_forward(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        options: RmsNormOptions,
    ) -> NormOutput<Self> {
        norm::forward::<Self>(x, weight, options)
    }

    /// `residual + delta`, in the type of the former.
    fn add_to_residual(residual: FloatTensor<Self>, delta: FloatTensor<Self>) -> FloatTensor<Self> {
        norm::add_reference::<Self>(residual, delta)
    }

    /// [`add_to_residual`](KernelBackend::add_to_residual), and [`rms_norm`](KernelBackend::rms_norm) of the sum.
    fn add_rms_norm(
        residual: FloatTensor<Self>,
        delta: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        options: RmsNormOptions,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let (sum, norm) = Self::add_rms_norm_forward(residual, delta, weight, options);
        (sum, norm.y)
    }

    /// The sum of [`add_rms_norm`](KernelBackend::add_rms_norm), and the forward pass of its norm.
    fn add_rms_norm_forward(
        residual: FloatTensor<Self>,
        delta: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        options: RmsNormOptions,
    ) -> (FloatTensor<Self>, NormOutput<Self>) {
        let sum = Self::add_to_residual(residual, delta);
        (sum.clone(), Self::rms_norm_forward(sum, weight, options))
    }

    /// Gradients of the input and, where asked for, of the weight.
    fn rms_norm_backward(
        dy: FloatTensor<Self>,
        saved: SavedNorm<Self>,
        options: RmsNormOptions,
        weight_grad: bool,
    ) -> (FloatTensor<Self>, Option<FloatTensor<Self>>) {
        norm::backward::<Self>(dy, saved, options, weight_grad)
    }

    /// Rotates pairs `(i, i + d/2)` of every head; `inverse` rotates back, which is the backward pass.
    ///
    /// `x` is `[tokens, heads · d]`, `cos` and `sin` are `[tokens, d/2]` and constant.
    fn rope(
        x: FloatTensor<Self>,
        cos: FloatTensor<Self>,
        sin: FloatTensor<Self>,
        inverse: bool,
    ) -> FloatTensor<Self> {
        rope::reference::<Self>(x, cos, sin, inverse)
    }

    /// `act(gate) ⊙ up`.
    fn gated_activation(
        activation: Activation,
        gate: FloatTensor<Self>,
        up: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        activation::forward::<Self>(activation, gate, up)
    }

    /// Gradients of gate and up.
    fn gated_activation_backward(
        activation: Activation,
        dout: FloatTensor<Self>,
        gate: FloatTensor<Self>,
        up: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        activation::backward::<Self>(activation, dout, gate, up)
    }

    /// Causal attention of grouped queries within spans: `[queries, heads · d]`.
    fn causal_attention(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        spec: &AttentionSpec,
    ) -> FloatTensor<Self> {
        Self::attention_forward(q, k, v, spec).0
    }

    /// [`causal_attention`](KernelBackend::causal_attention), and the log-sum-exp of each row of scores: `[queries, heads]`.
    fn attention_forward(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        spec: &AttentionSpec,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        attention::forward::<Self>(q, k, v, spec)
    }

    /// Gradients of q, k and v.
    fn attention_backward(
        dout: FloatTensor<Self>,
        saved: attention::Saved<Self>,
        spec: &AttentionSpec,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        attention::backward::<Self>(dout, saved, spec)
    }

    /// Writes rows into the keys and the values of a cache, in place where nobody else holds them.
    fn append_to_cache(
        cache: (FloatTensor<Self>, FloatTensor<Self>),
        new: (FloatTensor<Self>, FloatTensor<Self>),
        rows: &CacheRows<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        paged::append_reference::<Self>(cache, new, rows)
    }

    /// Rotates queries and keys as [`rope`](KernelBackend::rope) does, by `angles` (cosines and sines), and appends keys and
    /// values to a cache: the queries and the cache.
    fn rotate_and_append(
        q: FloatTensor<Self>,
        new: (FloatTensor<Self>, FloatTensor<Self>),
        angles: (FloatTensor<Self>, FloatTensor<Self>),
        cache: (FloatTensor<Self>, FloatTensor<Self>),
        rows: &CacheRows<Self>,
    ) -> (FloatTensor<Self>, (FloatTensor<Self>, FloatTensor<Self>)) {
        let (cos, sin) = angles;
        let q = Self::rope(q, cos.clone(), sin.clone(), false);
        let k = Self::rope(new.0, cos, sin, false);
        (q, Self::append_to_cache(cache, (k, new.1), rows))
    }

    /// Rows of a cache, one behind the other.
    fn gather_rows(cache: FloatTensor<Self>, rows: &CacheRows<Self>) -> FloatTensor<Self> {
        paged::gather_reference::<Self>(cache, rows)
    }

    /// Attention of one query a sequence to the pages of a cache: `[sequences, heads · d]`.
    fn paged_attention(
        q: FloatTensor<Self>,
        keys: FloatTensor<Self>,
        values: FloatTensor<Self>,
        table: &PageTable<Self>,
        spec: &AttentionSpec,
    ) -> FloatTensor<Self> {
        paged::paged_attention_reference::<Self>(q, keys, values, table, spec)
    }

    /// `hidden · headᵀ`, f32 (f64 where `hidden` is): `[tokens, vocabulary]`.
    fn logits(hidden: FloatTensor<Self>, head: &WeightParts<Self>) -> FloatTensor<Self> {
        cross_entropy::logits_reference::<Self>(hidden, head)
    }

    /// `Σ weightᵢ · lossᵢ` (shape `[1]`) of the tokens that `hidden · headᵀ` predicts.
    ///
    /// The `[tokens, vocabulary]` logits never exist whole, and only tokens with a weight are computed.
    fn linear_cross_entropy(
        hidden: FloatTensor<Self>,
        head: &WeightParts<Self>,
        spec: &CrossEntropySpec,
    ) -> FloatTensor<Self> {
        Self::linear_cross_entropy_forward(hidden, head, spec, LossParts::default()).loss
    }

    /// The loss and, where asked for, its parts token by token and its gradient with respect to `hidden`.
    fn linear_cross_entropy_forward(
        hidden: FloatTensor<Self>,
        head: &WeightParts<Self>,
        spec: &CrossEntropySpec,
        parts: LossParts,
    ) -> LossOutput<Self> {
        cross_entropy::forward::<Self>(hidden, head, spec, parts)
    }

    /// A zero, `[1]`, whose gradient with respect to `x` is `gradient`, whatever arrives at it.
    fn inject_gradient(x: FloatTensor<Self>, gradient: FloatTensor<Self>) -> FloatTensor<Self> {
        let _ = gradient;
        injection::reference::<Self>(&x)
    }

    /// One step of AdamW: the new parameter and the new first and second moments.
    fn adamw(
        param: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        first: FloatTensor<Self>,
        second: FloatTensor<Self>,
        step: AdamWStep,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        optimizer::adamw_reference::<Self>(param, grad, first, second, step)
    }

    /// [`adamw`](KernelBackend::adamw) for each `[parameter, gradient, first moment, second moment]`; without the
    /// gradients when it is done.
    ///
    /// A model has hundreds of trained matrices, and each launch has its price: a device may do many of them in one.
    fn adamw_all(tensors: Vec<[FloatTensor<Self>; 4]>, step: AdamWStep) -> Vec<[FloatTensor<Self>; 3]> {
        let one = |[param, grad, first, second]: [FloatTensor<Self>; 4]| {
            let (param, first, second) = Self::adamw(param, grad, first, second, step);
            [param, first, second]
        };
        tensors.into_iter().map(one).collect()
    }

    /// One step of AdamW with 8-bit moments: the new parameter and the new first and second moments.
    ///
    /// See [`adamw8bit`](crate::adamw8bit()) for what it computes.
    fn adamw8bit(
        param: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        first: Quantized8Parts<Self>,
        second: Quantized8Parts<Self>,
        step: AdamWStep,
    ) -> (FloatTensor<Self>, Quantized8Parts<Self>, Quantized8Parts<Self>) {
        optimizer::adamw8bit_reference::<Self>(param, grad, first, second, step)
    }

    /// `Σ x²` over all elements of all tensors, added in their order and read back once: for the global norm
    /// of gradients. 0 where there is no tensor.
    fn sum_of_squares(xs: Vec<FloatTensor<Self>>) -> f64 {
        optimizer::sum_of_squares_reference::<Self>(xs)
    }
}

/// A [`KernelBackend`] under autodiff: what a trainer is bounded by.
pub trait TrainBackend: KernelBackend + AutodiffBackend<InnerBackend: KernelBackend> {}

impl<B> TrainBackend for B
where
    B: KernelBackend + AutodiffBackend,
    B::InnerBackend: KernelBackend,
{
}
