//! The CPU backend: burn's Flex, with the SIMD kernels of `qlora-cpu`.
//!
//! Activations are f32 whatever products are computed in. Other float types (f64 in tests) and views
//! that are not rows of memory go through the reference.

mod slices;
mod weights;

use burn::tensor::{DType, TensorMetadata};
use burn_flex::{Flex, FlexTensor};
use rayon::prelude::*;

use self::slices::{floats, is_f32, rows, zeros};
use self::weights::{Host, precision};
use crate::KernelBackend;
use crate::activation::{self, Activation};
use crate::attention::{self, AttentionSpec, Saved};
use crate::cross_entropy::{self, CrossEntropySpec, LossOutput, LossParts, TokenLosses};
use crate::linear::{self, GradInput, LinearOutput, LoraParts};
use crate::nf4::{self, Nf4Parts};
use crate::norm::{self, NormOutput, RmsNormOptions, SavedNorm};
use crate::optimizer::{self, AdamWStep};
use crate::paged::{self, CacheRows, PageTable};
use crate::quantized8::Quantized8Parts;
use crate::sampling::{self, Draw};
use crate::tier::native;
use crate::weight::{Compute, WeightParts};
use crate::{embedding, greedy, rope};

impl KernelBackend for Flex {
    fn activation_dtype(_: Compute) -> DType {
        DType::F32
    }

    fn nf4_dequantize(w: &Nf4Parts<Self>, dtype: DType) -> FlexTensor {
        if !native(dtype == DType::F32) {
            return nf4::dequantize(w, dtype);
        }
        let parts = WeightParts::Nf4(w.clone());
        let host = Host::new(&parts);
        zeros(w.shape, |out| qlora_cpu::dequantize(&host.weight(), out)).0
    }

    fn embedding_rows(table: &WeightParts<Self>, ids: &[u32], dtype: DType) -> FlexTensor {
        let WeightParts::Dense(values, _) = table else { return embedding::reference(table, ids, dtype) };
        if !native(dtype == DType::F32 && matches!(values.dtype(), DType::F32 | DType::BF16 | DType::F16)) {
            return embedding::reference(table, ids, dtype);
        }
        let host = Host::new(table);
        let width = table.shape()[1];
        let (out, ()) = zeros([ids.len(), width], |out| {
            for (row, id) in out.chunks_exact_mut(width).zip(ids) {
                host.read_row(*id as usize, row);
            }
        });
        out
    }

    fn linear_forward(
        x: FlexTensor,
        w: &WeightParts<Self>,
        bias: Option<FlexTensor>,
        lora: Option<&LoraParts<Self>>,
    ) -> LinearOutput<Self> {
        if !native(weights::supported(&x, w, lora)) {
            return linear::forward(x, w, bias, lora);
        }
        let (x, tokens) = (rows(x), w.shape());
        let (count, [out_features, _]) = (x.shape()[0], tokens);
        let host = Host::new(w);
        let lora = lora.map(weights::HostLora::new);
        let bias = bias.map(rows);
        let (y, xa) = zeros([count, out_features], |y| {
            let bias = bias.as_ref().map(floats);
            let mut run = |xa: Option<&mut [f32]>| {
                let lora = lora.as_ref().map(weights::HostLora::lora);
                qlora_cpu::linear(
                    floats(&x),
                    count,
                    &host.weight(),
                    bias,
                    lora.as_ref(),
                    precision(w),
                    y,
                    xa,
                );
            };
            match &lora {
                Some(lora) => Some(zeros([count, lora.rank()], |xa| run(Some(xa))).0),
                None => {
                    run(None);
                    None
                }
            }
        });
        LinearOutput { y, xa }
    }

    fn linear_grad_input(
        dy: FlexTensor,
        w: &WeightParts<Self>,
        lora: Option<&LoraParts<Self>>,
    ) -> GradInput<Self> {
        if !native(weights::supported(&dy, w, lora)) {
            return linear::grad_input(dy, w, lora);
        }
        let dy = rows(dy);
        let (count, [_, in_features]) = (dy.shape()[0], w.shape());
        let host = Host::new(w);
        let lora = lora.map(weights::HostLora::new);
        let (dx, dyb) = zeros([count, in_features], |dx| {
            let mut run = |dyb: Option<&mut [f32]>| {
                let lora = lora.as_ref().map(weights::HostLora::lora);
                let dy = floats(&dy);
                qlora_cpu::linear_grad_input(dy, count, &host.weight(), lora.as_ref(), precision(w), dx, dyb);
            };
            match &lora {
                Some(lora) => Some(zeros([count, lora.rank()], |dyb| run(Some(dyb))).0),
                None => {
                    run(None);
                    None
                }
            }
        });
        GradInput { dx, dyb }
    }

    fn lora_grads(
        x: FlexTensor,
        xa: FlexTensor,
        dy: FlexTensor,
        dyb: FlexTensor,
        scale: f32,
    ) -> (FlexTensor, FlexTensor) {
        if !native([&x, &xa, &dy, &dyb].into_iter().all(is_f32)) {
            return linear::lora_grads::<Self>(x, xa, dy, dyb, scale);
        }
        let [x, xa, dy, dyb] = [x, xa, dy, dyb].map(rows);
        let (tokens, inputs) = (x.shape()[0], x.shape()[1]);
        let (rank, outputs) = (xa.shape()[1], dy.shape()[1]);
        let (da, db) = zeros([rank, inputs], |da| {
            zeros([outputs, rank], |db| {
                let [x, xa, dy, dyb] = [&x, &xa, &dy, &dyb].map(floats);
                qlora_cpu::lora_grads(x, xa, dy, dyb, tokens, inputs, outputs, rank, scale, da, db);
            })
            .0
        });
        (da, db)
    }

    fn rms_norm_forward(x: FlexTensor, weight: FlexTensor, options: RmsNormOptions) -> NormOutput<Self> {
        if !native(is_f32(&x) && is_f32(&weight) && options.output == DType::F32) {
            return norm::forward::<Self>(x, weight, options);
        }
        let (x, weight) = (rows(x), rows(weight));
        let (count, dim) = (x.shape()[0], x.shape()[1]);
        let (y, rstd) = zeros([count, dim], |y| {
            zeros([count], |rstd| {
                qlora_cpu::rms_norm(floats(&x), floats(&weight), dim, settings(options), y, Some(rstd));
            })
            .0
        });
        NormOutput { y, kept: x, rstd }
    }

    fn add_rms_norm_forward(
        residual: FlexTensor,
        delta: FlexTensor,
        weight: FlexTensor,
        options: RmsNormOptions,
    ) -> (FlexTensor, NormOutput<Self>) {
        let types = [&residual, &delta, &weight].into_iter().all(is_f32);
        if !native(types && options.output == DType::F32) {
            let sum = norm::add_reference::<Self>(residual, delta);
            return (sum.clone(), norm::forward::<Self>(sum, weight, options));
        }
        let [residual, delta, weight] = [residual, delta, weight].map(rows);
        let (count, dim) = (residual.shape()[0], residual.shape()[1]);
        let (sum, (y, rstd)) = zeros([count, dim], |sum| {
            zeros([count, dim], |y| {
                zeros([count], |rstd| {
                    let [residual, delta, weight] = [&residual, &delta, &weight].map(floats);
                    let norm = settings(options);
                    qlora_cpu::add_rms_norm(delta, residual, weight, dim, norm, sum, y, Some(rstd));
                })
                .0
            })
        });
        (sum.clone(), NormOutput { y, kept: sum, rstd })
    }

    fn rms_norm_backward(
        dy: FlexTensor,
        saved: SavedNorm<Self>,
        options: RmsNormOptions,
        weight_grad: bool,
    ) -> (FlexTensor, Option<FlexTensor>) {
        let types = [&dy, &saved.x, &saved.weight, &saved.rstd].into_iter().all(is_f32);
        if !native(types && saved.dtype == DType::F32) {
            return norm::backward::<Self>(dy, saved, options, weight_grad);
        }
        let [dy, x, weight, rstd] = [dy, saved.x, saved.weight, saved.rstd].map(rows);
        let (count, dim) = (x.shape()[0], x.shape()[1]);
        zeros([count, dim], |dx| {
            let [dy, x, weight, rstd] = [&dy, &x, &weight, &rstd].map(floats);
            let mut run = |dweight: Option<&mut [f32]>| {
                qlora_cpu::rms_norm_backward(dy, x, weight, rstd, dim, settings(options), dx, dweight);
            };
            if weight_grad {
                return Some(zeros([dim], |dweight| run(Some(dweight))).0);
            }
            run(None);
            None
        })
    }

    fn rope(x: FlexTensor, cos: FlexTensor, sin: FlexTensor, inverse: bool) -> FlexTensor {
        if !native([&x, &cos, &sin].into_iter().all(is_f32)) {
            return rope::reference::<Self>(x, cos, sin, inverse);
        }
        let (mut x, cos, sin) = (rows(x), rows(cos), rows(sin));
        let head_dim = 2 * cos.shape()[1];
        let heads = x.shape()[1] / head_dim;
        // In place where nobody else holds the rows, else on a copy.
        qlora_cpu::rope(x.storage_mut::<f32>(), heads, head_dim, floats(&cos), floats(&sin), inverse);
        x
    }

    fn gated_activation(activation: Activation, gate: FlexTensor, up: FlexTensor) -> FlexTensor {
        if !native(is_f32(&gate) && is_f32(&up)) {
            return activation::forward::<Self>(activation, gate, up);
        }
        let (gate, up) = (rows(gate), rows(up));
        let shape = [gate.shape()[0], gate.shape()[1]];
        zeros(shape, |out| qlora_cpu::gated_activation(cpu(activation), floats(&gate), floats(&up), out)).0
    }

    fn gated_activation_backward(
        activation: Activation,
        dout: FlexTensor,
        gate: FlexTensor,
        up: FlexTensor,
    ) -> (FlexTensor, FlexTensor) {
        if !native([&dout, &gate, &up].into_iter().all(is_f32)) {
            return activation::backward::<Self>(activation, dout, gate, up);
        }
        let [dout, gate, up] = [dout, gate, up].map(rows);
        let shape = [gate.shape()[0], gate.shape()[1]];
        zeros(shape, |dgate| {
            zeros(shape, |dup| {
                let [dout, gate, up] = [&dout, &gate, &up].map(floats);
                qlora_cpu::gated_activation_backward(cpu(activation), dout, gate, up, dgate, dup);
            })
            .0
        })
    }

    fn attention_forward(
        q: FlexTensor,
        k: FlexTensor,
        v: FlexTensor,
        spec: &AttentionSpec,
    ) -> (FlexTensor, FlexTensor) {
        if !native([&q, &k, &v].into_iter().all(is_f32)) {
            return attention::forward::<Self>(q, k, v, spec);
        }
        let [q, k, v] = [q, k, v].map(rows);
        let (shape, spans) = attention_arguments(spec);
        let count = q.shape()[0];
        zeros([count, q.shape()[1]], |out| {
            zeros([count, spec.heads], |lse| {
                let [q, k, v] = [&q, &k, &v].map(floats);
                qlora_cpu::attention(q, k, v, &shape, &spans, out, Some(lse));
            })
            .0
        })
    }

    fn attention_backward(
        dout: FlexTensor,
        saved: Saved<Self>,
        spec: &AttentionSpec,
    ) -> (FlexTensor, FlexTensor, FlexTensor) {
        let Saved { q, k, v, out, lse } = saved;
        if !native([&dout, &q, &k, &v, &out, &lse].into_iter().all(is_f32)) {
            return attention::backward::<Self>(dout, Saved { q, k, v, out, lse }, spec);
        }
        let [dout, q, k, v, out, lse] = [dout, q, k, v, out, lse].map(rows);
        let (shape, spans) = attention_arguments(spec);
        let size = |t: &FlexTensor| [t.shape()[0], t.shape()[1]];
        let (dq, (dk, dv)) = zeros(size(&q), |dq| {
            zeros(size(&k), |dk| {
                zeros(size(&v), |dv| {
                    let [dout, q, k, v, out, lse] = [&dout, &q, &k, &v, &out, &lse].map(floats);
                    qlora_cpu::attention_backward(dout, q, k, v, out, lse, &shape, &spans, dq, dk, dv);
                })
                .0
            })
        });
        (dq, dk, dv)
    }

    fn append_to_cache(
        cache: (FlexTensor, FlexTensor),
        new: (FlexTensor, FlexTensor),
        at: &CacheRows<Self>,
    ) -> (FlexTensor, FlexTensor) {
        if !native([&cache.0, &cache.1, &new.0, &new.1].into_iter().all(is_f32)) {
            return paged::append_reference::<Self>(cache, new, at);
        }
        let write = |cache: FlexTensor, new: FlexTensor| {
            let (mut cache, new) = (rows(cache), rows(new));
            let width = cache.shape()[1];
            let values = cache.storage_mut::<f32>();
            for (row, at) in floats(&new).chunks_exact(width).zip(at.host.iter()) {
                let at = *at as usize;
                values[at * width..(at + 1) * width].copy_from_slice(row);
            }
            cache
        };
        (write(cache.0, new.0), write(cache.1, new.1))
    }

    fn paged_attention(
        q: FlexTensor,
        keys: FlexTensor,
        values: FlexTensor,
        table: &PageTable<Self>,
        spec: &AttentionSpec,
    ) -> FlexTensor {
        if !native([&q, &keys, &values].into_iter().all(is_f32)) {
            return paged::paged_attention_reference::<Self>(q, keys, values, table, spec);
        }
        let [q, keys, values] = [q, keys, values].map(rows);
        let (shape, _) = attention_arguments(spec);
        let sequences: Vec<_> = (table.lengths.iter().enumerate())
            .map(|(i, length)| qlora_cpu::PagedSequence { length: *length, pages: table.pages_of(i) })
            .collect();
        zeros([q.shape()[0], q.shape()[1]], |out| {
            let [q, keys, values] = [&q, &keys, &values].map(floats);
            qlora_cpu::paged_attention(q, keys, values, &shape, table.page_size, &sequences, out);
        })
        .0
    }

    fn sample(logits: FlexTensor, draws: &[Draw]) -> Vec<(u32, f32)> {
        if !native(is_f32(&logits)) {
            return sampling::reference::<Self>(logits, draws);
        }
        // As the reference, without its copy of the logits.
        let logits = rows(logits);
        let vocabulary = logits.shape()[1].max(1);
        let each = floats(&logits).par_chunks_exact(vocabulary).zip(draws);
        each.map(|(row, draw)| sampling::sample_row(row, draw)).collect()
    }

    fn greedy(logits: FlexTensor) -> Vec<(u32, f32)> {
        if !native(is_f32(&logits)) {
            return greedy::reference::<Self>(logits);
        }
        let logits = rows(logits);
        let vocabulary = logits.shape()[1].max(1);
        floats(&logits).par_chunks_exact(vocabulary).map(sampling::likeliest).collect()
    }

    fn linear_cross_entropy_forward(
        hidden: FlexTensor,
        head: &WeightParts<Self>,
        spec: &CrossEntropySpec,
        parts: LossParts,
    ) -> LossOutput<Self> {
        if !native(weights::supported(&hidden, head, None)) {
            return cross_entropy::forward::<Self>(hidden, head, spec, parts);
        }
        let hidden = rows(hidden);
        let (count, width) = (hidden.shape()[0], hidden.shape()[1]);
        let host = Host::new(head);
        let options = qlora_cpu::CrossEntropy {
            softcap: spec.options.softcap,
            logit_scale: spec.options.logit_scale,
            label_smoothing: spec.options.label_smoothing,
        };
        let mut stats = vec![qlora_cpu::TokenStats::default(); count];
        let mut run = |dhidden: Option<&mut [f32]>| {
            qlora_cpu::linear_cross_entropy(
                floats(&hidden),
                count,
                &host.weight(),
                precision(head),
                &spec.targets,
                &spec.weights,
                &options,
                &mut stats,
                dhidden,
            );
        };
        let dhidden = match parts.grad {
            true => Some(zeros([count, width], |dhidden| run(Some(dhidden))).0),
            false => {
                run(None);
                None
            }
        };
        let mut tokens = TokenLosses::default();
        let mut total = 0.0;
        for (stats, weight) in stats.iter().zip(spec.weights.iter()).filter(|(_, weight)| **weight != 0.0) {
            total += f64::from(*weight) * f64::from(stats.loss);
            tokens.losses.push(stats.loss);
            tokens.log_probs.push(stats.logprob);
            tokens.entropies.push(stats.entropy);
            tokens.correct.push(stats.correct);
        }
        let (loss, ()) = zeros([1], |loss| loss[0] = total as f32);
        LossOutput { loss, tokens: parts.tokens.then_some(tokens), dhidden }
    }

    fn adamw(
        param: FlexTensor,
        grad: FlexTensor,
        first: FlexTensor,
        second: FlexTensor,
        step: AdamWStep,
    ) -> (FlexTensor, FlexTensor, FlexTensor) {
        if !native([&param, &grad, &first, &second].into_iter().all(is_f32)) {
            return optimizer::adamw_reference::<Self>(param, grad, first, second, step);
        }
        let [mut param, grad, mut first, mut second] = [param, grad, first, second].map(rows);
        qlora_cpu::adamw(
            param.storage_mut(),
            floats(&grad),
            first.storage_mut(),
            second.storage_mut(),
            &adamw_settings(step),
            step.grad_scale as f32,
        );
        (param, first, second)
    }

    fn adamw8bit(
        param: FlexTensor,
        grad: FlexTensor,
        first: Quantized8Parts<Self>,
        second: Quantized8Parts<Self>,
        step: AdamWStep,
    ) -> (FlexTensor, Quantized8Parts<Self>, Quantized8Parts<Self>) {
        if !native([&param, &grad, &first.absmax, &second.absmax].into_iter().all(is_f32)) {
            return optimizer::adamw8bit_reference::<Self>(param, grad, first, second, step);
        }
        let rows_of = |parts: Quantized8Parts<Self>| Quantized8Parts::<Self> {
            codes: rows(parts.codes),
            absmax: rows(parts.absmax),
        };
        let ([mut param, grad], [mut first, mut second]) =
            ([param, grad].map(rows), [first, second].map(rows_of));
        let count = floats(&grad).len();
        qlora_cpu::adamw8bit(
            param.storage_mut(),
            floats(&grad),
            moment8(&mut first, count),
            moment8(&mut second, count),
            &adamw_settings(step),
            step.grad_scale as f32,
        );
        (param, first, second)
    }

    fn sum_of_squares(xs: Vec<FlexTensor>) -> f64 {
        if !native(xs.iter().all(is_f32)) {
            return optimizer::sum_of_squares_reference::<Self>(xs);
        }
        xs.into_iter().map(|x| qlora_cpu::sum_of_squares(floats(&rows(x)))).sum()
    }
}

fn adamw_settings(step: AdamWStep) -> qlora_cpu::AdamW {
    let AdamWStep { learning_rate, beta1, beta2, eps, weight_decay, step, .. } = step;
    qlora_cpu::AdamW { lr: learning_rate, beta1, beta2, eps, weight_decay, step: step as u64 }
}

/// The first `count` codes of a moment and its scales, in place where nobody else holds them.
fn moment8(moment: &mut Quantized8Parts<Flex>, count: usize) -> qlora_cpu::Moment8<'_> {
    const { assert!(cfg!(target_endian = "little"), "packed codes are little-endian words") };
    let words: &mut [u32] = moment.codes.storage_mut();
    let codes = &mut bytemuck::cast_slice_mut(words)[..count];
    qlora_cpu::Moment8 { codes, absmax: moment.absmax.storage_mut() }
}

fn settings(options: RmsNormOptions) -> qlora_cpu::RmsNorm {
    qlora_cpu::RmsNorm { eps: options.eps, unit_offset: options.unit_offset }
}

fn cpu(activation: Activation) -> qlora_cpu::Activation {
    match activation {
        Activation::Silu => qlora_cpu::Activation::Silu,
        Activation::GeluErf => qlora_cpu::Activation::GeluErf,
        Activation::GeluTanh => qlora_cpu::Activation::GeluTanh,
    }
}

/// The CPU multiplies f16 operands as f32: it has no faster product of them.
fn products(compute: Compute) -> qlora_cpu::Precision {
    match compute {
        Compute::Bf16 => qlora_cpu::Precision::Bf16,
        Compute::F32 | Compute::F16 => qlora_cpu::Precision::F32,
    }
}

fn attention_arguments(spec: &AttentionSpec) -> (qlora_cpu::AttentionShape, Vec<qlora_cpu::AttentionSpan>) {
    let AttentionSpec { heads, kv_heads, head_dim, scale, softcap, window, .. } = *spec;
    let shape = qlora_cpu::AttentionShape { heads, kv_heads, head_dim, scale, softcap, window };
    let spans = spec.spans.iter().map(|span| qlora_cpu::AttentionSpan {
        q_start: span.q_start,
        q_len: span.q_len,
        k_start: span.k_start,
        k_len: span.k_len,
    });
    (shape, spans.collect())
}
