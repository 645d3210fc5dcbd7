//! Values as the blocks of a format.

use std::io::Write;

use qlora_gguf::{GgmlType, TensorSpec};

use crate::safetensors::write_floats;
use crate::{ExportError, ExportSource, FloatType};

/// Writes the values of a tensor in its format, quantized on all threads.
pub(super) fn encode(
    source: ExportSource<'_>,
    spec: &TensorSpec,
    values: &[f32],
    out: &mut dyn Write,
) -> Result<(), ExportError> {
    let dtype = match spec.ggml_type {
        GgmlType::F32 => FloatType::F32,
        GgmlType::F16 => FloatType::F16,
        GgmlType::Bf16 => FloatType::Bf16,
        other => unreachable!("no file type has tensors of {other}"),
    };
    write_floats(source, &spec.name, values, dtype, out)
}
