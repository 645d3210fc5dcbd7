//! What each fuzz target does with its input.

mod allocation;
mod data;
#[cfg(feature = "models")]
mod model;
mod text;

pub use data::{json, parquet, table};
#[cfg(feature = "models")]
pub use model::model_config;
pub use text::{gguf, safetensors, tokenizer_files, tokenizer_metadata};
