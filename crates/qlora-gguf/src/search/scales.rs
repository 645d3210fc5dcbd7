use super::{ZERO_GROUP, nearest};

/// Quantizes the scales (or minima) of a super-block to `codes` from 0 to `levels` times the factor that is
/// returned, weighted. Scales are not negative.
///
/// Of nine factors around max / `levels` it takes the one of least squared error, then reconsiders one code after
/// the other, keeping what raises (Σ w x code)² / Σ w code².
pub(crate) fn fit(levels: u8, scales: &[f32], weights: &[f32], codes: &mut [u8]) -> f32 {
    let levels = i32::from(levels);
    let mut max = 0.0;
    for &x in scales {
        max = if max > x { max } else { x };
    }
    if max < ZERO_GROUP {
        codes.fill(0);
        return 0.0;
    }
    let mut inverse = levels as f32 / max;
    // The first candidate's codes pass through a byte unchecked.
    let mut best = squared_error(scales, weights, inverse, |code| i32::from(code as u8));
    for k in (-4_i8..=4).filter(|&k| k != 0) {
        let candidate = (0.1 * f32::from(k) + levels as f32) / max;
        let error = squared_error(scales, weights, candidate, |code| code.min(levels));
        if error < best {
            best = error;
            inverse = candidate;
        }
    }

    let (mut sum_xl, mut sum_l2) = (0.0, 0.0);
    for ((&x, &w), code) in scales.iter().zip(weights).zip(&mut *codes) {
        let nearest = nearest(inverse * x).min(levels);
        *code = nearest as u8;
        let nearest = nearest as f32;
        sum_xl += w * x * nearest;
        sum_l2 += w * nearest * nearest;
    }
    for _ in 0..5 {
        let mut changed = false;
        for ((&x, &w), code) in scales.iter().zip(weights).zip(&mut *codes) {
            let old = f32::from(*code);
            let mut new_xl = sum_xl - w * x * old;
            let mut new_l2 = sum_l2 - w * old * old;
            if !(new_xl > 0.0 && new_l2 > 0.0) {
                continue;
            }
            let candidate = nearest(x * new_l2 / new_xl).min(levels);
            if candidate == i32::from(*code) {
                continue;
            }
            let new = candidate as f32;
            new_xl += w * x * new;
            new_l2 += w * new * new;
            if new_xl * new_xl * sum_l2 > sum_xl * sum_xl * new_l2 {
                *code = candidate as u8;
                (sum_xl, sum_l2) = (new_xl, new_l2);
                changed = true;
            }
        }
        if !changed {
            break;
        }
    }
    if sum_l2 > 0.0 { sum_xl / sum_l2 } else { 0.0 }
}

/// Σ w (x − code / inverse)², the codes nearest to inverse x and then limited.
fn squared_error(scales: &[f32], weights: &[f32], inverse: f32, limit: impl Fn(i32) -> i32) -> f32 {
    let scale = 1.0 / inverse;
    let mut sum = 0.0;
    for (&x, &w) in scales.iter().zip(weights) {
        let difference = x - scale * limit(nearest(inverse * x)) as f32;
        sum += w * difference * difference;
    }
    sum
}
