//! A norm with its weight.

use burn::module::{Module, Param, ParamId};
use burn::tensor::backend::Backend;
use burn::tensor::{DType, Tensor};
use qlora_kernels::{KernelBackend, RmsNormOptions, rms_norm};

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
    /// Normalises each row of `x` `[tokens, features]`.
    pub(crate) fn forward(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        self.apply(x, self.weight.val())
    }

    /// Normalises queries or keys `[tokens, heads · head_dim]`.
    pub(crate) fn forward_heads(&self, x: Tensor<B, 2>, norm: QkNorm, head_dim: usize) -> Tensor<B, 2> {
        let [tokens, width] = x.dims();
        let heads = [tokens * (width / head_dim), head_dim];
        match norm {
            QkNorm::None => x,
            QkNorm::Whole => self.forward(x),
            QkNorm::Head => self.forward(x.reshape(heads)).reshape([tokens, width]),
            QkNorm::EachHead => {
                // The norm of each head first, then the weights of all.
                let dtype = x.dtype();
                let ones = Tensor::ones([head_dim], (&x.device(), DType::F32));
                let normed = self.apply(x.reshape(heads), ones).reshape([tokens, width]);
                let weight = self.weight.val().cast(dtype).unsqueeze::<2>();
                normed * weight
            }
        }
    }

    fn apply(&self, x: Tensor<B, 2>, weight: Tensor<B, 1>) -> Tensor<B, 2> {
        let options = RmsNormOptions { eps: self.eps, unit_offset: self.kind == NormKind::RmsUnitOffset };
        match self.kind {
            NormKind::Rms | NormKind::RmsUnitOffset => rms_norm(x, weight, options),
            NormKind::Layer => {
                // Around the mean, the variance is the mean square. In f32, which the peers compute it in.
                let dtype = x.dtype();
                let x = x.cast(DType::F32);
                let mean = x.clone().mean_dim(1);
                rms_norm(x - mean, weight, options).cast(dtype)
            }
        }
    }
}
