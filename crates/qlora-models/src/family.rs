//! Families of models: how their configurations and tensors are named.

mod cohere;
mod gemma;
mod gemma2;
mod gemma3;
mod gguf_entries;
mod gguf_keys;
mod granite;
mod json_keys;
mod json_write;
mod llama;
mod mistral;
mod names;
mod olmo2;
mod phi3;
mod qwen2;
mod qwen3;
mod qwen3_moe;
mod rope_json;
mod smollm3;

use std::path::Path;

use qlora_gguf::Metadata;
use serde_json::{Map, Value, json};

use self::gguf_entries::{GgufEntries, InLlamaCpp};
use self::gguf_keys::GgufKeys;
use self::json_keys::JsonKeys;
use self::names::NamePair;
use crate::{DecoderConfig, ModelError};

pub use self::gguf_entries::NotInGguf;
pub(crate) use self::gguf_entries::gguf_metadata;
pub(crate) use self::gguf_keys::GgufTensors;
pub use self::names::GgufName;

/// A family of decoders.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Family {
    /// Llama 2 and 3, SmolLM2, and what else is built like them.
    Llama,
    /// Mistral.
    Mistral,
    /// SmolLM3: some layers are not rotated.
    SmolLm3,
    /// Qwen 2 and 2.5.
    Qwen2,
    /// Qwen 3.
    Qwen3,
    /// Qwen 3, mixtures of experts.
    Qwen3Moe,
    /// Gemma.
    Gemma,
    /// Gemma 2.
    Gemma2,
    /// Gemma 3, the text model.
    Gemma3,
    /// Phi 3, 3.5 and 4.
    Phi3,
    /// OLMo 2.
    Olmo2,
    /// Granite.
    Granite,
    /// Command R and R+.
    Cohere,
}

/// What sets a family apart: a file each.
struct Spec {
    /// `model_type` of config.json; the first is written.
    model_types: &'static [&'static str],
    /// `architectures` of config.json.
    class: &'static str,
    /// `general.architecture` of GGUF files.
    gguf: &'static str,
    from_json: fn(&JsonKeys<'_>) -> Result<DecoderConfig, ModelError>,
    /// The keys of config.json beside those that all families write.
    to_json: fn(&DecoderConfig, &mut Map<String, Value>),
    from_gguf: fn(&GgufKeys<'_>) -> Result<DecoderConfig, ModelError>,
    /// The keys of GGUF files beside those that all families write. Refuses what llama.cpp does not compute.
    to_gguf: fn(&DecoderConfig, &mut GgufEntries) -> Result<(), NotInGguf>,
    /// What llama.cpp has for the architecture.
    in_llama_cpp: InLlamaCpp,
    /// The norms of a layer.
    norms: &'static [NamePair],
    /// Whether llama.cpp's converter changes the order of the rows of q and k.
    gguf_rows_are_interleaved: bool,
    /// Whether it adds one to the weights of norms.
    gguf_norms_have_one: bool,
}

/// The key of most architectures.
const RMS_EPS: &str = "attention.layer_norm_rms_epsilon";

impl Family {
    const ALL: [Self; 13] = [
        Self::Llama,
        Self::Mistral,
        Self::SmolLm3,
        Self::Qwen2,
        Self::Qwen3,
        Self::Qwen3Moe,
        Self::Gemma,
        Self::Gemma2,
        Self::Gemma3,
        Self::Phi3,
        Self::Olmo2,
        Self::Granite,
        Self::Cohere,
    ];

    fn spec(self) -> &'static Spec {
        match self {
            Self::Llama => &llama::SPEC,
            Self::Mistral => &mistral::SPEC,
            Self::SmolLm3 => &smollm3::SPEC,
            Self::Qwen2 => &qwen2::SPEC,
            Self::Qwen3 => &qwen3::SPEC,
            Self::Qwen3Moe => &qwen3_moe::SPEC,
            Self::Gemma => &gemma::SPEC,
            Self::Gemma2 => &gemma2::SPEC,
            Self::Gemma3 => &gemma3::SPEC,
            Self::Phi3 => &phi3::SPEC,
            Self::Olmo2 => &olmo2::SPEC,
            Self::Granite => &granite::SPEC,
            Self::Cohere => &cohere::SPEC,
        }
    }

    /// The supported families, for messages.
    pub(crate) fn names() -> String {
        Self::ALL.map(Self::name).join(", ")
    }

    /// The name of the family, as `model_type` of config.json has it.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.spec().model_types[0]
    }

    /// The name of the family, as `general.architecture` of GGUF files has it.
    #[must_use]
    pub fn gguf_architecture(self) -> &'static str {
        self.spec().gguf
    }

    fn by(path: &Path, name: &str, is: impl Fn(&Spec) -> bool) -> Result<Self, ModelError> {
        Self::ALL.into_iter().find(|family| is(family.spec())).ok_or_else(|| {
            ModelError::UnsupportedArchitecture { path: path.to_owned(), found: name.to_owned() }
        })
    }

    /// The part of a `config.json` that is about text: of models that also see, an object in it.
    pub(crate) fn text_config(config: &Value) -> &Value {
        match config.get("text_config") {
            Some(text) if config.get("vision_config").is_some() => text,
            _ => config,
        }
    }

    /// Reads a `config.json`.
    pub(crate) fn config_from_json(path: &Path, config: &Value) -> Result<DecoderConfig, ModelError> {
        let keys = JsonKeys::new(path, Self::text_config(config));
        let Some(name) = keys.opt_text("model_type")? else {
            return Err(keys.wrong("model_type", "is missing or not a string"));
        };
        let family = Self::by(path, name, |spec| spec.model_types.contains(&name))?;
        let config = (family.spec().from_json)(&keys)?;
        keys.finish(&format!("`{name}`"))?;
        checked(path, config)
    }

    /// The keys of `config.json` that [`config_from_json`](Self::config_from_json) reads, and those that
    /// `transformers` needs to find its class. `path` is for the error.
    pub(crate) fn config_to_json(
        self,
        path: &Path,
        config: &DecoderConfig,
    ) -> Result<Map<String, Value>, ModelError> {
        let spec = self.spec();
        let mut keys = json_write::shared(config);
        keys.insert("architectures".into(), json!([spec.class]));
        keys.insert("model_type".into(), self.name().into());
        rope_json::write(config, &mut keys).map_err(|problem| ModelError::Config {
            path: path.to_owned(),
            key: "rope_freqs.weight".into(),
            problem,
        })?;
        (spec.to_json)(config, &mut keys);
        Ok(keys)
    }

    /// Reads the metadata of a GGUF file.
    pub(crate) fn config_from_gguf(
        path: &Path,
        metadata: &Metadata,
        tensors: &GgufTensors,
    ) -> Result<DecoderConfig, ModelError> {
        let name = metadata.string("general.architecture")?;
        let family = Self::by(path, name, |spec| spec.gguf == name)?;
        let keys = GgufKeys::new(path, metadata, name, tensors);
        let config = (family.spec().from_gguf)(&keys)?;
        keys.finish()?;
        checked(path, config)
    }

    /// Where GGUF files have the tensor that Hugging Face checkpoints call `name`.
    #[must_use]
    pub fn gguf_name(self, name: &str) -> Option<GgufName> {
        names::gguf_name(self.spec().norms, name)
    }
}

fn checked(path: &Path, config: DecoderConfig) -> Result<DecoderConfig, ModelError> {
    match config.validate() {
        Ok(()) => Ok(config),
        Err((key, problem)) => Err(ModelError::Config { path: path.to_owned(), key: key.into(), problem }),
    }
}

#[cfg(test)]
mod tests;
