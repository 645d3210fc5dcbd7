//! AdamW with block-wise 8-bit states ("8-bit Optimizers via Block-wise Quantization", arXiv:2110.02861).

use qlora_quant::{DynamicMap, dynamic_map};

use crate::AdamW;
use crate::dispatch::{current_isa, per_isa};
use crate::parallel::{elements_per_task, for_each};
use crate::vector::Vector;

#[cfg(test)]
mod tests;

/// Elements that share a scale.
pub const MOMENT_BLOCK: usize = 256;

/// A moment in eight bits: element `i` is `map[codes[i]] · absmax[i / 256]`.
#[derive(Debug)]
pub struct Moment8<'a> {
    /// One code an element.
    pub codes: &'a mut [u8],
    /// One scale a block.
    pub absmax: &'a mut [f32],
}

impl<'a> Moment8<'a> {
    /// Pieces of `count` elements, a multiple of the block.
    fn chunks(self, count: usize) -> impl ExactSizeIterator<Item = Coded<'a>> {
        self.codes.chunks_mut(count).zip(self.absmax.chunks_mut(count / MOMENT_BLOCK))
    }
}

/// The step's scalars, computed once in `f64`.
#[derive(Clone, Copy)]
struct Factors {
    beta1: f32,
    one_minus_beta1: f32,
    beta2: f32,
    one_minus_beta2: f32,
    step_size: f32,
    eps: f32,
    decay: f32,
    grad_scale: f32,
}

/// One step of AdamW as the CUDA kernels of bitsandbytes do it, in place. With `g = grad · grad_scale` and
/// `c = √(1−β₂ᵗ)`:
/// `m ← β₁m + (1−β₁)g`, `v ← β₂v + (1−β₂)g²`, `p ← p − lr·c/(1−β₁ᵗ) · m / (√v + c·ε)`, **then** `p ← p (1 − lr·wd)`.
///
/// The moments are read from 8-bit codes and stored as such: `first` with the signed dynamic map, `second` with
/// the unsigned one, each block of 256 elements scaled by its own largest magnitude. A negative element whose
/// nearest code is that of zero gets the code below, so that it keeps its sign. Where `g` is infinite or NaN both
/// states become 0 and the parameter stays as it is.
///
/// # Panics
/// When lengths do not fit together, or `step` is 0.
pub fn adamw8bit(
    param: &mut [f32],
    grad: &[f32],
    first: Moment8<'_>,
    second: Moment8<'_>,
    settings: &AdamW,
    grad_scale: f32,
) {
    let n = param.len();
    let blocks = n.div_ceil(MOMENT_BLOCK);
    assert!(
        grad.len() == n && first.codes.len() == n && second.codes.len() == n,
        "param, grad and codes differ in length"
    );
    assert!(first.absmax.len() == blocks && second.absmax.len() == blocks, "one scale for 256 elements");
    assert!(settings.step > 0, "steps are counted from 1");
    let AdamW { lr, beta1, beta2, eps, weight_decay, step } = *settings;
    let correction1 = 1.0 - beta1.powf(step as f64);
    let correction2 = (1.0 - beta2.powf(step as f64)).sqrt();
    let factors = Factors {
        beta1: beta1 as f32,
        one_minus_beta1: (1.0 - beta1) as f32,
        beta2: beta2 as f32,
        one_minus_beta2: (1.0 - beta2) as f32,
        step_size: (lr * correction2 / correction1) as f32,
        eps: (correction2 * eps) as f32,
        decay: (1.0 - lr * weight_decay) as f32,
        grad_scale,
    };
    let isa = current_isa();
    let chunk = elements_per_task(4).next_multiple_of(MOMENT_BLOCK);
    let values = param.chunks_mut(chunk).zip(grad.chunks(chunk));
    let tasks = values.zip(first.chunks(chunk).zip(second.chunks(chunk)));
    for_each(tasks, |((param, grad), (first, second))| update(isa, param, grad, first, second, factors));
}

type Coded<'a> = (&'a mut [u8], &'a mut [f32]);

/// Plain loops over arrays of one block: the compiler makes vectors of the instruction set of them, with the
/// same roundings for each. The lanes of `V` are not used.
#[inline(always)]
fn update_body<V: Vector>(
    param: &mut [f32],
    grad: &[f32],
    first: Coded<'_>,
    second: Coded<'_>,
    factors: Factors,
) {
    let (signed, unsigned) = (dynamic_map::signed(), dynamic_map::unsigned());
    let values = param.chunks_mut(MOMENT_BLOCK).zip(grad.chunks(MOMENT_BLOCK));
    let first = first.0.chunks_mut(MOMENT_BLOCK).zip(first.1);
    let second = second.0.chunks_mut(MOMENT_BLOCK).zip(second.1);
    for ((param, grad), ((m_codes, m_scale), (v_codes, v_scale))) in values.zip(first.zip(second)) {
        let (mut m, mut v) = ([0.0f32; MOMENT_BLOCK], [0.0f32; MOMENT_BLOCK]);
        decode(signed, m_codes, *m_scale, &mut m);
        decode(unsigned, v_codes, *v_scale, &mut v);
        for ((p, &g), (m, v)) in param.iter_mut().zip(grad).zip(m.iter_mut().zip(&mut v)) {
            let g = g * factors.grad_scale;
            let finite = g.is_finite();
            *m = *m * factors.beta1 + factors.one_minus_beta1 * g;
            *v = *v * factors.beta2 + factors.one_minus_beta2 * g * g;
            let updated = (*p - factors.step_size * (*m / (v.sqrt() + factors.eps))) * factors.decay;
            *p = if finite { updated } else { *p };
            *m = if finite { *m } else { 0.0 };
            *v = if finite { *v } else { 0.0 };
        }
        *m_scale = encode(signed, &m, m_codes);
        *v_scale = encode(unsigned, &v, v_codes);
        for (code, m) in m_codes.iter_mut().zip(&m) {
            *code -= u8::from(*m < 0.0 && *code == signed.zero());
        }
    }
}

per_isa!(fn update = update_body(
    param: &mut [f32],
    grad: &[f32],
    first: Coded<'_>,
    second: Coded<'_>,
    factors: Factors
));

#[inline(always)]
fn decode(map: &DynamicMap, codes: &[u8], scale: f32, out: &mut [f32; MOMENT_BLOCK]) {
    for (out, &code) in out.iter_mut().zip(codes) {
        *out = map.values()[usize::from(code)] * scale;
    }
}

/// Writes the nearest code of each value and gives the block's scale. Elements past the codes are 0.
#[inline(always)]
fn encode(map: &DynamicMap, values: &[f32; MOMENT_BLOCK], codes: &mut [u8]) -> f32 {
    let scale = values.iter().fold(0.0f32, |max, value| if value.abs() > max { value.abs() } else { max });
    // A quotient and not a product with the reciprocal, which is infinite where the scale is very small.
    let divisor = if scale > 0.0 { scale } else { 1.0 };
    for (code, value) in codes.iter_mut().zip(values) {
        *code = map.nearest(value / divisor);
    }
    scale
}
