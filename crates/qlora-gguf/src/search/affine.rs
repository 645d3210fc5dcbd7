use super::{Lanes, lanes_of, nearest, side_by_side};

/// What a search minimizes, weighted, over the values of a group.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Deviation {
    /// |difference|.
    Absolute,
    /// difference².
    Squared,
}

/// A search for the scale and the minimum of value = scale code + min, code from 0 to `levels`.
///
/// Candidates are the codes nearest to `(levels + first + k step) / (max − min)` (x − min), k = 0 to `steps`; each
/// is followed by weighted least squares for scale and min (never above 0), and kept when the deviation got
/// smaller. The `min` that the next candidates start from is then the fitted one.
pub(crate) struct AffineSearch {
    pub(crate) levels: u8,
    pub(crate) first: f32,
    pub(crate) step: f32,
    pub(crate) steps: u8,
    pub(crate) deviation: Deviation,
}

/// What was found for a group.
#[derive(Clone, Copy, Default)]
pub(crate) struct AffineFit {
    /// 0 when all values are equal and not positive, or all 0.
    pub(crate) scale: f32,
    /// Never above 0.
    pub(crate) min: f32,
    /// What gave the codes: they are nearest to inverse (x − origin).
    inverse: f32,
    origin: f32,
}

impl AffineFit {
    /// The code of `value` that the search settled on, at most `levels`.
    #[inline(always)]
    pub(crate) fn code(self, value: f32, levels: u8) -> u8 {
        nearest(self.inverse * (value - self.origin)).clamp(0, i32::from(levels)) as u8
    }
}

impl AffineSearch {
    /// With an importance matrix, ggml searches finer, and equally for all formats.
    pub(crate) const fn weighted(levels: u8) -> Self {
        Self { levels, first: -0.9, step: 0.05, steps: 36, deviation: Deviation::Squared }
    }

    /// Searches every group; `weights` are those of its values.
    #[inline(always)]
    pub(crate) fn fit<V: Lanes, const LEN: usize>(
        &self,
        groups: &[[f32; LEN]],
        weights: &[[f32; LEN]],
        fits: &mut [AffineFit],
    ) {
        let groups = groups.chunks(V::COUNT).zip(weights.chunks(V::COUNT));
        for ((groups, weights), fits) in groups.zip(fits.chunks_mut(V::COUNT)) {
            let [scale, min, inverse, origin] =
                self.fit_lanes::<V, LEN>(&side_by_side(groups), &side_by_side(weights)).map(lanes_of);
            for (lane, fit) in fits.iter_mut().enumerate() {
                *fit = AffineFit {
                    scale: scale[lane],
                    min: min[lane],
                    inverse: inverse[lane],
                    origin: origin[lane],
                };
            }
        }
    }

    /// The fields of [`AffineFit`], in their order.
    #[inline(always)]
    fn fit_lanes<V: Lanes, const LEN: usize>(&self, x: &[V; LEN], w: &[V; LEN]) -> [V; 4] {
        let zero = V::splat(0.0);
        let levels = f32::from(self.levels);
        let mut min = x[0];
        let mut max = x[0];
        let mut sum_w = w[0];
        let mut sum_wx = w[0] * x[0];
        for i in 1..LEN {
            min = V::select(x[i].lt(min), x[i], min);
            max = V::select(max.lt(x[i]), x[i], max);
            sum_w = sum_w + w[i];
            sum_wx = sum_wx + w[i] * x[i];
        }
        min = V::select(zero.lt(min), zero, min);
        let varied = min.lt(max);

        let mut inverse = V::splat(levels) / (max - min);
        let mut origin = min;
        let mut scale = V::splat(1.0) / inverse;
        let mut codes = [zero; LEN];
        for i in 0..LEN {
            codes[i] = (inverse * (x[i] - min)).nearest_within(0, i32::from(self.levels));
        }
        let mut best = self.deviation_of(x, w, &codes, scale, min);

        for k in 0..=self.steps {
            let candidate = V::splat(self.first + self.step * f32::from(k) + levels) / (max - min);
            let (mut sum_l, mut sum_l2, mut sum_xl) = (zero, zero, zero);
            for i in 0..LEN {
                let code = (candidate * (x[i] - min)).nearest_within(0, i32::from(self.levels));
                codes[i] = code;
                let weighted = w[i] * code;
                sum_l = sum_l + weighted;
                sum_l2 = sum_l2 + weighted * code;
                sum_xl = sum_xl + weighted * x[i];
            }
            let determinant = sum_w * sum_l2 - sum_l * sum_l;
            let mut new_scale = (sum_w * sum_xl - sum_wx * sum_l) / determinant;
            let mut new_min = (sum_l2 * sum_wx - sum_l * sum_xl) / determinant;
            let above = zero.lt(new_min);
            new_min = V::select(above, zero, new_min);
            new_scale = V::select(above, sum_xl / sum_l2, new_scale);
            let deviation = self.deviation_of(x, w, &codes, new_scale, new_min);
            let better = V::and(V::and(zero.lt(determinant), deviation.lt(best)), varied);
            best = V::select(better, deviation, best);
            scale = V::select(better, new_scale, scale);
            inverse = V::select(better, candidate, inverse);
            origin = V::select(better, min, origin);
            min = V::select(better, new_min, min);
        }
        [
            V::select(varied, scale, zero),
            min,
            V::select(varied, inverse, zero),
            V::select(varied, origin, zero),
        ]
    }

    #[inline(always)]
    fn deviation_of<V: Lanes, const LEN: usize>(
        &self,
        x: &[V; LEN],
        w: &[V; LEN],
        codes: &[V; LEN],
        scale: V,
        min: V,
    ) -> V {
        let mut sum = V::splat(0.0);
        for i in 0..LEN {
            let difference = scale * codes[i] + min - x[i];
            let deviation = match self.deviation {
                Deviation::Absolute => difference.abs(),
                Deviation::Squared => difference * difference,
            };
            sum = sum + w[i] * deviation;
        }
        sum
    }
}
