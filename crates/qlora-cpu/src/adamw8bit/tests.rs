use qlora_quant::{DynamicMap, dynamic_map};

use super::*;
use crate::checks::{assert_close, everywhere, noise};

const STEP: AdamW = AdamW { lr: 2e-3, beta1: 0.9, beta2: 0.99, eps: 1e-8, weight_decay: 0.1, step: 7 };

/// Parameters, gradients, and moments in eight bits, of magnitudes that differ from block to block.
#[derive(Clone)]
struct Case {
    param: Vec<f32>,
    grad: Vec<f32>,
    codes: [Vec<u8>; 2],
    absmax: [Vec<f32>; 2],
}

impl Case {
    fn new(n: usize) -> Self {
        let codes = |seed| noise(n, seed).iter().map(|x| (x * 127.5 + 127.5) as u8).collect();
        let absmax = |seed, scale: f32| {
            noise(n.div_ceil(MOMENT_BLOCK), seed).iter().map(|x| scale * x.abs().powi(4)).collect()
        };
        Self {
            param: noise(n, 1),
            grad: noise(n, 2).iter().map(|x| x.powi(5)).collect(),
            codes: [codes(3), codes(4)],
            absmax: [absmax(5, 0.5), absmax(6, 0.1)],
        }
    }

    /// The parameter, both scales, and both codes as numbers.
    fn stepped(&self, grad_scale: f32) -> Vec<Vec<f32>> {
        let Self { mut param, grad, codes: [mut m, mut v], absmax: [mut a, mut b] } = self.clone();
        let (first, second) =
            (Moment8 { codes: &mut m, absmax: &mut a }, Moment8 { codes: &mut v, absmax: &mut b });
        adamw8bit(&mut param, &grad, first, second, &STEP, grad_scale);
        let numbers = |codes: Vec<u8>| codes.into_iter().map(f32::from).collect();
        vec![param, a, b, numbers(m), numbers(v)]
    }

    fn moment(&self, which: usize, i: usize) -> f64 {
        let map = [dynamic_map::signed(), dynamic_map::unsigned()][which];
        let value = map.values()[usize::from(self.codes[which][i])];
        f64::from(value) * f64::from(self.absmax[which][i / MOMENT_BLOCK])
    }
}

/// No code is nearer to the element than the one it got, up to the rounding of f32.
#[track_caller]
fn assert_nearest(map: &DynamicMap, values: &[f64], codes: &[f32], absmax: &[f32]) {
    for (i, (&value, &code)) in values.iter().zip(codes).enumerate() {
        let scale = f64::from(absmax[i / MOMENT_BLOCK]);
        let distance = |code: usize| (f64::from(map.values()[code]) * scale - value).abs();
        let best = (0..256).map(distance).fold(f64::INFINITY, f64::min);
        let kept_sign = value < 0.0 && code as usize + 1 == usize::from(map.zero());
        let found = distance(code as usize + usize::from(kept_sign));
        assert!(found <= best + 1e-6 * scale, "{i}: {value:e} of {scale:e} has code {code}");
        assert!(
            value >= 0.0 || scale == 0.0 || map.values()[code as usize] < 0.0,
            "{i}: {value:e} lost its sign"
        );
    }
}

#[test]
fn a_step_follows_the_formula() {
    for n in [0, 1, 255, 256, 257, 20_011] {
        let case = Case::new(n);
        let correction = (1.0 - 0.99f64.powi(7)).sqrt();
        let (mut p, mut m, mut v) = (Vec::new(), Vec::new(), Vec::new());
        for i in 0..n {
            let g = 0.5 * f64::from(case.grad[i]);
            m.push(0.9 * case.moment(0, i) + 0.1 * g);
            v.push(0.99 * case.moment(1, i) + 0.01 * g * g);
            let step = 2e-3 * correction / (1.0 - 0.9f64.powi(7));
            let updated = f64::from(case.param[i]) - step * m[i] / (v[i].sqrt() + correction * 1e-8);
            p.push(updated * (1.0 - 2e-3 * 0.1));
        }
        let largest = |values: &[f64]| -> Vec<f64> {
            values
                .chunks(MOMENT_BLOCK)
                .map(|block| block.iter().fold(0.0, |max, x| x.abs().max(max)))
                .collect()
        };
        everywhere(
            || case.stepped(0.5),
            |_, found| {
                assert_close("p", &found[0], &p, 1e-6);
                assert_close("absmax of m", &found[1], &largest(&m), 1e-6);
                assert_close("absmax of v", &found[2], &largest(&v), 1e-6);
                assert_nearest(dynamic_map::signed(), &m, &found[3], &found[1]);
                assert_nearest(dynamic_map::unsigned(), &v, &found[4], &found[2]);
            },
        );
    }
}

#[test]
fn a_gradient_that_is_no_number_resets_its_element_only() {
    let clean = Case::new(600);
    let mut broken = clean.clone();
    for (i, value) in [(3, f32::NAN), (256, f32::INFINITY), (599, f32::NEG_INFINITY)] {
        broken.grad[i] = value;
    }
    let (found, expected) = (broken.stepped(1.0), clean.stepped(1.0));
    for i in 0..600 {
        if broken.grad[i].is_finite() {
            assert_eq!(found[0][i], expected[0][i], "{i}");
        } else {
            assert_eq!(found[0][i], clean.param[i], "{i}");
            assert_eq!((found[3][i], found[4][i]), (127.0, 0.0), "{i}");
        }
    }
}

#[test]
fn a_small_negative_moment_keeps_its_sign() {
    // 1e-9 of the block's largest is nearest to zero on either side.
    let (mut param, mut m, mut v) = ([0.0; 3], [127; 3], [0; 3]);
    let (mut a, mut b) = ([0.0], [0.0]);
    let grad = [1.0, -1e-9, 1e-9];
    let (first, second) =
        (Moment8 { codes: &mut m, absmax: &mut a }, Moment8 { codes: &mut v, absmax: &mut b });
    adamw8bit(&mut param, &grad, first, second, &AdamW { step: 1, ..STEP }, 1.0);
    assert_eq!(m, [255, 126, 127]);
    assert_eq!(v, [255, 0, 0]);
}

#[test]
fn zeros_stay_zeros() {
    let (mut param, mut m, mut v) = ([2.0; 300], [127; 300], [0; 300]);
    let (mut a, mut b) = ([0.0; 2], [0.0; 2]);
    let (first, second) =
        (Moment8 { codes: &mut m, absmax: &mut a }, Moment8 { codes: &mut v, absmax: &mut b });
    adamw8bit(&mut param, &[0.0; 300], first, second, &AdamW { weight_decay: 0.0, ..STEP }, 1.0);
    assert_eq!((param, m, v, a, b), ([2.0; 300], [127; 300], [0; 300], [0.0; 2], [0.0; 2]));
}
