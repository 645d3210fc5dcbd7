use super::{Lanes, ZERO_GROUP, lanes_of, nearest, side_by_side};

/// What was found for a group.
#[derive(Clone, Copy, Default)]
pub(crate) struct SymmetricFit {
    /// 0 for a group of zeros.
    pub(crate) scale: f32,
    /// What gave the codes: they are nearest to inverse x. 0 for a group of zeros.
    inverse: f32,
}

impl SymmetricFit {
    /// The code of `value` that the search settled on, plus `bound`; 0 in a group of zeros.
    #[inline(always)]
    pub(crate) fn code(self, value: f32, bound: u8) -> u8 {
        if self.inverse == 0.0 {
            return 0;
        }
        let bound = i32::from(bound);
        (nearest(self.inverse * value).clamp(-bound, bound - 1) + bound) as u8
    }
}

/// Searches, for every group, the scale of value = scale code, code from −`bound` to `bound` − 1.
///
/// Candidates are the codes nearest to −(`bound` + 0.1 k) / (value of largest magnitude) x, k from −9 to 9, each
/// followed by weighted least squares for the scale.
#[inline(always)]
pub(crate) fn fit<V: Lanes, const LEN: usize>(
    bound: u8,
    groups: &[[f32; LEN]],
    weights: &[[f32; LEN]],
    fits: &mut [SymmetricFit],
) {
    let groups = groups.chunks(V::COUNT).zip(weights.chunks(V::COUNT));
    for ((groups, weights), fits) in groups.zip(fits.chunks_mut(V::COUNT)) {
        let [scale, inverse] =
            fit_lanes::<V, LEN>(bound, &side_by_side(groups), &side_by_side(weights)).map(lanes_of);
        for (lane, fit) in fits.iter_mut().enumerate() {
            *fit = SymmetricFit { scale: scale[lane], inverse: inverse[lane] };
        }
    }
}

/// The fields of [`SymmetricFit`], in their order.
#[inline(always)]
fn fit_lanes<V: Lanes, const LEN: usize>(bound: u8, x: &[V; LEN], w: &[V; LEN]) -> [V; 2] {
    let zero = V::splat(0.0);
    let (magnitude, extreme) = extreme(x);
    let zeros = magnitude.lt(V::splat(ZERO_GROUP));

    let mut inverse = V::splat(-f32::from(bound)) / extreme;
    let (sum_xl, sum_l2) = sums(bound, x, w, inverse);
    let mut scale = V::select(zero.lt(sum_l2), sum_xl / sum_l2, zero);
    let mut best = scale * sum_xl;
    for k in (-9_i8..=9).filter(|&k| k != 0) {
        let candidate = V::splat(-(f32::from(bound) + 0.1 * f32::from(k))) / extreme;
        let (sum_xl, sum_l2) = sums(bound, x, w, candidate);
        let better = V::and(zero.lt(sum_l2), (best * sum_l2).lt(sum_xl * sum_xl));
        scale = V::select(better, sum_xl / sum_l2, scale);
        best = V::select(better, scale * sum_xl, best);
        inverse = V::select(better, candidate, inverse);
    }
    [V::select(zeros, zero, scale), V::select(zeros, zero, inverse)]
}

/// The largest magnitude of each lane, and the first value that has it.
#[inline(always)]
pub(super) fn extreme<V: Lanes, const LEN: usize>(x: &[V; LEN]) -> (V, V) {
    let mut magnitude = V::splat(0.0);
    let mut extreme = V::splat(0.0);
    for &value in x {
        let larger = magnitude.lt(value.abs());
        magnitude = V::select(larger, value.abs(), magnitude);
        extreme = V::select(larger, value, extreme);
    }
    (magnitude, extreme)
}

/// Σ w x code and Σ w code².
#[inline(always)]
fn sums<V: Lanes, const LEN: usize>(bound: u8, x: &[V; LEN], w: &[V; LEN], inverse: V) -> (V, V) {
    let bound = i32::from(bound);
    let (mut sum_xl, mut sum_l2) = (V::splat(0.0), V::splat(0.0));
    for i in 0..LEN {
        let code = (inverse * x[i]).nearest_within(-bound, bound - 1);
        sum_xl = sum_xl + w[i] * x[i] * code;
        sum_l2 = sum_l2 + w[i] * code * code;
    }
    (sum_xl, sum_l2)
}
