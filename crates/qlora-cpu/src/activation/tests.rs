use super::*;
use crate::checks::{assert_close, differences, everywhere, noise, to_f64};

/// `x Φ(x)` by the trapezoidal rule on the density: an independent and slow way.
fn phi(x: f64) -> f64 {
    let steps = 4000;
    let (low, width) = (-10.0f64, (x + 10.0).max(0.0) / f64::from(steps));
    let density = |x: f64| (-x * x / 2.0).exp() / std::f64::consts::TAU.sqrt();
    let inner: f64 = (1..steps).map(|i| density(low + width * f64::from(i))).sum();
    width * (inner + 0.5 * (density(low) + density(x)))
}

fn reference(activation: Activation, x: f64) -> f64 {
    match activation {
        Activation::Silu => x / (1.0 + (-x).exp()),
        Activation::GeluErf => x * phi(x),
        Activation::GeluTanh => {
            0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh())
        }
    }
}

const ALL: [Activation; 3] = [Activation::Silu, Activation::GeluErf, Activation::GeluTanh];

#[test]
fn values_and_gradients() {
    for activation in ALL {
        for n in [0, 1, 15, 16, 33, 500] {
            let gate: Vec<f32> = noise(n, 1).iter().map(|x| 6.0 * x).collect();
            let (up, dout) = (noise(n, 2), noise(n, 3));
            let run = || {
                let mut outputs = vec![vec![f32::NAN; n]; 3];
                let [out, dgate, dup] = &mut outputs[..] else { unreachable!() };
                gated_activation(activation, &gate, &up, out);
                gated_activation_backward(activation, &dout, &gate, &up, dgate, dup);
                outputs
            };
            let act: Vec<f64> = gate.iter().map(|&x| reference(activation, f64::from(x))).collect();
            let slope: Vec<f64> = to_f64(&gate)
                .iter()
                .map(|&x| differences(&[x], |x| reference(activation, x[0]))[0])
                .collect();
            let product =
                |a: &[f64], b: &[f32]| a.iter().zip(b).map(|(a, &b)| a * f64::from(b)).collect::<Vec<_>>();
            let dgate = product(&product(&slope, &up), &dout);
            everywhere(run, |_, outputs| {
                assert_close("out", &outputs[0], &product(&act, &up), 1e-6);
                assert_close("dgate", &outputs[1], &dgate, 2e-6);
                assert_close("dup", &outputs[2], &product(&act, &dout), 1e-6);
            });
        }
    }
}

#[test]
fn many_elements_are_cut_for_threads() {
    let n = 70_001;
    let (gate, up) = (noise(n, 1), noise(n, 2));
    let run = || {
        let mut out = vec![f32::NAN; n];
        gated_activation(Activation::Silu, &gate, &up, &mut out);
        vec![out]
    };
    let silu = |(&x, &u): (&f32, &f32)| reference(Activation::Silu, f64::from(x)) * f64::from(u);
    let expected: Vec<f64> = gate.iter().zip(&up).map(silu).collect();
    everywhere(run, |_, outputs| assert_close("out", &outputs[0], &expected, 1e-6));
}

#[test]
fn extremes_are_finite() {
    let gate = [1e4, -1e4, 88.0, -88.0, 0.0, 1e6, -1e6];
    for activation in ALL {
        let run = || {
            let (mut dgate, mut dup) = (vec![f32::NAN; 7], vec![f32::NAN; 7]);
            gated_activation_backward(activation, &[1.0; 7], &gate, &[1.0; 7], &mut dgate, &mut dup);
            vec![dgate, dup]
        };
        everywhere(run, |isa, results| {
            assert_close("dgate", &results[0], &[1.0, 0.0, 1.0, 0.0, 0.5, 1.0, 0.0], 1e-6);
            assert_close("dup", &results[1], &[1e4, 0.0, 88.0, 0.0, 0.0, 1e6, 0.0], 1e-6);
            assert!(results.iter().flatten().all(|x| x.is_finite()), "{isa:?}");
        });
    }
}
