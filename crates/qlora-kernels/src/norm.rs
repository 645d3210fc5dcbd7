//! Root-mean-square normalisation (Zhang & Sennrich 2019, <https://arxiv.org/abs/1910.07467>), alone and with the
//! addition to the residual stream before it.
//!
//! `n = x / sqrt(mean(x²) + ε)` in f32, then `y = n · w`, or `n · (1 + w)` as Gemma stores its weights.
//! Backward, with `g = dy · w`: `dx = rstd · (g − n · mean(g · n))`, `dw = Σ_rows dy · n`.
//!
//! The residual stream is f32 whatever products are computed in: what a layer adds is small beside what is there, and
//! bf16 would round most of it away. A norm reads the stream and gives rows in the type of products.

use burn::tensor::ops::FloatTensor;
use burn::tensor::{DType, Tensor, TensorMetadata};

use crate::KernelBackend;
use crate::primitive::{primitive, statistics_dtype, tensor};

/// Options of [`rms_norm`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RmsNormOptions {
    /// Added to the mean square.
    pub eps: f32,
    /// Multiply with `1 + w` instead of `w`.
    pub unit_offset: bool,
    /// The type of the result.
    pub output: DType,
}

/// What the forward pass of a norm gives.
#[derive(Clone, Debug)]
pub struct NormOutput<B: KernelBackend> {
    /// The normalised rows.
    pub y: FloatTensor<B>,
    /// The rows that were normalised, in the type of `y`: what the backward pass reads.
    pub kept: FloatTensor<B>,
    /// `1 / sqrt(mean(x²) + ε)`, `[rows]`.
    pub rstd: FloatTensor<B>,
}

/// What the backward pass of a norm reads.
#[derive(Clone, Debug)]
pub struct SavedNorm<B: KernelBackend> {
    /// The rows that were normalised, in the type of the result.
    pub x: FloatTensor<B>,
    /// `[features]`.
    pub weight: FloatTensor<B>,
    /// `[rows]`.
    pub rstd: FloatTensor<B>,
    /// The type that the rows had, and that their gradient gets.
    pub dtype: DType,
}

/// Normalises each row of `x` `[tokens, features]`; `weight` is `[features]`. Differentiable in both.
#[must_use]
pub fn rms_norm<B: KernelBackend>(
    x: Tensor<B, 2>,
    weight: Tensor<B, 1>,
    options: RmsNormOptions,
) -> Tensor<B, 2> {
    tensor(B::rms_norm(primitive(x), primitive(weight), options))
}

/// `residual + delta` in the type of `residual`, and [`rms_norm`] of the sum: one pass over memory for both.
///
/// All are `[tokens, features]`. Differentiable in `residual`, `delta` and `weight`.
///
/// # Panics
/// When the shapes differ.
#[must_use]
pub fn add_rms_norm<B: KernelBackend>(
    residual: Tensor<B, 2>,
    delta: Tensor<B, 2>,
    weight: Tensor<B, 1>,
    options: RmsNormOptions,
) -> (Tensor<B, 2>, Tensor<B, 2>) {
    assert_eq!(residual.dims(), delta.dims(), "what is added has the shape of the stream");
    let (sum, y) = B::add_rms_norm(primitive(residual), primitive(delta), primitive(weight), options);
    (tensor(sum), tensor(y))
}

/// `residual + delta` in the type of `residual`. Differentiable in both.
///
/// # Panics
/// When the shapes differ.
#[must_use]
pub fn add_to_residual<B: KernelBackend>(residual: Tensor<B, 2>, delta: Tensor<B, 2>) -> Tensor<B, 2> {
    assert_eq!(residual.dims(), delta.dims(), "what is added has the shape of the stream");
    tensor(B::add_to_residual(primitive(residual), primitive(delta)))
}

/// The type of the residual stream where activations are of type `dtype`.
#[must_use]
pub fn residual_dtype(dtype: DType) -> DType {
    statistics_dtype(dtype)
}

fn scale<B: KernelBackend>(weight: FloatTensor<B>, dtype: DType, options: RmsNormOptions) -> Tensor<B, 2> {
    let weight = tensor::<B, 1>(weight).cast(dtype).unsqueeze();
    if options.unit_offset { weight + 1.0 } else { weight }
}

pub(crate) fn add_reference<B: KernelBackend>(
    residual: FloatTensor<B>,
    delta: FloatTensor<B>,
) -> FloatTensor<B> {
    let residual = tensor::<B, 2>(residual);
    let delta = tensor::<B, 2>(delta).cast(residual.dtype());
    primitive(residual + delta)
}

pub(crate) fn forward<B: KernelBackend>(
    x: FloatTensor<B>,
    weight: FloatTensor<B>,
    options: RmsNormOptions,
) -> NormOutput<B> {
    let x = tensor::<B, 2>(x);
    let wide = statistics_dtype(x.dtype());
    let kept = x.clone().cast(options.output);
    let x = x.cast(wide);
    let rstd = (x.clone().powf_scalar(2.0).mean_dim(1) + options.eps).sqrt().recip();
    let y = x * rstd.clone() * scale::<B>(weight, wide, options);
    NormOutput {
        y: primitive(y.cast(options.output)),
        kept: primitive(kept),
        rstd: primitive(rstd.squeeze_dim::<1>(1)),
    }
}

pub(crate) fn backward<B: KernelBackend>(
    dy: FloatTensor<B>,
    saved: SavedNorm<B>,
    options: RmsNormOptions,
    weight_grad: bool,
) -> (FloatTensor<B>, Option<FloatTensor<B>>) {
    let SavedNorm { x, weight, rstd, dtype } = saved;
    let wide = statistics_dtype(x.dtype());
    let dy = tensor::<B, 2>(dy).cast(wide);
    let rstd = tensor::<B, 1>(rstd).unsqueeze_dim::<2>(1);
    let n = tensor::<B, 2>(x).cast(wide) * rstd.clone();
    let g = dy.clone() * scale::<B>(weight, wide, options);
    let dx = rstd * (g.clone() - n.clone() * (g * n.clone()).mean_dim(1));
    let dweight = weight_grad.then(|| primitive((dy * n).sum_dim(0).squeeze_dim::<1>(0)));
    (primitive(dx.cast(dtype)), dweight)
}
