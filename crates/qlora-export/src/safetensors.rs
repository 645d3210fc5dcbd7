//! A checkpoint directory as Hugging Face has it: `config.json`, `generation_config.json`,
//! `model.safetensors`, and the files of the tokenizer.

mod error;
mod float_type;
mod merge;

use std::io::{self, Write};
use std::path::Path;

use qlora_files::atomic::{read_json, write_directory, write_json};
use qlora_files::safetensors::{TensorSpec, write_safetensors_with};
use qlora_models::{AdapterSet, Checkpoint, LoadProgress};
use qlora_text::Tokenizer;
use serde_json::{Map, Value, json};

pub use self::error::SafetensorsError;
pub use self::float_type::FloatType;
use self::merge::merge;

const TENSORS: &str = "model.safetensors";
const GENERATION: &str = "generation_config.json";

/// How a checkpoint directory is written.
#[derive(Clone, Copy, Debug, Default)]
pub struct SafetensorsOptions {
    /// The type of all tensors.
    pub dtype: FloatType,
}

/// What was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExportedCheckpoint {
    /// Tensors in `model.safetensors`.
    pub tensors: usize,
    /// Layers that an adapter was merged into.
    pub merged: usize,
    /// Bytes of `model.safetensors`.
    pub bytes: u64,
    /// Whether the source came with a tokenizer, which was written too.
    pub tokenizer: bool,
}

/// Writes a checkpoint as a directory that `transformers` loads, with `W + scale · B A` in place of `W` where
/// the adapter has factors. Sums are f32 and rounded once, to the type of `options`.
///
/// One tensor at a time is in memory. The directory appears whole or not at all; folders above it are
/// created.
///
/// # Errors
/// When the directory exists and is not empty, the adapter belongs to another model, a tensor is damaged or
/// does not fit the type, the configuration or tokenizer cannot be written, or a file cannot.
pub fn export_safetensors(
    checkpoint: &Checkpoint,
    adapter: Option<&AdapterSet>,
    options: SafetensorsOptions,
    directory: impl AsRef<Path>,
    progress: LoadProgress<'_>,
) -> Result<ExportedCheckpoint, SafetensorsError> {
    let directory = directory.as_ref();
    refuse_full(directory)?;
    if let Some(adapter) = adapter {
        adapter.check(checkpoint.config())?;
    }
    let tokenizer = checkpoint.has_tokenizer().then(|| checkpoint.tokenizer()).transpose()?;
    let config = config(checkpoint, tokenizer.as_ref(), options.dtype)?;
    let generation = generation_config(checkpoint, &config, tokenizer.as_ref())?;
    if let Some(parent) = directory.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        std::fs::create_dir_all(parent).map_err(qlora_files::Error::io("create", parent))?;
    }
    let mut exported = ExportedCheckpoint {
        tensors: 0,
        merged: adapter.map_or(0, |adapter| adapter.layers.len()),
        bytes: 0,
        tokenizer: tokenizer.is_some(),
    };
    write_directory(directory, |folder| {
        let path = folder.join(TENSORS);
        exported.tensors = write_tensors(checkpoint, adapter, options.dtype, &path, progress)?;
        exported.bytes = path.metadata().map_err(qlora_files::Error::io("inspect", &path))?.len();
        write_json(folder.join("config.json"), &config)?;
        write_json(folder.join(GENERATION), &generation)?;
        if let Some(tokenizer) = &tokenizer {
            tokenizer.save(folder)?;
        }
        Ok::<_, SafetensorsError>(())
    })?;
    Ok(exported)
}

/// A directory is replaced as a whole: one with files in it may be the source, or somebody's work.
fn refuse_full(directory: &Path) -> Result<(), SafetensorsError> {
    let is_full = match std::fs::read_dir(directory) {
        Ok(mut entries) => entries.next().is_some(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => false,
        Err(source) => return Err(qlora_files::Error::io("list", directory)(source).into()),
    };
    if is_full {
        return Err(SafetensorsError::NotEmpty { path: directory.to_owned() });
    }
    Ok(())
}

fn write_tensors(
    checkpoint: &Checkpoint,
    adapter: Option<&AdapterSet>,
    dtype: FloatType,
    path: &Path,
    progress: LoadProgress<'_>,
) -> Result<usize, SafetensorsError> {
    let tensors = checkpoint.config().tensors();
    let specs: Vec<TensorSpec> =
        tensors.iter().map(|(name, shape)| TensorSpec::new(name, dtype.stored(), shape.as_slice())).collect();
    let mut done = 0;
    let mut write = |index: usize, file: &mut dyn Write| -> Result<(), SafetensorsError> {
        let (name, shape) = &tensors[index];
        let mut values = checkpoint.tensor(name, shape)?;
        let layer = name.strip_suffix(".weight");
        if let Some((factors, scale)) = adapter.zip(layer).and_then(|(set, layer)| set.layers.get(layer)) {
            merge(&mut values, factors, *scale);
        }
        if let Some(index) = dtype.first_unfit(&values) {
            let (path, name) = (checkpoint.path().to_owned(), name.clone());
            return Err(SafetensorsError::Unfit { path, name, index, value: values[index], dtype });
        }
        dtype.write(&values, file).map_err(qlora_files::Error::io("write", path))?;
        done += 1;
        progress(done, tensors.len());
        Ok(())
    };
    let mut failure = None;
    let written = write_safetensors_with(path, &specs, &[("format", "pt")], |index, file| {
        write(index, file).map_err(|error| {
            failure = Some(error);
            io::Error::other("the tensor was not written")
        })
    });
    match failure {
        Some(error) => Err(error),
        None => Ok(written.map(|()| specs.len())?),
    }
}

/// The configuration of the checkpoint, with the type of the new weights and, where it says nothing of
/// special tokens, those of the tokenizer.
fn config(
    checkpoint: &Checkpoint,
    tokenizer: Option<&Tokenizer>,
    dtype: FloatType,
) -> Result<Map<String, Value>, SafetensorsError> {
    let mut config = checkpoint.config_json()?;
    // The second is the name of transformers 5, the first that of all before.
    for key in ["torch_dtype", "dtype"] {
        config.insert(key.into(), dtype.torch_name().into());
    }
    insert_special_tokens(&mut config, tokenizer);
    Ok(config)
}

/// That of the checkpoint, which may hold sampling parameters, or one with the special tokens.
fn generation_config(
    checkpoint: &Checkpoint,
    config: &Map<String, Value>,
    tokenizer: Option<&Tokenizer>,
) -> Result<Map<String, Value>, SafetensorsError> {
    let path = checkpoint.path().join(GENERATION);
    if path.is_file() {
        return Ok(read_json(path)?);
    }
    let keys = ["bos_token_id", "eos_token_id", "pad_token_id"];
    let ids = keys.iter().filter_map(|key| Some(((*key).to_owned(), config.get(*key)?.clone())));
    let mut generation = Map::from_iter(ids);
    insert_special_tokens(&mut generation, tokenizer);
    Ok(generation)
}

/// Absent keys are not left to `transformers`, whose defaults are those of Llama 2.
fn insert_special_tokens(keys: &mut Map<String, Value>, tokenizer: Option<&Tokenizer>) {
    let eos = match tokenizer.map_or(&[][..], Tokenizer::eos) {
        [] => Value::Null,
        [id] => json!(id),
        ids => json!(ids),
    };
    keys.entry("bos_token_id").or_insert_with(|| json!(tokenizer.and_then(Tokenizer::bos)));
    keys.entry("eos_token_id").or_insert(eos);
    keys.entry("pad_token_id").or_insert_with(|| json!(tokenizer.and_then(Tokenizer::pad)));
}
