//! Gated activations: `act(gate) ⊙ up` (Shazeer 2020, <https://arxiv.org/abs/2002.05202>).

use burn::tensor::Tensor;
use burn::tensor::activation::{gelu, sigmoid, silu};
use burn::tensor::ops::FloatTensor;

use crate::KernelBackend;
use crate::primitive::{primitive, statistics_dtype, tensor};

/// The function that the gate goes through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Activation {
    /// `x σ(x)`: SwiGLU.
    Silu,
    /// `½ x (1 + erf(x/√2))`: GeGLU.
    GeluErf,
    /// `½ x (1 + tanh(√(2/π)(x + 0.044715 x³)))`.
    GeluTanh,
}

const TANH_FACTOR: f64 = 0.797_884_560_802_865_4; // √(2/π)
const TANH_CUBIC: f64 = 0.044_715;

/// `act(gate) ⊙ up`, both `[tokens, features]`. Differentiable in both.
#[must_use]
pub fn gated_activation<B: KernelBackend>(
    activation: Activation,
    gate: Tensor<B, 2>,
    up: Tensor<B, 2>,
) -> Tensor<B, 2> {
    tensor(B::gated_activation(activation, primitive(gate), primitive(up)))
}

fn inner_tanh<B: KernelBackend>(x: Tensor<B, 2>) -> Tensor<B, 2> {
    ((x.clone() + x.powf_scalar(3.0) * TANH_CUBIC) * TANH_FACTOR).tanh()
}

fn activate<B: KernelBackend>(activation: Activation, x: Tensor<B, 2>) -> Tensor<B, 2> {
    match activation {
        Activation::Silu => silu(x),
        Activation::GeluErf => gelu(x),
        Activation::GeluTanh => x.clone() * 0.5 * (inner_tanh(x) + 1.0),
    }
}

/// The derivative of the activation.
fn derivative<B: KernelBackend>(activation: Activation, x: Tensor<B, 2>) -> Tensor<B, 2> {
    match activation {
        Activation::Silu => {
            let s = sigmoid(x.clone());
            s.clone() * (x * (s.neg() + 1.0) + 1.0)
        }
        Activation::GeluErf => {
            let density = (x.clone().powf_scalar(2.0) * -0.5).exp()
                * (0.5 * std::f64::consts::FRAC_2_SQRT_PI * std::f64::consts::FRAC_1_SQRT_2);
            ((x.clone() * std::f64::consts::FRAC_1_SQRT_2).erf() + 1.0) * 0.5 + x * density
        }
        Activation::GeluTanh => {
            let t = inner_tanh(x.clone());
            let slope = (x.clone().powf_scalar(2.0) * (3.0 * TANH_CUBIC) + 1.0) * TANH_FACTOR;
            (t.clone() + 1.0) * 0.5 + x * 0.5 * (t.powf_scalar(2.0).neg() + 1.0) * slope
        }
    }
}

pub(crate) fn forward<B: KernelBackend>(
    activation: Activation,
    gate: FloatTensor<B>,
    up: FloatTensor<B>,
) -> FloatTensor<B> {
    let (gate, up) = (tensor::<B, 2>(gate), tensor::<B, 2>(up));
    let dtype = gate.dtype();
    let wide = statistics_dtype(dtype);
    primitive((activate(activation, gate.cast(wide)) * up.cast(wide)).cast(dtype))
}

pub(crate) fn backward<B: KernelBackend>(
    activation: Activation,
    dout: FloatTensor<B>,
    gate: FloatTensor<B>,
    up: FloatTensor<B>,
) -> (FloatTensor<B>, FloatTensor<B>) {
    let (dout, gate, up) = (tensor::<B, 2>(dout), tensor::<B, 2>(gate), tensor::<B, 2>(up));
    let dtype = gate.dtype();
    let wide = statistics_dtype(dtype);
    let (dout, gate, up) = (dout.cast(wide), gate.cast(wide), up.cast(wide));
    let dgate = dout.clone() * up * derivative(activation, gate.clone());
    let dup = dout * activate(activation, gate);
    (primitive(dgate.cast(dtype)), primitive(dup.cast(dtype)))
}
