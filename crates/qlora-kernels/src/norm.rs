//! Root-mean-square normalisation (Zhang & Sennrich 2019, <https://arxiv.org/abs/1910.07467>).
//!
//! `n = x / sqrt(mean(x²) + ε)` in f32, then `y = n · w`, or `n · (1 + w)` as Gemma stores its weights.
//! Backward, with `g = dy · w`: `dx = rstd · (g − n · mean(g · n))`, `dw = Σ_rows dy · n`.

use burn::tensor::ops::FloatTensor;
use burn::tensor::{DType, Tensor};

use crate::KernelBackend;
use crate::primitive::{primitive, statistics_dtype, tensor};

/// Options of [`rms_norm`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RmsNormOptions {
    /// Added to the mean square.
    pub eps: f32,
    /// Multiply with `1 + w` instead of `w`.
    pub unit_offset: bool,
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

fn scale<B: KernelBackend>(weight: FloatTensor<B>, dtype: DType, options: RmsNormOptions) -> Tensor<B, 2> {
    let weight = tensor::<B, 1>(weight).cast(dtype).unsqueeze();
    if options.unit_offset { weight + 1.0 } else { weight }
}

pub(crate) fn forward<B: KernelBackend>(
    x: FloatTensor<B>,
    weight: FloatTensor<B>,
    options: RmsNormOptions,
) -> (FloatTensor<B>, FloatTensor<B>) {
    let x = tensor::<B, 2>(x);
    let dtype = x.dtype();
    let wide = statistics_dtype(dtype);
    let x = x.cast(wide);
    let rstd = (x.clone().powf_scalar(2.0).mean_dim(1) + options.eps).sqrt().recip();
    let y = x * rstd.clone() * scale::<B>(weight, wide, options);
    (primitive(y.cast(dtype)), primitive(rstd.squeeze_dim::<1>(1)))
}

pub(crate) fn backward<B: KernelBackend>(
    dy: FloatTensor<B>,
    x: FloatTensor<B>,
    weight: FloatTensor<B>,
    rstd: FloatTensor<B>,
    options: RmsNormOptions,
    weight_grad: bool,
) -> (FloatTensor<B>, Option<FloatTensor<B>>) {
    let x = tensor::<B, 2>(x);
    let dtype = x.dtype();
    let wide = statistics_dtype(dtype);
    let dy = tensor::<B, 2>(dy).cast(wide);
    let rstd = tensor::<B, 1>(rstd).unsqueeze_dim::<2>(1);
    let n = x.cast(wide) * rstd.clone();
    let g = dy.clone() * scale::<B>(weight, wide, options);
    let dx = rstd * (g.clone() - n.clone() * (g * n.clone()).mean_dim(1));
    let dweight = weight_grad.then(|| primitive((dy * n).sum_dim(0).squeeze_dim::<1>(0)));
    (primitive(dx.cast(dtype)), dweight)
}
