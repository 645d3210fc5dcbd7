//! Checkpointing of layers (Chen et al. 2016, <https://arxiv.org/abs/1604.06174>): a forward pass keeps the input of
//! each layer and nothing else, the backward pass computes the layers again, one at a time.
//!
//! Why this is done here and not inside of autodiff: docs/architecture.md.

use burn::module::AutodiffModule;
use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{Tensor, TensorData};
use qlora_kernels::{AttentionSpan, TrainBackend, inject_gradient};
use qlora_lora::Pass;

use crate::layer::LayerContext;
use crate::residual::Residual;
use crate::{Decoder, TokenBatch};

/// What the forward pass keeps for the backward pass. Gradients are the same to the last bit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Checkpointing {
    /// Everything: the fastest, and the most memory.
    #[default]
    None,
    /// The input of each layer, `[tokens, hidden]`, on the device. The layers are computed twice.
    Layers,
    /// As [`Layers`](Self::Layers), but in the memory of the host.
    Offload,
}

/// What a forward pass under [`Checkpointing`] has kept.
#[derive(Debug)]
pub struct LayerTape<B: TrainBackend> {
    /// The first layer with an adapter: no gradient is needed below.
    first: usize,
    /// Inputs of the layers from `first` on.
    inputs: Vec<Kept<B::InnerBackend>>,
    /// What the last layer gave: where the gradient of everything after it arrives.
    output: Tensor<B, 2>,
    context: LayerContext<B>,
}

#[derive(Debug)]
enum Kept<B: Backend> {
    Device(Tensor<B, 2>),
    Host(TensorData),
}

impl<B: TrainBackend> Decoder<B> {
    /// As [`hidden_states`](Self::hidden_states), with what the backward pass through the layers needs: `None` where
    /// autodiff keeps everything itself.
    ///
    /// After `backward` of a loss of these states, [`LayerTape::backward`] has to be called with its gradients.
    ///
    /// # Panics
    /// As [`hidden_states`](Self::hidden_states).
    #[must_use]
    pub fn hidden_states_checkpointed(
        &self,
        batch: TokenBatch<'_>,
        pass: Pass,
        checkpointing: Checkpointing,
    ) -> (Tensor<B, 2>, Option<LayerTape<B>>) {
        if checkpointing == Checkpointing::None {
            return (self.hidden_states(batch, pass), None);
        }
        let positions = batch.positions();
        let context = self.context(&positions, AttentionSpan::sequences(batch.lengths), pass);
        let inner = context.clone().inner();
        let adapted = |index: usize| pass.adapters && self.layers[index].is_adapted();
        let first = (0..self.layers.len()).find(|index| adapted(*index)).unwrap_or(self.layers.len());
        let mut inputs = Vec::with_capacity(self.layers.len() - first);
        let mut h = self.embed(batch.ids).inner();
        for (index, layer) in self.layers.iter().enumerate() {
            if index >= first {
                inputs.push(match checkpointing {
                    Checkpointing::Offload => Kept::Host(h.to_data()),
                    _ => Kept::Device(h.clone()),
                });
            }
            h = layer.valid().forward(Residual::new(h), &inner, None).rows();
        }
        let output = Tensor::from_inner(h).require_grad();
        let dtype = B::activation_dtype(context.spec.compute);
        let hidden = self.norm.forward(output.clone(), dtype);
        (hidden, Some(LayerTape { first, inputs, output, context }))
    }
}

impl<B: TrainBackend> LayerTape<B> {
    /// Goes on where the backward pass of the loss ended: through the layers, from the last to the first with an
    /// adapter. `gradients` are those of the loss; `collect` gets the gradients of one layer's parameters at a time.
    ///
    /// # Panics
    /// When `model` has changed since the forward pass, or `gradients` are not of a loss of its hidden states.
    pub fn backward(
        self,
        model: &Decoder<B>,
        gradients: &mut B::Gradients,
        collect: &mut dyn FnMut(<B as AutodiffBackend>::Gradients),
    ) {
        let Self { first, inputs, output, context } = self;
        let device = output.device();
        let mut gradient =
            output.grad_remove(gradients).expect("the loss depends on the hidden states of this tape");
        for (index, kept) in inputs.into_iter().enumerate().rev() {
            let input = Tensor::from_inner(kept.restore(&device));
            let input = if index == 0 { input } else { input.require_grad() };
            let layer = &model.layers[first + index];
            let output = layer.forward(Residual::new(input.clone()), &context, None).rows();
            let mut found = inject_gradient(output, Tensor::from_inner(gradient)).backward();
            let below = input.grad_remove(&mut found);
            collect(found);
            let Some(below) = below else { return };
            gradient = below;
        }
    }
}

impl<B: Backend> Kept<B> {
    fn restore(self, device: &B::Device) -> Tensor<B, 2> {
        match self {
            Self::Device(tensor) => tensor,
            Self::Host(data) => {
                let dtype = data.dtype;
                Tensor::from_data(data, (device, dtype))
            }
        }
    }
}
