//! A checkpoint directory as Hugging Face has it: `config.json`, `generation_config.json`,
//! `model.safetensors` or shards of it, and the files of the tokenizer.

use std::path::Path;

use qlora_files::atomic::{read_json, write_directory, write_json};
use qlora_files::safetensors::{TensorSpec, write_sharded};
use qlora_models::{Checkpoint, LoadProgress};
use qlora_text::Tokenizer;
use serde_json::{Map, Value, json};

use crate::target::{prepare_directory, write_tensors};
use crate::{ExportError, ExportSource, FloatType};

const GENERATION: &str = "generation_config.json";

/// How a checkpoint directory is written.
#[derive(Clone, Copy, Debug)]
pub struct SafetensorsOptions {
    /// The type of all tensors.
    pub dtype: FloatType,
    /// Most bytes of tensors in a file; a larger tensor has one to itself.
    pub shard_size: u64,
}

impl Default for SafetensorsOptions {
    /// bfloat16, in files of 5 GB.
    fn default() -> Self {
        Self { dtype: FloatType::default(), shard_size: 5_000_000_000 }
    }
}

/// What was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExportedCheckpoint {
    /// Tensors of the checkpoint.
    pub tensors: usize,
    /// Layers that an adapter was merged into.
    pub merged: usize,
    /// Files with tensors.
    pub files: usize,
    /// Bytes of all files with tensors.
    pub bytes: u64,
    /// Whether the source came with a tokenizer, which was written too.
    pub tokenizer: bool,
}

/// Writes a directory that `transformers` loads. Sums are f32 and rounded once, to the type of `options`.
///
/// One tensor at a time is in memory. The directory appears whole or not at all; folders above it are
/// created.
///
/// # Errors
/// When the directory exists and is not empty, the disk is too small, a tensor is damaged or does not fit the
/// type, the configuration or tokenizer cannot be written, or a file cannot.
pub fn export_safetensors(
    source: ExportSource<'_>,
    options: SafetensorsOptions,
    directory: impl AsRef<Path>,
    progress: LoadProgress<'_>,
) -> Result<ExportedCheckpoint, ExportError> {
    let SafetensorsOptions { dtype, shard_size } = options;
    let (directory, checkpoint) = (directory.as_ref(), source.checkpoint());
    prepare_directory(directory, checkpoint.config().parameter_count() as u64 * dtype.size())?;
    let tensors = checkpoint.config().tensors();
    let specs: Vec<TensorSpec> =
        tensors.iter().map(|(name, shape)| TensorSpec::new(name, dtype.stored(), shape.as_slice())).collect();
    let mut done = 0;
    let mut files = 0;
    let described = describe(checkpoint, dtype)?;
    write_directory(directory, |folder| {
        let mut write = |index: usize, file: &mut dyn std::io::Write| {
            let (name, shape) = &tensors[index];
            source.pieces(name, shape, |values| write_floats(source, name, &values, dtype, file))?;
            done += 1;
            progress(done, tensors.len());
            Ok(())
        };
        files = write_tensors(&mut write, |write| {
            write_sharded(folder, &specs, shard_size, &[("format", "pt")], write)
        })?;
        described.write(folder)
    })?;
    Ok(ExportedCheckpoint {
        tensors: specs.len(),
        merged: source.merged_layers(),
        files,
        bytes: tensor_bytes(directory)?,
        tokenizer: described.tokenizer.is_some(),
    })
}

/// Writes values rounded to a type, refusing those that it cannot hold.
pub(crate) fn write_floats(
    source: ExportSource<'_>,
    name: &str,
    values: &[f32],
    dtype: FloatType,
    file: &mut dyn std::io::Write,
) -> Result<(), ExportError> {
    let path = source.checkpoint().path();
    if let Some(index) = dtype.first_unfit(values) {
        let (path, name) = (path.to_owned(), name.to_owned());
        return Err(ExportError::Unfit { path, name, index, value: values[index], dtype });
    }
    Ok(dtype.write(values, file).map_err(qlora_files::Error::io("write the tensors of", path))?)
}

/// Bytes of all `.safetensors` files of a directory.
pub(crate) fn tensor_bytes(directory: &Path) -> Result<u64, ExportError> {
    let list = || -> std::io::Result<u64> {
        let mut bytes = 0;
        for entry in std::fs::read_dir(directory)? {
            let entry = entry?;
            if entry.path().extension().is_some_and(|extension| extension == "safetensors") {
                bytes += entry.metadata()?.len();
            }
        }
        Ok(bytes)
    };
    Ok(list().map_err(qlora_files::Error::io("list", directory))?)
}

/// The files beside the tensors.
pub(crate) struct Described {
    pub(crate) config: Map<String, Value>,
    generation: Map<String, Value>,
    pub(crate) tokenizer: Option<Tokenizer>,
}

/// Makes them before anything is written.
pub(crate) fn describe(checkpoint: &Checkpoint, dtype: FloatType) -> Result<Described, ExportError> {
    let tokenizer = checkpoint.has_tokenizer().then(|| checkpoint.tokenizer()).transpose()?;
    let config = config(checkpoint, tokenizer.as_ref(), dtype)?;
    let generation = generation_config(checkpoint, &config, tokenizer.as_ref())?;
    Ok(Described { config, generation, tokenizer })
}

impl Described {
    pub(crate) fn write(&self, folder: &Path) -> Result<(), ExportError> {
        write_json(folder.join("config.json"), &self.config)?;
        write_json(folder.join(GENERATION), &self.generation)?;
        if let Some(tokenizer) = &self.tokenizer {
            tokenizer.save(folder)?;
        }
        Ok(())
    }
}

/// The configuration of the checkpoint, with the type of the new weights and, where it says nothing of
/// special tokens, those of the tokenizer.
fn config(
    checkpoint: &Checkpoint,
    tokenizer: Option<&Tokenizer>,
    dtype: FloatType,
) -> Result<Map<String, Value>, ExportError> {
    let mut config = checkpoint.config_json()?;
    // Of the source; the new weights are not quantized, or say how themselves.
    config.remove("quantization_config");
    // The second is the name of transformers 5, the first that of all before.
    for key in ["torch_dtype", "dtype"] {
        config.insert(key.into(), dtype.torch_name().into());
    }
    insert_special_tokens(&mut config, tokenizer);
    stop_where_answers_end(&mut config, checkpoint, tokenizer);
    Ok(config)
}

/// That of the checkpoint, which may hold sampling parameters, or one with the special tokens.
fn generation_config(
    checkpoint: &Checkpoint,
    config: &Map<String, Value>,
    tokenizer: Option<&Tokenizer>,
) -> Result<Map<String, Value>, ExportError> {
    let path = checkpoint.path().join(GENERATION);
    if path.is_file() {
        let mut generation = read_json(path)?;
        stop_where_answers_end(&mut generation, checkpoint, tokenizer);
        return Ok(generation);
    }
    let keys = ["bos_token_id", "eos_token_id", "pad_token_id"];
    let ids = keys.iter().filter_map(|key| Some(((*key).to_owned(), config.get(*key)?.clone())));
    let mut generation = Map::from_iter(ids);
    insert_special_tokens(&mut generation, tokenizer);
    Ok(generation)
}

/// Absent keys are not left to `transformers`, whose defaults are those of Llama 2.
fn insert_special_tokens(keys: &mut Map<String, Value>, tokenizer: Option<&Tokenizer>) {
    let eos = tokenizer.map_or(Value::Null, stop_tokens);
    keys.entry("bos_token_id").or_insert_with(|| json!(tokenizer.and_then(Tokenizer::bos)));
    keys.entry("eos_token_id").or_insert(eos);
    keys.entry("pad_token_id").or_insert_with(|| json!(tokenizer.and_then(Tokenizer::pad)));
}

/// With another chat template than the checkpoint's own, its files do not know the token that ends an answer.
fn stop_where_answers_end(
    keys: &mut Map<String, Value>,
    checkpoint: &Checkpoint,
    tokenizer: Option<&Tokenizer>,
) {
    if let Some(tokenizer) = tokenizer.filter(|_| checkpoint.given_chat_templates().is_some()) {
        keys.insert("eos_token_id".to_owned(), stop_tokens(tokenizer));
    }
}

/// As `eos_token_id` has them: one, several, or none.
fn stop_tokens(tokenizer: &Tokenizer) -> Value {
    match tokenizer.eos() {
        [] => Value::Null,
        [id] => json!(id),
        ids => json!(ids),
    }
}
