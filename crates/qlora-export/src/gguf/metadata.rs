//! The metadata of a file: what the model computes, in llama.cpp's keys, and its tokenizer.

use qlora_gguf::Metadata;
use qlora_models::{DecoderConfig, Family, RopeScaling};

use super::GgufOptions;
use crate::{ExportError, ExportSource};

/// What a file says of how it was made and not of the model.
const OF_THE_FILE: [&str; 4] = ["general.file_type", "general.quantization_version", "split.", "quantize."];
/// ggml's version of the block formats.
const QUANTIZATION_VERSION: u32 = 2;

pub(super) fn metadata(source: ExportSource<'_>, options: GgufOptions<'_>) -> Result<Metadata, ExportError> {
    let checkpoint = source.checkpoint();
    let mut metadata = Metadata::new();
    if let Some(file) = checkpoint.gguf() {
        let entries = file.metadata().iter();
        for (key, value) in entries.filter(|(key, _)| !OF_THE_FILE.iter().any(|own| key.starts_with(own))) {
            metadata.insert(key, value.clone());
        }
    } else {
        let name = checkpoint.path().file_stem().map(|name| name.to_string_lossy().into_owned());
        expressible(checkpoint.config()).map_err(|what| ExportError::Inexpressible {
            path: checkpoint.path().to_owned(),
            what,
            form: "GGUF metadata",
            hint: "; export to safetensors, and use llama.cpp's converter",
        })?;
        metadata.insert("general.architecture", checkpoint.config().family.gguf_architecture());
        metadata.insert("general.type", "model");
        metadata.insert("general.name", name.unwrap_or_default());
        architecture(&mut metadata, checkpoint.config());
        if checkpoint.has_tokenizer() {
            let tokenizer = checkpoint.tokenizer()?.to_gguf_metadata(checkpoint.config().vocab_size, None)?;
            tokenizer.iter().for_each(|(key, value)| drop(metadata.insert(key, value.clone())));
        } else {
            metadata.insert("tokenizer.ggml.model", "no_vocab");
        }
    }
    metadata.insert("general.file_type", options.file_type.id());
    metadata.insert("general.quantization_version", QUANTIZATION_VERSION);
    Ok(metadata)
}

/// What of a configuration has no key here; GGUF files bring their own metadata.
fn expressible(config: &DecoderConfig) -> Result<(), String> {
    let family = config.family;
    let windowed = config.layer_attention.iter().any(|layer| layer.window.is_some());
    if !matches!(
        family,
        Family::Llama | Family::Mistral | Family::Qwen2 | Family::Qwen3 | Family::Gemma3 | Family::Phi3
    ) {
        return Err(format!("a model of the family {}", family.name()));
    }
    if windowed && !matches!(family, Family::Gemma3 | Family::Phi3) {
        return Err("a sliding window".to_owned());
    }
    match config.rope_scaling {
        RopeScaling::None | RopeScaling::Linear { .. } => Ok(()),
        RopeScaling::Llama3 { .. } | RopeScaling::Divisors(_) if family == Family::Llama => Ok(()),
        _ => Err("this rotary scaling".to_owned()),
    }
}

/// Sizes and choices under the keys of the architecture.
fn architecture(metadata: &mut Metadata, config: &DecoderConfig) {
    let name = config.family.gguf_architecture();
    let key = |key: &str| format!("{name}.{key}");
    for (suffix, value) in [
        ("vocab_size", config.vocab_size),
        ("context_length", config.max_position_embeddings),
        ("embedding_length", config.hidden_size),
        ("block_count", config.layers),
        ("feed_forward_length", config.intermediate_size),
        ("attention.head_count", config.heads),
        ("attention.head_count_kv", config.kv_heads),
        ("attention.key_length", config.head_dim),
        ("attention.value_length", config.head_dim),
        ("rope.dimension_count", config.rotary_dim.unwrap_or(config.head_dim)),
    ] {
        // The configuration was checked: sizes are below 2^28.
        metadata.insert(key(suffix), value as u32);
    }
    metadata.insert(key("attention.layer_norm_rms_epsilon"), config.rms_norm_eps as f32);
    metadata.insert(key("rope.freq_base"), config.rope_theta as f32);
    if let Some(window) = config.layer_attention.iter().find_map(|layer| layer.window) {
        metadata.insert(key("attention.sliding_window"), window as u32);
    } else if config.family == Family::Phi3 {
        // llama.cpp asks for it; one of the context is none.
        metadata.insert(key("attention.sliding_window"), config.max_position_embeddings as u32);
        metadata.insert(key("rope.scaling.original_context_length"), config.max_position_embeddings as u32);
    }
    if let RopeScaling::Linear { factor } = &config.rope_scaling {
        metadata.insert(key("rope.scaling.type"), "linear");
        metadata.insert(key("rope.scaling.factor"), *factor as f32);
    }
}
