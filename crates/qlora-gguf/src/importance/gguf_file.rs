//! The current format: a GGUF file with `general.type` "imatrix"; for every tensor T, `T.in_sum2` with the sums of
//! squares, `[matrices, columns]`, and `T.counts`, `[matrices, 1]`, both f32.

use std::io::{self, Write};

use super::{Importance, ImportanceMatrix};
use crate::{GgmlType, Gguf, GgufError, GgufWriter, Metadata, TensorSpec, Value};

const DATASETS: &str = "imatrix.datasets";
const CHUNKS: &str = "imatrix.chunk_count";
const CHUNK_TOKENS: &str = "imatrix.chunk_size";
const SUMS: &str = ".in_sum2";
const COUNTS: &str = ".counts";

pub(super) fn read(gguf: &Gguf) -> Result<ImportanceMatrix, GgufError> {
    let metadata = gguf.metadata();
    match metadata.opt_string("general.type")? {
        Some("imatrix") => {}
        other => {
            return Err(GgufError::NotAnImportanceMatrix {
                path: gguf.path().to_owned(),
                found: other.map_or("missing".to_owned(), |found| format!("{found:?}")),
            });
        }
    }
    let mut matrix = ImportanceMatrix {
        datasets: metadata.strings(DATASETS)?.to_vec(),
        chunks: metadata.u32(CHUNKS)?,
        chunk_tokens: metadata.u32(CHUNK_TOKENS)?,
        ..ImportanceMatrix::default()
    };
    for info in gguf.tensors() {
        if let Some(name) = info.name.strip_suffix(COUNTS) {
            gguf.tensor(&format!("{name}{SUMS}"))?;
        }
        let Some(name) = info.name.strip_suffix(SUMS) else { continue };
        let sums = gguf.tensor(&info.name)?;
        let counts = gguf.tensor(&format!("{name}{COUNTS}"))?;
        let columns = info.shape.last().copied().unwrap_or(0);
        if columns == 0 || info.elements == 0 || counts.elements() != info.elements / columns {
            return Err(GgufError::ImportanceShape {
                path: gguf.path().to_owned(),
                tensor: name.to_owned(),
                sums: info.shape.clone(),
                counts: counts.shape().to_vec(),
            });
        }
        let wide = |values: Vec<f32>| values.into_iter().map(f64::from).collect();
        let entry =
            Importance { columns, sums: wide(sums.dequantize()?), counts: wide(counts.dequantize()?) };
        entry.check(gguf.path(), name)?;
        matrix.entries.insert(name.to_owned(), entry);
    }
    if matrix.entries.is_empty() {
        return Err(GgufError::NoImportances { path: gguf.path().to_owned() });
    }
    Ok(matrix)
}

pub(super) fn write(matrix: &ImportanceMatrix, out: &mut impl Write) -> io::Result<()> {
    let metadata: Metadata = [
        ("general.type", Value::from("imatrix")),
        (DATASETS, Value::from(matrix.datasets.clone())),
        (CHUNKS, Value::from(matrix.chunks)),
        (CHUNK_TOKENS, Value::from(matrix.chunk_tokens)),
    ]
    .into_iter()
    .collect();
    let mut tensors = Vec::with_capacity(2 * matrix.entries.len());
    let mut values = Vec::with_capacity(2 * matrix.entries.len());
    for (name, entry) in &matrix.entries {
        let matrices = entry.matrices();
        tensors.push(TensorSpec::new(format!("{name}{SUMS}"), [matrices, entry.columns], GgmlType::F32));
        values.push(&entry.sums);
        tensors.push(TensorSpec::new(format!("{name}{COUNTS}"), [matrices, 1], GgmlType::F32));
        values.push(&entry.counts);
    }
    GgufWriter::new(metadata, tensors)?.write(out, |i, out| {
        let bytes: Vec<u8> = values[i].iter().flat_map(|&value| (value as f32).to_le_bytes()).collect();
        out.write_all(&bytes)
    })
}
