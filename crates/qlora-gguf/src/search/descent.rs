use super::symmetric::extreme;
use super::{Lanes, ZERO_GROUP, lanes_of, side_by_side};

/// How often every code is reconsidered at most.
const PASSES: usize = 5;

/// Searches, for every group, the scale of value = scale code, code from −`bound` to `bound` − 1, with weights x².
///
/// It starts from the codes nearest to −`bound` / (value of largest magnitude) x and reconsiders one code after the
/// other, keeping what raises (Σ w x code)² / Σ w code², until nothing changes. `codes` are raised by `bound`; those
/// of a group of zeros are 0, as is its scale.
#[inline(always)]
pub(crate) fn fit<V: Lanes, const LEN: usize>(
    bound: u8,
    groups: &[[f32; LEN]],
    scales: &mut [f32],
    codes: &mut [[u8; LEN]],
) {
    let out = scales.chunks_mut(V::COUNT).zip(codes.chunks_mut(V::COUNT));
    for (groups, (scales, codes)) in groups.chunks(V::COUNT).zip(out) {
        let (scale, lane_codes) = fit_lanes::<V, LEN>(bound, &side_by_side(groups));
        let count = scales.len();
        scales.copy_from_slice(&lanes_of(scale)[..count]);
        for i in 0..LEN {
            let column = lanes_of(lane_codes[i]);
            for (codes, &code) in codes.iter_mut().zip(&column) {
                codes[i] = code as u8;
            }
        }
    }
}

#[inline(always)]
fn fit_lanes<V: Lanes, const LEN: usize>(bound: u8, x: &[V; LEN]) -> (V, [V; LEN]) {
    let zero = V::splat(0.0);
    let (lowest, highest) = (-i32::from(bound), i32::from(bound) - 1);
    let (magnitude, extreme) = extreme(x);
    let zeros = magnitude.lt(V::splat(ZERO_GROUP));
    let inverse = V::splat(-f32::from(bound)) / extreme;

    let mut codes = [zero; LEN];
    let (mut sum_xl, mut sum_l2) = (zero, zero);
    for i in 0..LEN {
        codes[i] = (inverse * x[i]).nearest_within(lowest, highest);
        let w = x[i] * x[i];
        sum_xl = sum_xl + w * x[i] * codes[i];
        sum_l2 = sum_l2 + w * codes[i] * codes[i];
    }
    for _ in 0..PASSES {
        let mut changed = false;
        for i in 0..LEN {
            let w = x[i] * x[i];
            let without_xl = sum_xl - w * x[i] * codes[i];
            let without_l2 = sum_l2 - w * codes[i] * codes[i];
            let code = (x[i] * without_l2 / without_xl).nearest_within(lowest, highest);
            let new_xl = without_xl + w * x[i] * code;
            let new_l2 = without_l2 + w * code * code;
            let better = (sum_xl * sum_xl * new_l2).lt(new_xl * new_xl * sum_l2);
            let other = V::and(zero.lt(without_xl), differs(code, codes[i]));
            let better = V::and(V::and(other, zero.lt(new_l2)), better);
            codes[i] = V::select(better, code, codes[i]);
            sum_xl = V::select(better, new_xl, sum_xl);
            sum_l2 = V::select(better, new_l2, sum_l2);
            changed |= V::any(better);
        }
        // A lane that a pass left alone is left alone by the next: the others may go on.
        if !changed {
            break;
        }
    }
    let scale = V::select(zero.lt(sum_l2), sum_xl / sum_l2, zero);
    for code in &mut codes {
        *code = V::select(zeros, zero, *code + V::splat(f32::from(bound)));
    }
    (V::select(zeros, zero, scale), codes)
}

#[inline(always)]
fn differs<V: Lanes>(a: V, b: V) -> V::Mask {
    V::splat(0.0).lt((a - b).abs())
}
