//! GGUF: names translated, rows reordered, blocks decoded.

use std::collections::HashSet;
use std::ops::Range;
use std::path::Path;

use qlora_gguf::{Gguf, GgufError};

use super::check_shape;
use crate::error::TensorProblems;
use crate::family::{GgufName, GgufTensors};
use crate::{DecoderConfig, Family, ModelError};

/// Tensors that are read with the metadata.
const ROPE: [&str; 3] = ["rope_freqs.weight", "rope_factors_short.weight", "rope_factors_long.weight"];

pub(super) fn open(path: &Path) -> Result<(DecoderConfig, Gguf), ModelError> {
    let file = Gguf::open(path)?;
    let has = |name: &str| file.opt_tensor(name).is_some();
    let values = |name: &str| file.opt_tensor(name).map(|tensor| tensor.dequantize()).transpose();
    let [divisors, short, long] = ROPE.map(values);
    let tensors = GgufTensors {
        has_head: has("output.weight"),
        has_attention_bias: has("blk.0.attn_q.bias") || has("blk.0.attn_qkv.bias"),
        has_output_bias: has("blk.0.attn_output.bias"),
        has_mlp_bias: has("blk.0.ffn_down.bias"),
        has_qk_norm: has("blk.0.attn_q_norm.weight"),
        rope_divisors: divisors?,
        rope_factors: short?.zip(long?).map(|(short, long)| [short, long]),
    };
    let config = Family::config_from_gguf(path, file.metadata(), &tensors)?;
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
    let GgufName { tensor: gguf_name, expert } = config.family.gguf_name(name).ok_or_else(missing)?;
    let tensor = file.opt_tensor(&gguf_name).ok_or_else(missing)?;
    let stored = stored_shape(config, shape, expert);
    check_shape(path, &gguf_name, tensor.shape(), &stored)?;
    let values = match expert {
        None => tensor.dequantize()?,
        Some(expert) => expert_values(&tensor, expert, shape.iter().product())?,
    };
    Ok(config.family.values_from_gguf(name, values, config))
}

/// The values of one of the experts that lie in a tensor one after the other. Rows are whole blocks, so that an
/// expert is.
fn expert_values(
    tensor: &qlora_gguf::Tensor<'_>,
    expert: usize,
    elements: usize,
) -> Result<Vec<f32>, GgufError> {
    let mut values = vec![0.0; elements];
    tensor.dequantize_range(expert * elements..(expert + 1) * elements, &mut values)?;
    Ok(values)
}

/// The shape of a tensor that holds the parts of all experts, or of one that holds one.
fn stored_shape(config: &DecoderConfig, shape: &[usize], expert: Option<usize>) -> Vec<usize> {
    match (expert, &config.experts) {
        (Some(_), Some(experts)) => [&[experts.count], shape].concat(),
        _ => shape.to_vec(),
    }
}

pub(super) fn problems(
    file: &Gguf,
    config: &DecoderConfig,
    expected: &[(String, Vec<usize>)],
) -> TensorProblems {
    let mut problems = TensorProblems::default();
    let mut known: HashSet<String> = ROPE.map(str::to_owned).into();
    for (name, shape) in expected {
        let Some(GgufName { tensor: gguf_name, expert }) = config.family.gguf_name(name) else {
            problems.missing.push(name.clone());
            continue;
        };
        if !known.insert(gguf_name.clone()) {
            continue;
        }
        let shape = stored_shape(config, shape, expert);
        match file.opt_tensor(&gguf_name) {
            None => problems.missing.push(gguf_name),
            Some(tensor) if tensor.shape() != shape => {
                problems.misshapen.push((gguf_name, tensor.shape().to_vec(), shape));
            }
            Some(_) => {}
        }
    }
    let names = file.tensors().iter().map(|tensor| &tensor.name);
    problems.extra = names.filter(|name| !known.contains(*name)).cloned().collect();
    problems
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
    let GgufName { tensor: gguf_name, expert } = config.family.gguf_name(name).ok_or_else(missing)?;
    let tensor = file.opt_tensor(&gguf_name).ok_or_else(missing)?;
    check_shape(path, &gguf_name, tensor.shape(), &stored_shape(config, &shape, expert))?;
    let first = expert.unwrap_or(0) * shape[0] + rows.start;
    let mut values = vec![0.0; rows.len() * shape[1]];
    tensor.dequantize_range(first * shape[1]..(first + rows.len()) * shape[1], &mut values)?;
    Ok(values)
}
