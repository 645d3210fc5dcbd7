//! A checkpoint directory whose linear layers are NF4, as `transformers` with bitsandbytes saves and loads it.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::Path;

use qlora_files::atomic::write_directory;
use qlora_files::safetensors::{Dtype, TensorSpec, write_sharded};
use qlora_models::{DecoderConfig, LoadProgress};
use qlora_quant::bnb::{BnbDtype, to_tensors};
use qlora_quant::{Nf4Options, Nf4Tensor, SourceDtype};
use serde_json::{Value, json};

use crate::safetensors::{describe, tensor_bytes, write_floats};
use crate::target::{prepare_directory, write_tensors};
use crate::{ExportError, ExportSource, ExportedCheckpoint, FloatType};

/// Parts of a quantized weight up to this size are kept from the first pass, which learns their sizes.
const SMALL: usize = 1 << 16;

/// How the weights are quantized.
#[derive(Clone, Copy, Debug)]
pub struct Bnb4BitOptions {
    /// Block size and double quantization.
    pub nf4: Nf4Options,
    /// The type of what is not quantized (embedding, head, norms, biases), and of products.
    pub dtype: FloatType,
    /// Most bytes of tensors in a file.
    pub shard_size: u64,
}

impl Default for Bnb4BitOptions {
    /// Blocks of 64, double quantization, bfloat16, files of 5 GB.
    fn default() -> Self {
        let nf4 = Nf4Options { double_quant: true, ..Nf4Options::default() };
        Self { nf4, dtype: FloatType::Bf16, shard_size: 5_000_000_000 }
    }
}

impl Bnb4BitOptions {
    /// With the type that bitsandbytes is to dequantize to.
    pub(crate) fn nf4(self) -> Nf4Options {
        let dtype = match self.dtype {
            FloatType::F32 => SourceDtype::F32,
            FloatType::F16 => SourceDtype::F16,
            FloatType::Bf16 => SourceDtype::Bf16,
        };
        Nf4Options { dtype, ..self.nf4 }
    }
}

/// A tensor of the directory.
struct Part {
    spec: TensorSpec,
    /// The tensor of the model that it is, or is a part of.
    index: usize,
    /// `None` for a tensor that is not quantized.
    suffix: Option<&'static str>,
    /// Its bytes, when they are few.
    bytes: Option<Vec<u8>>,
}

/// Writes a directory that `transformers` loads with bitsandbytes, every linear layer in NF4; an adapter is merged
/// before that. Head, routers of experts, and what a source in NF4 has left in floats stay in floats.
///
/// Each weight is quantized twice: a part's size, which the header of the file needs, is known only then.
/// One tensor at a time is in memory. The directory appears whole or not at all.
///
/// # Errors
/// As [`export_safetensors`](crate::export_safetensors), and when a weight holds NaN or infinity.
pub fn export_bnb_4bit(
    source: ExportSource<'_>,
    options: Bnb4BitOptions,
    directory: impl AsRef<Path>,
    progress: LoadProgress<'_>,
) -> Result<ExportedCheckpoint, ExportError> {
    let (directory, checkpoint) = (directory.as_ref(), source.checkpoint());
    let tensors = checkpoint.config().tensors();
    let linears = source.quantized_weights();
    let elements = |linear: bool| {
        let of_kind = tensors.iter().filter(|(name, _)| linears.contains(name) == linear);
        of_kind.map(|(_, shape)| shape.iter().product::<usize>() as u64).sum::<u64>()
    };
    // 4 bits and at most one f32 scale in 32 elements.
    prepare_directory(directory, elements(true) * 5 / 8 + elements(false) * options.dtype.size())?;
    let mut described = describe(checkpoint, options.dtype)?;
    let left_out = modules_in_floats(checkpoint.config(), &linears);
    described.config.insert("quantization_config".into(), quantization_config(options, &left_out));

    let (mut parts, total) = (Vec::new(), 2 * tensors.len());
    let mut done = 0;
    let mut advance = || {
        // Scales in f32 take a further pass.
        done = total.min(done + 1);
        progress(done, total);
    };
    for (index, (name, shape)) in tensors.iter().enumerate() {
        if linears.contains(name) {
            let weight = quantize(source, name, shape, options)?;
            parts.extend(to_tensors(&weight).into_iter().map(|part| Part {
                spec: TensorSpec::new(format!("{name}{}", part.suffix), stored(part.dtype), part.shape),
                index,
                suffix: Some(part.suffix),
                bytes: (part.bytes.len() <= SMALL).then(|| part.bytes.into_owned()),
            }));
        } else {
            let spec = TensorSpec::new(name, options.dtype.stored(), shape.as_slice());
            parts.push(Part { spec, index, suffix: None, bytes: None });
        }
        advance();
    }
    let specs: Vec<TensorSpec> = parts.iter().map(|part| part.spec.clone()).collect();
    // Parts of one weight that are not kept follow each other: codes and scales are bytes of neighbouring names.
    let mut current: Option<(usize, Nf4Tensor)> = None;
    let mut files = 0;
    write_directory(directory, |folder| {
        let mut write = |index: usize, file: &mut dyn Write| {
            let Part { index, suffix, bytes, .. } = &parts[index];
            let (name, shape) = &tensors[*index];
            let failed = |error| qlora_files::Error::io("write the tensors of", checkpoint.path())(error);
            match (suffix, bytes) {
                (None, _) => {
                    source.pieces(name, shape, |values| {
                        write_floats(source, name, &values, options.dtype, file)
                    })?;
                    advance();
                }
                (Some(_), Some(bytes)) => file.write_all(bytes).map_err(failed)?,
                (Some(suffix), None) => {
                    if current.as_ref().is_none_or(|(current, _)| current != index) {
                        current = Some((*index, quantize(source, name, shape, options)?));
                        advance();
                    }
                    let parts = current.as_ref().map(|(_, weight)| to_tensors(weight)).unwrap_or_default();
                    let part = parts.iter().find(|part| part.suffix == *suffix);
                    file.write_all(part.map_or(&[], |part| &part.bytes)).map_err(failed)?;
                }
            }
            Ok(())
        };
        files = write_tensors(&mut write, |write| {
            write_sharded(folder, &specs, options.shard_size, &[("format", "pt")], write)
        })?;
        described.write(folder)
    })?;
    Ok(ExportedCheckpoint {
        tensors: tensors.len(),
        merged: source.merged_layers(),
        files,
        bytes: tensor_bytes(directory)?,
        tokenizer: described.tokenizer.is_some(),
    })
}

/// A weight of the source, merged, in NF4.
pub(crate) fn quantize(
    source: ExportSource<'_>,
    name: &str,
    shape: &[usize],
    options: Bnb4BitOptions,
) -> Result<Nf4Tensor, ExportError> {
    if source.is_as_stored(name) {
        return Ok(source.checkpoint().quantize(name, shape, options.nf4())?);
    }
    Nf4Tensor::quantize(&source.tensor(name, shape)?, shape, options.nf4()).map_err(|error| {
        let path = source.checkpoint().path().to_owned();
        ExportError::Quantize { path, name: name.to_owned(), source: error }
    })
}

fn stored(dtype: BnbDtype) -> Dtype {
    match dtype {
        BnbDtype::U8 => Dtype::U8,
        BnbDtype::F32 => Dtype::F32,
        BnbDtype::F16 => Dtype::F16,
        BnbDtype::Bf16 => Dtype::BF16,
    }
}

/// The linear layers that are not quantized, for `llm_int8_skip_modules`. By their whole paths, which all that read the
/// key understand: releases of `transformers` and vLLM differ in how they compare shorter ones, as `mlp.gate`.
fn modules_in_floats(config: &DecoderConfig, quantized: &BTreeSet<String>) -> Vec<String> {
    let is_left_out = |name: &str, shape: &[usize]| {
        shape.len() == 2
            && name.starts_with("model.layers.")
            && !name.ends_with("norm.weight")
            && !quantized.contains(name)
    };
    // Named also where the head is the embedding: then `transformers` makes a layer of it.
    let mut modules = vec!["lm_head".to_owned()];
    for (name, shape) in config.tensors() {
        if let Some(path) = name.strip_suffix(".weight").filter(|_| is_left_out(&name, &shape)) {
            modules.push(path.to_owned());
        }
    }
    modules
}

/// `quantization_config` of config.json.
fn quantization_config(options: Bnb4BitOptions, modules_in_floats: &[String]) -> Value {
    json!({
        "quant_method": "bitsandbytes",
        "_load_in_4bit": true,
        "_load_in_8bit": false,
        "load_in_4bit": true,
        "load_in_8bit": false,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": options.nf4.double_quant,
        "bnb_4bit_compute_dtype": options.dtype.torch_name(),
        "bnb_4bit_quant_storage": "uint8",
        "llm_int8_skip_modules": modules_in_floats,
        "llm_int8_threshold": 6.0,
        "llm_int8_enable_fp32_cpu_offload": false,
        "llm_int8_has_fp16_weight": false,
    })
}
