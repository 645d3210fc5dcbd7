//! AdamW with 8-bit moments: one step against its formula in f64, twenty steps against AdamW with f32 moments.

use burn::tensor::{DType, Tensor, TensorData};
use qlora_quant::{DynamicMap, dynamic_map};

use super::harness::{Failure, noise, values};
use crate::quantized8::BLOCK;
use crate::{AdamWStep, KernelBackend, Quantized8, adamw, adamw8bit};

/// AdamW with 8-bit moments, of sizes around those of a block and a word.
///
/// # Errors
/// When a case fails.
pub fn optimizers_8bit<B: KernelBackend>(device: &B::Device) -> Result<(), Failure> {
    for count in [1, 3, BLOCK - 1, BLOCK, BLOCK + 1, 5 * BLOCK + 7] {
        one_step::<B>(count, device)?;
    }
    twenty_steps::<B>(device)
}

fn fail(what: &str, count: usize, error: f64, bound: f64) -> Result<(), Failure> {
    if error <= bound {
        return Ok(());
    }
    Err(Failure { case: format!("8-bit AdamW of {count} elements"), what: what.into(), error, bound })
}

fn upload<B: KernelBackend>(values: &[f64], device: &B::Device) -> Tensor<B, 1> {
    let values: Vec<f32> = values.iter().map(|v| *v as f32).collect();
    let count = values.len();
    Tensor::from_data(TensorData::new(values, [count]), (device, DType::F32))
}

/// A moment in eight bits, and its numbers.
fn moment<B: KernelBackend>(
    count: usize,
    map: &DynamicMap,
    seed: u64,
    device: &B::Device,
) -> (Quantized8<B>, Vec<f64>) {
    let codes: Vec<u8> = noise(count, seed).iter().map(|v| (v * 127.5 + 127.5) as u8).collect();
    let scales = noise(count.div_ceil(BLOCK), seed + 1);
    let absmax: Vec<f32> = scales.iter().map(|v| (v.powi(4) + 1e-3) as f32).collect();
    let value = |i: usize| f64::from(map.values()[usize::from(codes[i])]) * f64::from(absmax[i / BLOCK]);
    let numbers = (0..count).map(value).collect();
    (Quantized8::from_host(&codes, absmax, device), numbers)
}

fn one_step<B: KernelBackend>(count: usize, device: &B::Device) -> Result<(), Failure> {
    let step = AdamWStep {
        learning_rate: 0.01,
        beta1: 0.9,
        beta2: 0.99,
        eps: 1e-8,
        weight_decay: 0.1,
        step: 4,
        grad_scale: 0.5,
    };
    let (signed, unsigned) = (dynamic_map::signed(), dynamic_map::unsigned());
    let (first, mut m) = moment::<B>(count, signed, 1, device);
    let (second, mut v) = moment::<B>(count, unsigned, 3, device);
    let mut param = noise(count, 5);
    let mut grad: Vec<f64> = noise(count, 6).iter().map(|g| g.powi(3)).collect();
    if count > 2 {
        grad[count / 2] = f64::INFINITY;
        grad[count - 1] = f64::NAN;
    }
    let result = adamw8bit(upload(&param, device), upload(&grad, device), first, second, step);
    let (correction1, correction2) = (1.0 - 0.9f64.powi(4), (1.0 - 0.99f64.powi(4)).sqrt());
    for i in 0..count {
        let g = 0.5 * grad[i];
        if !g.is_finite() {
            (m[i], v[i]) = (0.0, 0.0);
            continue;
        }
        m[i] = 0.9 * m[i] + 0.1 * g;
        v[i] = 0.99 * v[i] + 0.01 * g * g;
        param[i] -= 0.01 * correction2 / correction1 * m[i] / (v[i].sqrt() + correction2 * 1e-8);
        param[i] *= 1.0 - 0.01 * 0.1;
    }
    let (got_param, got_first, got_second) = (values(result.0), result.1, result.2);
    let error = got_param.iter().zip(&param).map(|(g, e)| (g - e).abs()).fold(0.0, f64::max);
    fail("the parameter", count, if error.is_nan() { f64::INFINITY } else { error }, 1e-5)?;
    fail("the first moment", count, code_error(&got_first, &m, signed, true), 1e-6)?;
    fail("the second moment", count, code_error(&got_second, &v, unsigned, false), 1e-6)
}

/// By how much of a block's largest magnitude codes or scales miss the best ones; infinite where a sign is lost
/// that was to be kept.
fn code_error<B: KernelBackend>(
    got: &Quantized8<B>,
    expected: &[f64],
    map: &DynamicMap,
    keep_sign: bool,
) -> f64 {
    let (codes, absmax) = got.to_host(expected.len());
    let mut worst: f64 = 0.0;
    for ((codes, block), scale) in codes.chunks(BLOCK).zip(expected.chunks(BLOCK)).zip(absmax) {
        let scale = f64::from(scale);
        let largest = block.iter().fold(0.0f64, |max, x| max.max(x.abs()));
        worst = worst.max((scale / largest - 1.0).abs());
        for (&code, &x) in codes.iter().zip(block) {
            let distance = |code: usize| (f64::from(map.values()[code]) * scale - x).abs() / largest;
            let best = (0..256).map(distance).fold(f64::INFINITY, f64::min);
            worst = worst.max(distance(code.into()) - best);
            if keep_sign && x < -1e-7 * largest && map.values()[usize::from(code)] >= 0.0 {
                worst = f64::INFINITY;
            }
        }
    }
    worst
}

/// With lr 1e-3 and independent gradients of one scale, bitsandbytes' moments move a parameter by 3.5e-4 at most and
/// by 8.5e-5 in the mean (root of squares) within twenty steps, next to some 5e-3 that it moves anyway.
fn twenty_steps<B: KernelBackend>(device: &B::Device) -> Result<(), Failure> {
    let count = 16 * BLOCK;
    let start = noise(count, 20);
    let mean: Vec<f64> = noise(count, 21).iter().map(|v| 0.3 * v).collect();
    // One stream for all steps: those of neighbouring seeds depend on each other.
    let draws = noise(20 * count, 22);
    let upload = |values: &[f64]| upload::<B>(values, device);
    let zeros = || Tensor::<B, 1>::zeros([count], (device, DType::F32));
    let mut exact = (upload(&start), zeros(), zeros());
    let mut coded = (
        upload(&start),
        Quantized8::zeros(count, dynamic_map::signed(), device),
        Quantized8::zeros(count, dynamic_map::unsigned(), device),
    );
    for step in 1..=20 {
        let step = AdamWStep {
            learning_rate: 1e-3,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: 0.0,
            step,
            grad_scale: 1.0,
        };
        let noise = &draws[(step.step - 1) * count..step.step * count];
        let grad: Vec<f64> = noise.iter().zip(&mean).map(|(noise, mean)| noise + mean).collect();
        exact = adamw(exact.0, upload(&grad), exact.1, exact.2, step);
        coded = adamw8bit(coded.0, upload(&grad), coded.1, coded.2, step);
    }
    let (exact, coded) = (values(exact.0), values(coded.0));
    let drift: Vec<f64> = exact.iter().zip(&coded).map(|(a, b)| (a - b).abs()).collect();
    let rms = |values: &[f64]| (values.iter().map(|v| v * v).sum::<f64>() / count as f64).sqrt();
    let moved: Vec<f64> = exact.iter().zip(&start).map(|(a, b)| a - b).collect();
    let largest = drift.iter().copied().fold(0.0, f64::max);
    fail("the largest drift in twenty steps", count, largest, 5e-4)?;
    fail("the drift in twenty steps", count, rms(&drift) / rms(&moved), 0.02)
}
