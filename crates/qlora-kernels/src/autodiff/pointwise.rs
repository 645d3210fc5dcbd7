//! Row-wise and element-wise operations.

use burn::backend::Autodiff;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind, unary};
use burn::tensor::ops::FloatTensor;
use burn::tensor::{DType, TensorMetadata};

use crate::KernelBackend;
use crate::activation::Activation;
use crate::norm::{NormOutput, RmsNormOptions, SavedNorm};

#[derive(Debug)]
struct RmsNorm;

impl<B: KernelBackend> Backward<B, 2> for RmsNorm {
    type State = (SavedNorm<B>, RmsNormOptions);

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let (saved, options) = ops.state;
        let dy = grads.consume::<B>(&ops.node);
        let [x_node, weight_node] = ops.parents;
        let (dx, dweight) = B::rms_norm_backward(dy, saved, options, weight_node.is_some());
        if let Some(node) = x_node {
            grads.register::<B>(node.id, dx);
        }
        if let (Some(node), Some(dweight)) = (weight_node, dweight) {
            grads.register::<B>(node.id, dweight);
        }
    }
}

/// The node of a norm whose forward pass was computed.
fn norm_node<B: KernelBackend, C: CheckpointStrategy>(
    x: FloatTensor<Autodiff<B, C>>,
    weight: FloatTensor<Autodiff<B, C>>,
    options: RmsNormOptions,
    out: NormOutput<B>,
) -> FloatTensor<Autodiff<B, C>> {
    match RmsNorm.prepare::<C>([x.node, weight.node]).compute_bound().stateful() {
        OpsKind::Tracked(prep) => {
            let NormOutput { y, kept, rstd } = out;
            let dtype = x.primitive.dtype();
            prep.finish((SavedNorm { x: kept, weight: weight.primitive, rstd, dtype }, options), y)
        }
        OpsKind::UnTracked(prep) => prep.finish(out.y),
    }
}

pub(super) fn rms_norm<B: KernelBackend, C: CheckpointStrategy>(
    x: FloatTensor<Autodiff<B, C>>,
    weight: FloatTensor<Autodiff<B, C>>,
    options: RmsNormOptions,
) -> FloatTensor<Autodiff<B, C>> {
    let out = B::rms_norm_forward(x.primitive.clone(), weight.primitive.clone(), options);
    norm_node::<B, C>(x, weight, options, out)
}

#[derive(Debug)]
struct AddToResidual;

impl<B: KernelBackend> Backward<B, 2> for AddToResidual {
    // The type of what was added.
    type State = DType;

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dsum = grads.consume::<B>(&ops.node);
        let [residual, delta] = ops.parents;
        if let Some(node) = delta {
            let ddelta = if dsum.dtype() == ops.state {
                dsum.clone()
            } else {
                B::float_cast(dsum.clone(), ops.state.into())
            };
            grads.register::<B>(node.id, ddelta);
        }
        if let Some(node) = residual {
            grads.register::<B>(node.id, dsum);
        }
    }
}

/// The node of an addition to the residual stream whose sum was computed.
fn sum_node<B: KernelBackend, C: CheckpointStrategy>(
    residual: FloatTensor<Autodiff<B, C>>,
    delta: FloatTensor<Autodiff<B, C>>,
    sum: FloatTensor<B>,
) -> FloatTensor<Autodiff<B, C>> {
    match AddToResidual.prepare::<C>([residual.node, delta.node]).compute_bound().stateful() {
        OpsKind::Tracked(prep) => prep.finish(delta.primitive.dtype(), sum),
        OpsKind::UnTracked(prep) => prep.finish(sum),
    }
}

pub(super) fn add_to_residual<B: KernelBackend, C: CheckpointStrategy>(
    residual: FloatTensor<Autodiff<B, C>>,
    delta: FloatTensor<Autodiff<B, C>>,
) -> FloatTensor<Autodiff<B, C>> {
    let sum = B::add_to_residual(residual.primitive.clone(), delta.primitive.clone());
    sum_node::<B, C>(residual, delta, sum)
}

/// A tensor in a graph.
type Tracked<B, C> = FloatTensor<Autodiff<B, C>>;

/// One forward pass, but two nodes: the gradients are those of an addition and a norm, in this order, to the last bit.
pub(super) fn add_rms_norm<B: KernelBackend, C: CheckpointStrategy>(
    residual: Tracked<B, C>,
    delta: Tracked<B, C>,
    weight: Tracked<B, C>,
    options: RmsNormOptions,
) -> (Tracked<B, C>, Tracked<B, C>) {
    let (sum, out) = B::add_rms_norm_forward(
        residual.primitive.clone(),
        delta.primitive.clone(),
        weight.primitive.clone(),
        options,
    );
    let sum = sum_node::<B, C>(residual, delta, sum);
    (sum.clone(), norm_node::<B, C>(sum, weight, options, out))
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
