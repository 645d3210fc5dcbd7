//! What an optimizer needs to know of a model.

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use qlora_kernels::device::ActivationSizes;
use qlora_models::Decoder;

/// A model with trained parameters, which are matrices with unique names, always in the same order.
pub trait Trainable<B: Backend> {
    /// Calls `visit` with each trained parameter and its name.
    fn visit_parameters(&self, visit: &mut dyn FnMut(&str, &Tensor<B, 2>));

    /// Replaces each trained parameter by what `update` makes of it, as a leaf of a new graph.
    fn update_parameters(&mut self, update: &mut dyn FnMut(&str, Tensor<B, 2>) -> Tensor<B, 2>);

    /// The sizes of what a pass of so many tokens makes, where they are known.
    fn activation_sizes(&self, tokens: usize) -> Option<ActivationSizes> {
        let _ = tokens;
        None
    }
}

impl<B: Backend> Trainable<B> for Decoder<B> {
    fn visit_parameters(&self, visit: &mut dyn FnMut(&str, &Tensor<B, 2>)) {
        Self::visit_parameters(self, visit);
    }

    fn update_parameters(&mut self, update: &mut dyn FnMut(&str, Tensor<B, 2>) -> Tensor<B, 2>) {
        Self::update_parameters(self, update);
    }

    fn activation_sizes(&self, tokens: usize) -> Option<ActivationSizes> {
        Some(Self::activation_sizes(self, tokens))
    }
}
