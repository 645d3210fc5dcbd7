//! A directory with `config.json` and safetensors, whole or sharded.

use std::ops::Range;
use std::path::Path;

use super::check_shape;
use crate::{DecoderConfig, Family, ModelError};

pub(super) fn open(path: &Path) -> Result<(DecoderConfig, qlora_files::safetensors::Checkpoint), ModelError> {
    let config_path = path.join("config.json");
    let config = qlora_files::atomic::read_json(&config_path)?;
    let config = Family::config_from_json(&config_path, &config)?;
    Ok((config, qlora_files::safetensors::Checkpoint::open(path)?))
}

pub(super) fn tensor(
    path: &Path,
    files: &qlora_files::safetensors::Checkpoint,
    name: &str,
    shape: &[usize],
) -> Result<Vec<f32>, ModelError> {
    if !files.contains(name) {
        return Err(ModelError::MissingTensor { path: path.to_owned(), name: name.to_owned() });
    }
    let tensor = files.tensor(name)?;
    check_shape(path, name, tensor.shape(), shape)?;
    let values = tensor.to_f32()?;
    files.release(name);
    Ok(values)
}

pub(super) fn rows(
    path: &Path,
    files: &qlora_files::safetensors::Checkpoint,
    name: &str,
    shape: [usize; 2],
    rows: Range<usize>,
) -> Result<Vec<f32>, ModelError> {
    if !files.contains(name) {
        return Err(ModelError::MissingTensor { path: path.to_owned(), name: name.to_owned() });
    }
    let tensor = files.tensor(name)?;
    check_shape(path, name, tensor.shape(), &shape)?;
    let mut values = vec![0.0; rows.len() * shape[1]];
    tensor.read_rows_f32_into(rows, &mut values)?;
    files.release(name);
    Ok(values)
}
