//! `(scale, min)[16] of 4 bits | codes[64] of 2 bits | d | dmin`, value = d scale code − dmin min, groups of 16.

use super::rounding::{requantize, sum, to_f16, weigh_super_blocks};
use super::{f16_at, quarters};
use crate::search::affine::{AffineFit, AffineSearch, Deviation};
use crate::search::{Encoder, Lanes, Rows, nearest, scales};

const LEVELS: u8 = 3;
/// The largest scale and minimum.
const MAX_SCALE: u8 = 15;

pub(super) fn decode(block: &[u8; 84], out: &mut [f32; 256]) {
    let (scales, codes) = (&block[..16], &block[16..80]);
    let (d, dmin) = (f16_at(block, 80), f16_at(block, 82));
    for (group, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let scale = d * f32::from(scales[group] & 15);
        let min = dmin * f32::from(scales[group] >> 4);
        // 128 values lie in 32 bytes, 32 values at each of four bit positions.
        let (half, shift, run) = (group / 8, group % 8 / 2 * 2, group % 2);
        let codes = &codes[half * 32 + run * 16..][..16];
        for (out, &byte) in out.iter_mut().zip(codes) {
            *out = scale * f32::from(byte >> shift & 3) - min;
        }
    }
}

pub(super) struct Q2K;

impl Encoder for Q2K {
    #[inline(always)]
    fn encode<V: Lanes>(rows: Rows<'_>, out: &mut [u8]) {
        let plain = AffineSearch {
            levels: LEVELS,
            first: -0.5,
            step: 0.1,
            steps: 15,
            deviation: Deviation::Absolute,
        };
        let columns = rows.columns;
        let mut weights = vec![0.0; columns];
        let mut fits = vec![AffineFit::default(); columns / 16];
        let out_rows = out.as_chunks_mut::<84>().0.chunks_exact_mut(columns / 256);
        for (row, blocks) in rows.values.chunks_exact(columns).zip(out_rows) {
            let groups = row.as_chunks::<16>().0;
            match rows.importance {
                Some(importance) => {
                    weigh_super_blocks(row, importance, 1.0, &mut weights);
                    AffineSearch::weighted(LEVELS).fit::<V, 16>(groups, weights.as_chunks().0, &mut fits);
                }
                None => {
                    for (weight, &x) in weights.iter_mut().zip(row) {
                        *weight = x.abs();
                    }
                    plain.fit::<V, 16>(groups, weights.as_chunks().0, &mut fits);
                }
            }
            let values = row.as_chunks::<256>().0.iter().zip(weights.as_chunks::<256>().0);
            for (((values, weights), fits), block) in values.zip(fits.as_chunks::<16>().0).zip(blocks) {
                let weights = rows.importance.is_some().then_some(weights);
                finish(values, weights, fits, block);
            }
        }
    }
}

#[inline(always)]
fn finish(values: &[f32; 256], weights: Option<&[f32; 256]>, fits: &[AffineFit; 16], block: &mut [u8; 84]) {
    let (d, dmin, packed) = match weights {
        Some(weights) => weighted_scales(fits, weights),
        None => plain_scales(fits),
    };
    let ((d, d_bytes), (dmin, dmin_bytes)) = (to_f16(d), to_f16(dmin));
    let mut codes = [0; 256];
    let groups = values.as_chunks::<16>().0.iter().zip(codes.as_chunks_mut::<16>().0);
    for (group, (values, codes)) in groups.enumerate() {
        let scale = d * f32::from(packed[group] & 15);
        if scale == 0.0 {
            // What the search had, though nothing reads it.
            for (code, &x) in codes.iter_mut().zip(values) {
                *code = fits[group].code(x, LEVELS);
            }
            continue;
        }
        let min = dmin * f32::from(packed[group] >> 4);
        requantize(values, min, scale, (0, i32::from(LEVELS)), codes);
    }
    block[..16].copy_from_slice(&packed);
    quarters::pack(&codes, &mut block[16..80]);
    block[80..82].copy_from_slice(&d_bytes);
    block[82..].copy_from_slice(&dmin_bytes);
}

/// The largest scale and minimum become 15, the others the nearest of 16 levels.
#[inline(always)]
fn plain_scales(fits: &[AffineFit; 16]) -> (f32, f32, [u8; 16]) {
    let (mut max_scale, mut max_min) = (0.0, 0.0);
    for fit in fits {
        max_scale = if fit.scale > max_scale { fit.scale } else { max_scale };
        max_min = if -fit.min > max_min { -fit.min } else { max_min };
    }
    let most = f32::from(MAX_SCALE);
    let mut packed = [0; 16];
    for (packed, fit) in packed.iter_mut().zip(fits) {
        if max_scale > 0.0 {
            *packed = nearest(most / max_scale * fit.scale) as u8;
        }
        if max_min > 0.0 {
            *packed |= (nearest(most / max_min * -fit.min) << 4) as u8;
        }
    }
    let factor = |max: f32| if max > 0.0 { max / most } else { 0.0 };
    (factor(max_scale), factor(max_min), packed)
}

/// Scales and minima are themselves searched for, weighted by their groups' weights.
#[inline(always)]
fn weighted_scales(fits: &[AffineFit; 16], weights: &[f32; 256]) -> (f32, f32, [u8; 16]) {
    let group_weights = std::array::from_fn::<f32, 16, _>(|group| sum(&weights[group * 16..][..16]));
    let (mut scales, mut mins) = ([0; 16], [0; 16]);
    let d = scales::fit(MAX_SCALE, &fits.map(|fit| fit.scale), &group_weights, &mut scales);
    let dmin = scales::fit(MAX_SCALE, &fits.map(|fit| -fit.min), &group_weights, &mut mins);
    (d, dmin, std::array::from_fn(|group| scales[group] | mins[group] << 4))
}
