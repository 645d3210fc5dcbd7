use crate::reader::{self, RawRows};
use crate::row_reader::{self, ParsedRow};
use crate::{Error, Location, OnBadRow, Record, RowShape, SourceFile, Sources};
use qlora_hub::FetchProgress;
use std::sync::Arc;
use std::vec::IntoIter;

/// The rows of sources, one after another, before any tokenization: for preference pairs, for prompts of
/// reinforcement learning, and for converting.
///
/// Holds one row at a time. After an error there is nothing more.
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
    first: Option<(Location, RowShape)>,
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

    fn step(&mut self) -> Result<Option<(Location, Record)>, Error> {
        loop {
            let Some(open) = &mut self.current else {
                let Some((source, file)) = self.files.next() else { return Ok(None) };
                let rows = reader::open(&file, self.sources.0[source].split)?;
                self.current = Some(OpenFile { rows, path: Arc::new(file.path), source, first: None });
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
                .and_then(|fields| row_reader::parse(fields, source.shape));
            let (path, line) = (open.path.to_path_buf(), location.position);
            match parsed {
                Ok(ParsedRow { record, shape, .. }) => {
                    let (first_place, first) = open.first.get_or_insert((location.clone(), shape));
                    if *first != shape {
                        let first_line = first_place.position;
                        return Err(Error::MixedShapes {
                            path,
                            first_line,
                            first: *first,
                            line,
                            other: shape,
                        });
                    }
                    return Ok(Some((location, record)));
                }
                Err(_) if self.on_bad_row == OnBadRow::Skip => self.skipped += 1,
                Err(problem) => return Err(Error::Row { path, line, problem: Box::new(problem) }),
            }
        }
    }
}

impl Iterator for Records {
    type Item = Result<(Location, Record), Error>;

    fn next(&mut self) -> Option<Self::Item> {
        let step = self.step();
        if step.is_err() {
            self.current = None;
            self.files = Vec::new().into_iter();
        }
        step.transpose()
    }
}
