//! A safetensors file, or a model directory of them.

use std::path::Path;

use qlora_core::files::atomic::read_json;
use qlora_core::files::safetensors::Checkpoint;
use serde_json::{Map, Value, json};

use super::report::{Report, TensorRow};
use crate::failure::Failure;

pub(crate) fn describe(path: &Path) -> Result<Report, Failure> {
    let mut metadata = Map::new();
    let config = path.join("config.json");
    if config.is_file() {
        let entries: Map<String, Value> = read_json(&config)?;
        metadata.extend(entries);
    }
    with_metadata(path, if path.is_dir() { "model directory" } else { "safetensors file" }, metadata)
}

/// The tensors of a file or directory, under metadata read elsewhere.
pub(super) fn with_metadata(
    path: &Path,
    kind: &'static str,
    mut metadata: Map<String, Value>,
) -> Result<Report, Failure> {
    let checkpoint = Checkpoint::open(path)?;
    let mut bytes = 0;
    for file in checkpoint.files() {
        bytes += file.path().metadata().map_or(0, |metadata| metadata.len());
        for (key, value) in file.metadata() {
            metadata.entry(key).or_insert_with(|| json!(value));
        }
    }
    let tensors = checkpoint
        .files()
        .iter()
        .flat_map(|file| file.tensors())
        .map(|tensor| TensorRow {
            name: tensor.name().to_owned(),
            shape: tensor.shape().to_vec(),
            element_type: format!("{:?}", tensor.dtype()),
            bytes: tensor.bytes().len() as u64,
        })
        .collect();
    Ok(Report::new(path, kind, bytes, metadata, tensors))
}
