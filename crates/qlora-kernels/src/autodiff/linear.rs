//! Linear layers: gradients of the input and of the low-rank factors, none of the weight.

use burn::backend::Autodiff;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind, unary};
use burn::tensor::ops::FloatTensor;

use crate::KernelBackend;
use crate::linear::LoraParts;
use crate::weight::WeightParts;

#[derive(Debug)]
struct FrozenLinear;

impl<B: KernelBackend> Backward<B, 1> for FrozenLinear {
    type State = WeightParts<B>;

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let w = ops.state;
        unary::<B, _>(ops.parents, ops.node, grads, |dy| B::linear_grad_input(dy, &w, None).dx);
    }
}

pub(super) fn frozen<B: KernelBackend, C: CheckpointStrategy>(
    x: FloatTensor<Autodiff<B, C>>,
    w: WeightParts<B>,
    bias: Option<FloatTensor<B>>,
) -> FloatTensor<Autodiff<B, C>> {
    let y = B::adapted_linear(x.primitive, &w, bias, None);
    match FrozenLinear.prepare::<C>([x.node]).compute_bound().stateful() {
        OpsKind::Tracked(prep) => prep.finish(w, y),
        OpsKind::UnTracked(prep) => prep.finish(y),
    }
}

#[derive(Debug)]
struct AdaptedLinear;

/// The input, `x Aᵀ`, handles to the weight and to the factors.
#[derive(Clone, Debug)]
struct Saved<B: KernelBackend> {
    x: FloatTensor<B>,
    xa: FloatTensor<B>,
    w: WeightParts<B>,
    lora: LoraParts<B>,
}

impl<B: KernelBackend> Backward<B, 3> for AdaptedLinear {
    type State = Saved<B>;

    fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, _: &mut Checkpointer) {
        let Saved { x, xa, w, lora } = ops.state;
        let dy = grads.consume::<B>(&ops.node);
        let [x_node, a_node, b_node] = ops.parents;
        let input = B::linear_grad_input(dy.clone(), &w, Some(&lora));
        if a_node.is_some() || b_node.is_some() {
            let dyb = input.dyb.expect("an adapted layer gives dY B");
            let (da, db) = B::lora_grads(x, xa, dy, dyb, lora.scale);
            if let Some(node) = a_node {
                grads.register::<B>(node.id, da);
            }
            if let Some(node) = b_node {
                grads.register::<B>(node.id, db);
            }
        }
        if let Some(node) = x_node {
            grads.register::<B>(node.id, input.dx);
        }
    }
}

pub(super) fn adapted<B: KernelBackend, C: CheckpointStrategy>(
    x: FloatTensor<Autodiff<B, C>>,
    w: WeightParts<B>,
    bias: Option<FloatTensor<B>>,
    lora: LoraParts<Autodiff<B, C>>,
) -> FloatTensor<Autodiff<B, C>> {
    let nodes = [x.node.clone(), lora.a.node.clone(), lora.b.node.clone()];
    let lora = LoraParts { a: lora.a.primitive, b: lora.b.primitive, scale: lora.scale };
    let out = B::linear_forward(x.primitive.clone(), &w, bias, Some(&lora));
    match AdaptedLinear.prepare::<C>(nodes).compute_bound().stateful() {
        OpsKind::Tracked(prep) => {
            let xa = out.xa.expect("an adapted layer gives x Aᵀ");
            prep.finish(Saved { x: x.primitive, xa, w, lora }, out.y)
        }
        OpsKind::UnTracked(prep) => prep.finish(out.y),
    }
}
