//! What was written, opened again and compared with what was to be written.

mod difference;
mod probe;

use std::path::{Path, PathBuf};

use qlora_kernels::{Compute, KernelBackend};
use qlora_models::{Checkpoint, Decoder, LoadOptions, ModelError, Quantization, load};

pub use self::difference::Difference;
pub use self::probe::Probe;
use crate::{ExportError, ExportSource, MergeBase};

/// How far what was written may be from what was to be written, for a type.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tolerance {
    /// Of a tensor: `‖written − source‖ / ‖source‖`.
    pub tensor: f64,
    /// Of logits: the root mean square of the differences, as a part of the logits' standard deviation.
    pub logits: f64,
}

/// What was found equal.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Verification {
    /// Tensors compared, all.
    pub tensors: usize,
    /// The largest error of a tensor, as [`Tolerance::tensor`] has it.
    pub tensor_error: f64,
    /// Token ids compared, of texts and of rendered conversations; 0 without a tokenizer.
    pub tokens: usize,
    /// The logits, against the live model: the checkpoint with the adapter attached. `None` when the model is larger
    /// than the memory that was allowed.
    pub logits: Option<Difference>,
}

/// What was written is not what was to be written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VerifyError {
    /// It cannot be read.
    #[error("{} was written, but cannot be read back: {source}", path.display())]
    Unreadable {
        /// What was written.
        path: PathBuf,
        /// Why.
        source: Box<ExportError>,
    },
    /// It has other tensors than the model.
    #[error("{} was written, but has other tensors than its source: {problem}", path.display())]
    Tensors {
        /// What was written.
        path: PathBuf,
        /// Where they differ.
        problem: String,
    },
    /// A tensor is too far from its source.
    #[error(
        "{} was written, but tensor `{name}` is off by {error:.2e} of its norm; at most {bound:.2e} was expected",
        path.display()
    )]
    Tensor {
        /// What was written.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Its error.
        error: f64,
        /// The bound of the type.
        bound: f64,
    },
    /// A text becomes other tokens.
    #[error("{} was written, but its tokenizer makes {found:?} of {text:?}; expected {expected:?}", path.display())]
    Tokens {
        /// What was written.
        path: PathBuf,
        /// The text.
        text: String,
        /// The first ids that differ, of the source's tokenizer.
        expected: Vec<u32>,
        /// Those of the new one.
        found: Vec<u32>,
    },
    /// A conversation is rendered otherwise.
    #[error("{} was written, but its chat template is not that of its source", path.display())]
    Template {
        /// What was written.
        path: PathBuf,
    },
    /// Logits are too far from those of the live model.
    #[error(
        "{} was written, but its logits are off by {error:.2e} of their deviation (at most {bound:.2e} was expected); \
         the largest difference is {largest:.3}",
        path.display()
    )]
    Logits {
        /// What was written.
        path: PathBuf,
        /// The error.
        error: f64,
        /// The bound of the type.
        bound: f64,
        /// The largest difference of a logit.
        largest: f32,
    },
}

/// Opens the checkpoint at `written` and compares it with its source: shapes and values of all tensors, token ids
/// of texts and conversations, and the logits of `probe` with those of the live model. The live model has its
/// adapter attached, on NF4 weights if those were merged into.
///
/// Two models are not in memory at once; logits are left out when one takes more than `memory` bytes in f32.
///
/// # Errors
/// [`ExportError::Verify`] with the first difference beyond the tolerance; what was written stays there.
pub fn verify<B: KernelBackend>(
    source: ExportSource<'_>,
    written: impl AsRef<Path>,
    tolerance: Tolerance,
    probe: &Probe,
    memory: u64,
    device: &B::Device,
) -> Result<Verification, ExportError> {
    let path = written.as_ref();
    let unreadable =
        |source: ExportError| VerifyError::Unreadable { path: path.to_owned(), source: source.into() };
    let opened = Checkpoint::open(path).map_err(|error| unreadable(error.into()))?;
    let (expected, found) = (source.checkpoint().config().tensors(), opened.config().tensors());
    if let Some((expected, found)) = expected.iter().zip(&found).find(|(expected, found)| expected != found) {
        let problem = format!("{found:?} in place of {expected:?}");
        return Err(VerifyError::Tensors { path: path.to_owned(), problem }.into());
    }
    if expected.len() != found.len() {
        let problem = format!("{} in place of {}", found.len(), expected.len());
        return Err(VerifyError::Tensors { path: path.to_owned(), problem }.into());
    }
    let mut tensor_error = 0.0_f64;
    for (name, shape) in &expected {
        let error = tensor_difference(source, &opened, name, shape)?
            .map_err(|error| unreadable(error.into()))?
            .relative();
        if error.is_nan() || error > tolerance.tensor {
            let (path, bound) = (path.to_owned(), tolerance.tensor);
            return Err(VerifyError::Tensor { path, name: name.clone(), error, bound }.into());
        }
        tensor_error = tensor_error.max(error);
    }
    let tokens = probe::compare_tokens(source.checkpoint(), &opened, path)?;
    let fits = source.checkpoint().config().parameter_count() as u64 * 4 <= memory;
    let logits =
        if fits { Some(compare_logits::<B>(source, &opened, tolerance, probe, device)?) } else { None };
    Ok(Verification { tensors: expected.len(), tensor_error, tokens, logits })
}

fn compare_logits<B: KernelBackend>(
    source: ExportSource<'_>,
    opened: &Checkpoint,
    tolerance: Tolerance,
    probe: &Probe,
    device: &B::Device,
) -> Result<Difference, ExportError> {
    // A file whose architecture has no windows in llama.cpp has a context that ends where they begin to matter.
    let probe = &probe.within(opened.config().context_length());
    let live = probe.logits(&live_model::<B>(source, device)?);
    let written = probe.logits(&load_f32::<B>(opened, Quantization::None, device)?);
    let difference = Difference::new(probe, &live, &written);
    if difference.relative.is_nan() || difference.relative > tolerance.logits {
        return Err(VerifyError::Logits {
            path: opened.path().to_owned(),
            error: difference.relative,
            bound: tolerance.logits,
            largest: difference.largest,
        }
        .into());
    }
    Ok(difference)
}

/// The model with its adapter attached, not merged.
pub(crate) fn live_model<B: KernelBackend>(
    source: ExportSource<'_>,
    device: &B::Device,
) -> Result<Decoder<B>, ExportError> {
    let quantization = match source.base() {
        MergeBase::Original => Quantization::None,
        MergeBase::Dequantized(options) => Quantization::Nf4(options),
    };
    let mut model = load_f32::<B>(source.checkpoint(), quantization, device)?;
    if let Some(adapter) = source.adapter() {
        model.attach_set(adapter, 0.0)?;
    }
    Ok(model)
}

pub(crate) fn load_f32<B: KernelBackend>(
    checkpoint: &Checkpoint,
    quantization: Quantization,
    device: &B::Device,
) -> Result<Decoder<B>, ModelError> {
    load(checkpoint, LoadOptions { quantization, compute: Compute::F32 }, device, &mut |_, _| {})
}

/// Compares a tensor piece by piece. The inner error is one of what was written.
fn tensor_difference(
    source: ExportSource<'_>,
    written: &Checkpoint,
    name: &str,
    shape: &[usize],
) -> Result<Result<Squares, ModelError>, ExportError> {
    let (mut squares, mut row) = (Squares::default(), 0);
    let mut unreadable = None;
    source.pieces(name, shape, |values| {
        let rows = values.len() / shape[1..].iter().product::<usize>();
        let found = match written.table_rows(name, row..row + rows) {
            Ok(Some(found)) => Ok(found),
            Ok(None) => written.tensor(name, shape),
            Err(error) => Err(error),
        };
        row += rows;
        match found {
            Ok(found) => squares.add(&values, &found),
            Err(error) => unreadable = Some(error),
        }
        Ok(())
    })?;
    Ok(unreadable.map_or(Ok(squares), Err))
}

/// `‖b − a‖ / ‖a‖`; 0 for two zeros.
pub(crate) fn relative_error(a: &[f32], b: &[f32]) -> f64 {
    let mut squares = Squares::default();
    squares.add(a, b);
    squares.relative()
}

/// Sums of squares, of differences and of values.
#[derive(Default)]
struct Squares {
    error: f64,
    norm: f64,
}

impl Squares {
    fn add(&mut self, a: &[f32], b: &[f32]) {
        assert_eq!(a.len(), b.len(), "tensors of one shape");
        for (a, b) in a.iter().zip(b) {
            let (a, b) = (f64::from(*a), f64::from(*b));
            self.error += (b - a) * (b - a);
            self.norm += a * a;
        }
    }

    fn relative(&self) -> f64 {
        if self.error == 0.0 { 0.0 } else { (self.error / self.norm).sqrt() }
    }
}
