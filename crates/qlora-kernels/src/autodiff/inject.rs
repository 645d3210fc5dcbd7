//! A gradient from outside: where a backward pass goes on that another graph began.

use burn::backend::Autodiff;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind, unary};
use burn::tensor::ops::FloatTensor;

use crate::KernelBackend;

#[derive(Debug)]
struct Inject;

impl<B: KernelBackend> Backward<B, 1> for Inject {
    // The gradient.
    type State = FloatTensor<B>;

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let gradient = ops.state;
        // Not multiplied with what arrives, which is 1: the bits stay as they are.
        unary::<B, _>(ops.parents, ops.node, grads, |_| gradient);
    }
}

pub(super) fn inject<B: KernelBackend, C: CheckpointStrategy>(
    x: FloatTensor<Autodiff<B, C>>,
    gradient: FloatTensor<B>,
) -> FloatTensor<Autodiff<B, C>> {
    let zero = B::inject_gradient(x.primitive, gradient.clone());
    match Inject.prepare::<C>([x.node]).compute_bound().stateful() {
        OpsKind::Tracked(prep) => prep.finish(gradient, zero),
        OpsKind::UnTracked(prep) => prep.finish(zero),
    }
}
