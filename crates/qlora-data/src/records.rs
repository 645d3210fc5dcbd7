use crate::pipeline::read_chunk;
use crate::reader::{self, RawRow, RawRows};
use crate::row_reader::{self, ParsedRow};
use crate::shape_vote::ShapeVote;
use crate::{Error, Location, OnBadRow, Record, RowShape, Source, SourceFile, Sources};
use qlora_hub::FetchProgress;
use rayon::prelude::*;
use std::sync::Arc;
use std::vec::IntoIter;

/// The rows of sources, one after another, before any tokenization: for preference pairs, for prompts of
/// reinforcement learning, and for converting.
///
/// Holds one row at a time. A file whose shape is not named is read once more before: most rows tell it. After an error
/// there is nothing more.
pub struct Records {
    files: IntoIter<(usize, SourceFile)>,
    sources: Sources,
    on_bad_row: OnBadRow,
    current: Option<OpenFile>,
    skipped: usize,
}

struct OpenFile {
    rows: RawRows,
    path: Arc<std::path::PathBuf>,
    source: usize,
    vote: ShapeVote,
}

impl Records {
    /// Opens sources; the files are opened one by one.
    ///
    /// # Errors
    /// [`Error::Source`] and [`Error::Hub`].
    pub fn open(
        sources: impl Into<Sources>,
        on_bad_row: OnBadRow,
        progress: &mut dyn FetchProgress,
    ) -> Result<Self, Error> {
        let sources = sources.into();
        let mut files = Vec::new();
        for (index, source) in sources.0.iter().enumerate() {
            files.extend(source.files(progress)?.into_iter().map(|file| (index, file)));
        }
        Ok(Self { files: files.into_iter(), sources, on_bad_row, current: None, skipped: 0 })
    }

    /// Rows skipped so far because they could not be used.
    #[must_use]
    pub fn skipped(&self) -> usize {
        self.skipped
    }

    /// The next row, with what its record does not tell.
    pub(crate) fn next_row(&mut self) -> Result<Option<(Location, ParsedRow)>, Error> {
        let row = self.step();
        if row.is_err() {
            self.current = None;
            self.files = Vec::new().into_iter();
        }
        row
    }

    fn step(&mut self) -> Result<Option<(Location, ParsedRow)>, Error> {
        loop {
            let Some(open) = &mut self.current else {
                let Some((index, file)) = self.files.next() else { return Ok(None) };
                let source = &self.sources.0[index];
                let vote = if source.shape.is_none() { vote(&file, source)? } else { ShapeVote::default() };
                let rows = reader::open(&file, source.split)?;
                self.current = Some(OpenFile { rows, path: Arc::new(file.path), source: index, vote });
                continue;
            };
            let Some(raw) = open.rows.next().transpose()? else {
                self.current = None;
                continue;
            };
            let location = Location { path: Arc::clone(&open.path), position: raw.position };
            let source = &self.sources.0[open.source];
            let parsed = raw
                .parse()
                .and_then(row_reader::fields)
                .and_then(|fields| row_reader::map_columns(fields, source))
                .and_then(|fields| row_reader::parse(fields, source.shape))
                .and_then(|row| open.vote.problem(row.shape).map_or(Ok(row), Err));
            match parsed {
                Ok(row) => return Ok(Some((location, row))),
                Err(_) if self.on_bad_row == OnBadRow::Skip => self.skipped += 1,
                Err(problem) => return Err(location.error(problem)),
            }
        }
    }
}

/// Reads a file for the shapes of its rows alone.
fn vote(file: &SourceFile, source: &Source) -> Result<ShapeVote, Error> {
    let mut rows = reader::open(file, source.split)?;
    let mut vote = ShapeVote::default();
    loop {
        let chunk = read_chunk(&mut *rows)?;
        if chunk.is_empty() {
            return Ok(vote);
        }
        let shape = |raw: RawRow| {
            let fields = row_reader::map_columns(row_reader::fields_of(raw)?, source)?;
            RowShape::detect(&fields)
        };
        let shapes: Vec<RowShape> = chunk.into_par_iter().filter_map(|raw| shape(raw).ok()).collect();
        shapes.into_iter().for_each(|shape| vote.add(shape));
    }
}

impl Iterator for Records {
    type Item = Result<(Location, Record), Error>;

    fn next(&mut self) -> Option<Self::Item> {
        let row = self.next_row().transpose()?;
        Some(row.map(|(location, row)| (location, row.record)))
    }
}
