//! The lines of a file, a few megabytes at a time.

use crate::jsonl::{Line, Lines};
use crate::row::{self, ParsedRow};
use crate::{Encoded, Encoder, Error, RowProblem, RowShape, Sample};
use std::collections::BTreeSet;
use std::fs::File;
use std::io::BufReader;
use std::ops::ControlFlow;
use std::path::Path;

/// Bytes of a file that are looked at together, by all threads.
const CHUNK_BYTES: usize = 4 << 20;

/// Gives the lines of a JSONL file, in order, until enough were taken.
pub(super) fn for_each_chunk(
    path: &Path,
    mut take: impl FnMut(&[Line]) -> ControlFlow<()>,
) -> Result<(), Error> {
    let read = |source| Error::Read { path: path.to_owned(), source };
    let file = File::open(path).map_err(read)?;
    let mut lines = Lines::new(BufReader::with_capacity(1 << 16, file));
    while !lines.at_end() {
        if take(&lines.read_chunk(CHUNK_BYTES).map_err(read)?).is_break() {
            break;
        }
    }
    Ok(())
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

/// Some rows of a JSONL file, by their positions; those that the file does not have are left out.
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
    for_each_chunk(path, |lines| {
        for (row, line) in (before..).zip(lines).filter(|(row, _)| rows.contains(row)) {
            let parsed = line.parse().and_then(|value| row::parse(value, shape));
            let encoded = parsed.and_then(|ParsedRow { row, .. }| encoder.encode(&row, line.number));
            let sample = encoded.map(|Encoded { sample, .. }| sample);
            picked.push(PickedRow { row, line: line.number, sample });
        }
        before += lines.len();
        if before > last { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    Ok(picked)
}
