//! Causal attention over ragged batches, tiled so that scores are never stored (FlashAttention, Dao et al.
//! 2022, arXiv:2205.14135; FlashAttention-2, arXiv:2307.08691), with its backward pass.

mod backward;
mod decode;
mod forward;
mod packed;
mod paged;
mod product;
mod span;
#[cfg(test)]
mod tests;

pub use backward::attention_backward;
pub use forward::attention;
pub use paged::{PagedSequence, paged_attention};
pub use span::{AttentionShape, AttentionSpan};

/// Query rows (queries times heads that share a key) of a tile: a multiple of the product's row block.
const TILE_ROWS: usize = 48;
/// Keys of a tile, a multiple of [`PAD`].
const TILE_KEYS: usize = 128;
/// Packed rows and key panels are padded to a multiple of this, which every vector length divides.
const PAD: usize = 16;
/// Multiplications that one thread does alone sooner than two.
const SEQUENTIAL_PRODUCTS: usize = 200_000;
