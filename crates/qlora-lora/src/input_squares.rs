//! What a layer's inputs look like: the statistic that weighs errors of quantization.

use std::sync::{Mutex, PoisonError};

use burn::tensor::backend::Backend;
use burn::tensor::{DType, Tensor};

/// Sums of the squares of each input feature, over the tokens that a layer was applied to.
#[derive(Debug, Default)]
pub struct InputSquares {
    sums: Mutex<Sums>,
}

#[derive(Debug, Default)]
struct Sums {
    squares: Vec<f64>,
    tokens: usize,
}

impl InputSquares {
    /// Adds rows `[tokens, in]`.
    pub(crate) fn add<B: Backend>(&self, x: &Tensor<B, 2>) {
        let [tokens, _] = x.dims();
        let squares = x.clone().detach().cast(DType::F32).powi_scalar(2).sum_dim(0).into_data();
        let mut sums = self.sums.lock().unwrap_or_else(PoisonError::into_inner);
        sums.squares.resize(squares.num_elements(), 0.0);
        sums.squares.iter_mut().zip(squares.iter::<f64>()).for_each(|(sum, square)| *sum += square);
        sums.tokens += tokens;
    }

    /// The sum of squares of each feature, and the number of tokens.
    #[must_use]
    pub fn sums(&self) -> (Vec<f64>, usize) {
        let sums = self.sums.lock().unwrap_or_else(PoisonError::into_inner);
        (sums.squares.clone(), sums.tokens)
    }
}
