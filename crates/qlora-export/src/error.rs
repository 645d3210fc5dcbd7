//! What can go wrong with an export.

use std::path::PathBuf;

use crate::{FloatType, VerifyError};

/// A form of a model that cannot be written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExportError {
    /// The directory has files in it.
    #[error("{} exists and is not empty; remove it, or write to another directory", path.display())]
    NotEmpty {
        /// The directory.
        path: PathBuf,
    },
    /// There is something under the name of the file.
    #[error("{} exists; remove it, or write to another name", path.display())]
    Exists {
        /// The file.
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
    /// A tensor that cannot be quantized to NF4.
    #[error("{}: tensor `{name}` cannot be quantized: {source}", path.display())]
    Quantize {
        /// The checkpoint that is read.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Why.
        source: qlora_quant::QuantError,
    },
    /// A tensor that cannot be quantized to blocks of ggml.
    #[error("{}: tensor `{name}`: {source}", path.display())]
    Blocks {
        /// The checkpoint that is read.
        path: PathBuf,
        /// The tensor, by its name in the file.
        name: String,
        /// Why.
        source: Box<qlora_gguf::QuantizeError>,
    },
    /// What the model computes, or a tensor of it, has no place in the form asked for.
    #[error("{}: {what} cannot be written as {form}{hint}", path.display())]
    Inexpressible {
        /// The checkpoint that is read.
        path: PathBuf,
        /// What has no place.
        what: String,
        /// The form.
        form: &'static str,
        /// What to do, after `; `; may be empty.
        hint: &'static str,
    },
    /// The checkpoint that is read.
    #[error(transparent)]
    Model(Box<qlora_models::ModelError>),
    /// An adapter that does not fit the model.
    #[error(transparent)]
    Lora(#[from] qlora_lora::LoraError),
    /// A tokenizer or a chat template.
    #[error(transparent)]
    Text(#[from] qlora_text::Error),
    /// A GGUF file.
    #[error(transparent)]
    Gguf(Box<qlora_gguf::GgufError>),
    /// A file cannot be read or written.
    #[error(transparent)]
    File(#[from] qlora_files::Error),
    /// An adapter directory cannot be written.
    #[error(transparent)]
    Peft(Box<crate::PeftError>),
    /// What was written is not what was to be written.
    #[error(transparent)]
    Verify(Box<VerifyError>),
}

/// Large errors are boxed, so that results stay small.
macro_rules! boxed {
    ($($variant:ident($error:ty)),*) => {$(
        impl From<$error> for ExportError {
            fn from(error: $error) -> Self {
                Self::$variant(Box::new(error))
            }
        }
    )*};
}

boxed!(
    Model(qlora_models::ModelError),
    Gguf(qlora_gguf::GgufError),
    Peft(crate::PeftError),
    Verify(VerifyError)
);
