//! The loss of a micro-batch, and how its backward pass goes on where autodiff ends.

use burn::tensor::Tensor;
use qlora_kernels::TrainBackend;
use qlora_models::{Decoder, LayerTape};

/// What an objective gives for a micro-batch.
pub struct Loss<B: TrainBackend, M> {
    /// The sum over the tokens of weight times loss, `[1]`, differentiable.
    pub value: Tensor<B, 1>,
    /// What is left to do after `backward` of the value, where not everything is in its graph.
    pub tape: Option<Box<dyn Tape<B, M>>>,
}

/// The part of a backward pass that autodiff doesn't do, as it kept nothing of the forward pass.
pub trait Tape<B: TrainBackend, M> {
    /// Goes on where the backward pass of the loss, which gave `gradients`, ended. `collect` gets gradients of the
    /// model's parameters, in as many parts as there are.
    fn backward(
        self: Box<Self>,
        model: &M,
        gradients: &mut B::Gradients,
        collect: &mut dyn FnMut(B::Gradients),
    );
}

impl<B: TrainBackend, M> Loss<B, M> {
    /// Calls `collect` with the gradients of `scale · value`, in one or more parts.
    pub fn backward(self, model: &M, scale: f64, collect: &mut dyn FnMut(B::Gradients)) {
        let value = if scale == 1.0 { self.value } else { self.value * scale };
        let mut gradients = value.backward();
        if let Some(tape) = self.tape {
            tape.backward(model, &mut gradients, collect);
        }
        collect(gradients);
    }
}

/// A loss with everything in its graph.
impl<B: TrainBackend, M> From<Tensor<B, 1>> for Loss<B, M> {
    fn from(value: Tensor<B, 1>) -> Self {
        Self { value, tape: None }
    }
}

impl<B: TrainBackend> Tape<B, Decoder<B>> for LayerTape<B> {
    fn backward(
        self: Box<Self>,
        model: &Decoder<B>,
        gradients: &mut B::Gradients,
        collect: &mut dyn FnMut(B::Gradients),
    ) {
        Self::backward(*self, model, gradients, collect);
    }
}
