use super::*;
use crate::checks::{assert_close, everywhere, noise};

#[test]
fn rows_of_any_length() {
    for (rows, cols) in [(0, 3), (1, 1), (3, 7), (2, 16), (5, 33), (70, 256), (3, 5003)] {
        let x: Vec<f32> = noise(rows * cols, 1).iter().map(|x| 9.0 * x + 3.0).collect();
        let run = || {
            let (mut p, mut log) = (x.clone(), x.clone());
            softmax_rows(&mut p, cols);
            log_softmax_rows(&mut log, cols);
            vec![p, log]
        };
        let log: Vec<f64> = x
            .chunks(cols)
            .flat_map(|x| {
                let lse = x.iter().map(|&x| f64::from(x).exp()).sum::<f64>().ln();
                x.iter().map(move |&x| f64::from(x) - lse)
            })
            .collect();
        let p: Vec<f64> = log.iter().map(|x| x.exp()).collect();
        everywhere(run, |_, results| {
            assert_close("softmax", &results[0], &p, 1e-6);
            assert_close("log softmax", &results[1], &log, 1e-6);
        });
    }
}

#[test]
fn extremes() {
    let run = || {
        let mut x = vec![1e4, -1e4, 1e4, 0.0, f32::NEG_INFINITY, 3.0, 3.0, 3.0, 3.0, f32::NAN];
        softmax_rows(&mut x, 5);
        vec![x]
    };
    everywhere(run, |isa, x| {
        assert_eq!(x[0][..5], [0.5, 0.0, 0.5, 0.0, 0.0], "{isa:?}");
        assert!(x[0][5..].iter().all(|x| x.is_nan()), "{isa:?}: NaN must not vanish");
    });
}
