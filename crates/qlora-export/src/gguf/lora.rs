//! An adapter as a GGUF file, which llama.cpp applies to a model of any type.

use std::path::Path;

use qlora_files::atomic::write_file;
use qlora_gguf::{GgmlType, GgufWriter, Metadata, TensorSpec};
use qlora_models::{AdapterSet, DecoderConfig};

use crate::ExportError;
use crate::target::prepare_file;

/// What was written.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ExportedGgufLora {
    /// Layers with an adapter.
    pub layers: usize,
    /// `adapter.lora.alpha`: llama.cpp scales the update of a layer by alpha / rank.
    pub alpha: f64,
    /// Layers whose scale is another, which is folded into their factor B.
    pub folded: usize,
    /// Bytes of the file.
    pub bytes: u64,
}

/// Writes an adapter as llama.cpp loads it with `--lora`: factors in f32, rows of B in the order of the file's q and k.
///
/// The file has one alpha, and llama.cpp divides it by each layer's rank. rsLoRA becomes part of it; where layers
/// differ (patterns of ranks or alphas), it is that of most, and the others' B are multiplied with what is left.
///
/// # Errors
/// When there is something at `path`, the adapter belongs to another model or has a layer that GGUF has no name
/// for, or the file cannot be written.
pub fn export_gguf_lora(
    adapter: &AdapterSet,
    config: &DecoderConfig,
    base_name: Option<&str>,
    path: impl AsRef<Path>,
) -> Result<ExportedGgufLora, ExportError> {
    let path = path.as_ref();
    adapter.check(config)?;
    let alpha = usual_alpha(adapter);
    let (mut specs, mut values, mut folded) = (Vec::new(), Vec::new(), 0);
    for (layer, (factors, scale)) in &adapter.layers {
        let weight = format!("{layer}.weight");
        let inexpressible = |what| ExportError::Inexpressible {
            path: path.to_owned(),
            what,
            form: "a GGUF adapter",
            hint: "; merge it into the weights and export those",
        };
        if factors.magnitude.is_some() {
            return Err(inexpressible("an adapter with DoRA's magnitudes".to_owned()));
        }
        let name = config.family.gguf_name(&weight);
        let name = name.filter(|name| name.expert.is_none());
        let name = name.ok_or_else(|| inexpressible(format!("the adapter of `{layer}`")))?.tensor;
        let mut b = config.family.values_to_gguf(&weight, factors.b.clone(), config);
        let fold = scale * factors.rank as f64 / alpha;
        // Equal but for the rounding of √rank.
        if (fold - 1.0).abs() > 1e-6 {
            b.iter_mut().for_each(|b| *b = (f64::from(*b) * fold) as f32);
            folded += 1;
        }
        let mut push = |suffix: &str, shape: [usize; 2], factor: Vec<f32>| {
            specs.push(TensorSpec::new(format!("{name}.{suffix}"), shape, GgmlType::F32));
            values.push(factor);
        };
        push("lora_a", [factors.rank, factors.inputs], factors.a.clone());
        push("lora_b", [factors.outputs, factors.rank], b);
    }
    let mut metadata = Metadata::new();
    metadata.insert("general.architecture", config.family.gguf_architecture());
    metadata.insert("general.type", "adapter");
    metadata.insert("adapter.type", "lora");
    metadata.insert("adapter.lora.alpha", alpha as f32);
    if let Some(name) = base_name {
        metadata.insert("general.base_model.count", 1_u32);
        metadata.insert("general.base_model.0.name", name);
    }
    let writer = GgufWriter::new(metadata, specs).map_err(qlora_files::Error::io("lay out", path))?;
    prepare_file(path, writer.file_length())?;
    write_file(path, |file| {
        writer.write(file, |index, out| {
            values[index].iter().try_for_each(|value| out.write_all(&value.to_le_bytes()))
        })
    })?;
    Ok(ExportedGgufLora { layers: adapter.layers.len(), alpha, folded, bytes: writer.file_length() })
}

/// The `scale · rank` of most layers; 1 for an adapter without layers.
fn usual_alpha(adapter: &AdapterSet) -> f64 {
    let mut alphas: Vec<(f64, usize)> = Vec::new();
    for (factors, scale) in adapter.layers.values() {
        let alpha = scale * factors.rank as f64;
        match alphas.iter_mut().find(|(known, _)| (alpha / known - 1.0).abs() <= 1e-6) {
            Some((_, count)) => *count += 1,
            None => alphas.push((alpha, 1)),
        }
    }
    let most = alphas.iter().map(|(_, count)| *count).max();
    alphas.iter().find(|(_, count)| Some(*count) == most).map_or(1.0, |(alpha, _)| *alpha)
}
