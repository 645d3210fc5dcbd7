//! A directory of NF4 weights, opened again.

use std::path::Path;

use qlora_files::safetensors::Checkpoint as Tensors;
use qlora_kernels::KernelBackend;
use qlora_models::{Checkpoint, Quantization};
use qlora_quant::bnb::{BnbDtype, RawTensor, from_tensors};

use super::{Pair, Probe, Verification, VerifyError, compare_tokenizers};
use crate::bnb4bit::quantize;
use crate::safetensors::write_floats;
use crate::tolerance::NF4_LOGITS;
use crate::{Bnb4BitOptions, ExportError, ExportSource, FloatType, MergeBase};

/// Opens a directory of [`export_bnb_4bit`](crate::export_bnb_4bit) again and compares: the parts of every NF4 weight
/// make the weight that the source quantizes to, and all other tensors are those of the source, rounded, to the last
/// bit; token ids of texts and conversations; and the logits of `probe` with those of the live model, in NF4 too, or
/// with its adapter attached. Memory is used as in [`verify`](crate::verify).
///
/// # Errors
/// [`ExportError::Verify`] with the first tensor that is missing, damaged or another, or another difference.
pub fn verify_bnb_4bit<B: KernelBackend>(
    source: ExportSource<'_>,
    options: Bnb4BitOptions,
    directory: impl AsRef<Path>,
    probe: &Probe,
    memory: u64,
    device: &B::Device,
) -> Result<Verification, ExportError> {
    let path = directory.as_ref();
    let written = Tensors::open(path).map_err(|error| VerifyError::unreadable(path, error))?;
    let (tensors, quantized) = (source.checkpoint().config().tensors(), source.quantized_weights());
    for (name, shape) in &tensors {
        if quantized.contains(name) {
            compare_nf4(source, options, &written, name, shape)?;
        } else {
            compare_floats(source, options.dtype, &written, name, shape)?;
        }
        written.release(name);
    }
    let opened = Checkpoint::open(path).map_err(|error| VerifyError::unreadable(path, error))?;
    let tokens = compare_tokenizers(source.checkpoint(), &opened)?;
    let nf4 = Quantization::Nf4(options.nf4());
    let is_merged = source.adapter().is_some() || source.base() != MergeBase::Original;
    let live = if is_merged { source.quantization() } else { nf4 };
    // The very codes that were written; but a router that was rounded may choose other experts.
    let config = source.checkpoint().config();
    let is_same = !is_merged && !source.checkpoint().is_nf4() && config.experts.is_none();
    let bound = if is_same { options.dtype.tolerance().logits } else { NF4_LOGITS };
    let pair = Pair { source, opened: &opened, probe, memory };
    let logits = pair.compare_logits::<B>([live, nf4], bound, device)?;
    Ok(Verification { tensors: tensors.len(), tensor_error: 0.0, tokens, logits })
}

fn compare_nf4(
    source: ExportSource<'_>,
    options: Bnb4BitOptions,
    written: &Tensors,
    name: &str,
    shape: &[usize],
) -> Result<(), ExportError> {
    let path = written.path();
    let raw = |name: &str| {
        let tensor = written.tensor(name).ok()?;
        let dtype = BnbDtype::from_name(&tensor.dtype().to_string())?;
        Some(RawTensor { dtype, shape: tensor.shape(), bytes: tensor.bytes() })
    };
    let found = from_tensors(name, raw).map_err(|error| VerifyError::tensors(path, error.to_string()))?;
    if found != quantize(source, name, shape, options)? {
        return Err(VerifyError::tensors(path, format!("the parts of `{name}` are not its weight")).into());
    }
    Ok(())
}

/// Compares the stored bytes piece by piece: tables are never whole in memory.
fn compare_floats(
    source: ExportSource<'_>,
    dtype: FloatType,
    written: &Tensors,
    name: &str,
    shape: &[usize],
) -> Result<(), ExportError> {
    let path = written.path();
    let found = written.tensor(name).map_err(|error| VerifyError::unreadable(path, error))?;
    if (found.dtype(), found.shape()) != (dtype.stored(), shape) {
        let problem = format!("`{name}` is {:?} {:?}", found.dtype(), found.shape());
        return Err(VerifyError::tensors(path, problem).into());
    }
    let (mut rest, mut is_equal) = (found.bytes(), true);
    source.pieces(name, shape, |values| {
        let mut expected = Vec::with_capacity(values.len() * dtype.size() as usize);
        write_floats(source, name, &values, dtype, &mut expected)?;
        let (found, after) = rest.split_at(expected.len());
        is_equal &= found == expected;
        rest = after;
        Ok(())
    })?;
    if is_equal {
        Ok(())
    } else {
        Err(VerifyError::tensors(path, format!("`{name}` has other values")).into())
    }
}
