use super::*;
use crate::checks::{assert_close, everywhere, noise};

#[test]
fn rotates_halves_and_back() {
    for (tokens, heads, head_dim) in [(0, 2, 8), (1, 1, 2), (3, 2, 10), (5, 9, 64), (7, 3, 48), (400, 3, 64)]
    {
        let half = head_dim / 2;
        let x = noise(tokens * heads * head_dim, 1);
        let angles: Vec<f64> = noise(tokens * half, 2).iter().map(|&x| 3.0 * f64::from(x)).collect();
        let cos: Vec<f32> = angles.iter().map(|a| a.cos() as f32).collect();
        let sin: Vec<f32> = angles.iter().map(|a| a.sin() as f32).collect();
        let expected: Vec<f64> = (0..x.len())
            .map(|i| {
                let (token, d) = (i / (heads * head_dim), i % head_dim);
                let angle = angles[token * half + d % half];
                let pair = if d < half { i + half } else { i - half };
                let sign = if d < half { -1.0 } else { 1.0 };
                f64::from(x[i]) * angle.cos() + sign * f64::from(x[pair]) * angle.sin()
            })
            .collect();
        let run = || {
            let mut turned = x.clone();
            rope(&mut turned, heads, head_dim, &cos, &sin, false);
            let mut back = turned.clone();
            rope(&mut back, heads, head_dim, &cos, &sin, true);
            vec![turned, back]
        };
        everywhere(run, |_, results| {
            assert_close("rotated", &results[0], &expected, 1e-6);
            assert_close("rotated back", &results[1], &crate::checks::to_f64(&x), 1e-6);
        });
    }
}
