//! A linear layer behind a gated activation, whose output is computed again in the backward pass.

use burn::backend::Autodiff;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::tensor::ops::FloatTensor;

use crate::KernelBackend;
use crate::activation::Activation;
use crate::linear::LoraParts;
use crate::weight::WeightParts;

/// What both kinds keep.
#[derive(Clone, Debug)]
struct Gated<B: KernelBackend> {
    activation: Activation,
    gate: FloatTensor<B>,
    up: FloatTensor<B>,
    w: WeightParts<B>,
}

#[derive(Debug)]
struct FrozenGated;

impl<B: KernelBackend> Backward<B, 2> for FrozenGated {
    type State = Gated<B>;

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let Gated { activation, gate, up, w } = ops.state;
        let dy = grads.consume::<B>(&ops.node);
        let dx = B::linear_grad_input(dy, &w, None).dx;
        let (dgate, dup) = B::gated_activation_backward(activation, dx, gate, up);
        for (node, grad) in ops.parents.into_iter().zip([dgate, dup]) {
            if let Some(node) = node {
                grads.register::<B>(node.id, grad);
            }
        }
    }
}

pub(super) fn frozen<B: KernelBackend, C: CheckpointStrategy>(
    activation: Activation,
    gate: FloatTensor<Autodiff<B, C>>,
    up: FloatTensor<Autodiff<B, C>>,
    w: WeightParts<B>,
    bias: Option<FloatTensor<B>>,
) -> FloatTensor<Autodiff<B, C>> {
    let y = B::gated_linear(activation, gate.primitive.clone(), up.primitive.clone(), &w, bias, None);
    match FrozenGated.prepare::<C>([gate.node, up.node]).compute_bound().stateful() {
        OpsKind::Tracked(prep) => {
            prep.finish(Gated { activation, gate: gate.primitive, up: up.primitive, w }, y)
        }
        OpsKind::UnTracked(prep) => prep.finish(y),
    }
}

#[derive(Debug)]
struct AdaptedGated;

impl<B: KernelBackend> Backward<B, 4> for AdaptedGated {
    // Inputs and weight, the factors, `x Aᵀ`.
    type State = (Gated<B>, LoraParts<B>, FloatTensor<B>);

    fn backward(self, ops: Ops<Self::State, 4>, grads: &mut Gradients, _: &mut Checkpointer) {
        let (Gated { activation, gate, up, w }, lora, xa) = ops.state;
        let dy = grads.consume::<B>(&ops.node);
        let [gate_node, up_node, a_node, b_node] = ops.parents;
        let input = B::linear_grad_input(dy.clone(), &w, Some(&lora));
        if a_node.is_some() || b_node.is_some() {
            let x = B::gated_activation(activation, gate.clone(), up.clone());
            let dyb = input.dyb.expect("an adapted layer gives dY B");
            let (da, db) = B::lora_grads(x, xa, dy, dyb, lora.scale);
            for (node, grad) in [(a_node, da), (b_node, db)] {
                if let Some(node) = node {
                    grads.register::<B>(node.id, grad);
                }
            }
        }
        if gate_node.is_some() || up_node.is_some() {
            let (dgate, dup) = B::gated_activation_backward(activation, input.dx, gate, up);
            for (node, grad) in [(gate_node, dgate), (up_node, dup)] {
                if let Some(node) = node {
                    grads.register::<B>(node.id, grad);
                }
            }
        }
    }
}

pub(super) fn adapted<B: KernelBackend, C: CheckpointStrategy>(
    activation: Activation,
    gate: FloatTensor<Autodiff<B, C>>,
    up: FloatTensor<Autodiff<B, C>>,
    w: WeightParts<B>,
    bias: Option<FloatTensor<B>>,
    lora: LoraParts<Autodiff<B, C>>,
) -> FloatTensor<Autodiff<B, C>> {
    let nodes = [gate.node.clone(), up.node.clone(), lora.a.node.clone(), lora.b.node.clone()];
    let lora = LoraParts { a: lora.a.primitive, b: lora.b.primitive, scale: lora.scale };
    let x = B::gated_activation(activation, gate.primitive.clone(), up.primitive.clone());
    let out = B::linear_forward(x, &w, bias, Some(&lora));
    match AdaptedGated.prepare::<C>(nodes).compute_bound().stateful() {
        OpsKind::Tracked(prep) => {
            let xa = out.xa.expect("an adapted layer gives x Aᵀ");
            let inputs = Gated { activation, gate: gate.primitive, up: up.primitive, w };
            prep.finish((inputs, lora, xa), out.y)
        }
        OpsKind::UnTracked(prep) => prep.finish(out.y),
    }
}
