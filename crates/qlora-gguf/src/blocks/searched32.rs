//! Formats of 32 values a block whose scale follows from the values, and is searched for where importances weigh them.

use bytemuck::Pod;

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
