//! What `Q4_K` and `Q5_K` share: eight groups of 32 values, each with a scale and a minimum of 6 bits, quantized
//! against two f16 of the super-block.

use super::rounding::{requantize, sum, sum_of_squares, to_f16, weigh_super_blocks};
use crate::search::affine::{AffineFit, AffineSearch};
use crate::search::{Lanes, Rows, nearest, scales};

/// The largest scale and minimum.
const MAX_SCALE: u8 = 63;

/// The 6-bit scale and minimum of group `group` of eight, from 12 bytes: the first four groups in the lower six
/// bits of bytes 0..4 (scale) and 4..8 (minimum), the last four in the nibbles of bytes 8..12 (lower: scale) with
/// their upper two bits on top of the first eight bytes.
#[inline(always)]
pub(super) fn scale_and_min(packed: &[u8], group: usize) -> (u8, u8) {
    if group < 4 {
        (packed[group] & 63, packed[group + 4] & 63)
    } else {
        let nibbles = packed[group + 4];
        (nibbles & 15 | packed[group - 4] >> 6 << 4, nibbles >> 4 | packed[group] >> 6 << 4)
    }
}

/// The inverse of [`scale_and_min`] for all groups.
#[inline(always)]
fn pack(scales: &[u8; 8], mins: &[u8; 8]) -> [u8; 12] {
    let mut packed = [0; 12];
    for group in 0..4 {
        let (scale, min) = (scales[group + 4], mins[group + 4]);
        packed[group] = scales[group] | scale >> 4 << 6;
        packed[group + 4] = mins[group] | min >> 4 << 6;
        packed[group + 8] = scale & 15 | (min & 15) << 4;
    }
    packed
}

/// A super-block before its codes are packed: `d | dmin | scales and minima`, and the codes.
pub(super) struct Block {
    pub(super) head: [u8; 16],
    pub(super) codes: [u8; 256],
}

/// Quantizes rows, each super-block with `plain` when there is no importance, and hands them to `write` in order.
#[inline(always)]
pub(super) fn encode<V: Lanes>(rows: Rows<'_>, plain: &AffineSearch, mut write: impl FnMut(usize, &Block)) {
    let columns = rows.columns;
    let mut weights = vec![0.0; columns];
    let mut fits = vec![AffineFit::default(); columns / 32];
    let mut index = 0;
    for row in rows.values.chunks_exact(columns) {
        let groups = row.as_chunks::<32>().0;
        match rows.importance {
            Some(importance) => {
                weigh_super_blocks(row, importance, 2.0, &mut weights);
                let search = AffineSearch::weighted(plain.levels);
                search.fit::<V, 32>(groups, weights.as_chunks().0, &mut fits);
            }
            None => {
                for (group, weights) in groups.iter().zip(weights.as_chunks_mut::<32>().0) {
                    let root_mean_square = (sum_of_squares(group) / 32.0).sqrt();
                    for (weight, &x) in weights.iter_mut().zip(group) {
                        *weight = root_mean_square + x.abs();
                    }
                }
                plain.fit::<V, 32>(groups, weights.as_chunks().0, &mut fits);
            }
        }
        let blocks = row.as_chunks::<256>().0.iter().zip(weights.as_chunks::<256>().0);
        for ((values, weights), fits) in blocks.zip(fits.as_chunks::<8>().0) {
            let weights = rows.importance.is_some().then_some(weights);
            write(index, &finish(values, weights, fits, plain.levels));
            index += 1;
        }
    }
}

#[inline(always)]
fn finish(values: &[f32; 256], weights: Option<&[f32; 256]>, fits: &[AffineFit; 8], levels: u8) -> Block {
    let (d, dmin, packed) = match weights {
        Some(weights) => weighted_scales(fits, weights),
        None => plain_scales(fits),
    };
    let ((d, d_bytes), (dmin, dmin_bytes)) = (to_f16(d), to_f16(dmin));
    let mut codes = [0; 256];
    let groups = values.as_chunks::<32>().0.iter().zip(codes.as_chunks_mut::<32>().0);
    for (group, (values, codes)) in groups.enumerate() {
        let (scale, min) = scale_and_min(&packed, group);
        let scale = d * f32::from(scale);
        if scale == 0.0 {
            // What the search had, though nothing reads it.
            for (code, &x) in codes.iter_mut().zip(values) {
                *code = fits[group].code(x, levels);
            }
            continue;
        }
        requantize(values, dmin * f32::from(min), scale, (0, i32::from(levels)), codes);
    }
    let mut head = [0; 16];
    head[..2].copy_from_slice(&d_bytes);
    head[2..4].copy_from_slice(&dmin_bytes);
    head[4..].copy_from_slice(&packed);
    Block { head, codes }
}

/// The largest scale and minimum become 63, the others the nearest of 64 levels.
#[inline(always)]
fn plain_scales(fits: &[AffineFit; 8]) -> (f32, f32, [u8; 12]) {
    let (mut max_scale, mut max_min) = (0.0, 0.0);
    for fit in fits {
        max_scale = if fit.scale > max_scale { fit.scale } else { max_scale };
        max_min = if -fit.min > max_min { -fit.min } else { max_min };
    }
    let most = f32::from(MAX_SCALE);
    let inverse = |max: f32| if max > 0.0 { most / max } else { 0.0 };
    let (inverse_scale, inverse_min) = (inverse(max_scale), inverse(max_min));
    let (mut scales, mut mins) = ([0; 8], [0; 8]);
    for group in 0..8 {
        scales[group] = (nearest(inverse_scale * fits[group].scale) as u8).min(MAX_SCALE);
        mins[group] = (nearest(inverse_min * -fits[group].min) as u8).min(MAX_SCALE);
    }
    (max_scale / most, max_min / most, pack(&scales, &mins))
}

/// Scales and minima are themselves searched for, weighted by their groups' weights.
#[inline(always)]
fn weighted_scales(fits: &[AffineFit; 8], weights: &[f32; 256]) -> (f32, f32, [u8; 12]) {
    let group_weights = std::array::from_fn::<f32, 8, _>(|group| sum(&weights[group * 32..][..32]));
    let (mut scales, mut mins) = ([0; 8], [0; 8]);
    let d = scales::fit(MAX_SCALE, &fits.map(|fit| fit.scale), &group_weights, &mut scales);
    let dmin = scales::fit(MAX_SCALE, &fits.map(|fit| -fit.min), &group_weights, &mut mins);
    (d, dmin, pack(&scales, &mins))
}
