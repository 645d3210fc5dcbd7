//! AdamW with decoupled weight decay (Loshchilov and Hutter 2019, arXiv:1711.05101), and the norm for clipping.

use rayon::prelude::*;

use crate::dispatch::{current_isa, per_isa};
use crate::parallel::{elements_per_task, for_each};
use crate::vector::Vector;

#[cfg(test)]
mod tests;

/// Settings of one AdamW step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    /// Learning rate of this step.
    pub lr: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Weight decay, multiplied by the learning rate.
    pub weight_decay: f64,
    /// Number of this step, the first is 1.
    pub step: u64,
}

/// The step's scalars, computed once in `f64`.
#[derive(Clone, Copy)]
struct Factors {
    decay: f32,
    beta1: f32,
    one_minus_beta1: f32,
    beta2: f32,
    one_minus_beta2: f32,
    step_size: f32,
    root_correction: f32,
    eps: f32,
    grad_scale: f32,
}

/// One step of AdamW as torch does it, in place:
/// `p ← p (1 − lr·wd)`, `m ← β₁m + (1−β₁)g`, `v ← β₂v + (1−β₂)g²`,
/// `p ← p − lr/(1−β₁ᵗ) · m / (√v / √(1−β₂ᵗ) + ε)`, with `g = grad · grad_scale`.
///
/// # Panics
/// When the slices differ in length, or `step` is 0.
pub fn adamw(
    param: &mut [f32],
    grad: &[f32],
    m: &mut [f32],
    v: &mut [f32],
    settings: &AdamW,
    grad_scale: f32,
) {
    let n = param.len();
    assert!(grad.len() == n && m.len() == n && v.len() == n, "param, grad, m and v differ in length");
    assert!(settings.step > 0, "steps are counted from 1");
    let AdamW { lr, beta1, beta2, eps, weight_decay, step } = *settings;
    let power = |beta: f64| 1.0 - beta.powf(step as f64);
    let factors = Factors {
        decay: (1.0 - lr * weight_decay) as f32,
        beta1: beta1 as f32,
        one_minus_beta1: (1.0 - beta1) as f32,
        beta2: beta2 as f32,
        one_minus_beta2: (1.0 - beta2) as f32,
        step_size: (lr / power(beta1)) as f32,
        root_correction: (1.0 / power(beta2).sqrt()) as f32,
        eps: eps as f32,
        grad_scale,
    };
    let isa = current_isa();
    let chunk = elements_per_task(1);
    let tasks =
        (param.chunks_mut(chunk).zip(grad.chunks(chunk))).zip(m.chunks_mut(chunk).zip(v.chunks_mut(chunk)));
    for_each(tasks, |((param, grad), (m, v))| update(isa, param, grad, m, v, factors));
}

#[inline(always)]
fn update_body<V: Vector>(param: &mut [f32], grad: &[f32], m: &mut [f32], v: &mut [f32], factors: Factors) {
    let splat = V::splat;
    let parameters = param.chunks_mut(V::LANES).zip(grad.chunks(V::LANES));
    let moments = m.chunks_mut(V::LANES).zip(v.chunks_mut(V::LANES));
    for ((param, grad), (m, v)) in parameters.zip(moments) {
        let grad = V::load(grad) * splat(factors.grad_scale);
        let first = (V::load(m) * splat(factors.beta1)) + grad * splat(factors.one_minus_beta1);
        let second = (V::load(v) * splat(factors.beta2)) + grad * grad * splat(factors.one_minus_beta2);
        let root = second.sqrt().mul_add(splat(factors.root_correction), splat(factors.eps));
        let decayed = V::load(param) * splat(factors.decay);
        (decayed - splat(factors.step_size) * first / root).store(param);
        first.store(m);
        second.store(v);
    }
}

per_isa!(fn update = update_body(param: &mut [f32], grad: &[f32], m: &mut [f32], v: &mut [f32], factors: Factors));

/// `Σ xᵢ²` in `f64`, always added in the same order.
#[must_use]
pub fn sum_of_squares(x: &[f32]) -> f64 {
    let isa = current_isa();
    let chunk = 4 * elements_per_task(1);
    if x.len() <= chunk {
        return squares(isa, x);
    }
    let partial: Vec<f64> = x.par_chunks(chunk).map(|x| squares(isa, x)).collect();
    partial.iter().sum()
}

#[inline(always)]
fn squares_body<V: Vector>(x: &[f32]) -> f64 {
    // Sixteen sums side by side for every instruction set: the compiler makes vectors of f64 of them.
    let mut sums = [0.0f64; 16];
    let (blocks, rest) = x.as_chunks::<16>();
    for block in blocks {
        for (sum, &x) in sums.iter_mut().zip(block) {
            *sum += f64::from(x) * f64::from(x);
        }
    }
    for (sum, &x) in sums.iter_mut().zip(rest) {
        *sum += f64::from(x) * f64::from(x);
    }
    sums.iter().sum()
}

per_isa!(fn squares = squares_body(x: &[f32]) -> f64);
