//! What was written, opened again and compared with what was to be written.

mod adapter;
mod bnb4bit;
mod difference;
mod memory;
mod probe;
mod reference;

use std::path::{Path, PathBuf};

use qlora_kernels::{Compute, KernelBackend};
use qlora_models::{Checkpoint, Decoder, LoadOptions, ModelError, Quantization, load};

pub use self::adapter::{verify_gguf_lora, verify_peft};
pub use self::bnb4bit::verify_bnb_4bit;
pub use self::difference::Difference;
pub use self::memory::TooLarge;
pub(crate) use self::memory::{Held, both_fit};
pub use self::probe::Probe;
pub(crate) use self::reference::Reference;
use crate::{ExportError, ExportSource};

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
    /// The logits, against the live model: the checkpoint with the adapter attached. Not compared when that takes more
    /// memory than was allowed.
    pub logits: Result<Difference, TooLarge>,
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

impl VerifyError {
    fn unreadable(path: &Path, source: impl Into<ExportError>) -> Self {
        Self::Unreadable { path: path.to_owned(), source: Box::new(source.into()) }
    }

    fn tensors(path: &Path, problem: String) -> Self {
        Self::Tensors { path: path.to_owned(), problem }
    }
}

/// Opens the checkpoint at `written` and compares it with its source: shapes and values of all tensors, token ids
/// of texts and conversations, and the logits of `probe` with those of the live model. The live model has its
/// adapter attached, on NF4 weights if those were merged into.
///
/// Logits are compared row by row. Of a probe of more than 512 tokens two models are in memory at once, if `memory`
/// bytes hold them; else the logits of the first 512 tokens are kept and compared, and only the perplexity is of all
/// tokens. They are left out when not even one model fits.
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
    let opened = Checkpoint::open(path).map_err(|error| VerifyError::unreadable(path, error))?;
    let tensor_error = compare_tensors(source, &opened, tolerance.tensor)?;
    let tokens = compare_tokenizers(source.checkpoint(), &opened)?;
    let held = [source.quantization(), Quantization::None];
    let pair = Pair { source, opened: &opened, probe, memory };
    let logits = pair.compare_logits::<B>(held, tolerance.logits, device)?;
    Ok(Verification { tensors: opened.config().tensors().len(), tensor_error, tokens, logits })
}

/// The largest error of a tensor; all must be within `bound`.
fn compare_tensors(source: ExportSource<'_>, opened: &Checkpoint, bound: f64) -> Result<f64, ExportError> {
    let path = opened.path();
    let (expected, found) = (source.checkpoint().config().tensors(), opened.config().tensors());
    if let Some((expected, found)) = expected.iter().zip(&found).find(|(expected, found)| expected != found) {
        return Err(VerifyError::tensors(path, format!("{found:?} in place of {expected:?}")).into());
    }
    if expected.len() != found.len() {
        let problem = format!("{} in place of {}", found.len(), expected.len());
        return Err(VerifyError::tensors(path, problem).into());
    }
    let mut largest = 0.0_f64;
    for (name, shape) in &expected {
        let error = tensor_difference(source, opened, name, shape)?
            .map_err(|error| VerifyError::unreadable(path, error))?
            .relative();
        if error.is_nan() || error > bound {
            let (path, name) = (path.to_owned(), name.clone());
            return Err(VerifyError::Tensor { path, name, error, bound }.into());
        }
        largest = largest.max(error);
    }
    Ok(largest)
}

/// Token ids that were equal; none without a tokenizer.
fn compare_tokenizers(source: &Checkpoint, opened: &Checkpoint) -> Result<usize, ExportError> {
    if !source.has_tokenizer() {
        return Ok(0);
    }
    let path = opened.path();
    let found = opened.tokenizer().map_err(|error| VerifyError::unreadable(path, error))?;
    probe::compare_tokens(&source.tokenizer()?, &found, path)
}

/// What was written beside its source, and what their logits are compared on.
struct Pair<'a> {
    source: ExportSource<'a>,
    opened: &'a Checkpoint,
    probe: &'a Probe,
    memory: u64,
}

impl Pair<'_> {
    /// Compares the live model with what was written, held in these ways, unless they take too much memory.
    fn compare_logits<B: KernelBackend>(
        &self,
        [live, written]: [Quantization; 2],
        bound: f64,
        device: &B::Device,
    ) -> Result<Result<Difference, TooLarge>, ExportError> {
        let Self { source, opened, probe, memory } = *self;
        // A file whose architecture has no windows in llama.cpp has a context that ends where they begin to matter.
        let probe = &probe.within(opened.config().context_length());
        let both_fit = match both_fit(opened.config(), [live.into(), written.into()], probe, memory) {
            Ok(both_fit) => both_fit,
            Err(too_large) => return Ok(Err(too_large)),
        };
        let reference = Reference::new(live_model::<B>(source, live, device)?, probe, both_fit);
        let difference = reference.compare(probe, &load_f32::<B>(opened, written, device)?);
        if difference.relative.is_nan() || difference.relative > bound {
            return Err(VerifyError::Logits {
                path: opened.path().to_owned(),
                error: difference.relative,
                bound,
                largest: difference.largest,
            }
            .into());
        }
        Ok(Ok(difference))
    }
}

/// The model with its adapter attached, not merged.
pub(crate) fn live_model<B: KernelBackend>(
    source: ExportSource<'_>,
    quantization: Quantization,
    device: &B::Device,
) -> Result<Decoder<B>, ExportError> {
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
