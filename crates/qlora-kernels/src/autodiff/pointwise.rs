//! Row-wise and element-wise operations.

use burn::backend::Autodiff;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind, unary};
use burn::tensor::ops::FloatTensor;

use crate::KernelBackend;
use crate::activation::Activation;
use crate::norm::RmsNormOptions;

#[derive(Debug)]
struct RmsNorm;

impl<B: KernelBackend> Backward<B, 2> for RmsNorm {
    // Input, weight, reciprocal root mean squares.
    type State = (FloatTensor<B>, FloatTensor<B>, FloatTensor<B>, RmsNormOptions);

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let (x, weight, rstd, options) = ops.state;
        let dy = grads.consume::<B>(&ops.node);
        let [x_node, weight_node] = ops.parents;
        let (dx, dweight) = B::rms_norm_backward(dy, x, weight, rstd, options, weight_node.is_some());
        if let Some(node) = x_node {
            grads.register::<B>(node.id, dx);
        }
        if let (Some(node), Some(dweight)) = (weight_node, dweight) {
            grads.register::<B>(node.id, dweight);
        }
    }
}

pub(super) fn rms_norm<B: KernelBackend, C: CheckpointStrategy>(
    x: FloatTensor<Autodiff<B, C>>,
    weight: FloatTensor<Autodiff<B, C>>,
    options: RmsNormOptions,
) -> FloatTensor<Autodiff<B, C>> {
    let (y, rstd) = B::rms_norm_forward(x.primitive.clone(), weight.primitive.clone(), options);
    match RmsNorm.prepare::<C>([x.node, weight.node]).compute_bound().stateful() {
        OpsKind::Tracked(prep) => prep.finish((x.primitive, weight.primitive, rstd, options), y),
        OpsKind::UnTracked(prep) => prep.finish(y),
    }
}

#[derive(Debug)]
struct Rope;

impl<B: KernelBackend> Backward<B, 1> for Rope {
    // Cosines, sines, direction.
    type State = (FloatTensor<B>, FloatTensor<B>, bool);

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let (cos, sin, inverse) = ops.state;
        unary::<B, _>(ops.parents, ops.node, grads, |dy| B::rope(dy, cos, sin, !inverse));
    }
}

pub(super) fn rope<B: KernelBackend, C: CheckpointStrategy>(
    x: FloatTensor<Autodiff<B, C>>,
    cos: FloatTensor<B>,
    sin: FloatTensor<B>,
    inverse: bool,
) -> FloatTensor<Autodiff<B, C>> {
    let y = B::rope(x.primitive, cos.clone(), sin.clone(), inverse);
    match Rope.prepare::<C>([x.node]).compute_bound().stateful() {
        OpsKind::Tracked(prep) => prep.finish((cos, sin, inverse), y),
        OpsKind::UnTracked(prep) => prep.finish(y),
    }
}

#[derive(Debug)]
struct GatedActivation;

impl<B: KernelBackend> Backward<B, 2> for GatedActivation {
    // Gate and up.
    type State = (Activation, FloatTensor<B>, FloatTensor<B>);

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let (activation, gate, up) = ops.state;
        let dout = grads.consume::<B>(&ops.node);
        let [gate_node, up_node] = ops.parents;
        let (dgate, dup) = B::gated_activation_backward(activation, dout, gate, up);
        if let Some(node) = gate_node {
            grads.register::<B>(node.id, dgate);
        }
        if let Some(node) = up_node {
            grads.register::<B>(node.id, dup);
        }
    }
}

pub(super) fn gated_activation<B: KernelBackend, C: CheckpointStrategy>(
    activation: Activation,
    gate: FloatTensor<Autodiff<B, C>>,
    up: FloatTensor<Autodiff<B, C>>,
) -> FloatTensor<Autodiff<B, C>> {
    let out = B::gated_activation(activation, gate.primitive.clone(), up.primitive.clone());
    match GatedActivation.prepare::<C>([gate.node, up.node]).compute_bound().stateful() {
        OpsKind::Tracked(prep) => prep.finish((activation, gate.primitive, up.primitive), out),
        OpsKind::UnTracked(prep) => prep.finish(out),
    }
}
