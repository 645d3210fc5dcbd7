use crate::jsonl::{Line, Lines};
use crate::row::{self, ParsedRow};
use crate::{DatasetReport, Encoded, Encoder, Error, Remarks, RowProblem, RowShape, Sample, SkippedRow};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

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
    /// The shape of all rows; `None` finds it out, and refuses a file that mixes shapes.
    pub shape: Option<RowShape>,
    /// The most tokens a sample may have; `None` for no limit.
    pub max_length: Option<usize>,
    /// What happens to longer rows.
    pub on_long: OnLong,
    /// What happens to rows that cannot be used.
    pub on_bad_row: OnBadRow,
}

/// Samples in the order of their rows, and a report about them.
#[derive(Debug, Clone, PartialEq)]
pub struct Dataset {
    samples: Vec<Sample>,
    report: DatasetReport,
}

/// Bytes of a file that are tokenized at a time, by all threads together.
const CHUNK_BYTES: usize = 4 << 20;

impl Dataset {
    /// Reads a JSONL file: one JSON object per line, UTF-8 with or without a byte order mark; blank lines are
    /// passed over.
    ///
    /// # Errors
    /// [`Error::Read`]; [`Error::Row`] for the first unusable row unless the options skip such;
    /// [`Error::MixedShapes`]; [`Error::Empty`] and [`Error::NothingLeft`].
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
        reader: impl BufRead,
        name: impl AsRef<Path>,
        encoder: &Encoder,
        options: &DatasetOptions,
    ) -> Result<Self, Error> {
        let mut builder = Builder::new(name.as_ref(), options);
        let mut lines = Lines::new(reader);
        while !lines.at_end() {
            let chunk = lines
                .read_chunk(CHUNK_BYTES)
                .map_err(|source| Error::Read { path: name.as_ref().to_owned(), source })?;
            let rows: Vec<(usize, EncodedRow)> =
                chunk.par_iter().map(|line| (line.number, encode_line(line, encoder, options))).collect();
            for (line, row) in rows {
                builder.add(line, row)?;
            }
        }
        builder.finish()
    }

    /// Samples made elsewhere.
    ///
    /// # Errors
    /// [`Error::Empty`] when there are none.
    pub fn from_samples(samples: Vec<Sample>) -> Result<Self, Error> {
        if samples.is_empty() {
            return Err(Error::Empty { path: "<samples>".into() });
        }
        let report = report_of(&samples);
        Ok(Self { samples, report })
    }

    /// The samples.
    #[must_use]
    pub fn samples(&self) -> &[Sample] {
        &self.samples
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
        self.samples.len()
    }

    /// The samples at some indices, for [`Batch::from_samples`](crate::Batch::from_samples).
    ///
    /// # Panics
    /// When an index is not below [`len`](Self::len).
    #[must_use]
    pub fn select(&self, indices: &[usize]) -> Vec<&Sample> {
        indices.iter().map(|&index| &self.samples[index]).collect()
    }

    /// SHA-256 of the ids and weights of all samples, in hexadecimal: equal exactly when training would see
    /// the same. Line numbers do not count.
    #[must_use]
    pub fn content_hash(&self) -> String {
        let mut hash = Sha256::new();
        for sample in &self.samples {
            hash.update((sample.len() as u64).to_le_bytes());
            sample.ids.iter().for_each(|id| hash.update(id.to_le_bytes()));
            sample.weights.iter().for_each(|weight| hash.update(weight.to_bits().to_le_bytes()));
        }
        hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// A line after tokenization: its shape where it could be read, its keys that mean nothing, and the sample.
struct EncodedRow {
    shape: Option<RowShape>,
    ignored_keys: Vec<String>,
    outcome: Result<Outcome, RowProblem>,
}

struct Outcome {
    encoded: Encoded,
    truncated: bool,
}

fn encode_line(line: &Line, encoder: &Encoder, options: &DatasetOptions) -> EncodedRow {
    match line.parse().and_then(|value| row::parse(value, options.shape)) {
        Err(problem) => EncodedRow { shape: None, ignored_keys: Vec::new(), outcome: Err(problem) },
        Ok(ParsedRow { row, shape, ignored_keys }) => {
            let outcome = encoder
                .encode(&row, line.number)
                .and_then(|encoded| fit(encoded, options.max_length, options.on_long));
            EncodedRow { shape: Some(shape), ignored_keys, outcome }
        }
    }
}

fn fit(mut encoded: Encoded, max_length: Option<usize>, on_long: OnLong) -> Result<Outcome, RowProblem> {
    let tokens = encoded.sample.len();
    let limit = max_length.unwrap_or(usize::MAX);
    let truncated = tokens > limit;
    if truncated {
        if on_long != OnLong::Truncate {
            return Err(RowProblem::TooLong { tokens, limit });
        }
        encoded.sample.ids.truncate(limit);
        encoded.sample.weights.truncate(limit);
        if encoded.sample.trained_tokens() == 0 {
            return Err(RowProblem::Untrained { reason: "max_length cuts all trained tokens off; raise it" });
        }
    }
    Ok(Outcome { encoded, truncated })
}

struct Builder<'a> {
    path: &'a Path,
    options: &'a DatasetOptions,
    rows: usize,
    /// Line and shape of the first row that has one.
    first: Option<(usize, RowShape)>,
    samples: Vec<Sample>,
    truncated: usize,
    skipped_long: usize,
    skipped_untrained: usize,
    skipped_bad: usize,
    first_skipped: Option<SkippedRow>,
    ignored_keys: BTreeMap<String, usize>,
    remarks: Remarks,
}

impl<'a> Builder<'a> {
    fn new(path: &'a Path, options: &'a DatasetOptions) -> Self {
        Self {
            path,
            options,
            rows: 0,
            first: None,
            samples: Vec::new(),
            truncated: 0,
            skipped_long: 0,
            skipped_untrained: 0,
            skipped_bad: 0,
            first_skipped: None,
            ignored_keys: BTreeMap::new(),
            remarks: Remarks::default(),
        }
    }

    fn add(&mut self, line: usize, row: EncodedRow) -> Result<(), Error> {
        self.rows += 1;
        if let Some(other) = row.shape {
            let (first_line, first) = *self.first.get_or_insert((line, other));
            if first != other {
                let path = self.path.to_owned();
                return Err(Error::MixedShapes { path, first_line, first, line, other });
            }
        }
        for key in row.ignored_keys {
            *self.ignored_keys.entry(key).or_default() += 1;
        }
        match row.outcome {
            Ok(Outcome { encoded, truncated }) => {
                self.truncated += usize::from(truncated);
                self.remarks += encoded.remarks;
                self.samples.push(encoded.sample);
                Ok(())
            }
            Err(problem) => self.skip(line, problem),
        }
    }

    fn skip(&mut self, line: usize, problem: RowProblem) -> Result<(), Error> {
        let (skipped, counter) = match problem {
            RowProblem::TooLong { .. } => (self.options.on_long == OnLong::Skip, &mut self.skipped_long),
            RowProblem::Untrained { .. } => {
                (self.options.on_bad_row == OnBadRow::Skip, &mut self.skipped_untrained)
            }
            _ => (self.options.on_bad_row == OnBadRow::Skip, &mut self.skipped_bad),
        };
        if !skipped {
            return Err(Error::Row { path: self.path.to_owned(), line, problem: Box::new(problem) });
        }
        *counter += 1;
        if self.first_skipped.is_none() {
            self.first_skipped = Some(SkippedRow { line, problem: problem.to_string() });
        }
        Ok(())
    }

    fn finish(self) -> Result<Dataset, Error> {
        let path = || self.path.to_owned();
        if self.samples.is_empty() {
            return Err(match self.first_skipped {
                None => Error::Empty { path: path() },
                Some(SkippedRow { line, problem }) => {
                    Error::NothingLeft { path: path(), rows: self.rows, line, problem }
                }
            });
        }
        let report = DatasetReport {
            shape: self.first.map(|(_, shape)| shape),
            rows: self.rows,
            truncated: self.truncated,
            skipped_long: self.skipped_long,
            skipped_untrained: self.skipped_untrained,
            skipped_bad: self.skipped_bad,
            first_skipped: self.first_skipped,
            ignored_keys: self.ignored_keys,
            remarks: self.remarks,
            ..report_of(&self.samples)
        };
        Ok(Dataset { samples: self.samples, report })
    }
}

fn report_of(samples: &[Sample]) -> DatasetReport {
    let trained = samples.iter().map(Sample::trained_tokens).sum();
    DatasetReport::of_lengths(samples.iter().map(Sample::len).collect(), trained)
}
