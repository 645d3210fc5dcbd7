//! A checkpoint in files of limited size, and the index that names them.

use std::io::{self, Write};
use std::path::Path;

use serde_json::{Map, Value, json};

use super::checkpoint::{INDEX, SINGLE};
use super::{TensorSpec, write_safetensors_with};
use crate::{Error, atomic};

/// Writes the tensors of a checkpoint into a directory: `model.safetensors`, or where they take more than `limit`
/// bytes `model-00001-of-0000N.safetensors`… and `model.safetensors.index.json`. A tensor is never split: a larger
/// one than `limit` has a file to itself. The files are filled in the order of `specs`.
///
/// `write(i, file)` is called once for each of `specs` and writes its bytes; only one has to be in memory.
/// Returns the number of files with tensors.
///
/// # Errors
/// As [`write_safetensors_with`], of any of the files.
pub fn write_sharded(
    directory: impl AsRef<Path>,
    specs: &[TensorSpec],
    limit: u64,
    metadata: &[(&str, &str)],
    mut write: impl FnMut(usize, &mut dyn Write) -> io::Result<()>,
) -> Result<usize, Error> {
    let directory = directory.as_ref();
    let (mut ends, mut filled, mut total) = (Vec::new(), 0_u64, 0_u64);
    for (index, spec) in specs.iter().enumerate() {
        // An impossible size is refused by the writer of the file.
        let size = spec.byte_len().unwrap_or(0) as u64;
        if filled > 0 && filled.saturating_add(size) > limit {
            ends.push(index);
            filled = 0;
        }
        filled = filled.saturating_add(size);
        total = total.saturating_add(size);
    }
    ends.push(specs.len());
    let shards = ends.len();
    if shards == 1 {
        write_safetensors_with(directory.join(SINGLE), specs, metadata, write)?;
        return Ok(1);
    }
    let mut weight_map = Map::new();
    let mut start = 0;
    for (number, end) in ends.into_iter().enumerate() {
        let name = format!("model-{:05}-of-{shards:05}.safetensors", number + 1);
        let specs = &specs[start..end];
        write_safetensors_with(directory.join(&name), specs, metadata, |index, file| {
            write(start + index, file)
        })?;
        weight_map.extend(specs.iter().map(|spec| (spec.name.clone(), Value::from(name.as_str()))));
        start = end;
    }
    let index = json!({"metadata": {"total_size": total}, "weight_map": weight_map});
    atomic::write_json(directory.join(INDEX), &index)?;
    Ok(shards)
}
