//! The GGUF container and the block formats of ggml.
//!
//! ```no_run
//! use qlora_gguf::Gguf;
//!
//! let gguf = Gguf::open("model.gguf")?;
//! let architecture = gguf.metadata().string("general.architecture")?;
//! let layers = gguf.metadata().usize(&format!("{architecture}.block_count"))?;
//! let embedding = gguf.tensor("token_embd.weight")?;
//! assert_eq!(embedding.shape().len(), 2); // [vocabulary, hidden]: row-major, outermost first
//! let values: Vec<f32> = embedding.dequantize()?;
//! # let _ = (layers, values);
//! # Ok::<(), qlora_gguf::GgufError>(())
//! ```
//!
//! | part | where |
//! |---|---|
//! | a file: header, metadata, tensor table, all checked before anything is believed | [`Gguf`] |
//! | typed metadata, readable and constructible | [`Metadata`], [`Value`], [`Array`], [`ValueType`] |
//! | the tensors and their blocks | [`TensorInfo`], [`Tensor`], [`GgmlType`] |
//! | a file written tensor by tensor | [`GgufWriter`], [`TensorSpec`] |
//! | from values to blocks, ggml's to the bit | [`GgmlType::quantize`], [`GgmlType::quantize_into`] |
//! | which tensor gets which format | [`FileType`], [`ModelFacts`] |
//! | which columns matter | [`ImportanceMatrix`], [`Importance`] |
//!
//! Files of versions 2 and 3, little endian, are read; they are memory-mapped, so a tensor costs memory only
//! when it is dequantized. A file is untrusted input: whatever its bytes, opening it gives a [`Gguf`] or a
//! [`GgufError`] that says what was being read and where, and allocates at most a small multiple of its length.
//!
//! The crate knows nothing of models: which tensor is what, and the row order of some of them (llama's q and k
//! are stored permuted), is for the reader of a model to know.

mod blocks;
mod cursor;
mod error;
mod file_type;
mod ggml_type;
mod gguf;
mod header;
mod importance;
mod metadata;
mod quantize;
mod search;
mod tensor;
mod value;
mod writer;

pub use error::GgufError;
pub use file_type::{FileType, ModelFacts, UnknownFileType};
pub use ggml_type::GgmlType;
pub use gguf::Gguf;
pub use importance::{Importance, ImportanceMatrix};
pub use metadata::Metadata;
pub use quantize::QuantizeError;
pub use tensor::{Tensor, TensorInfo};
pub use value::{Array, Value, ValueType};
pub use writer::{GgufWriter, TensorSpec};
