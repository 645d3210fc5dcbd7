//! The rows of a file, a few megabytes at a time.

use crate::pipeline::read_chunk;
use crate::reader::{self, RawRow};
use crate::row_reader::{self, SupervisedRow};
use crate::{
    Encoded, Encoder, Error, FileFormat, RowProblem, RowShape, Sample, Source, SourceFile, TextSplit,
};
use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::path::Path;

/// Gives the rows of a file, in order, until enough were taken.
pub(super) fn for_each_chunk(
    file: &SourceFile,
    split: Option<TextSplit>,
    mut take: impl FnMut(Vec<RawRow>) -> ControlFlow<()>,
) -> Result<(), Error> {
    let mut rows = reader::open(file, split)?;
    loop {
        let chunk = read_chunk(&mut *rows)?;
        if chunk.is_empty() || take(chunk).is_break() {
            return Ok(());
        }
    }
}

/// A row of a file, as the model would see it.
#[derive(Debug)]
pub struct PickedRow {
    /// Its position among the rows, from 0.
    pub row: usize,
    /// Its line, from 1.
    pub line: usize,
    /// Its tokens, or why it has none.
    pub sample: Result<Sample, RowProblem>,
}

/// Some rows of a file, by their positions; those that the file does not have are left out. A name that tells no format
/// is one of JSONL.
///
/// # Errors
/// [`Error::Read`]. What is wrong with a row stands in its place.
pub fn pick(
    path: &Path,
    rows: &BTreeSet<usize>,
    encoder: &Encoder,
    shape: Option<RowShape>,
) -> Result<Vec<PickedRow>, Error> {
    let mut picked = Vec::new();
    let mut before = 0;
    let last = rows.last().copied().unwrap_or(0);
    let format = FileFormat::of_name(path).unwrap_or(FileFormat::Jsonl);
    let source = Source { shape, ..Source::new("") };
    for_each_chunk(&SourceFile { path: path.to_owned(), format }, None, |chunk| {
        let count = chunk.len();
        for (row, raw) in (before..).zip(chunk).filter(|(row, _)| rows.contains(row)) {
            let line = raw.position.number;
            let encoded = row_reader::fields_of(raw)
                .and_then(|fields| row_reader::supervised(fields, &source, None))
                .and_then(|SupervisedRow { row, .. }| encoder.encode(&row, line));
            let sample = encoded.map(|Encoded { sample, .. }| sample);
            picked.push(PickedRow { row, line, sample });
        }
        before += count;
        if before > last { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    Ok(picked)
}
