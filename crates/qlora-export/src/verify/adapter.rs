//! Adapters that were written, read again.

use std::path::Path;

use qlora_gguf::{Gguf, GgufError};
use qlora_lora::AdapterFactors;
use qlora_models::{AdapterSet, DecoderConfig};
use qlora_text::Tokenizer;

use super::VerifyError;
use super::probe::compare_tokens;
use crate::{ExportError, PeftAdapter};

/// How far `alpha / rank · B` of a file may be from `scale · B`, both rounded to f32.
const ROUNDING: f64 = 3e-6;

/// Reads a PEFT adapter directory again: the adapter must be equal, and the tokenizer beside it make the same of texts
/// and conversations. Returns how many token ids were compared.
///
/// # Errors
/// [`ExportError::Verify`] with the first difference; what was written stays there.
pub fn verify_peft(
    adapter: &PeftAdapter,
    tokenizer: Option<&Tokenizer>,
    directory: impl AsRef<Path>,
) -> Result<usize, ExportError> {
    let path = directory.as_ref();
    let found = PeftAdapter::read(path).map_err(|error| VerifyError::unreadable(path, error))?;
    if &found != adapter {
        let problem = "the adapter is another, or its configuration".to_owned();
        return Err(VerifyError::tensors(path, problem).into());
    }
    let Some(tokenizer) = tokenizer else { return Ok(0) };
    let found = Tokenizer::from_directory(path).map_err(|error| VerifyError::unreadable(path, error))?;
    compare_tokens(tokenizer, &found, path)
}

/// Reads a file of [`export_gguf_lora`](crate::export_gguf_lora) again and compares the factors of each layer, rows in
/// the order of the model: A as it is, and `alpha / rank · B` of the file with `scale · B`. Returns the number of
/// tensors.
///
/// # Errors
/// [`ExportError::Verify`] with the first tensor that is missing, superfluous or another; what was written stays there.
pub fn verify_gguf_lora(
    adapter: &AdapterSet,
    config: &DecoderConfig,
    path: impl AsRef<Path>,
) -> Result<usize, ExportError> {
    let path = path.as_ref();
    let file = Gguf::open(path).map_err(|error| VerifyError::unreadable(path, error))?;
    let alpha = check_metadata(&file, config, path)?;
    if file.tensors().len() != 2 * adapter.layers.len() {
        let problem = format!("{} of {} layers", file.tensors().len(), adapter.layers.len());
        return Err(VerifyError::tensors(path, problem).into());
    }
    for (layer, (factors, scale)) in &adapter.layers {
        let weight = format!("{layer}.weight");
        let name = config.family.gguf_name(&weight).map(|name| name.tensor).unwrap_or(weight.clone());
        let AdapterFactors { rank, inputs, outputs, .. } = *factors;
        let a = read(&file, path, format!("{name}.lora_a"), [rank, inputs])?;
        let b = read(&file, path, format!("{name}.lora_b"), [outputs, rank])?;
        let b = config.family.values_from_gguf(&weight, b, config);
        let is_scaled = |(found, expected): (&f32, &f32)| {
            let (found, expected) = (f64::from(*found) * alpha / rank as f64, f64::from(*expected) * scale);
            (found - expected).abs() <= ROUNDING * expected.abs()
        };
        if a != factors.a || !b.iter().zip(&factors.b).all(is_scaled) {
            return Err(VerifyError::tensors(path, format!("the factors of `{name}` are others")).into());
        }
    }
    Ok(file.tensors().len())
}

/// `adapter.lora.alpha` of an adapter for models of this architecture.
fn check_metadata(file: &Gguf, config: &DecoderConfig, path: &Path) -> Result<f64, ExportError> {
    let unreadable = |error: GgufError| VerifyError::unreadable(path, error);
    let keys = [
        ("general.architecture", config.family.gguf_architecture()),
        ("general.type", "adapter"),
        ("adapter.type", "lora"),
    ];
    for (key, expected) in keys {
        let found = file.metadata().string(key).map_err(unreadable)?;
        if found != expected {
            let problem = format!("`{key}` is {found:?} in place of {expected:?}");
            return Err(VerifyError::tensors(path, problem).into());
        }
    }
    Ok(f64::from(file.metadata().f32("adapter.lora.alpha").map_err(unreadable)?))
}

fn read(file: &Gguf, path: &Path, name: String, shape: [usize; 2]) -> Result<Vec<f32>, ExportError> {
    let unreadable = |error: GgufError| VerifyError::unreadable(path, error);
    let tensor = file.tensor(&name).map_err(unreadable)?;
    if tensor.shape() != shape {
        let problem = format!("`{name}` is {:?} in place of {shape:?}", tensor.shape());
        return Err(VerifyError::tensors(path, problem).into());
    }
    Ok(tensor.dequantize().map_err(unreadable)?)
}
