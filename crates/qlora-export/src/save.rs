//! Saving from a model in one call.

use std::path::Path;

use burn::tensor::backend::Backend;
use qlora_lora::LoraConfig;
use qlora_models::{Checkpoint, Decoder};
use qlora_text::Tokenizer;

use crate::{
    ExportError, ExportSource, ExportedCheckpoint, ExportedGguf, GgufType, PeftAdapter, PeftError,
    SafetensorsOptions, export_gguf, export_safetensors,
};

/// A model whose adapters can be written for PEFT.
pub trait SaveAdapter {
    /// Writes the attached adapters as a PEFT adapter directory, which does not load before it is complete. It has
    /// neither tokenizer nor chat template: see
    /// [`save_adapter_with_tokenizer`](Self::save_adapter_with_tokenizer).
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

    /// [`save_adapter`](Self::save_adapter), with the tokenizer and its chat template: all that a server needs beside
    /// the base model's weights. After training with another template than the model's own, the tokenizer is to have
    /// that one ([`Checkpoint::with_chat_templates`]).
    ///
    /// # Errors
    /// As [`save_adapter`](Self::save_adapter).
    fn save_adapter_with_tokenizer(
        &self,
        directory: impl AsRef<Path>,
        config: &LoraConfig,
        base_model: Option<&str>,
        tokenizer: &Tokenizer,
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
        peft_adapter(self, config, base_model, directory)?.write(directory)
    }

    fn save_adapter_with_tokenizer(
        &self,
        directory: impl AsRef<Path>,
        config: &LoraConfig,
        base_model: Option<&str>,
        tokenizer: &Tokenizer,
    ) -> Result<(), PeftError> {
        let directory = directory.as_ref();
        peft_adapter(self, config, base_model, directory)?.write_complete(directory, Some(tokenizer))
    }
}

fn peft_adapter<B: Backend>(
    model: &Decoder<B>,
    config: &LoraConfig,
    base_model: Option<&str>,
    directory: &Path,
) -> Result<PeftAdapter, PeftError> {
    PeftAdapter::from_adapter_set(model.adapter_set(), config, base_model)
        .map_err(|source| PeftError::Invalid { path: directory.to_owned(), source })
}

/// A model that can be written with its adapters merged. The weights come from the checkpoint that it was loaded
/// from, not from what a quantized model has in memory.
pub trait SaveMerged {
    /// Writes a directory that `transformers` loads, in bfloat16, the attached adapters merged. See
    /// [`export_safetensors`] for other types, and [`verify`](crate::verify) to have it compared.
    ///
    /// # Errors
    /// As [`export_safetensors`].
    fn save_merged(
        &self,
        checkpoint: &Checkpoint,
        directory: impl AsRef<Path>,
    ) -> Result<ExportedCheckpoint, ExportError>;

    /// Writes a GGUF file of this type, the attached adapters merged.
    ///
    /// # Errors
    /// As [`export_gguf`].
    fn save_gguf(
        &self,
        checkpoint: &Checkpoint,
        path: impl AsRef<Path>,
        file_type: GgufType,
    ) -> Result<ExportedGguf, ExportError>;
}

impl<B: Backend> SaveMerged for Decoder<B> {
    fn save_merged(
        &self,
        checkpoint: &Checkpoint,
        directory: impl AsRef<Path>,
    ) -> Result<ExportedCheckpoint, ExportError> {
        let adapters = self.adapter_set();
        let source = ExportSource::new(checkpoint).with_adapter(&adapters)?;
        export_safetensors(source, SafetensorsOptions::default(), directory, &mut |_, _| {})
    }

    fn save_gguf(
        &self,
        checkpoint: &Checkpoint,
        path: impl AsRef<Path>,
        file_type: GgufType,
    ) -> Result<ExportedGguf, ExportError> {
        let adapters = self.adapter_set();
        export_gguf(ExportSource::new(checkpoint).with_adapter(&adapters)?, file_type, path, &mut |_, _| {})
    }
}
