//! Gated activations: SwiGLU and GeGLU (Shazeer 2020, arXiv:2002.05202).

use crate::dispatch::{current_isa, per_isa};
use crate::exp::{normal, sigmoid};
use crate::parallel::{elements_per_task, for_each};
use crate::vector::Vector;

#[cfg(test)]
mod tests;

/// The function applied to the gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `x σ(x)`.
    Silu,
    /// `x Φ(x)`, with the exact distribution function of the normal distribution.
    GeluErf,
    /// `x σ(2u)` with `u = √(2/π) (x + 0.044715 x³)`, which is `½ x (1 + tanh u)`.
    GeluTanh,
}

/// `out = act(gate) · up`, element by element.
///
/// # Panics
/// When the slices differ in length.
pub fn gated_activation(activation: Activation, gate: &[f32], up: &[f32], out: &mut [f32]) {
    assert!(gate.len() == up.len() && gate.len() == out.len(), "gate, up and out differ in length");
    let isa = current_isa();
    let step = elements_per_task(4);
    let tasks = gate.chunks(step).zip(up.chunks(step)).zip(out.chunks_mut(step));
    for_each(tasks, |((gate, up), out)| forward(isa, activation, gate, up, out));
}

/// Gradients of [`gated_activation`]: `dgate = dout · up · act'(gate)`, `dup = dout · act(gate)`.
///
/// # Panics
/// When the slices differ in length.
pub fn gated_activation_backward(
    activation: Activation,
    dout: &[f32],
    gate: &[f32],
    up: &[f32],
    dgate: &mut [f32],
    dup: &mut [f32],
) {
    let n = dout.len();
    assert!(
        gate.len() == n && up.len() == n && dgate.len() == n && dup.len() == n,
        "dout, gate, up, dgate and dup differ in length"
    );
    let isa = current_isa();
    let step = elements_per_task(4);
    let inputs = dout.chunks(step).zip(gate.chunks(step)).zip(up.chunks(step));
    let outputs = dgate.chunks_mut(step).zip(dup.chunks_mut(step));
    for_each(inputs.zip(outputs), |(((dout, gate), up), (dgate, dup))| {
        backward(isa, activation, dout, gate, up, dgate, dup);
    });
}

/// An activation `x · s(x)`.
trait Gate {
    /// `s` and the derivative of `x · s(x)`.
    fn factor_and_slope<V: Vector>(x: V) -> (V, V);
}

struct Silu;

impl Gate for Silu {
    #[inline(always)]
    fn factor_and_slope<V: Vector>(x: V) -> (V, V) {
        let s = sigmoid(x);
        // s (1 + x (1 − s))
        (s, s * x.mul_add(V::splat(1.0) - s, V::splat(1.0)))
    }
}

struct GeluErf;

impl Gate for GeluErf {
    #[inline(always)]
    fn factor_and_slope<V: Vector>(x: V) -> (V, V) {
        let (distribution, density) = normal(x);
        (distribution, x.mul_add(density, distribution))
    }
}

struct GeluTanh;

impl Gate for GeluTanh {
    #[inline(always)]
    fn factor_and_slope<V: Vector>(x: V) -> (V, V) {
        // 2u = a x (1 + b x²), a = 2 √(2/π); its derivative is a (1 + 3 b x²).
        const A: f32 = 1.595_769;
        const B: f32 = 0.044_715;
        let square = x * x;
        let s = sigmoid(x * V::splat(A) * square.mul_add(V::splat(B), V::splat(1.0)));
        let du = V::splat(A) * square.mul_add(V::splat(3.0 * B), V::splat(1.0));
        // The inner derivative grows as x³ where s (1 − s) is already zero: multiplied last, it can't overflow.
        (s, (s * (V::splat(1.0) - s) * x).mul_add(du, s))
    }
}

#[inline(always)]
fn forward_gate<V: Vector, G: Gate>(gate: &[f32], up: &[f32], out: &mut [f32]) {
    for ((gate, up), out) in gate.chunks(V::LANES).zip(up.chunks(V::LANES)).zip(out.chunks_mut(V::LANES)) {
        let gate = V::load(gate);
        (gate * G::factor_and_slope(gate).0 * V::load(up)).store(out);
    }
}

#[inline(always)]
fn forward_body<V: Vector>(activation: Activation, gate: &[f32], up: &[f32], out: &mut [f32]) {
    match activation {
        Activation::Silu => forward_gate::<V, Silu>(gate, up, out),
        Activation::GeluErf => forward_gate::<V, GeluErf>(gate, up, out),
        Activation::GeluTanh => forward_gate::<V, GeluTanh>(gate, up, out),
    }
}

per_isa!(fn forward = forward_body(activation: Activation, gate: &[f32], up: &[f32], out: &mut [f32]));

#[inline(always)]
fn backward_gate<V: Vector, G: Gate>(
    dout: &[f32],
    gate: &[f32],
    up: &[f32],
    dgate: &mut [f32],
    dup: &mut [f32],
) {
    let inputs = dout.chunks(V::LANES).zip(gate.chunks(V::LANES)).zip(up.chunks(V::LANES));
    let outputs = dgate.chunks_mut(V::LANES).zip(dup.chunks_mut(V::LANES));
    for (((dout, gate), up), (dgate, dup)) in inputs.zip(outputs) {
        let (dout, gate) = (V::load(dout), V::load(gate));
        let (factor, slope) = G::factor_and_slope(gate);
        (dout * V::load(up) * slope).store(dgate);
        (dout * gate * factor).store(dup);
    }
}

#[inline(always)]
fn backward_body<V: Vector>(
    activation: Activation,
    dout: &[f32],
    gate: &[f32],
    up: &[f32],
    dgate: &mut [f32],
    dup: &mut [f32],
) {
    match activation {
        Activation::Silu => backward_gate::<V, Silu>(dout, gate, up, dgate, dup),
        Activation::GeluErf => backward_gate::<V, GeluErf>(dout, gate, up, dgate, dup),
        Activation::GeluTanh => backward_gate::<V, GeluTanh>(dout, gate, up, dgate, dup),
    }
}

per_isa!(fn backward = backward_body(
    activation: Activation, dout: &[f32], gate: &[f32], up: &[f32], dgate: &mut [f32], dup: &mut [f32]
));
