//! Trained parameters on the host, and the files of tensors.

use std::path::Path;

use qlora_files::safetensors::{SafetensorsFile, Tensor, TensorBytes, write_safetensors};
use sha2::{Digest, Sha256};

use crate::TrainError;

/// A trained parameter on the host.
#[derive(Clone, Debug, PartialEq)]
pub struct NamedTensor {
    /// The parameter's PEFT name.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Its elements, row-major.
    pub values: Vec<f32>,
}

impl NamedTensor {
    /// What a file holds of it.
    pub(super) fn entry(&self) -> TensorBytes<'_> {
        TensorBytes::f32(self.name.clone(), self.shape.clone(), &self.values)
    }

    /// All tensors of a file, in the order of their names.
    pub(super) fn read_all(file: &SafetensorsFile) -> Result<Vec<Self>, String> {
        let read = |tensor: Tensor<'_>| {
            let values = tensor.to_f32().map_err(|error| error.to_string())?;
            Ok(Self { name: tensor.name().to_string(), shape: tensor.shape().to_vec(), values })
        };
        let mut tensors = file.tensors().map(read).collect::<Result<Vec<_>, String>>()?;
        tensors.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(tensors)
    }
}

/// Writes a file of tensors and gives back its hex SHA-256.
pub(super) fn write<'a>(
    path: &Path,
    tensors: impl IntoIterator<Item = TensorBytes<'a>>,
) -> Result<String, TrainError> {
    write_safetensors(path, tensors, &[("format", "pt")])?;
    digest(path)
}

/// Hex SHA-256 of a file.
pub(super) fn digest(path: &Path) -> Result<String, TrainError> {
    let mut hasher = Sha256::new();
    let mut file = std::fs::File::open(path).map_err(qlora_files::Error::io("open", path))?;
    std::io::copy(&mut file, &mut hasher).map_err(qlora_files::Error::io("read", path))?;
    Ok(format!("{:x}", hasher.finalize()))
}
