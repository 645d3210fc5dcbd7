//! Attention: scores are computed again in the backward pass, so memory grows with the rows alone.

use burn::backend::Autodiff;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::tensor::ops::FloatTensor;

use crate::KernelBackend;
use crate::attention::{AttentionSpec, Saved};

#[derive(Debug)]
struct Attention;

impl<B: KernelBackend> Backward<B, 3> for Attention {
    type State = (Saved<B>, AttentionSpec);

    fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, _: &mut Checkpointer) {
        let (saved, spec) = ops.state;
        let dout = grads.consume::<B>(&ops.node);
        let (dq, dk, dv) = B::attention_backward(dout, saved, &spec);
        for (node, grad) in ops.parents.into_iter().zip([dq, dk, dv]) {
            if let Some(node) = node {
                grads.register::<B>(node.id, grad);
            }
        }
    }
}

pub(super) fn attention<B: KernelBackend, C: CheckpointStrategy>(
    q: FloatTensor<Autodiff<B, C>>,
    k: FloatTensor<Autodiff<B, C>>,
    v: FloatTensor<Autodiff<B, C>>,
    spec: &AttentionSpec,
) -> FloatTensor<Autodiff<B, C>> {
    let (out, lse) =
        B::attention_forward(q.primitive.clone(), k.primitive.clone(), v.primitive.clone(), spec);
    match Attention.prepare::<C>([q.node, k.node, v.node]).compute_bound().stateful() {
        OpsKind::Tracked(prep) => {
            let saved = Saved { q: q.primitive, k: k.primitive, v: v.primitive, out: out.clone(), lse };
            prep.finish((saved, spec.clone()), out)
        }
        OpsKind::UnTracked(prep) => prep.finish(out),
    }
}
