//! A GGUF file: names, row order, metadata and tokenizer as llama.cpp has them.

mod encode;
mod lora;
mod metadata;
mod plan;

use std::path::Path;

use qlora_files::atomic::write_file;
use qlora_gguf::{FileType, GgufWriter, ImportanceMatrix};
use qlora_models::LoadProgress;

pub use self::lora::{ExportedGgufLora, export_gguf_lora};
use self::plan::Plan;
use crate::target::{check_directory, check_file, prepare_file, write_tensors};
use crate::{ExportError, ExportSource};

/// How a file is written.
#[derive(Clone, Copy, Debug)]
pub struct GgufOptions<'a> {
    /// Which format each tensor gets.
    pub file_type: FileType,
    /// Which columns matter, for formats of blocks.
    pub importance: Option<&'a ImportanceMatrix>,
}

impl From<FileType> for GgufOptions<'_> {
    /// Without an importance matrix.
    fn from(file_type: FileType) -> Self {
        Self { file_type, importance: None }
    }
}

/// What was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExportedGguf {
    /// Tensors in the file.
    pub tensors: usize,
    /// Layers that an adapter was merged into.
    pub merged: usize,
    /// Bytes of the file.
    pub bytes: u64,
    /// Whether the source came with a tokenizer, which was written too.
    pub tokenizer: bool,
}

/// Writes a GGUF file that llama.cpp loads. Sums of a merge are f32 and rounded once, to the format of the tensor.
///
/// Of a checkpoint that is a GGUF file itself, all metadata but the types are kept. One tensor at a time is in
/// memory, quantized on all threads. The file appears whole or not at all; folders above it are created.
///
/// # Errors
/// When there is something at `path`, the disk is too small, a tensor is damaged or does not fit its format, the
/// model computes what llama.cpp does not, its tokenizer has no counterpart there, or the file cannot be written.
pub fn export_gguf<'a>(
    source: ExportSource<'_>,
    options: impl Into<GgufOptions<'a>>,
    path: impl AsRef<Path>,
    progress: LoadProgress<'_>,
) -> Result<ExportedGguf, ExportError> {
    let path = path.as_ref();
    let options: GgufOptions<'a> = options.into();
    let (plan, writer) = lay_out(source, options, path)?;
    prepare_file(path, writer.file_length())?;
    let total = plan.len();
    let mut write = |index: usize, out: &mut dyn std::io::Write| -> Result<(), ExportError> {
        plan.write(source, index, out)?;
        progress(index + 1, total);
        Ok(())
    };
    write_tensors(&mut write, |write| write_file(path, |file| writer.write(file, write)))?;
    Ok(ExportedGguf {
        tensors: total,
        merged: source.merged_layers(),
        bytes: writer.file_length(),
        tokenizer: source.checkpoint().has_tokenizer(),
    })
}

/// Finds what [`export_gguf`] would refuse before it writes: a name that is taken, a disk that is too small, a model
/// that has no place in a file. For what is done before that and takes long, as an importance matrix.
///
/// # Errors
/// As [`export_gguf`].
pub fn check_gguf_target<'a>(
    source: ExportSource<'_>,
    options: impl Into<GgufOptions<'a>>,
    path: impl AsRef<Path>,
) -> Result<(), ExportError> {
    let path = path.as_ref();
    let (_, writer) = lay_out(source, options.into(), path)?;
    check_file(path, writer.file_length())
}

/// As [`check_gguf_target`], for a directory of [`export_ollama`](crate::export_ollama).
///
/// # Errors
/// As [`export_ollama`](crate::export_ollama).
pub fn check_ollama_target<'a>(
    source: ExportSource<'_>,
    options: impl Into<GgufOptions<'a>>,
    directory: impl AsRef<Path>,
) -> Result<(), ExportError> {
    let directory = directory.as_ref();
    let (_, writer) = lay_out(source, options.into(), directory)?;
    check_directory(directory, writer.file_length())
}

fn lay_out<'a>(
    source: ExportSource<'_>,
    options: GgufOptions<'a>,
    path: &Path,
) -> Result<(Plan<'a>, GgufWriter), ExportError> {
    let plan = Plan::new(source, options)?;
    let writer = GgufWriter::new(metadata::metadata(source, options)?, plan.specs());
    Ok((plan, writer.map_err(qlora_files::Error::io("lay out", path))?))
}
