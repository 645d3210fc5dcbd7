//! Values as the blocks of a format.

use std::io::Write;

use qlora_gguf::{GgmlType, TensorSpec};

use crate::safetensors::write_floats;
use crate::{ExportError, ExportSource, FloatType};

/// Writes values of whole rows of a tensor in its format, quantized on all threads. `importance` is `[matrices,
/// columns]`; of more than one matrix the values are all of them.
pub(super) fn encode(
    source: ExportSource<'_>,
    spec: &TensorSpec,
    values: &[f32],
    importance: Option<&[f32]>,
    out: &mut dyn Write,
) -> Result<(), ExportError> {
    let dtype = match spec.ggml_type {
        GgmlType::F32 => FloatType::F32,
        GgmlType::F16 => FloatType::F16,
        GgmlType::Bf16 => FloatType::Bf16,
        blocks => {
            let path = source.checkpoint().path();
            let columns = spec.shape.last().copied().unwrap_or(0);
            // Each expert has its own weights of columns.
            let matrices = importance.map_or(1, |importance| importance.len() / columns);
            for (index, matrix) in values.chunks_exact(values.len() / matrices).enumerate() {
                let importance = importance.map(|importance| &importance[index * columns..][..columns]);
                let blocks =
                    blocks.quantize(matrix, columns, importance).map_err(|source| ExportError::Blocks {
                        path: path.to_owned(),
                        name: spec.name.clone(),
                        source: Box::new(source),
                    })?;
                out.write_all(&blocks).map_err(qlora_files::Error::io("write the tensors of", path))?;
            }
            return Ok(());
        }
    };
    write_floats(source, &spec.name, values, dtype, out)
}
