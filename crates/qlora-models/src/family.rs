//! Families of models: how their configurations and tensors are named.

mod llama;

use std::path::Path;

use qlora_gguf::Metadata;
use serde_json::{Map, Value};

use crate::{DecoderConfig, ModelError};

/// A family of decoders.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Family {
    /// Llama 2 and 3, SmolLM2, and what else is built like them.
    Llama,
}

impl Family {
    const ALL: [Self; 1] = [Self::Llama];

    /// The supported families, for messages.
    pub(crate) fn names() -> String {
        Self::ALL.map(Self::name).join(", ")
    }

    /// The name of the family, as `model_type` of config.json and `general.architecture` of GGUF have it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Llama => "llama",
        }
    }

    fn by_name(path: &Path, name: &str) -> Result<Self, ModelError> {
        Self::ALL.into_iter().find(|family| family.name() == name).ok_or_else(|| {
            ModelError::UnsupportedArchitecture { path: path.to_owned(), found: name.to_owned() }
        })
    }

    /// Reads a `config.json`.
    pub(crate) fn config_from_json(path: &Path, config: &Value) -> Result<DecoderConfig, ModelError> {
        let Some(name) = config.get("model_type").and_then(Value::as_str) else {
            return Err(ModelError::Config {
                path: path.to_owned(),
                key: "model_type".into(),
                problem: "is missing or not a string".into(),
            });
        };
        let config = match Self::by_name(path, name)? {
            Self::Llama => llama::config_from_json(path, config)?,
        };
        checked(path, config)
    }

    /// The keys of `config.json` that [`config_from_json`](Self::config_from_json) reads, and those that
    /// `transformers` needs to find its class. `path` is for the error.
    pub(crate) fn config_to_json(
        self,
        path: &Path,
        config: &DecoderConfig,
    ) -> Result<Map<String, Value>, ModelError> {
        match self {
            Self::Llama => llama::config_to_json(path, config),
        }
    }

    /// Reads the metadata of a GGUF file. `has_head`: whether there is a head beside the embedding.
    pub(crate) fn config_from_gguf(
        path: &Path,
        metadata: &Metadata,
        has_head: bool,
        rope_divisors: Option<Vec<f32>>,
    ) -> Result<DecoderConfig, ModelError> {
        let name = metadata.string("general.architecture")?;
        let config = match Self::by_name(path, name)? {
            Self::Llama => llama::config_from_gguf(path, metadata, has_head, rope_divisors)?,
        };
        checked(path, config)
    }

    /// The GGUF name of a tensor that Hugging Face checkpoints call `name`.
    #[must_use]
    pub fn gguf_name(self, name: &str) -> Option<String> {
        match self {
            Self::Llama => llama::gguf_name(name),
        }
    }

    /// Brings rows from the order of GGUF files to that of Hugging Face checkpoints.
    pub(crate) fn rows_from_gguf(self, name: &str, values: Vec<f32>, config: &DecoderConfig) -> Vec<f32> {
        match self {
            Self::Llama => llama::rows_from_gguf(name, values, config),
        }
    }

    /// Brings rows from the order of Hugging Face checkpoints to that of GGUF files: those of the tensor `name`, or
    /// of a factor B `[out, rank]` that is added to it.
    #[must_use]
    pub fn rows_to_gguf(self, name: &str, values: Vec<f32>, config: &DecoderConfig) -> Vec<f32> {
        match self {
            Self::Llama => llama::rows_to_gguf(name, values, config),
        }
    }
}

fn checked(path: &Path, config: DecoderConfig) -> Result<DecoderConfig, ModelError> {
    match config.validate() {
        Ok(()) => Ok(config),
        Err((key, problem)) => Err(ModelError::Config { path: path.to_owned(), key: key.into(), problem }),
    }
}
