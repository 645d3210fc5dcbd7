//! The searches for scales and offsets that make a block's codes fit its values, after ggml's, in its order of
//! operations, so that the blocks are ggml's to the bit.
//!
//! A search works on one group of 16 or 32 values and is a chain of dependent steps; the groups of a row are
//! independent. So the vector registers hold one group per lane ([`Lanes`]), every lane does what scalar code
//! would do, and no sum changes its order: the result is the same for any number of lanes.

pub(crate) mod affine;
pub(crate) mod codebook;
pub(crate) mod descent;
mod isa;
mod lanes;
pub(crate) mod scales;
pub(crate) mod symmetric;
#[cfg(target_arch = "x86_64")]
mod x86;

pub(crate) use isa::{Encoder, Isa};
pub(crate) use lanes::{Lanes, MAX_LANES, nearest, truncated};

/// A group whose largest magnitude is below this counts as all zeros.
pub(crate) const ZERO_GROUP: f32 = 1e-15;

/// What an encoder gets: whole rows of finite values, and the weight of each column.
#[derive(Clone, Copy)]
pub(crate) struct Rows<'a> {
    pub(crate) values: &'a [f32],
    pub(crate) columns: usize,
    pub(crate) importance: Option<&'a [f32]>,
}

/// `groups` side by side: vector i holds value i of every group. Lanes without a group hold zeros.
#[inline(always)]
fn side_by_side<V: Lanes, const LEN: usize>(groups: &[[f32; LEN]]) -> [V; LEN] {
    let mut columns = [[0.0; MAX_LANES]; LEN];
    for (lane, group) in groups.iter().take(V::COUNT).enumerate() {
        for (column, &value) in columns.iter_mut().zip(group) {
            column[lane] = value;
        }
    }
    let mut vectors = [V::splat(0.0); LEN];
    for (vector, column) in vectors.iter_mut().zip(&columns) {
        *vector = V::load(column);
    }
    vectors
}

/// The lanes of `vector` as an array.
#[inline(always)]
fn lanes_of<V: Lanes>(vector: V) -> [f32; MAX_LANES] {
    let mut lanes = [0.0; MAX_LANES];
    vector.store(&mut lanes);
    lanes
}
