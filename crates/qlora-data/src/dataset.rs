use crate::keyed_hash::{is_within, keyed_hash};
use crate::pipeline::{EncodedRow, Outcome, Pipeline};
use crate::shape_vote::ShapeVote;
use crate::token_store::{Record, TokenStore};
use crate::{
    Augmentation, DataPlan, DatasetReport, Encoder, Error, Location, Position, Remarks, RowProblem, RowShape,
    Sample, SkippedRow, Source, Sources, reader,
};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What happens to a row that cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnBadRow {
    /// It is an error.
    #[default]
    Stop,
    /// It is skipped and counted.
    Skip,
}

/// What happens to a row of more than `max_length` tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnLong {
    /// It is an error.
    #[default]
    Error,
    /// Its first `max_length` tokens are kept; counted.
    Truncate,
    /// It is skipped and counted.
    Skip,
}

/// How a file is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DatasetOptions {
    /// The shape of all rows; `None` finds it out for each file: that of most rows. Rows of another can't be used.
    pub shape: Option<RowShape>,
    /// The most tokens a sample may have; `None` for no limit.
    pub max_length: Option<usize>,
    /// What happens to longer rows.
    pub on_long: OnLong,
    /// What happens to rows that cannot be used.
    pub on_bad_row: OnBadRow,
}

/// Samples in the order of their rows, and a report about them.
///
/// Ids and weights lie packed in memory, beyond 128 MiB in a temporary file that vanishes with the data set; a
/// sample is unpacked when it is asked for. Cloning is cheap.
#[derive(Debug, Clone)]
pub struct Dataset {
    store: Arc<TokenStore>,
    /// One per sample; rows that stand several times in an epoch have several.
    records: Arc<[Record]>,
    files: Arc<[Arc<PathBuf>]>,
    report: DatasetReport,
}

impl Dataset {
    /// Reads files of any format and shape: a path, a pattern, a folder, or
    /// `hf://datasets/organisation/name/..`, one or several; see [`Source`].
    ///
    /// # Errors
    /// [`Error::Source`] when there are no files or their format can't be told; [`Error::File`] for a damaged
    /// file; else as [`from_jsonl`](Self::from_jsonl).
    pub fn open(
        sources: impl Into<Sources>,
        encoder: &Encoder,
        options: &DatasetOptions,
    ) -> Result<Self, Error> {
        let (dataset, _) = DataPlan::new(sources).open(encoder, options, &mut qlora_hub::Silent)?;
        Ok(dataset)
    }

    /// Reads a JSONL file: one JSON object per line, UTF-8 with or without a byte order mark; blank lines are
    /// passed over.
    ///
    /// # Errors
    /// [`Error::Read`]; [`Error::Row`] for the first unusable row unless the options skip such; [`Error::Empty`] and
    /// [`Error::NothingLeft`].
    pub fn from_jsonl(
        path: impl AsRef<Path>,
        encoder: &Encoder,
        options: &DatasetOptions,
    ) -> Result<Self, Error> {
        let path = path.as_ref();
        let file = File::open(path).map_err(|source| Error::Read { path: path.to_owned(), source })?;
        Self::from_reader(BufReader::with_capacity(1 << 16, file), path, encoder, options)
    }

    /// [`from_jsonl`](Self::from_jsonl) of any source; `name` stands in the errors.
    ///
    /// # Errors
    /// As [`from_jsonl`](Self::from_jsonl).
    pub fn from_reader(
        reader: impl BufRead + Send,
        name: impl AsRef<Path>,
        encoder: &Encoder,
        options: &DatasetOptions,
    ) -> Result<Self, Error> {
        let mut rows = reader::lines(reader, name.as_ref());
        let pipeline = Pipeline {
            source: &Source::new(""),
            file: 0,
            encoder,
            options,
            augmentation: &Augmentation::default(),
            split: None,
        };
        let mut builder = Builder::new(vec![name.as_ref().to_owned()], options);
        let mut vote = ShapeVote::default();
        pipeline.run(&mut rows, &mut |row| {
            row.vote(&mut vote);
            builder.add(row, &vote)
        })?;
        builder.end_file(&vote)?;
        builder.finish()
    }

    /// Samples made elsewhere.
    ///
    /// # Errors
    /// [`Error::Empty`] when there are none; [`Error::Spill`].
    pub fn from_samples(samples: Vec<Sample>) -> Result<Self, Error> {
        if samples.is_empty() {
            return Err(Error::Empty { path: "<samples>".into() });
        }
        let options = DatasetOptions::default();
        let mut builder = Builder::new(Vec::new(), &options);
        for sample in samples {
            builder.keep(&sample, Position::line(sample.line))?;
        }
        builder.finish()
    }

    /// A copy of all samples. [`iter`](Self::iter) needs the memory of one.
    #[must_use]
    pub fn samples(&self) -> Vec<Sample> {
        self.iter().collect()
    }

    /// The samples, one after another.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Sample> + '_ {
        self.records.iter().map(|record| self.store.get(record))
    }

    /// The number of tokens of each sample; unpacks nothing.
    pub fn lengths(&self) -> impl ExactSizeIterator<Item = usize> + '_ {
        self.records.iter().map(Record::len)
    }

    /// One sample.
    ///
    /// # Panics
    /// When the index is not below [`len`](Self::len), or the disk with the temporary file fails.
    #[must_use]
    pub fn sample(&self, index: usize) -> Sample {
        self.store.get(&self.records[index])
    }

    /// Where the row of a sample stands; `None` for samples from no file.
    ///
    /// # Panics
    /// When the index is not below [`len`](Self::len).
    #[must_use]
    pub fn location(&self, index: usize) -> Option<Location> {
        let record = &self.records[index];
        let path = self.files.get(record.file as usize)?;
        Some(Location { path: Arc::clone(path), position: record.position })
    }

    /// Counts of rows, tokens, and of what was skipped or noticed.
    #[must_use]
    pub fn report(&self) -> &DatasetReport {
        &self.report
    }

    /// Number of samples, at least 1.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "a data set is never empty")]
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// The samples at some indices, for [`Batch::from_samples`](crate::Batch::from_samples).
    ///
    /// # Panics
    /// When an index is not below [`len`](Self::len).
    #[must_use]
    pub fn select(&self, indices: &[usize]) -> Vec<Sample> {
        indices.iter().map(|&index| self.sample(index)).collect()
    }

    /// SHA-256 of the ids and weights of all samples, in hexadecimal: equal exactly when training would see
    /// the same. Line numbers do not count.
    #[must_use]
    pub fn content_hash(&self) -> String {
        let mut hash = Sha256::new();
        for sample in self.iter() {
            hash.update((sample.len() as u64).to_le_bytes());
            sample.ids.iter().for_each(|id| hash.update(id.to_le_bytes()));
            sample.weights.iter().for_each(|weight| hash.update(weight.to_bits().to_le_bytes()));
        }
        hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// Gathers the samples of files that are read one after another.
pub(crate) struct Builder<'a> {
    files: Vec<Arc<PathBuf>>,
    options: &'a DatasetOptions,
    file: u32,
    rows: usize,
    /// The first record of each run of rows of one shape in the file.
    runs: Vec<(usize, RowShape)>,
    /// Rows of the file that failed, and whose shape may be why.
    odd: Vec<(Position, RowShape, RowProblem)>,
    /// The shapes of files.
    shapes: Vec<RowShape>,
    store: TokenStore,
    records: Vec<Record>,
    /// The first sample of each source.
    source_starts: Vec<usize>,
    truncated: usize,
    skipped_long: usize,
    skipped_untrained: usize,
    skipped_bad: usize,
    /// With its file and its place there.
    first_skipped: Option<((u32, usize), SkippedRow)>,
    ignored_keys: BTreeMap<String, usize>,
    remarks: Remarks,
}

impl<'a> Builder<'a> {
    pub(crate) fn new(files: Vec<PathBuf>, options: &'a DatasetOptions) -> Self {
        Self {
            files: files.into_iter().map(Arc::new).collect(),
            options,
            file: 0,
            rows: 0,
            runs: Vec::new(),
            odd: Vec::new(),
            shapes: Vec::new(),
            store: TokenStore::new(),
            records: Vec::new(),
            source_starts: Vec::new(),
            truncated: 0,
            skipped_long: 0,
            skipped_untrained: 0,
            skipped_bad: 0,
            first_skipped: None,
            ignored_keys: BTreeMap::new(),
            remarks: Remarks::default(),
        }
    }

    pub(crate) fn begin_source(&mut self) {
        self.source_starts.push(self.records.len());
    }

    /// The samples of each source.
    pub(crate) fn source_sizes(&self) -> Vec<usize> {
        let ends = self.source_starts.iter().copied().skip(1).chain([self.records.len()]);
        ends.zip(&self.source_starts).map(|(end, start)| end - start).collect()
    }

    pub(crate) fn begin_file(&mut self, file: u32) {
        self.file = file;
    }

    /// Ends a file: its shape is known now, and rows of another can't be used.
    pub(crate) fn end_file(&mut self, vote: &ShapeVote) -> Result<(), Error> {
        for (position, shape, problem) in std::mem::take(&mut self.odd) {
            self.skip(position, vote.problem(shape).unwrap_or(problem))?;
        }
        let runs = std::mem::take(&mut self.runs);
        if let Some(shape) = vote.winner()
            && !self.shapes.contains(&shape)
        {
            self.shapes.push(shape);
        }
        let Some((first, _)) = runs.first() else { return Ok(()) };
        let mut records = self.records.split_off(*first).into_iter();
        let ends = runs.iter().map(|(start, _)| *start).skip(1).chain([usize::MAX]);
        for ((start, shape), end) in runs.iter().zip(ends) {
            let run = records.by_ref().take(end - start);
            if vote.winner() == Some(*shape) {
                self.records.extend(run);
                continue;
            }
            for record in run.collect::<Vec<_>>() {
                if let Some(problem) = vote.problem(*shape) {
                    self.skip(record.position, problem)?;
                }
            }
        }
        Ok(())
    }

    /// Rows so far.
    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    /// Lets the samples of each source stand as often as its number says; of a fraction, those whose hash is low.
    pub(crate) fn repeat_sources(&mut self, repeats: &[f64], seed: u64) {
        let sizes = self.source_sizes();
        let mut once = std::mem::take(&mut self.records).into_iter();
        for (size, repeat) in sizes.into_iter().zip(repeats) {
            let source: Vec<Record> = once.by_ref().take(size).collect();
            for _ in 0..*repeat as usize {
                self.records.extend_from_slice(&source);
            }
            let rest = repeat.fract();
            let chosen = source.into_iter().filter(|record| {
                let key =
                    [u64::from(record.file).to_le_bytes(), (record.position.number as u64).to_le_bytes()];
                is_within(keyed_hash(seed, "repeat", &key.concat()), rest)
            });
            self.records.extend(chosen);
        }
    }

    fn path(&self) -> PathBuf {
        self.files.get(self.file as usize).map_or_else(PathBuf::new, |path| path.to_path_buf())
    }

    /// Adds a row; the shapes of the file's rows so far, this one included, are told beside.
    pub(crate) fn add(&mut self, row: EncodedRow, vote: &ShapeVote) -> Result<(), Error> {
        self.rows += 1;
        let line = row.position;
        for key in row.ignored_keys {
            *self.ignored_keys.entry(key).or_default() += 1;
        }
        match row.outcome {
            Ok(Outcome { encoded, truncated }) => {
                self.truncated += usize::from(truncated);
                self.remarks += encoded.remarks;
                if let Some(shape) = row.shape
                    && self.runs.last().is_none_or(|(_, last)| *last != shape)
                {
                    self.runs.push((self.records.len(), shape));
                }
                self.keep(&encoded.sample, line)
            }
            Err(problem) => match row.shape.filter(|shape| shape.is_supervised()) {
                Some(shape) if vote.problem(shape).is_some() => {
                    self.odd.push((line, shape, problem));
                    Ok(())
                }
                _ => self.skip(line, problem),
            },
        }
    }

    fn keep(&mut self, sample: &Sample, position: Position) -> Result<(), Error> {
        self.records.push(self.store.push(sample, position, self.file)?);
        Ok(())
    }

    fn skip(&mut self, line: Position, problem: RowProblem) -> Result<(), Error> {
        let (skipped, counter) = match problem {
            RowProblem::TooLong { .. } => (self.options.on_long == OnLong::Skip, &mut self.skipped_long),
            RowProblem::Untrained { .. } => {
                (self.options.on_bad_row == OnBadRow::Skip, &mut self.skipped_untrained)
            }
            _ => (self.options.on_bad_row == OnBadRow::Skip, &mut self.skipped_bad),
        };
        if !skipped {
            return Err(Error::Row { path: self.path(), line, problem: Box::new(problem) });
        }
        *counter += 1;
        let at = (self.file, line.number);
        if self.first_skipped.as_ref().is_none_or(|(first, _)| at < *first) {
            let place = match self.files.len() {
                0 | 1 => line.to_string(),
                _ => format!("{}, {line}", self.path().display()),
            };
            let row = SkippedRow { line: line.number, place, problem: problem.to_string() };
            self.first_skipped = Some((at, row));
        }
        Ok(())
    }

    pub(crate) fn finish(self) -> Result<Dataset, Error> {
        if self.records.is_empty() {
            let path = match &self.files[..] {
                [] => PathBuf::from("<samples>"),
                [first] => first.to_path_buf(),
                [first, others @ ..] => format!("{} and {} more", first.display(), others.len()).into(),
            };
            return Err(match self.first_skipped {
                None => Error::Empty { path },
                Some((_, SkippedRow { place, problem, .. })) => {
                    Error::NothingLeft { path, rows: self.rows, line: place, problem }
                }
            });
        }
        let trained = self.records.iter().map(Record::trained_tokens).sum();
        let mut report = DatasetReport::of_lengths(self.records.iter().map(Record::len).collect(), trained);
        if !self.files.is_empty() {
            report.rows = self.rows;
        }
        report.shape = match self.shapes[..] {
            [shape] => Some(shape),
            _ => None,
        };
        report.truncated = self.truncated;
        report.skipped_long = self.skipped_long;
        report.skipped_untrained = self.skipped_untrained;
        report.skipped_bad = self.skipped_bad;
        report.first_skipped = self.first_skipped.map(|(_, row)| row);
        report.ignored_keys = self.ignored_keys;
        report.remarks = self.remarks;
        Ok(Dataset {
            store: Arc::new(self.store),
            records: self.records.into(),
            files: self.files.into(),
            report,
        })
    }
}
