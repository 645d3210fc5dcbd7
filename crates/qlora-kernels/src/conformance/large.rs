//! Operations at the sizes of real layers, where kernels for matrix units cut the work otherwise than on small ones.
//!
//! The reference in f64 would take minutes there. What is compared with is the same operation of the same backend in f32,
//! which no matrix unit computes, and which the small cases hold against the reference.

use burn::backend::Autodiff;
use burn::tensor::Tensor;

use super::cases::{Attend, Held, Linear};
use super::harness::{Failure, Operation, bound, input, noise, relative_error, round, values};
use crate::KernelBackend;
use crate::attention::{AttentionSpan, AttentionSpec};
use crate::weight::Compute;

/// Numbers that are compared at a time: a tile that is wrong must not vanish among right ones.
const PIECE: usize = 4096;

/// Forward pass and gradients in `compute` against those in f32.
fn agree<B: KernelBackend, O: Operation>(
    operation: impl Fn(Compute) -> O,
    compute: Compute,
    device: &B::Device,
) -> Result<(), Failure> {
    let case = operation(compute);
    let got = pass::<B>(&case, compute, compute, device);
    let expected = pass::<B>(&operation(Compute::F32), Compute::F32, compute, device);
    for (index, (got, expected)) in got.iter().zip(&expected).enumerate() {
        let what = match index {
            0 => "the forward pass".to_owned(),
            _ => format!("the gradient of input {}", index - 1),
        };
        let pieces = got.chunks(PIECE).zip(expected.chunks(PIECE)).enumerate();
        for (piece, (got, expected)) in pieces {
            let error = relative_error(got, expected);
            let bound = 2.0 * bound(compute);
            if error > bound {
                let what = format!("{what}, from number {} on,", piece * PIECE);
                return Err(Failure { case: case.name(), what, error, bound });
            }
        }
    }
    Ok(())
}

/// The result and the gradients of `Σ out ⊙ r`, of numbers that `rounded` can hold.
fn pass<B: KernelBackend>(
    operation: &impl Operation,
    compute: Compute,
    rounded: Compute,
    device: &B::Device,
) -> Vec<Vec<f64>> {
    let dtype = B::activation_dtype(compute);
    let rounded_noise = |count: usize, seed| -> Vec<f64> {
        noise(count, seed).into_iter().map(|value| round(value, rounded)).collect()
    };
    let tensors: Vec<Tensor<Autodiff<B>, 2>> = (1..)
        .zip(operation.inputs())
        .map(|(seed, shape)| {
            let values = rounded_noise(shape[0] * shape[1], seed);
            input(&values, shape, dtype, false, device).require_grad()
        })
        .collect();
    let out = operation.apply::<Autodiff<B>>(&tensors, device);
    let mut results = vec![values(out.clone().inner())];
    let r = input(&rounded_noise(out.dims().iter().product(), 99), out.dims(), out.dtype(), false, device);
    let grads = (out * r).sum().backward();
    results.extend(tensors.iter().map(|tensor| tensor.grad(&grads).map(values).unwrap_or_default()));
    results
}

/// Linear layers with updates of all ranks that kernels are made for, in each way that a product is cut: wide and narrow
/// tiles, pairs of blocks that share what they load, ragged edges.
///
/// # Errors
/// When a case fails.
pub fn large_linears<B: KernelBackend>(device: &B::Device, compute: Compute) -> Result<(), Failure> {
    let nf4 = Held::Nf4 { block_size: 64, double_quant: true };
    // Tokens, inputs, outputs, rank.
    let cases = [
        (4096, 320, 4096, 16, nf4),
        (2000, 2296, 2296, 64, nf4),
        (2048, 2304, 1024, 8, Held::Dense),
        (4096, 512, 512, 32, Held::Dense),
        (512, 1024, 1024, 128, nf4),
        (777, 520, 1544, 16, nf4),
        (600, 264, 328, 0, nf4),
        (300, 512, 4104, 12, nf4),
    ];
    for (tokens, inputs, outputs, rank, held) in cases {
        let operation = |compute| Linear { tokens, inputs, outputs, rank, held, compute };
        agree::<B, _>(operation, compute, device)?;
    }
    Ok(())
}

/// Attention over several tiles: packed and cached sequences, grouped queries, windows, soft caps.
///
/// # Errors
/// When a case fails.
pub fn large_attentions<B: KernelBackend>(device: &B::Device, compute: Compute) -> Result<(), Failure> {
    let packed = AttentionSpan::sequences(&[300, 1, 129, 513, 64]);
    let cached = vec![
        AttentionSpan { q_start: 0, q_len: 200, k_start: 0, k_len: 400 },
        AttentionSpan { q_start: 200, q_len: 130, k_start: 407, k_len: 600 },
    ];
    for head_dim in [32, 64, 96, 128] {
        for (softcap, window) in [(None, None), (Some(5.0), None), (None, Some(100)), (Some(5.0), Some(150))]
        {
            for (spans, queries, keys) in [(&packed, 1007, 1007), (&cached, 330, 1007)] {
                let operation = |compute| {
                    let scale = 1.3 / (head_dim as f32).sqrt();
                    let (heads, kv_heads, spans) = (8, 2, spans.clone().into());
                    let spec =
                        AttentionSpec { heads, kv_heads, head_dim, scale, softcap, window, compute, spans };
                    Attend { spec, queries, keys }
                };
                agree::<B, _>(operation, compute, device)?;
            }
        }
    }
    Ok(())
}
