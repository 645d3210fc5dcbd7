//! Saving from a model in one call.

use std::path::Path;

use burn::tensor::backend::Backend;
use qlora_lora::LoraConfig;
use qlora_models::Decoder;

use crate::{PeftAdapter, PeftError};

/// A model whose adapters can be written for PEFT.
pub trait SaveAdapter {
    /// Writes the attached adapters as a PEFT adapter directory, which does not load before it is complete.
    ///
    /// `config` is what they were attached with, `base_model` the hub id or path that PEFT is to load the
    /// base model from.
    ///
    /// # Errors
    /// When no adapter is attached, or the directory cannot be written.
    fn save_adapter(
        &self,
        directory: impl AsRef<Path>,
        config: &LoraConfig,
        base_model: Option<&str>,
    ) -> Result<(), PeftError>;
}

impl<B: Backend> SaveAdapter for Decoder<B> {
    fn save_adapter(
        &self,
        directory: impl AsRef<Path>,
        config: &LoraConfig,
        base_model: Option<&str>,
    ) -> Result<(), PeftError> {
        let directory = directory.as_ref();
        PeftAdapter::from_adapter_set(self.adapter_set(), config, base_model)
            .map_err(|source| PeftError::Invalid { path: directory.to_owned(), source })?
            .write(directory)
    }
}
