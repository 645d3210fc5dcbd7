//! Causal attention in tiles of 32 queries and 32 keys: memory grows with the rows, not with their square.
//!
//! A cube of 64 units takes one tile of queries (or of keys, for their gradients) and one head, and walks over
//! the tiles of the other side. A unit owns 4×4 scores. Products go through two 32×32 tiles of shared memory,
//! 32 features at a time, so that any head size fits the 16 KiB that every GPU has. The running maximum and sum
//! are those of Milakov & Gimelshein 2018 (<https://arxiv.org/abs/1805.02867>), the backward pass is that of
//! [`crate::attention`]. No atomics: the same inputs give the same bits.

mod backward;
mod forward;
mod tiles;

pub(super) use backward::backward;
pub(super) use forward::forward;
#[cfg(feature = "cuda")]
pub(crate) use tiles::covers_all;
