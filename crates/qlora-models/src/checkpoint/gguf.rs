//! GGUF: names translated, rows reordered, blocks decoded.

use std::ops::Range;
use std::path::Path;

use qlora_gguf::Gguf;

use super::check_shape;
use crate::{DecoderConfig, Family, ModelError};

pub(super) fn open(path: &Path) -> Result<(DecoderConfig, Gguf), ModelError> {
    let file = Gguf::open(path)?;
    let has_head = file.opt_tensor("output.weight").is_some();
    let divisors = file.opt_tensor("rope_freqs.weight").map(|t| t.dequantize()).transpose()?;
    let config = Family::config_from_gguf(path, file.metadata(), has_head, divisors)?;
    Ok((config, file))
}

pub(super) fn tensor(
    path: &Path,
    file: &Gguf,
    config: &DecoderConfig,
    name: &str,
    shape: &[usize],
) -> Result<Vec<f32>, ModelError> {
    let missing = || ModelError::MissingTensor { path: path.to_owned(), name: name.to_owned() };
    let gguf_name = config.family.gguf_name(name).ok_or_else(missing)?;
    let tensor = file.opt_tensor(&gguf_name).ok_or_else(missing)?;
    check_shape(path, &gguf_name, tensor.shape(), shape)?;
    Ok(config.family.rows_from_gguf(name, tensor.dequantize()?, config))
}

pub(super) fn rows(
    path: &Path,
    file: &Gguf,
    config: &DecoderConfig,
    name: &str,
    shape: [usize; 2],
    rows: Range<usize>,
) -> Result<Vec<f32>, ModelError> {
    let missing = || ModelError::MissingTensor { path: path.to_owned(), name: name.to_owned() };
    let gguf_name = config.family.gguf_name(name).ok_or_else(missing)?;
    let tensor = file.opt_tensor(&gguf_name).ok_or_else(missing)?;
    check_shape(path, &gguf_name, tensor.shape(), &shape)?;
    let mut values = vec![0.0; rows.len() * shape[1]];
    tensor.dequantize_range(rows.start * shape[1]..rows.end * shape[1], &mut values)?;
    Ok(values)
}
