//! A norm with its weight.

use burn::module::{Module, Param, ParamId};
use burn::tensor::backend::Backend;
use burn::tensor::{DType, Tensor};
use qlora_kernels::{KernelBackend, RmsNormOptions, add_rms_norm, add_to_residual, rms_norm};

use crate::config::{NormKind, QkNorm};

/// A norm of the rows of a matrix, or of the heads that a row consists of. Its weight is frozen.
#[derive(Module, Debug)]
pub struct Norm<B: Backend> {
    weight: Param<Tensor<B, 1>>,
    #[module(skip)]
    kind: NormKind,
    #[module(skip)]
    eps: f32,
}

impl<B: Backend> Norm<B> {
    pub(crate) fn new(weight: Tensor<B, 1>, kind: NormKind, eps: f64) -> Self {
        let weight = Param::initialized(ParamId::new(), weight).set_require_grad(false);
        Self { weight, kind, eps: eps as f32 }
    }

    pub(crate) fn device(&self) -> B::Device {
        self.weight.val().device()
    }
}

impl<B: KernelBackend> Norm<B> {
    /// Normalises each row of `x` `[tokens, features]`, into type `dtype`.
    pub(crate) fn forward(&self, x: Tensor<B, 2>, dtype: DType) -> Tensor<B, 2> {
        self.apply(x, self.weight.val(), dtype)
    }

    /// Adds rows to the residual stream, and normalises the sum into the type of what is added: both.
    pub(crate) fn forward_sum(
        &self,
        residual: Tensor<B, 2>,
        delta: Tensor<B, 2>,
    ) -> (Tensor<B, 2>, Tensor<B, 2>) {
        let dtype = delta.dtype();
        match self.kind {
            NormKind::Rms | NormKind::RmsUnitOffset => {
                add_rms_norm(residual, delta, self.weight.val(), self.options(dtype))
            }
            NormKind::Layer => {
                let sum = add_to_residual(residual, delta);
                (sum.clone(), self.forward(sum, dtype))
            }
        }
    }

    fn options(&self, output: DType) -> RmsNormOptions {
        RmsNormOptions { eps: self.eps, unit_offset: self.kind == NormKind::RmsUnitOffset, output }
    }

    /// Normalises queries or keys `[tokens, heads · head_dim]`.
    pub(crate) fn forward_heads(&self, x: Tensor<B, 2>, norm: QkNorm, head_dim: usize) -> Tensor<B, 2> {
        let [tokens, width] = x.dims();
        let (heads, dtype) = ([tokens * (width / head_dim), head_dim], x.dtype());
        match norm {
            QkNorm::None => x,
            QkNorm::Whole => self.forward(x, dtype),
            QkNorm::Head => self.forward(x.reshape(heads), dtype).reshape([tokens, width]),
            QkNorm::EachHead => {
                // The norm of each head first, then the weights of all.
                let ones = Tensor::ones([head_dim], (&x.device(), DType::F32));
                let normed = self.apply(x.reshape(heads), ones, dtype).reshape([tokens, width]);
                let weight = self.weight.val().cast(dtype).unsqueeze::<2>();
                normed * weight
            }
        }
    }

    fn apply(&self, x: Tensor<B, 2>, weight: Tensor<B, 1>, dtype: DType) -> Tensor<B, 2> {
        match self.kind {
            NormKind::Rms | NormKind::RmsUnitOffset => rms_norm(x, weight, self.options(dtype)),
            NormKind::Layer => {
                // Around the mean, the variance is the mean square. In f32, which the peers compute it in.
                let x = x.cast(DType::F32);
                let mean = x.clone().mean_dim(1);
                rms_norm(x - mean, weight, self.options(dtype))
            }
        }
    }
}
