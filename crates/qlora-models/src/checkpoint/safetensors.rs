//! A directory with `config.json` and safetensors, whole or sharded; linear layers in floats or as bitsandbytes stores
//! them in NF4.

use std::collections::HashSet;
use std::ops::Range;
use std::path::Path;

use qlora_files::safetensors::Checkpoint;
use qlora_quant::bnb::{self, BnbDtype, RawTensor};
use qlora_quant::{Nf4Options, Nf4Tensor, QuantError};
use serde_json::Value;

use super::check_shape;
use crate::error::TensorProblems;
use crate::{DecoderConfig, Family, ModelError};

/// What names have before them in checkpoints of models that also see: of transformers today, and of before.
const PREFIXES: [(&str, &str); 2] = [("model.", "model.language_model."), ("", "language_model.")];

/// Why a weight could not be quantized as it was read.
#[derive(Debug)]
enum Failed {
    Read(qlora_files::Error),
    Quantize(QuantError),
}

impl From<qlora_files::Error> for Failed {
    fn from(error: qlora_files::Error) -> Self {
        Self::Read(error)
    }
}

impl From<QuantError> for Failed {
    fn from(error: QuantError) -> Self {
        Self::Quantize(error)
    }
}

/// The tensors of a directory.
#[derive(Debug)]
pub(super) struct Tensors {
    files: Checkpoint,
    /// The beginning of our names, and what the files have in its place.
    prefix: (&'static str, &'static str),
    /// Whether layers are stored in NF4. Those that are not, were meant not to be.
    is_quantized: bool,
}

pub(super) fn open(path: &Path) -> Result<(DecoderConfig, Tensors), ModelError> {
    let config_path = path.join("config.json");
    let config = qlora_files::atomic::read_json(&config_path)?;
    let is_quantized = is_quantized(&config_path, &config)?;
    let config = Family::config_from_json(&config_path, &config)?;
    let files = Checkpoint::open(path)?;
    let has = |prefix: &(&str, &str)| files.contains(&renamed(*prefix, "model.embed_tokens.weight"));
    let prefix = PREFIXES.into_iter().find(has).unwrap_or_default();
    Ok((config, Tensors { files, prefix, is_quantized }))
}

/// Whether the configuration names the one quantization that can be read; refuses others.
fn is_quantized(path: &Path, config: &Value) -> Result<bool, ModelError> {
    let Some(keys) = config.get("quantization_config").filter(|keys| !keys.is_null()) else {
        return Ok(false);
    };
    let is = |key: &str| keys.get(key).and_then(Value::as_bool).unwrap_or(false);
    let text = |key: &str| keys.get(key).and_then(Value::as_str).unwrap_or("none");
    let problem = match text("quant_method") {
        "bitsandbytes" if is("load_in_4bit") && text("bnb_4bit_quant_type") == "nf4" => return Ok(true),
        "bitsandbytes" => "is bitsandbytes in another type than NF4".to_owned(),
        other => format!("has quant_method `{other}`"),
    };
    Err(ModelError::Config {
        path: path.to_owned(),
        key: "quantization_config".into(),
        problem: format!(
            "{problem}: supported is bitsandbytes' NF4; take the checkpoint before quantization"
        ),
    })
}

fn renamed((ours, theirs): (&str, &str), name: &str) -> String {
    match name.strip_prefix(ours) {
        Some(rest) => format!("{theirs}{rest}"),
        None => name.to_owned(),
    }
}

impl Tensors {
    pub(super) fn tensor(&self, path: &Path, name: &str, shape: &[usize]) -> Result<Vec<f32>, ModelError> {
        if let Some(weight) = self.nf4(path, name, shape)? {
            return Ok(weight.dequantize());
        }
        let name = renamed(self.prefix, name);
        if !self.files.contains(&name) {
            return Err(ModelError::MissingTensor { path: path.to_owned(), name });
        }
        let tensor = self.files.tensor(&name)?;
        check_shape(path, &name, tensor.shape(), shape)?;
        let values = tensor.to_f32()?;
        self.files.release(&name);
        Ok(values)
    }

    /// A weight in NF4 that is stored in floats, quantized as it is read.
    pub(super) fn quantize(
        &self,
        path: &Path,
        name: &str,
        shape: &[usize],
        options: Nf4Options,
    ) -> Result<Nf4Tensor, ModelError> {
        let name = renamed(self.prefix, name);
        if !self.files.contains(&name) {
            return Err(ModelError::MissingTensor { path: path.to_owned(), name });
        }
        let tensor = self.files.tensor(&name)?;
        check_shape(path, &name, tensor.shape(), shape)?;
        let read = |elements, values: &mut [f32]| Ok(tensor.read_elements_f32_into(elements, values)?);
        let weight = Nf4Tensor::quantize_pieces(shape, options, read).map_err(|error| match error {
            Failed::Read(error) => error.into(),
            Failed::Quantize(source) => {
                ModelError::Quantize { path: path.to_owned(), name: name.clone(), source }
            }
        })?;
        self.files.release(&name);
        Ok(weight)
    }

    /// Some rows of a matrix, which need not fit into memory as a whole.
    pub(super) fn rows(
        &self,
        path: &Path,
        name: &str,
        shape: [usize; 2],
        rows: Range<usize>,
    ) -> Result<Vec<f32>, ModelError> {
        if let Some(weight) = self.nf4(path, name, &shape)? {
            return Ok(weight.dequantize()[rows.start * shape[1]..rows.end * shape[1]].to_vec());
        }
        let name = renamed(self.prefix, name);
        if !self.files.contains(&name) {
            return Err(ModelError::MissingTensor { path: path.to_owned(), name });
        }
        let tensor = self.files.tensor(&name)?;
        check_shape(path, &name, tensor.shape(), &shape)?;
        let mut values = vec![0.0; rows.len() * shape[1]];
        tensor.read_rows_f32_into(rows, &mut values)?;
        self.files.release(&name);
        Ok(values)
    }

    /// A weight that is stored in NF4, as it is; `None` where it is stored in floats.
    pub(super) fn nf4(
        &self,
        path: &Path,
        name: &str,
        shape: &[usize],
    ) -> Result<Option<Nf4Tensor>, ModelError> {
        if !self.has_in_nf4(name) {
            return Ok(None);
        }
        let name = renamed(self.prefix, name);
        let weight = bnb::from_tensors(&name, |name| {
            let tensor = self.files.tensor(name).ok()?;
            let dtype = BnbDtype::from_name(&format!("{:?}", tensor.dtype()))?;
            Some(RawTensor { dtype, shape: tensor.shape(), bytes: tensor.bytes() })
        });
        let weight =
            weight.map_err(|source| ModelError::Bnb { path: path.to_owned(), source: Box::new(source) })?;
        check_shape(path, &name, weight.shape(), shape)?;
        Ok(Some(weight))
    }

    pub(super) fn has_in_nf4(&self, name: &str) -> bool {
        bnb::is_nf4(&renamed(self.prefix, name), |name| self.files.contains(name))
    }

    pub(super) fn is_quantized(&self) -> bool {
        self.is_quantized
    }

    pub(super) fn problems(&self, expected: &[(String, Vec<usize>)]) -> Result<TensorProblems, ModelError> {
        let mut problems = TensorProblems::default();
        let mut known = HashSet::new();
        for (name, shape) in expected {
            let name = renamed(self.prefix, name);
            if !self.files.contains(&name) {
                problems.missing.push(name);
                continue;
            }
            let found = self.files.tensor(&name)?.shape().to_vec();
            // What is stored in NF4 says its shape elsewhere, which is checked when it is read.
            let is_nf4 = bnb::is_nf4(&name, |name| self.files.contains(name));
            if found != *shape && !is_nf4 {
                problems.misshapen.push((name.clone(), found, shape.clone()));
            }
            known.insert(name);
        }
        // Of a model that also sees, what is not the text model's is not ours.
        let (_, theirs) = self.prefix;
        let is_part = |name: &str| {
            let weight = name.find(".weight.").map(|end| &name[..end + ".weight".len()]);
            weight.is_some_and(|weight| known.contains(weight))
        };
        let is_unused = |name: &str| {
            // A copy of the embedding, and what older releases stored of the rotation.
            !known.contains(name)
                && !is_part(name)
                && name.starts_with(theirs)
                && !name.ends_with("lm_head.weight")
                && !name.ends_with(".rotary_emb.inv_freq")
        };
        problems.extra = self.files.names().filter(|name| is_unused(name)).map(str::to_owned).collect();
        Ok(problems)
    }
}
