use crate::{Remarks, RowShape};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;

/// What became of the rows of a file. Prints as a few plain lines.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct DatasetReport {
    /// The shape of the rows; `None` for samples from no file.
    pub shape: Option<RowShape>,
    /// Rows of the file, blank lines not counted.
    pub rows: usize,
    /// Rows that became samples.
    pub samples: usize,
    /// Tokens of all samples.
    pub tokens: usize,
    /// Tokens whose weight is not 0.
    pub trained_tokens: usize,
    /// Tokens of the shortest sample.
    pub min_length: usize,
    /// Mean tokens of a sample.
    pub mean_length: f64,
    /// 95 % of the samples have at most this many tokens.
    pub p95_length: usize,
    /// Tokens of the longest sample.
    pub max_length: usize,
    /// Samples cut to `max_length`.
    pub truncated: usize,
    /// Rows skipped because they are longer than `max_length`.
    pub skipped_long: usize,
    /// Rows skipped because no token of them is trained.
    pub skipped_untrained: usize,
    /// Rows skipped because they are damaged, wrongly shaped, or refused by the template.
    pub skipped_bad: usize,
    /// The first row that was skipped.
    pub first_skipped: Option<SkippedRow>,
    /// Keys that have no meaning here, and in how many rows they stand.
    pub ignored_keys: BTreeMap<String, usize>,
    /// What was noticed in the samples.
    pub remarks: Remarks,
}

/// A row that was skipped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SkippedRow {
    /// Its line or row, from 1.
    pub line: usize,
    /// Where it stands, in words; with the file, when there are several.
    pub place: String,
    /// Why.
    pub problem: String,
}

impl DatasetReport {
    /// A report of samples alone, given their lengths and how many of their tokens are trained.
    pub(crate) fn of_lengths(mut lengths: Vec<usize>, trained_tokens: usize) -> Self {
        lengths.sort_unstable();
        let samples = lengths.len();
        let tokens: usize = lengths.iter().sum();
        // The nearest rank: the smallest length that at least 95 % of the samples do not exceed.
        let rank = (samples * 95).div_ceil(100);
        Self {
            shape: None,
            rows: samples,
            samples,
            tokens,
            trained_tokens,
            min_length: lengths.first().copied().unwrap_or(0),
            mean_length: if samples == 0 { 0.0 } else { tokens as f64 / samples as f64 },
            p95_length: rank.checked_sub(1).map_or(0, |i| lengths[i]),
            max_length: lengths.last().copied().unwrap_or(0),
            truncated: 0,
            skipped_long: 0,
            skipped_untrained: 0,
            skipped_bad: 0,
            first_skipped: None,
            ignored_keys: BTreeMap::new(),
            remarks: Remarks::default(),
        }
    }

    /// Rows that did not become samples.
    #[must_use]
    pub fn skipped(&self) -> usize {
        self.skipped_long + self.skipped_untrained + self.skipped_bad
    }
}

impl fmt::Display for DatasetReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} rows", self.rows)?;
        if let Some(shape) = self.shape {
            write!(f, " of {shape}")?;
        }
        let share = 100.0 * self.trained_tokens as f64 / self.tokens.max(1) as f64;
        write!(
            f,
            ", {} samples, {} tokens, {} of them trained ({share:.0} %)\n\
             tokens per sample: {} to {}, mean {:.0}, 95 % at most {}",
            self.samples,
            self.tokens,
            self.trained_tokens,
            self.min_length,
            self.max_length,
            self.mean_length,
            self.p95_length
        )?;
        for (count, what) in [
            (self.truncated, "samples cut to max_length"),
            (self.skipped_long, "rows skipped: longer than max_length"),
            (self.skipped_untrained, "rows skipped: no trained token"),
            (self.skipped_bad, "rows skipped: not usable"),
            (
                self.remarks.unended_responses,
                "responses without an end token: the model does not learn to stop there",
            ),
            (self.remarks.special_in_content, "texts that contain a special token of the model"),
            (
                self.remarks.split_boundaries,
                "places where a response was tokenized apart from its neighbours",
            ),
        ] {
            if count > 0 {
                write!(f, "\n{count} {what}")?;
            }
        }
        if let Some(SkippedRow { place, problem, .. }) = &self.first_skipped {
            write!(f, "\nfirst skipped row: {place}: {problem}")?;
        }
        if !self.ignored_keys.is_empty() {
            let keys: Vec<String> =
                self.ignored_keys.iter().map(|(key, rows)| format!("{key:?} ({rows} rows)")).collect();
            write!(f, "\nkeys that are not used: {}", keys.join(", "))?;
        }
        Ok(())
    }
}
