//! The rows of a file, a few megabytes at a time.

use crate::pipeline::read_chunk;
use crate::reader::{self, RawRow};
use crate::row_reader::{self, SupervisedRow};
use crate::{Encoder, Error, Location, RowProblem, Sample, Source, SourceFile, Sources, TextSplit};
use qlora_hub::FetchProgress;
use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::sync::Arc;

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
    /// Its position among all rows, from 0.
    pub row: usize,
    /// Where it stands.
    pub location: Location,
    /// Its tokens, or why it has none.
    pub sample: Result<Sample, RowProblem>,
}

/// Some rows of sources, by their positions among all of them; those that there are not are left out.
///
/// # Errors
/// [`Error::Option`], [`Error::Source`], [`Error::Hub`] and [`Error::Read`]. What is wrong with a row stands in its
/// place.
pub fn pick(
    sources: &Sources,
    rows: &BTreeSet<usize>,
    encoder: &Encoder,
    progress: &mut dyn FetchProgress,
) -> Result<Vec<PickedRow>, Error> {
    sources.check()?;
    let mut picked = Vec::new();
    let mut before = 0;
    let last = rows.last().copied().unwrap_or(0);
    for source in &sources.0 {
        for file in source.files(progress)? {
            let path = Arc::new(file.path.clone());
            for_each_chunk(&file, source.split, |chunk| {
                let count = chunk.len();
                for (row, raw) in (before..).zip(chunk).filter(|(row, _)| rows.contains(row)) {
                    let location = Location { path: Arc::clone(&path), position: raw.position };
                    let sample = sample(raw, source, encoder);
                    picked.push(PickedRow { row, location, sample });
                }
                before += count;
                if before > last { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            })?;
            if before > last {
                return Ok(picked);
            }
        }
    }
    Ok(picked)
}

fn sample(raw: RawRow, source: &Source, encoder: &Encoder) -> Result<Sample, RowProblem> {
    let line = raw.position.number;
    let SupervisedRow { row, .. } = row_reader::supervised(row_reader::fields_of(raw)?, source, None)?;
    encoder.encode(&row, line).map(|encoded| encoded.sample)
}
