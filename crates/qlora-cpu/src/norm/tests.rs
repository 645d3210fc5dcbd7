use super::*;
use crate::checks::{assert_close, differences, dot, everywhere, noise, to_f64};

fn reference(x: &[f64], weight: &[f64], norm: RmsNorm) -> Vec<f64> {
    let offset = if norm.unit_offset { 1.0 } else { 0.0 };
    x.chunks(weight.len())
        .flat_map(|x| {
            let square = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
            let rstd = 1.0 / (square + f64::from(norm.eps)).sqrt();
            x.iter().zip(weight).map(move |(x, w)| x * rstd * (w + offset))
        })
        .collect()
}

const SIZES: [(usize, usize); 7] = [(0, 8), (1, 1), (1, 64), (3, 17), (5, 576), (130, 24), (300, 100)];

#[test]
fn forward_follows_the_formula() {
    for (rows, dim) in SIZES {
        for unit_offset in [false, true] {
            let norm = RmsNorm { eps: 1e-5, unit_offset };
            let (x, residual, weight) = (noise(rows * dim, 1), noise(rows * dim, 2), noise(dim, 3));
            let run = || {
                let mut outputs = vec![vec![f32::NAN; rows * dim]; 4];
                let [y, h, sum_y, plain] = &mut outputs[..] else { unreachable!() };
                let (mut rstd, mut sum_rstd) = (vec![f32::NAN; rows], vec![f32::NAN; rows]);
                rms_norm(&x, &weight, dim, norm, y, Some(&mut rstd));
                rms_norm(&x, &weight, dim, norm, plain, None);
                add_rms_norm(&x, &residual, &weight, dim, norm, h, sum_y, Some(&mut sum_rstd));
                outputs.extend([rstd, sum_rstd]);
                outputs
            };
            everywhere(run, |_, outputs| {
                let sum: Vec<f32> = x.iter().zip(&residual).map(|(x, r)| x + r).collect();
                assert_close("y", &outputs[0], &reference(&to_f64(&x), &to_f64(&weight), norm), 2e-6);
                assert_eq!(outputs[1], sum);
                assert_close("y of h", &outputs[2], &reference(&to_f64(&sum), &to_f64(&weight), norm), 2e-6);
                assert_eq!(outputs[0], outputs[3]);
                for (rstd, x) in outputs[4].iter().zip(x.chunks(dim)) {
                    let square = x.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / dim as f64;
                    assert_close("rstd", &[*rstd], &[(square + 1e-5f32 as f64).powf(-0.5)], 1e-6);
                }
            });
        }
    }
}

#[test]
fn gradients_are_those_of_the_formula() {
    for (rows, dim) in SIZES.into_iter().filter(|(rows, dim)| rows * dim < 4000) {
        let norm = RmsNorm { eps: 1e-3, unit_offset: dim.is_multiple_of(2) };
        let (x, dy, weight, dh) =
            (noise(rows * dim, 1), noise(rows * dim, 2), noise(dim, 3), noise(rows * dim, 4));
        let run = || {
            let (mut y, mut rstd) = (vec![0.0; rows * dim], vec![0.0; rows]);
            rms_norm(&x, &weight, dim, norm, &mut y, Some(&mut rstd));
            let (mut dx, mut dweight) = (vec![f32::NAN; rows * dim], vec![f32::NAN; dim]);
            rms_norm_backward(&dy, &x, &weight, &rstd, dim, norm, &mut dx, Some(&mut dweight));
            let mut through = vec![f32::NAN; rows * dim];
            add_rms_norm_backward(&dy, &dh, &x, &weight, &rstd, dim, norm, &mut through, None);
            vec![dx, dweight, through]
        };
        let (x64, weight64) = (to_f64(&x), to_f64(&weight));
        // One row at a time: rows do not meet.
        let dx: Vec<f64> = (x64.chunks(dim).zip(dy.chunks(dim)))
            .flat_map(|(x, dy)| differences(x, |x| dot(&reference(x, &weight64, norm), dy)))
            .collect();
        let through: Vec<f64> = dx.iter().zip(&dh).map(|(dx, &dh)| dx + f64::from(dh)).collect();
        let dweight = if dim < 200 {
            Some(differences(&weight64, |weight| dot(&reference(&x64, weight, norm), &dy)))
        } else {
            None
        };
        everywhere(run, |_, results| {
            assert_close("dx", &results[0], &dx, 2e-5);
            assert_close("dx with dh", &results[2], &through, 2e-5);
            if let Some(dweight) = &dweight {
                assert_close("dweight", &results[1], dweight, 2e-5);
            }
        });
    }
}

#[test]
fn large_inputs_stay_finite() {
    let x = vec![1e15f32; 64];
    let mut y = vec![f32::NAN; 64];
    rms_norm(&x, &[2.0; 64], 64, RmsNorm { eps: 1e-6, unit_offset: false }, &mut y, None);
    assert!(y.iter().all(|y| (y - 2.0).abs() < 1e-5));
}
