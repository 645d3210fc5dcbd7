//! Safetensors files: read through a memory map with strict bounds, written in a stream.
//!
//! A file is an 8-byte little-endian length, a JSON header of that length (padded with spaces to a multiple of
//! 8), and the tensors' bytes back to back without holes.

mod checkpoint;
mod mapped_file;
mod shards;
mod tensor;
mod writer;

pub use ::safetensors::Dtype;
pub use checkpoint::Checkpoint;
pub use mapped_file::SafetensorsFile;
pub use shards::write_sharded;
pub use tensor::Tensor;
pub use writer::{TensorBytes, TensorSpec, write_safetensors, write_safetensors_with};
