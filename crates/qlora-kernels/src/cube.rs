//! CubeCL backends (CUDA, ROCm, Vulkan, Metal, WebGPU): one source of kernels for all.
//!
//! The backends run without burn's fusion: its streams cost 30 µs an operation where a direct launch costs 16,
//! and the operations that fusion would find are fused here by hand.

pub(crate) mod attention;
pub(crate) mod elementwise;
mod greedy;
pub(crate) mod linear;
pub(crate) mod loss;
pub(crate) mod matmul;
pub(crate) mod nf4;
pub(crate) mod nf4_product;
mod norm;
mod optimizer;
mod paged;
mod quantize;
pub(crate) mod reduce;
pub(crate) mod rows;
mod sample;
mod tables;
pub(crate) mod tensors;

use burn::tensor::DType;
use burn::tensor::backend::Backend;
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{BoolElement, CubeBackend, CubeRuntime, FloatElement, IntElement};
use cubecl::prelude::ComputeClient;

use self::tensors::{are_floats, is_float};
use crate::KernelBackend;
use crate::activation::{self, Activation};
use crate::attention::{self as attention_reference, AttentionSpec, Saved};
use crate::cross_entropy::{self, CrossEntropySpec, LossOutput, LossParts};
use crate::device::{ActivationSizes, DeviceMemory};
use crate::greedy as greedy_reference;
use crate::linear::{self as linear_reference, GradInput, LinearOutput, LoraParts};
use crate::nf4::{self as nf4_reference, AbsmaxParts, Nf4Parts};
use crate::norm::{self as norm_reference, NormOutput, RmsNormOptions, SavedNorm};
use crate::optimizer::{self as optimizer_reference, AdamWStep};
use crate::paged::{CacheRows, PageTable};
use crate::quantized8::{BLOCK, Quantized8Parts};
use crate::sampling::Draw;
use crate::tier::cube;
use crate::weight::{Compute, WeightParts};
use crate::{embedding, paged as paged_reference, rope, sampling};

/// Any CubeCL backend.
pub(crate) type Cube<R, F, I, BT> = CubeBackend<R, F, I, BT>;

/// Whether kernels exist for a weight, in products with rows of this type.
fn supported<R: CubeRuntime, F: FloatElement, I: IntElement, BT: BoolElement>(
    x: &CubeTensor<R>,
    w: &WeightParts<Cube<R, F, I, BT>>,
) -> bool {
    let weight = match w {
        WeightParts::Dense(values, _) => is_float(values.dtype),
        WeightParts::Nf4(parts) => packed(parts),
    };
    weight && is_float(x.dtype)
}

/// Whether codes and scales are held as the kernels expect: a cast of the whole module narrows scales.
fn packed<R: CubeRuntime, F: FloatElement, I: IntElement, BT: BoolElement>(
    w: &Nf4Parts<Cube<R, F, I, BT>>,
) -> bool {
    let scales = match &w.absmax {
        AbsmaxParts::Plain(absmax) => absmax.dtype == DType::F32,
        AbsmaxParts::Double { codes, nested_absmax, .. } => {
            codes.dtype == DType::U32 && nested_absmax.dtype == DType::F32
        }
    };
    w.codes.dtype == DType::U32 && scales
}

/// A head that cubek multiplies with.
struct CubeHead<'a, R: CubeRuntime, F: FloatElement, I: IntElement, BT: BoolElement> {
    head: &'a WeightParts<Cube<R, F, I, BT>>,
}

impl<R: CubeRuntime, F: FloatElement, I: IntElement, BT: BoolElement> loss::Head<R>
    for CubeHead<'_, R, F, I, BT>
{
    fn logits(&self, hidden: CubeTensor<R>) -> CubeTensor<R> {
        let head = linear::dense(self.head, hidden.dtype);
        #[cfg(feature = "cuda")]
        if let Some(logits) = crate::cuda::logits(&hidden, &head) {
            return logits;
        }
        matmul::matmul(hidden, matmul::transposed(head), DType::F32)
    }

    fn grad_hidden(&self, dlogits: CubeTensor<R>) -> CubeTensor<R> {
        let dtype = dlogits.dtype;
        let head = linear::dense(self.head, dtype);
        #[cfg(feature = "cuda")]
        if let Some((dhidden, _)) = crate::cuda::grad_input(&dlogits, &head, None) {
            return dhidden;
        }
        matmul::matmul(dlogits, head, dtype)
    }

    fn vocabulary(&self) -> usize {
        self.head.shape()[0]
    }
}

/// A size that was once given persistent memory gets it ever after.
fn keep_sizes<R: CubeRuntime>(client: &ComputeClient<R>, bytes: Vec<usize>) {
    let _ = client.memory_persistent_allocation(bytes, |bytes: Vec<usize>| {
        bytes.into_iter().for_each(|bytes| drop(client.empty(bytes)));
    });
}

impl<R: CubeRuntime, F: FloatElement, I: IntElement, BT: BoolElement> KernelBackend for Cube<R, F, I, BT> {
    fn computes_in(device: &Self::Device, compute: Compute) -> bool {
        // The CUDA runtime knows bf16 on every GPU, which those before Ampere emulate.
        #[cfg(feature = "cuda")]
        if compute == Compute::Bf16
            && let Some(old) = crate::cuda::is_before_ampere::<R>(device)
            && old
        {
            return false;
        }
        Self::supports_dtype(device, compute.dtype())
    }

    fn nf4_dequantize(w: &Nf4Parts<Self>, dtype: DType) -> CubeTensor<R> {
        if !cube(packed(w) && is_float(dtype)) {
            return nf4_reference::dequantize(w, dtype);
        }
        nf4::dequantize(w, dtype)
    }

    fn embedding_rows(table: &WeightParts<Self>, ids: &[u32], dtype: DType) -> CubeTensor<R> {
        let WeightParts::Dense(values, _) = table else { return embedding::reference(table, ids, dtype) };
        if !cube(is_float(values.dtype) && is_float(dtype) && !ids.is_empty()) {
            return embedding::reference(table, ids, dtype);
        }
        rows::gather(values.clone(), ids, dtype)
    }

    fn embedding_gradient(dout: CubeTensor<R>, ids: &[u32], vocabulary: usize) -> CubeTensor<R> {
        if !cube(is_float(dout.dtype)) {
            return embedding::gradient_reference::<Self>(dout, ids, vocabulary);
        }
        rows::embedding_gradient(dout, ids, vocabulary)
    }

    fn nf4_quantize(values: CubeTensor<R>, block_size: usize) -> (CubeTensor<R>, CubeTensor<R>) {
        if !cube(is_float(values.dtype)) {
            return nf4_reference::quantize_reference::<Self>(values, block_size);
        }
        quantize::quantize(values, block_size)
    }

    fn greedy(logits: CubeTensor<R>) -> Vec<(u32, f32)> {
        if !cube(is_float(logits.dtype)) {
            return greedy_reference::reference::<Self>(logits);
        }
        greedy::greedy(logits)
    }

    fn device_memory(device: &Self::Device) -> Option<DeviceMemory> {
        let usage = R::client(device).memory_usage().ok()?;
        Some(DeviceMemory { in_use: usage.bytes_in_use, reserved: usage.bytes_reserved })
    }

    fn reserve_activations(device: &Self::Device, sizes: &ActivationSizes) {
        let ActivationSizes { tokens, hidden, heads, vocabulary, compute, .. } = *sizes;
        let element = compute.dtype().size();
        let client = R::client(device);
        let mut bytes = loss::buffer_bytes(&client, tokens, vocabulary, hidden, element);
        bytes.extend(sizes.widths.iter().chain([&hidden]).map(|width| element * tokens * width));
        bytes.extend(sizes.weights.iter().map(|elements| element * elements));
        // The gradient of the loss in f32, sums and statistics of rows.
        bytes.extend([4 * tokens * hidden, 4 * tokens * heads, 4 * tokens]);
        keep_sizes(&client, bytes);
    }

    fn reserve_parameters(device: &Self::Device, elements: &[usize]) {
        // f32, a half for products, codes of 8-bit moments and their scales.
        let bytes = elements.iter().flat_map(|n| [4 * n, 2 * n, *n, 4 * n.div_ceil(BLOCK)]);
        keep_sizes(&R::client(device), bytes.collect());
    }

    fn linear_forward(
        x: CubeTensor<R>,
        w: &WeightParts<Self>,
        bias: Option<CubeTensor<R>>,
        lora: Option<&LoraParts<Self>>,
    ) -> LinearOutput<Self> {
        if !cube(supported(&x, w)) {
            return linear_reference::forward(x, w, bias, lora);
        }
        linear::forward(x, w, bias, lora)
    }

    fn linear_grad_input(
        dy: CubeTensor<R>,
        w: &WeightParts<Self>,
        lora: Option<&LoraParts<Self>>,
    ) -> GradInput<Self> {
        if !cube(supported(&dy, w)) {
            return linear_reference::grad_input(dy, w, lora);
        }
        linear::grad_input(dy, w, lora)
    }

    fn lora_grads(
        x: CubeTensor<R>,
        xa: CubeTensor<R>,
        dy: CubeTensor<R>,
        dyb: CubeTensor<R>,
        scale: f32,
    ) -> (CubeTensor<R>, CubeTensor<R>) {
        if !cube(are_floats([&x, &xa, &dy, &dyb])) {
            return linear_reference::lora_grads::<Self>(x, xa, dy, dyb, scale);
        }
        linear::lora_grads(x, xa, dy, dyb, scale)
    }

    // Without a backward pass nothing is kept for one.
    fn rms_norm(x: CubeTensor<R>, weight: CubeTensor<R>, options: RmsNormOptions) -> CubeTensor<R> {
        if !cube(norm::fits(&x, &weight, options)) {
            return norm_reference::forward::<Self>(x, weight, options).y;
        }
        norm::forward(x, None, weight, options, false).y
    }

    fn add_rms_norm(
        residual: CubeTensor<R>,
        delta: CubeTensor<R>,
        weight: CubeTensor<R>,
        options: RmsNormOptions,
    ) -> (CubeTensor<R>, CubeTensor<R>) {
        let types = is_float(delta.dtype) && delta.dtype == options.output;
        if types && norm::fits(&residual, &weight, options) && cube(true) {
            let norm::Forward { sum, y, .. } = norm::forward(residual, Some(delta), weight, options, false);
            return (sum, y);
        }
        let sum = Self::add_to_residual(residual, delta);
        (sum.clone(), Self::rms_norm(sum, weight, options))
    }

    fn rms_norm_forward(
        x: CubeTensor<R>,
        weight: CubeTensor<R>,
        options: RmsNormOptions,
    ) -> NormOutput<Self> {
        if !cube(norm::fits(&x, &weight, options)) {
            return norm_reference::forward::<Self>(x, weight, options);
        }
        let norm::Forward { y, kept, rstd, .. } = norm::forward(x, None, weight, options, true);
        NormOutput { y, kept, rstd }
    }

    fn add_to_residual(residual: CubeTensor<R>, delta: CubeTensor<R>) -> CubeTensor<R> {
        if !cube(are_floats([&residual, &delta])) {
            return norm_reference::add_reference::<Self>(residual, delta);
        }
        elementwise::add_to_residual(residual, delta)
    }

    fn add_rms_norm_forward(
        residual: CubeTensor<R>,
        delta: CubeTensor<R>,
        weight: CubeTensor<R>,
        options: RmsNormOptions,
    ) -> (CubeTensor<R>, NormOutput<Self>) {
        let types = is_float(delta.dtype) && delta.dtype == options.output;
        if types && norm::fits(&residual, &weight, options) && cube(true) {
            let norm::Forward { sum, y, kept, rstd } =
                norm::forward(residual, Some(delta), weight, options, true);
            return (sum, NormOutput { y, kept, rstd });
        }
        let sum = Self::add_to_residual(residual, delta);
        (sum.clone(), Self::rms_norm_forward(sum, weight, options))
    }

    fn rms_norm_backward(
        dy: CubeTensor<R>,
        saved: SavedNorm<Self>,
        options: RmsNormOptions,
        weight_grad: bool,
    ) -> (CubeTensor<R>, Option<CubeTensor<R>>) {
        let types = is_float(saved.x.dtype) && is_float(saved.dtype) && dy.dtype == saved.x.dtype;
        let scales = saved.weight.dtype == DType::F32 && saved.rstd.dtype == DType::F32;
        if !cube(types && scales) {
            return norm_reference::backward::<Self>(dy, saved, options, weight_grad);
        }
        let SavedNorm { x, weight, rstd, dtype } = saved;
        norm::backward(dy, x, weight, rstd, dtype, options, weight_grad)
    }

    fn rope(x: CubeTensor<R>, cos: CubeTensor<R>, sin: CubeTensor<R>, inverse: bool) -> CubeTensor<R> {
        if !cube(is_float(x.dtype) && cos.dtype == DType::F32 && sin.dtype == DType::F32) {
            return rope::reference::<Self>(x, cos, sin, inverse);
        }
        elementwise::rope(x, cos, sin, inverse)
    }

    fn gated_activation(activation: Activation, gate: CubeTensor<R>, up: CubeTensor<R>) -> CubeTensor<R> {
        if !cube(is_float(gate.dtype) && gate.dtype == up.dtype) {
            return activation::forward::<Self>(activation, gate, up);
        }
        elementwise::gated(activation, gate, up)
    }

    fn gated_activation_backward(
        activation: Activation,
        dout: CubeTensor<R>,
        gate: CubeTensor<R>,
        up: CubeTensor<R>,
    ) -> (CubeTensor<R>, CubeTensor<R>) {
        if !cube(is_float(gate.dtype) && gate.dtype == up.dtype && gate.dtype == dout.dtype) {
            return activation::backward::<Self>(activation, dout, gate, up);
        }
        elementwise::gated_backward(activation, dout, gate, up)
    }

    fn attention_forward(
        q: CubeTensor<R>,
        k: CubeTensor<R>,
        v: CubeTensor<R>,
        spec: &AttentionSpec,
    ) -> (CubeTensor<R>, CubeTensor<R>) {
        if !cube(is_float(q.dtype) && q.dtype == k.dtype && q.dtype == v.dtype) {
            return attention_reference::forward::<Self>(q, k, v, spec);
        }
        #[cfg(feature = "cuda")]
        if let Some(done) = crate::cuda::attention_forward(&q, &k, &v, spec) {
            return done;
        }
        attention::forward(q, k, v, spec)
    }

    fn attention_backward(
        dout: CubeTensor<R>,
        saved: Saved<Self>,
        spec: &AttentionSpec,
    ) -> (CubeTensor<R>, CubeTensor<R>, CubeTensor<R>) {
        let types = [&saved.q, &saved.k, &saved.v, &saved.out].map(|t| t.dtype);
        if !cube(is_float(dout.dtype) && types.iter().all(|dtype| *dtype == dout.dtype)) {
            return attention_reference::backward::<Self>(dout, saved, spec);
        }
        #[cfg(feature = "cuda")]
        {
            let Saved { q, k, v, out, lse } = saved.clone();
            let inputs = crate::cuda::BackwardInputs { dout: dout.clone(), q, k, v, out, lse };
            if let Some(done) = crate::cuda::attention_backward(&inputs, spec) {
                return done;
            }
        }
        attention::backward(dout, saved, spec)
    }

    fn append_to_cache(
        cache: (CubeTensor<R>, CubeTensor<R>),
        new: (CubeTensor<R>, CubeTensor<R>),
        at: &CacheRows<Self>,
    ) -> (CubeTensor<R>, CubeTensor<R>) {
        let types = are_floats([&cache.0, &new.0]) && cache.0.dtype == cache.1.dtype;
        if !cube(types && new.0.dtype == new.1.dtype && at.device.dtype == DType::U32) {
            return paged_reference::append_reference::<Self>(cache, new, at);
        }
        paged::append(cache, new, at.device.clone(), at.host.len())
    }

    fn rotate_and_append(
        q: CubeTensor<R>,
        new: (CubeTensor<R>, CubeTensor<R>),
        angles: (CubeTensor<R>, CubeTensor<R>),
        cache: (CubeTensor<R>, CubeTensor<R>),
        at: &CacheRows<Self>,
    ) -> (CubeTensor<R>, (CubeTensor<R>, CubeTensor<R>)) {
        let types = [&new.0, &new.1, &cache.0, &cache.1].iter().all(|t| t.dtype == q.dtype);
        let tables = angles.0.dtype == DType::F32 && angles.1.dtype == DType::F32;
        if types && tables && at.device.dtype == DType::U32 && cube(is_float(q.dtype)) {
            return paged::rotate_and_append(q, new, angles, cache, at.device.clone());
        }
        let (cos, sin) = angles;
        let q = Self::rope(q, cos.clone(), sin.clone(), false);
        let k = Self::rope(new.0, cos, sin, false);
        (q, Self::append_to_cache(cache, (k, new.1), at))
    }

    fn gather_rows(cache: CubeTensor<R>, at: &CacheRows<Self>) -> CubeTensor<R> {
        if !cube(is_float(cache.dtype)) {
            return paged_reference::gather_reference::<Self>(cache, at);
        }
        let dtype = cache.dtype;
        rows::gather(cache, &at.host, dtype)
    }

    fn paged_attention(
        q: CubeTensor<R>,
        keys: CubeTensor<R>,
        values: CubeTensor<R>,
        table: &PageTable<Self>,
        spec: &AttentionSpec,
    ) -> CubeTensor<R> {
        let types = is_float(q.dtype) && keys.dtype == q.dtype && values.dtype == q.dtype;
        if !cube(types && paged::fits(spec) && table.device.dtype == DType::U32) {
            return paged_reference::paged_attention_reference::<Self>(q, keys, values, table, spec);
        }
        let pages = paged::Pages {
            table: table.device.clone(),
            columns: 1 + table.most_pages,
            size: table.page_size,
            longest: table.longest(),
        };
        paged::attention(q, keys, values, pages, spec)
    }

    fn sample(logits: CubeTensor<R>, draws: &[Draw]) -> Vec<(u32, f32)> {
        if !cube(is_float(logits.dtype) && sample::fits(draws)) {
            return sampling::reference::<Self>(logits, draws);
        }
        sample::sample(logits, draws)
    }

    fn logits(hidden: CubeTensor<R>, head: &WeightParts<Self>) -> CubeTensor<R> {
        if !cube(supported(&hidden, head)) {
            return cross_entropy::logits_reference::<Self>(hidden, head);
        }
        loss::Head::logits(&CubeHead { head }, tensors::rows(hidden))
    }

    fn linear_cross_entropy_forward(
        hidden: CubeTensor<R>,
        head: &WeightParts<Self>,
        spec: &CrossEntropySpec,
        parts: LossParts,
    ) -> LossOutput<Self> {
        if !cube(supported(&hidden, head)) {
            return cross_entropy::forward::<Self>(hidden, head, spec, parts);
        }
        let out = loss::forward(hidden, &CubeHead { head }, spec, parts);
        LossOutput { loss: out.loss, tokens: out.tokens, dhidden: out.dhidden }
    }

    fn adamw(
        param: CubeTensor<R>,
        grad: CubeTensor<R>,
        first: CubeTensor<R>,
        second: CubeTensor<R>,
        step: AdamWStep,
    ) -> (CubeTensor<R>, CubeTensor<R>, CubeTensor<R>) {
        if !cube([&param, &grad, &first, &second].iter().all(|t| t.dtype == DType::F32)) {
            return optimizer_reference::adamw_reference::<Self>(param, grad, first, second, step);
        }
        optimizer::adamw(param, grad, first, second, step)
    }

    fn adamw_all(tensors: Vec<[CubeTensor<R>; 4]>, step: AdamWStep) -> Vec<[CubeTensor<R>; 3]> {
        #[cfg(feature = "cuda")]
        let tensors = match optimizer::adamw_all(tensors, step) {
            Ok(done) => return done,
            Err(tensors) => tensors,
        };
        let one = |[param, grad, first, second]: [CubeTensor<R>; 4]| {
            let (param, first, second) = Self::adamw(param, grad, first, second, step);
            [param, first, second]
        };
        tensors.into_iter().map(one).collect()
    }

    fn adamw8bit(
        param: CubeTensor<R>,
        grad: CubeTensor<R>,
        first: Quantized8Parts<Self>,
        second: Quantized8Parts<Self>,
        step: AdamWStep,
    ) -> (CubeTensor<R>, Quantized8Parts<Self>, Quantized8Parts<Self>) {
        let floats = [&param, &grad, &first.absmax, &second.absmax].iter().all(|t| t.dtype == DType::F32);
        if !cube(floats && first.codes.dtype == DType::U32 && second.codes.dtype == DType::U32) {
            return optimizer_reference::adamw8bit_reference::<Self>(param, grad, first, second, step);
        }
        let parts = |moment: Quantized8Parts<Self>| [moment.codes, moment.absmax];
        let moment = |[codes, absmax]: [CubeTensor<R>; 2]| Quantized8Parts::<Self> { codes, absmax };
        let (param, first, second) = optimizer::adamw8bit(param, grad, parts(first), parts(second), step);
        (param, moment(first), moment(second))
    }

    fn sum_of_squares(xs: Vec<CubeTensor<R>>) -> f64 {
        if !cube(xs.iter().all(|x| x.dtype == DType::F32)) {
            return optimizer_reference::sum_of_squares_reference::<Self>(xs);
        }
        optimizer::sum_of_squares(xs)
    }
}
