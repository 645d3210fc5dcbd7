use super::symmetric::extreme;
use super::{Lanes, ZERO_GROUP, lanes_of, side_by_side};

/// The values of the 16 codes of `IQ4_NL` and `IQ4_XS`, denser around zero.
pub(crate) const CODEBOOK: [f32; 16] = [
    -127.0, -104.0, -83.0, -65.0, -49.0, -35.0, -22.0, -10.0, 1.0, 13.0, 25.0, 38.0, 53.0, 69.0, 89.0, 113.0,
];

/// Twice the midpoint of neighbours: code i + 1 starts where 2 x reaches entry i.
const THRESHOLDS: [f32; 15] = {
    let mut thresholds = [0.0; 15];
    let mut i = 0;
    while i < 15 {
        thresholds[i] = CODEBOOK[i] + CODEBOOK[i + 1];
        i += 1;
    }
    thresholds
};

/// How many scales are tried on each side of the first.
const TRIES: i8 = 7;

/// The codes of the codebook's values nearest to inverse x, ties to the higher.
#[inline(always)]
pub(crate) fn nearest_codes(inverse: f32, x: &[f32; 32]) -> [u8; 32] {
    let mut codes = [0; 32];
    for threshold in THRESHOLDS {
        for (code, &x) in codes.iter_mut().zip(x) {
            let scaled = inverse * x;
            *code += u8::from(scaled + scaled >= threshold);
        }
    }
    codes
}

/// Searches, for every group, the scale of value = scale codebook(code): 0 for a group of zeros.
///
/// Candidates are the codes nearest to (−127 + k) / (value of largest magnitude) x, k from −7 to 7, each followed by
/// weighted least squares for the scale.
#[inline(always)]
pub(crate) fn fit<V: Lanes>(groups: &[[f32; 32]], weights: &[[f32; 32]], scales: &mut [f32]) {
    let groups = groups.chunks(V::COUNT).zip(weights.chunks(V::COUNT));
    for ((groups, weights), scales) in groups.zip(scales.chunks_mut(V::COUNT)) {
        let scale = lanes_of(fit_lanes::<V>(&side_by_side(groups), &side_by_side(weights)));
        let count = scales.len();
        scales.copy_from_slice(&scale[..count]);
    }
}

#[inline(always)]
fn fit_lanes<V: Lanes>(x: &[V; 32], w: &[V; 32]) -> V {
    let zero = V::splat(0.0);
    let (magnitude, extreme) = extreme(x);
    let zeros = magnitude.lt(V::splat(ZERO_GROUP));

    let first = V::splat(1.0) / ((zero - extreme) / V::splat(CODEBOOK[0]));
    let (sum_xq, sum_q2) = sums(x, w, first);
    let mut scale = V::select(zero.lt(sum_q2), sum_xq / sum_q2, zero);
    let mut best = scale * sum_xq;
    for k in -TRIES..=TRIES {
        let candidate = V::splat(f32::from(k) + CODEBOOK[0]) / extreme;
        let (sum_xq, sum_q2) = sums(x, w, candidate);
        let better = V::and(zero.lt(sum_q2), (best * sum_q2).lt(sum_xq * sum_xq));
        scale = V::select(better, sum_xq / sum_q2, scale);
        best = V::select(better, scale * sum_xq, best);
    }
    V::select(zeros, zero, scale)
}

/// Σ w q x and Σ w q², q the codebook's value nearest to inverse x.
#[inline(always)]
fn sums<V: Lanes>(x: &[V; 32], w: &[V; 32], inverse: V) -> (V, V) {
    let (mut sum_xq, mut sum_q2) = (V::splat(0.0), V::splat(0.0));
    for i in 0..32 {
        let scaled = inverse * x[i];
        let q = nearest_value(scaled + scaled);
        sum_xq = sum_xq + w[i] * q * x[i];
        sum_q2 = sum_q2 + w[i] * q * q;
    }
    (sum_xq, sum_q2)
}

/// The codebook's value nearest to half of `doubled`.
#[inline(always)]
fn nearest_value<V: Lanes>(doubled: V) -> V {
    let mut value = V::splat(CODEBOOK[0]);
    for (i, &threshold) in THRESHOLDS.iter().enumerate() {
        value = V::select(V::splat(threshold).le(doubled), V::splat(CODEBOOK[i + 1]), value);
    }
    value
}
