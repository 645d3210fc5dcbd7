use super::*;
use crate::checks::{assert_close, everywhere, noise, to_f64};

#[test]
fn ten_steps_follow_the_formula() {
    for n in [0, 1, 19, 40_007] {
        let start = noise(n, 1);
        let settings = |step| AdamW { lr: 2e-3, beta1: 0.9, beta2: 0.99, eps: 1e-8, weight_decay: 0.1, step };
        let gradient = |step: u64| noise(n, 10 + step as u32);
        let run = || {
            let (mut p, mut m, mut v) = (start.clone(), vec![0.0; n], vec![0.0; n]);
            for step in 1..=10 {
                adamw(&mut p, &gradient(step), &mut m, &mut v, &settings(step), 0.5);
            }
            vec![p, m, v]
        };
        let (mut p, mut m, mut v) = (to_f64(&start), vec![0.0; n], vec![0.0; n]);
        for step in 1..=10u64 {
            for (i, &g) in gradient(step).iter().enumerate() {
                let g = 0.5 * f64::from(g);
                p[i] *= 1.0 - 2e-3 * 0.1;
                m[i] = 0.9 * m[i] + 0.1 * g;
                v[i] = 0.99 * v[i] + 0.01 * g * g;
                let (m, v) =
                    (m[i] / (1.0 - 0.9f64.powf(step as f64)), v[i] / (1.0 - 0.99f64.powf(step as f64)));
                p[i] -= 2e-3 * m / (v.sqrt() + 1e-8);
            }
        }
        everywhere(run, |_, results| {
            assert_close("p", &results[0], &p, 1e-6);
            assert_close("m", &results[1], &m, 1e-6);
            assert_close("v", &results[2], &v, 1e-6);
        });
    }
}

#[test]
fn squares_of_any_size() {
    for n in [0, 1, 17, 65_536, 200_003] {
        let x = noise(n, 1);
        let run = || {
            let sum = sum_of_squares(&x);
            vec![vec![(sum as f32), (sum - f64::from(sum as f32)) as f32]]
        };
        let expected: f64 = x.iter().map(|&x| f64::from(x).powi(2)).sum();
        everywhere(run, |isa, sum| {
            let sum = f64::from(sum[0][0]) + f64::from(sum[0][1]);
            assert!((sum - expected).abs() <= 1e-12 * expected, "{isa:?}: {sum} instead of {expected}");
        });
    }
    assert!((sum_of_squares(&[1e30; 4]) / 4e60 - 1.0).abs() < 1e-6, "squares do not fit in f32");
}
