//! The residual stream: what layers read and add to.

use burn::tensor::backend::Backend;
use burn::tensor::{DType, Tensor};
use qlora_kernels::{KernelBackend, add_to_residual};

use crate::norm::Norm;

/// Rows in f32, `[tokens, hidden]`, whatever products are computed in, and what is still to be added to them: the next
/// norm does that on its way.
#[derive(Clone, Debug)]
pub(crate) struct Residual<B: Backend> {
    rows: Tensor<B, 2>,
    delta: Option<Tensor<B, 2>>,
}

impl<B: KernelBackend> Residual<B> {
    /// Of an embedding, or where a pass goes on.
    pub(crate) fn new(rows: Tensor<B, 2>) -> Self {
        Self { rows, delta: None }
    }

    /// The rows, with all that was added.
    pub(crate) fn rows(self) -> Tensor<B, 2> {
        match self.delta {
            Some(delta) => add_to_residual(self.rows, delta),
            None => self.rows,
        }
    }

    /// With `delta` added.
    pub(crate) fn plus(self, delta: Tensor<B, 2>) -> Self {
        Self { rows: self.rows(), delta: Some(delta) }
    }

    /// The rows normalised, or as they are where there is no norm, in the type of products.
    pub(crate) fn normed(self, norm: Option<&Norm<B>>, dtype: DType) -> (Self, Tensor<B, 2>) {
        match (norm, self.delta) {
            (Some(norm), Some(delta)) if delta.dtype() == dtype => {
                let (rows, normed) = norm.forward_sum(self.rows, delta);
                (Self::new(rows), normed)
            }
            (norm, delta) => {
                let rows = Self { rows: self.rows, delta }.rows();
                let normed = match norm {
                    Some(norm) => norm.forward(rows.clone(), dtype),
                    None => rows.clone().cast(dtype),
                };
                (Self::new(rows), normed)
            }
        }
    }
}
