//! What can go wrong with a checkpoint directory.

use std::path::PathBuf;

use super::FloatType;

/// A checkpoint directory that cannot be written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SafetensorsError {
    /// The directory has files in it.
    #[error("{} exists and is not empty; remove it, or write to another directory", path.display())]
    NotEmpty {
        /// The directory.
        path: PathBuf,
    },
    /// A number that the type of the new file cannot hold, or that is none.
    #[error(
        "{}: tensor `{name}` has {value} at index {index}{}",
        path.display(),
        if value.is_finite() {
            format!(", which {} cannot hold; write bf16 or f32", dtype.torch_name())
        } else {
            "; the checkpoint is damaged, or the adapter's training diverged".to_owned()
        }
    )]
    Unfit {
        /// The checkpoint that is read.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Index of the first such element, row-major.
        index: usize,
        /// The element, with the adapter's update.
        value: f32,
        /// The type of the new file.
        dtype: FloatType,
    },
    /// The checkpoint that is read.
    #[error(transparent)]
    Model(#[from] qlora_models::ModelError),
    /// An adapter that does not fit the model.
    #[error(transparent)]
    Lora(#[from] qlora_lora::LoraError),
    /// The tokenizer cannot be written.
    #[error(transparent)]
    Text(#[from] qlora_text::Error),
    /// A file cannot be read or written.
    #[error(transparent)]
    File(#[from] qlora_files::Error),
}
