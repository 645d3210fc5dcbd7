//! Gradients of an optimizer step, summed over its micro-batches.

use burn::tensor::Tensor;
use burn::tensor::backend::AutodiffBackend;
use qlora_kernels::{TrainBackend, sum_of_squares};

use crate::{TrainError, Trainable};

/// One gradient a parameter, in the model's order.
pub(crate) struct Gradients<B: TrainBackend> {
    sums: Vec<Option<Tensor<B::InnerBackend, 2>>>,
}

/// What a step applies: a gradient for each parameter, and the L2 norm of all of them together.
type Summed<B> = (Vec<Tensor<<B as AutodiffBackend>::InnerBackend, 2>>, f64);

impl<B: TrainBackend> Gradients<B> {
    pub(crate) fn new() -> Self {
        Self { sums: Vec::new() }
    }

    /// Adds what a backward pass found.
    pub(crate) fn add(&mut self, model: &impl Trainable<B>, mut found: B::Gradients) {
        let mut index = 0;
        model.visit_parameters(&mut |_, parameter| {
            if self.sums.len() == index {
                self.sums.push(None);
            }
            if let Some(gradient) = parameter.grad_remove(&mut found) {
                self.sums[index] = Some(match self.sums[index].take() {
                    Some(sum) => sum + gradient,
                    None => gradient,
                });
            }
            index += 1;
        });
    }

    /// The gradients and their norm.
    ///
    /// # Errors
    /// A parameter had no part in the loss, and is not of an expert that no token was sent to.
    pub(crate) fn finish(mut self, model: &impl Trainable<B>) -> Result<Summed<B>, TrainError> {
        let mut index = 0;
        model.visit_parameters(&mut |name, parameter| {
            match self.sums.get_mut(index) {
                Some(sum) if sum.is_none() && name.contains(".experts.") => {
                    *sum = Some(parameter.clone().inner().zeros_like());
                }
                _ => {}
            }
            index += 1;
        });
        if let Some(missing) = self.sums.iter().position(Option::is_none) {
            let mut name = String::new();
            let mut index = 0;
            model.visit_parameters(&mut |found, _| {
                if index == missing {
                    name = found.to_string();
                }
                index += 1;
            });
            return Err(TrainError::NoGradient { name });
        }
        let gradients: Vec<_> = self.sums.into_iter().flatten().collect();
        let norm = sum_of_squares(gradients.clone()).sqrt();
        Ok((gradients, norm))
    }
}

/// What gradients are multiplied with so that their global norm is at most `limit` (0: no limit).
///
/// `min(1, limit / (norm + 1e-6))`, as torch's `clip_grad_norm_`.
pub(crate) fn clip_coefficient(norm: f64, limit: f64) -> f64 {
    if limit > 0.0 { (limit / (norm + 1e-6)).min(1.0) } else { 1.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clipping_limits_the_norm_and_never_raises_it() {
        assert_eq!(clip_coefficient(0.5, 1.0), 1.0);
        assert_eq!(clip_coefficient(0.0, 1.0), 1.0);
        assert!((clip_coefficient(4.0, 1.0) * 4.0 - 1.0).abs() < 1e-6);
        assert_eq!(clip_coefficient(1e9, 0.0), 1.0);
    }
}
