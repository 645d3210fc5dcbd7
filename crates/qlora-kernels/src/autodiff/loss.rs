//! The loss: its gradient is computed with it, the backward pass only scales.

use burn::backend::Autodiff;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind, unary};
use burn::tensor::ops::FloatTensor;

use crate::KernelBackend;
use crate::cross_entropy::{CrossEntropySpec, LossParts, scale_gradient};
use crate::weight::WeightParts;

#[derive(Debug)]
struct LinearCrossEntropy;

impl<B: KernelBackend> Backward<B, 1> for LinearCrossEntropy {
    // The gradient with respect to the hidden states.
    type State = FloatTensor<B>;

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dhidden = ops.state;
        unary::<B, _>(ops.parents, ops.node, grads, |dloss| scale_gradient::<B>(dhidden, dloss));
    }
}

pub(super) fn linear_cross_entropy<B: KernelBackend, C: CheckpointStrategy>(
    hidden: FloatTensor<Autodiff<B, C>>,
    head: &WeightParts<B>,
    spec: &CrossEntropySpec,
) -> FloatTensor<Autodiff<B, C>> {
    match LinearCrossEntropy.prepare::<C>([hidden.node]).compute_bound().stateful() {
        OpsKind::Tracked(prep) => {
            let parts = LossParts { grad: true, tokens: false };
            let out = B::linear_cross_entropy_forward(hidden.primitive, head, spec, parts);
            prep.finish(out.dhidden.expect("the gradient was asked for"), out.loss)
        }
        OpsKind::UnTracked(prep) => prep.finish(B::linear_cross_entropy(hidden.primitive, head, spec)),
    }
}
