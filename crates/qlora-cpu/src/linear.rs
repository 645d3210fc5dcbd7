//! `y = x Wᵀ + b + s (x Aᵀ) Bᵀ` with a frozen `W`, and its gradients.

mod lora_grads;
mod matvec;
#[cfg(test)]
mod tests;

pub use lora_grads::lora_grads;

use crate::gemm::{self, Contract, Kernels, LowRank};
use crate::isa::Isa;
use crate::scratch;
use crate::weight::{Lora, Precision, Weight, WeightData};

/// A linear layer: `y = x Wᵀ + bias + scale · (x Aᵀ) Bᵀ`.
///
/// * `x`: `[tokens, in]`
/// * `y`: `[tokens, out]`, overwritten
/// * `xa`: `[tokens, rank]`, set to `x Aᵀ` (not scaled), which [`lora_grads`] wants back
///
/// With [`Precision::Bf16`] the scaled `x Aᵀ` is an operand too, and rounded as one. A few
/// tokens (up to 24 with AVX-512) are multiplied straight from the codes of the weight, in another
/// order of sums than more tokens; otherwise the bits of a row do not depend on the other rows. Bits
/// never depend on the number of threads.
///
/// # Panics
///
/// When a slice has not the length its shape says, or `xa` is given without `lora`.
pub fn linear(
    x: &[f32],
    tokens: usize,
    w: &Weight<'_>,
    bias: Option<&[f32]>,
    lora: Option<&Lora<'_>>,
    precision: Precision,
    y: &mut [f32],
    xa: Option<&mut [f32]>,
) {
    linear_with(Isa::detect(), x, tokens, w, bias, lora, precision, y, xa);
}

/// The gradient of [`linear`] with respect to its input: `dx = dy W + scale · (dy B) A`.
///
/// * `dy`: `[tokens, out]`
/// * `dx`: `[tokens, in]`, overwritten
/// * `dyb`: `[tokens, rank]`, set to `dy B` (not scaled), which [`lora_grads`] wants back
///
/// # Panics
///
/// When a slice has not the length its shape says, or `dyb` is given without `lora`.
pub fn linear_grad_input(
    dy: &[f32],
    tokens: usize,
    w: &Weight<'_>,
    lora: Option<&Lora<'_>>,
    precision: Precision,
    dx: &mut [f32],
    dyb: Option<&mut [f32]>,
) {
    linear_grad_input_with(Isa::detect(), dy, tokens, w, lora, precision, dx, dyb);
}

pub(crate) fn linear_with(
    isa: Isa,
    x: &[f32],
    tokens: usize,
    w: &Weight<'_>,
    bias: Option<&[f32]>,
    lora: Option<&Lora<'_>>,
    precision: Precision,
    y: &mut [f32],
    xa: Option<&mut [f32]>,
) {
    assert_eq!(x.len(), tokens * w.cols(), "linear: x is [tokens, in]");
    assert_eq!(y.len(), tokens * w.rows(), "linear: y is [tokens, out]");
    assert!(bias.is_none_or(|b| b.len() == w.rows()), "linear: bias is [out]");
    let kernels = Kernels::get(isa, precision);
    with_low_rank("linear: xa", Contract::Cols, tokens, w, lora, xa, |low_rank| {
        if tokens <= kernels.few_tokens {
            matvec::few_tokens(kernels, x, tokens, w, bias, low_rank, y);
        } else {
            gemm::product(kernels, Contract::Cols, x, tokens, w, bias, low_rank, y);
        }
    });
}

pub(crate) fn linear_grad_input_with(
    isa: Isa,
    dy: &[f32],
    tokens: usize,
    w: &Weight<'_>,
    lora: Option<&Lora<'_>>,
    precision: Precision,
    dx: &mut [f32],
    dyb: Option<&mut [f32]>,
) {
    assert_eq!(dy.len(), tokens * w.rows(), "linear_grad_input: dy is [tokens, out]");
    assert_eq!(dx.len(), tokens * w.cols(), "linear_grad_input: dx is [tokens, in]");
    let kernels = Kernels::get(isa, precision);
    with_low_rank("linear_grad_input: dyb", Contract::Rows, tokens, w, lora, dyb, |low_rank| {
        gemm::product(kernels, Contract::Rows, dy, tokens, w, None, low_rank, dx);
    });
}

/// Puts the factors in the order in which a product meets them, and finds a place for what is
/// between them.
fn with_low_rank(
    name: &str,
    contract: Contract,
    tokens: usize,
    w: &Weight<'_>,
    lora: Option<&Lora<'_>>,
    inner: Option<&mut [f32]>,
    run: impl FnOnce(Option<LowRank<'_>>),
) {
    let Some(&Lora { a, b, rank, scale }) = lora else {
        assert!(inner.is_none(), "{name} without an adapter");
        return run(None);
    };
    let a = Weight::new(rank, w.cols(), WeightData::F32(a));
    let b = Weight::new(w.rows(), rank, WeightData::F32(b));
    let (down, up) = match contract {
        Contract::Cols => (a, b),
        Contract::Rows => (b, a),
    };
    let with_inner = |inner: &mut [f32]| {
        assert_eq!(inner.len(), tokens * rank, "{name} is [tokens, rank]");
        run((rank > 0).then_some(LowRank { down, up, rank, scale, inner }));
    };
    match inner {
        Some(inner) => with_inner(inner),
        None => scratch::INNER.with_floats(tokens * rank, with_inner),
    }
}
