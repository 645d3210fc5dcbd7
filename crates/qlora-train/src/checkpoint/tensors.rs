//! Named f32 tensors on the host, and their files.

use std::path::Path;

use qlora_files::safetensors::{SafetensorsFile, TensorBytes, write_safetensors};
use sha2::{Digest, Sha256};

use crate::TrainError;

/// A trained parameter or an optimizer moment on the host.
#[derive(Clone, Debug, PartialEq)]
pub struct NamedTensor {
    /// The parameter's PEFT name.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Its elements, row-major.
    pub values: Vec<f32>,
}

/// Writes tensors under `name + suffix` and gives back the hex SHA-256 of the file.
pub(super) fn write<'a>(
    path: &Path,
    tensors: impl IntoIterator<Item = (&'a NamedTensor, &'a str)>,
) -> Result<String, TrainError> {
    let tensors = tensors.into_iter().map(|(tensor, suffix)| {
        TensorBytes::f32(format!("{}{suffix}", tensor.name), tensor.shape.clone(), &tensor.values)
    });
    write_safetensors(path, tensors, &[("format", "pt")])?;
    digest(path)
}

/// Reads the tensors that carry a suffix, in the order of their names.
pub(super) fn read(path: &Path, suffix: &str) -> Result<Vec<NamedTensor>, TrainError> {
    let file = SafetensorsFile::open(path)?;
    let mut tensors = file
        .tensors()
        .filter_map(|tensor| Some((tensor.name().strip_suffix(suffix)?.to_string(), tensor)))
        .map(|(name, tensor)| {
            Ok(NamedTensor { name, shape: tensor.shape().to_vec(), values: tensor.to_f32()? })
        })
        .collect::<Result<Vec<_>, qlora_files::Error>>()?;
    tensors.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(tensors)
}

/// Hex SHA-256 of a file.
pub(super) fn digest(path: &Path) -> Result<String, TrainError> {
    let mut hasher = Sha256::new();
    let mut file = std::fs::File::open(path).map_err(qlora_files::Error::io("open", path))?;
    std::io::copy(&mut file, &mut hasher).map_err(qlora_files::Error::io("read", path))?;
    Ok(format!("{:x}", hasher.finalize()))
}
