//! Formats of 32 values a block whose scale follows from the values, and is searched for where importances weigh them.

use bytemuck::Pod;

use super::rounding::{extreme, inverse_or_zero, truncated_bytes, weigh_row};
use crate::search::affine::{AffineFit, AffineSearch};
use crate::search::symmetric::{self, SymmetricFit};
use crate::search::{Encoder, Lanes, Rows};

/// The two ways to encode such a format. Both are inlined, as [`Encoder`] asks for.
pub(super) trait Searched32 {
    /// The bytes of a block.
    type Block: Pod;

    /// One block by its values alone.
    fn encode_block<V: Lanes>(values: &[f32; 32], block: &mut Self::Block);

    /// A row whose errors are weighed by the importances of its columns.
    fn encode_weighted<V: Lanes>(row: &[f32], importance: &[f32], blocks: &mut [Self::Block]);
}

impl<T: Searched32> Encoder for T {
    #[inline(always)]
    fn encode<V: Lanes>(rows: Rows<'_>, out: &mut [u8]) {
        let blocks: &mut [T::Block] = bytemuck::cast_slice_mut(out);
        match rows.importance {
            Some(importance) => {
                let rows = rows.values.chunks_exact(rows.columns);
                for (row, blocks) in rows.zip(blocks.chunks_exact_mut(importance.len() / 32)) {
                    T::encode_weighted::<V>(row, importance, blocks);
                }
            }
            None => {
                for (values, block) in rows.values.as_chunks().0.iter().zip(blocks) {
                    T::encode_block::<V>(values, block);
                }
            }
        }
    }
}

/// Scale and codes of a block of `d (code − bound)`: code 0 is the value of largest magnitude, whatever its sign.
#[inline(always)]
pub(super) fn symmetric<V: Lanes>(bound: u8, values: &[f32; 32]) -> (f32, [u8; 32]) {
    let d = extreme(values) / -f32::from(bound);
    let codes = truncated_bytes::<V>(values, 0.0, inverse_or_zero(d), f32::from(bound) + 0.5);
    (d, codes.map(|code| (code as i8).min(2 * bound as i8 - 1) as u8))
}

/// As [`symmetric`], of a row whose errors are weighed: `write` gets scale and codes of each block.
#[inline(always)]
pub(super) fn symmetric_weighted<V: Lanes, B>(
    bound: u8,
    row: &[f32],
    importance: &[f32],
    blocks: &mut [B],
    write: impl Fn(f32, &[u8; 32], &mut B),
) {
    let mut weights = vec![0.0; row.len()];
    weigh_row(row, importance, &mut weights);
    let groups = row.as_chunks().0;
    let mut fits = vec![SymmetricFit::default(); groups.len()];
    symmetric::fit::<V, 32>(bound, groups, weights.as_chunks().0, &mut fits);
    for ((values, fit), block) in groups.iter().zip(fits).zip(blocks) {
        write(fit.scale, &values.map(|x| fit.code(x, bound)), block);
    }
}

/// Scale, minimum and codes of each block of a row of `d code + m` whose errors are weighed, for `write`.
#[inline(always)]
pub(super) fn affine_weighted<V: Lanes, B>(
    levels: u8,
    row: &[f32],
    importance: &[f32],
    blocks: &mut [B],
    write: impl Fn(f32, f32, &[u8; 32], &mut B),
) {
    let mut weights = vec![0.0; row.len()];
    weigh_row(row, importance, &mut weights);
    let groups = row.as_chunks().0;
    let mut fits = vec![AffineFit::default(); groups.len()];
    AffineSearch::weighted(levels).fit::<V, 32>(groups, weights.as_chunks().0, &mut fits);
    for ((values, fit), block) in groups.iter().zip(fits).zip(blocks) {
        write(fit.scale, fit.min, &values.map(|x| fit.code(x, levels)), block);
    }
}
