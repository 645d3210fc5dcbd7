//! The metadata of a file: what the model computes, in llama.cpp's keys, and its tokenizer.

use qlora_gguf::Metadata;

use super::GgufOptions;
use crate::{ExportError, ExportSource};

/// What a file says of how it was made and not of the model.
const OF_THE_FILE: [&str; 4] = ["general.file_type", "general.quantization_version", "split.", "quantize."];
/// Everything of the tokenizer, and the number of its tokens where a file tells it of the model too.
const TOKENIZER: &str = "tokenizer.";
const VOCABULARY_SIZE: &str = ".vocab_size";
/// The model's own chat templates.
const CHAT_TEMPLATE: &str = "tokenizer.chat_template";
/// ggml's version of the block formats.
const QUANTIZATION_VERSION: u32 = 2;

pub(super) fn metadata(source: ExportSource<'_>, options: GgufOptions<'_>) -> Result<Metadata, ExportError> {
    let checkpoint = source.checkpoint();
    let mut metadata = Metadata::new();
    if let Some(file) = checkpoint.gguf() {
        let (grown, chats) = (checkpoint.has_added_tokens(), checkpoint.given_chat_templates().is_some());
        let left_out = |key: &str| {
            let replaced = (chats && key.starts_with(CHAT_TEMPLATE))
                || (grown && (key.starts_with(TOKENIZER) || key.ends_with(VOCABULARY_SIZE)));
            replaced || OF_THE_FILE.iter().any(|own| key.starts_with(own))
        };
        copy(file.metadata(), &mut metadata, |key| !left_out(key));
        if grown {
            let pre = file.metadata().opt_string("tokenizer.ggml.pre")?;
            let rows = checkpoint.config().vocab_size;
            copy(&checkpoint.tokenizer()?.to_gguf_metadata(rows, pre)?, &mut metadata, |_| true);
        } else if chats {
            copy(&checkpoint.tokenizer()?.chat_gguf_metadata(), &mut metadata, |_| true);
        }
    } else {
        // Of a directory: what follows a point is no extension, as in `Qwen2.5-0.5B`.
        let name = checkpoint.path().file_name().map(|name| name.to_string_lossy().into_owned());
        metadata = checkpoint.config().gguf_metadata().map_err(|error| ExportError::Inexpressible {
            path: checkpoint.path().to_owned(),
            what: error.what,
            form: "GGUF metadata",
            hint: ": llama.cpp computes something else; export to safetensors",
        })?;
        metadata.insert("general.type", "model");
        metadata.insert("general.name", name.unwrap_or_default());
        if checkpoint.has_tokenizer() {
            let tokenizer = checkpoint.tokenizer()?.to_gguf_metadata(checkpoint.config().vocab_size, None)?;
            copy(&tokenizer, &mut metadata, |_| true);
        } else {
            metadata.insert("tokenizer.ggml.model", "no_vocab");
        }
    }
    metadata.insert("general.file_type", options.file_type.id());
    metadata.insert("general.quantization_version", QUANTIZATION_VERSION);
    Ok(metadata)
}

fn copy(from: &Metadata, to: &mut Metadata, keep: impl Fn(&str) -> bool) {
    for (key, value) in from.iter().filter(|(key, _)| keep(key)) {
        to.insert(key, value.clone());
    }
}
