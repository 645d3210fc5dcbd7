//! The report, and how it is written in plain text.

use super::{CheckOptions, Finding, PlannedBatch, RunEstimate, Severity};
use crate::{OnLong, Piece, Position, Sample, Sources};
use serde::Serialize;
use std::fmt::{self, Write as _};
use std::path::PathBuf;

/// What training would see of some files.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct CheckReport {
    /// The rows to train on.
    pub train: SetReport,
    /// The held-out rows.
    pub eval: Option<SetReport>,
    /// What was noticed, errors first.
    pub findings: Vec<Finding>,
    /// What was supposed: the longest row that is taken.
    pub max_length: Option<usize>,
    /// What becomes of longer ones.
    pub on_long: OnLong,
    /// Some rows as the model sees them: the first, and the first of each finding.
    #[serde(skip)]
    pub shown: Vec<ShownRow>,
}

/// The rows of one set in numbers. Tokens are those of the usable rows; 0 where there was no tokenizer.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
#[non_exhaustive]
pub struct SetReport {
    /// Its files.
    pub files: Vec<PathBuf>,
    /// Rows, blank lines not counted.
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
    /// Half of the samples have at most this many tokens.
    pub median_length: usize,
    /// 95 % have at most this many.
    pub p95_length: usize,
    /// 99 % have at most this many.
    pub p99_length: usize,
    /// Tokens of the longest sample.
    pub max_length: usize,
    /// How many samples have how many tokens.
    pub histogram: Vec<HistogramBar>,
    /// What is beyond `max_length`.
    pub cut: CutRows,
    /// What a run over these rows comes to, sources repeated as they are in an epoch; none for held-out rows.
    #[serde(flatten)]
    pub run: Option<RunEstimate>,
    /// The samples of an epoch, cut to `max_length`, packed into batches of the run's token budget, else of as many
    /// tokens as the longest has.
    pub packed: Option<PackedRows>,
}

/// Samples of `from` to `to` tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct HistogramBar {
    /// The fewest tokens.
    pub from: usize,
    /// The most tokens.
    pub to: usize,
    /// How many samples have them.
    pub rows: usize,
}

/// What is beyond `max_length`: an error, cut off, or left out, as the options say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct CutRows {
    /// Samples with more tokens.
    pub rows: usize,
    /// Tokens beyond it.
    pub tokens: usize,
    /// Of these, trained ones.
    pub trained_tokens: usize,
}

/// Packing.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct PackedRows {
    /// The most tokens of a pack.
    pub budget: usize,
    /// Packs.
    pub packs: usize,
    /// Share of the room in the packs that is filled.
    pub efficiency: f64,
    /// What that share would be for rows padded to the longest.
    pub padded_efficiency: f64,
}

/// A row as the model sees it.
#[derive(Debug, Clone, PartialEq)]
pub struct ShownRow {
    /// Its file.
    pub file: PathBuf,
    /// Its place there.
    pub position: Position,
    /// All its tokens; the pieces may be only the first of them.
    pub tokens: usize,
    /// What was found first in this row.
    pub reasons: Vec<String>,
    /// Its text.
    pub pieces: Vec<Piece>,
}

/// What is counted while rows come.
#[derive(Debug, Default)]
pub(super) struct SetCounts {
    pub(super) files: Vec<PathBuf>,
    pub(super) rows: usize,
    lengths: Vec<u32>,
    /// The first sample of each source.
    source_starts: Vec<usize>,
    trained_tokens: usize,
    cut: CutRows,
}

impl SetCounts {
    pub(super) fn add(&mut self, sample: &Sample, options: &CheckOptions) {
        self.lengths.push(u32::try_from(sample.len()).unwrap_or(u32::MAX));
        self.trained_tokens += sample.trained_tokens();
        let beyond = sample.weights.get(options.max_length.unwrap_or(usize::MAX)..).unwrap_or_default();
        if !beyond.is_empty() {
            self.cut.rows += 1;
            self.cut.tokens += beyond.len();
            self.cut.trained_tokens += beyond.iter().filter(|&&weight| weight != 0.0).count();
        }
    }

    pub(super) fn begin_source(&mut self) {
        self.source_starts.push(self.lengths.len());
    }

    /// The samples that training would take of an epoch's rows. Of a fraction the first rows stand for those that the
    /// seed would choose.
    fn epoch(&self, options: &CheckOptions, trained_on: Option<&Sources>) -> Vec<usize> {
        let ends = self.source_starts.iter().copied().skip(1).chain([self.lengths.len()]);
        let taken = |(end, start): (usize, &usize)| -> Vec<usize> {
            self.lengths[*start..end].iter().filter_map(|&length| options.taken(length as usize)).collect()
        };
        let sources: Vec<Vec<usize>> = ends.zip(&self.source_starts).map(taken).collect();
        let sizes: Vec<usize> = sources.iter().map(Vec::len).collect();
        let once = || vec![1.0; sizes.len()];
        let repeats = trained_on.map_or_else(once, |trained_on| {
            trained_on.repeats(options.mixing, &sizes).unwrap_or_else(|_| once())
        });
        let mut epoch = Vec::new();
        for (source, repeat) in sources.iter().zip(repeats) {
            (0..repeat as usize).for_each(|_| epoch.extend_from_slice(source));
            epoch.extend_from_slice(&source[..(repeat.fract() * source.len() as f64).round() as usize]);
        }
        epoch
    }

    pub(super) fn finish(self, options: &CheckOptions, trained_on: Option<&Sources>) -> SetReport {
        let epoch = self.epoch(options, trained_on);
        let Self { files, rows, lengths, trained_tokens, cut, .. } = self;
        let mut lengths: Vec<usize> = lengths.into_iter().map(|length| length as usize).collect();
        lengths.sort_unstable();
        let samples = lengths.len();
        let tokens: usize = lengths.iter().sum();
        // The nearest rank: the smallest length that this share of the samples does not exceed.
        let rank =
            |percent: usize| (samples * percent).div_ceil(100).checked_sub(1).map_or(0, |rank| lengths[rank]);
        SetReport {
            files,
            rows,
            samples,
            tokens,
            trained_tokens,
            min_length: lengths.first().copied().unwrap_or(0),
            mean_length: if samples == 0 { 0.0 } else { tokens as f64 / samples as f64 },
            median_length: rank(50),
            p95_length: rank(95),
            p99_length: rank(99),
            max_length: lengths.last().copied().unwrap_or(0),
            histogram: histogram(&lengths),
            cut,
            run: trained_on.and_then(|_| options.run.estimate(&epoch)),
            packed: packed(&epoch, options.run.batch),
        }
    }
}

/// Bars whose width doubles, so that short and long samples are both seen.
fn histogram(sorted: &[usize]) -> Vec<HistogramBar> {
    let mut bars = Vec::new();
    let (mut from, mut to) = (1, 16);
    let mut start = 0;
    while start < sorted.len() {
        let end = sorted.partition_point(|&length| length <= to);
        if end > 0 {
            bars.push(HistogramBar { from, to, rows: end - start });
        }
        start = end;
        (from, to) = (to + 1, to * 2);
    }
    bars
}

fn packed(lengths: &[usize], batch: PlannedBatch) -> Option<PackedRows> {
    let longest = *lengths.iter().max()?;
    let budget = batch.budget().unwrap_or(longest);
    let packing = batch.packed(lengths, budget)?;
    let tokens: usize = lengths.iter().sum();
    Some(PackedRows {
        budget,
        packs: packing.packs().len(),
        efficiency: packing.efficiency(),
        padded_efficiency: tokens as f64 / (longest as f64 * lengths.len() as f64),
    })
}

impl CheckReport {
    pub(super) fn new(
        train: SetReport,
        eval: Option<SetReport>,
        mut findings: Vec<Finding>,
        shown: Vec<ShownRow>,
        options: &CheckOptions,
    ) -> Self {
        findings.sort_by_key(|finding| (finding.severity, finding.kind));
        let CheckOptions { max_length, on_long, .. } = *options;
        Self { train, eval, findings, max_length, on_long, shown }
    }

    /// Whether training would stop, or learn something wrong.
    #[must_use]
    pub fn has_errors(&self) -> bool {
        self.findings.iter().any(|finding| finding.severity == Severity::Error)
    }

    /// The report as a page of HTML that needs nothing else: numbers, findings, and rows with their tokens coloured
    /// by weight.
    #[must_use]
    pub fn to_html(&self) -> String {
        super::html::page(self)
    }
}

impl fmt::Display for SetReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, value) in self.numbers() {
            writeln!(f, "  {name:16}  {value}")?;
        }
        let most = self.histogram.iter().map(|bar| bar.rows).max().unwrap_or(0).max(1);
        for HistogramBar { from, to, rows } in &self.histogram {
            let bar = "█".repeat((rows * 40).div_ceil(most));
            writeln!(f, "  {:>16}  {bar} {rows}", format!("{from}-{to}"))?;
        }
        Ok(())
    }
}

impl SetReport {
    /// Names and values, in words.
    pub(super) fn numbers(&self) -> Vec<(&'static str, String)> {
        let files: Vec<String> = self.files.iter().map(|file| file.display().to_string()).collect();
        let mut numbers = vec![("files", files.join(", ")), ("rows", grouped(self.rows))];
        if self.samples == 0 {
            return numbers;
        }
        let share = |part: usize, of: usize| format!("{:.1} %", 100.0 * part as f64 / of.max(1) as f64);
        numbers.push(("usable rows", grouped(self.samples)));
        numbers.push(("tokens", grouped(self.tokens)));
        let trained = self.trained_tokens;
        numbers.push(("trained tokens", format!("{} ({})", grouped(trained), share(trained, self.tokens))));
        numbers.push((
            "tokens a row",
            format!(
                "{} to {}, mean {:.0}, half at most {}, 95 % at most {}, 99 % at most {}",
                self.min_length,
                self.max_length,
                self.mean_length,
                self.median_length,
                self.p95_length,
                self.p99_length
            ),
        ));
        if self.cut.rows > 0 {
            let CutRows { rows, tokens, trained_tokens } = self.cut;
            numbers.push((
                "too long",
                format!(
                    "{} rows ({}), beyond the limit {} tokens ({}), {} of them trained",
                    grouped(rows),
                    share(rows, self.samples),
                    grouped(tokens),
                    share(tokens, self.tokens),
                    grouped(trained_tokens)
                ),
            ));
        }
        if let Some(RunEstimate { steps, epochs, tokens, seconds }) = self.run {
            let (steps, run_tokens) = (grouped(steps as usize), grouped(tokens as usize));
            numbers
                .push(("a run", format!("{steps} steps, {}, {run_tokens} tokens", counted_epochs(epochs))));
            numbers.push(("its time", time(tokens, seconds)));
        }
        if let Some(PackedRows { budget, packs, efficiency, padded_efficiency }) = self.packed {
            numbers.push((
                "packed",
                format!(
                    "{} packs of at most {} tokens, {:.1} % full (rows padded to the longest: {:.1} %)",
                    grouped(packs),
                    grouped(budget),
                    100.0 * efficiency,
                    100.0 * padded_efficiency
                ),
            ));
        }
        numbers
    }
}

impl fmt::Display for CheckReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "training data\n{}", self.train)?;
        if let Some(eval) = &self.eval {
            write!(f, "\nheld-out data\n{eval}")?;
        }
        for finding in &self.findings {
            let word = match finding.severity {
                Severity::Error => "error",
                Severity::Warning => "warning",
                Severity::Note => "note",
            };
            writeln!(f, "\n{word}: {} {}; {}", grouped(finding.rows), finding.summary, finding.advice)?;
            for place in &finding.places {
                writeln!(f, "  {}, {}: {}", place.file.display(), place.position, one_line(&place.detail))?;
            }
        }
        if self.findings.is_empty() {
            writeln!(f, "\nnothing was found to complain about")?;
        }
        Ok(())
    }
}

/// A detail may quote text from the data: control characters must not reach a terminal.
fn one_line(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() {
            let _ = write!(line, "{}", c.escape_default());
        } else {
            line.push(c);
        }
    }
    line
}

/// At most two digits after the point.
fn counted_epochs(number: f64) -> String {
    let text = format!("{number:.2}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    format!("{text} {}", if text == "1" { "epoch" } else { "epochs" })
}

/// How long training takes, in words. Nothing is guessed: a speed is measured, or there is no time.
fn time(tokens: u64, seconds: Option<f64>) -> String {
    let Some(seconds) = seconds else {
        return "tokens divided by tokens a second: measure these in a short run, and give --tokens-per-second".to_owned();
    };
    let speed = grouped((tokens as f64 / seconds).round() as usize);
    let minutes = (seconds / 60.0).round() as u64;
    let time = match (minutes / 60, minutes % 60) {
        (0, 0..=1) => format!("{} s", seconds.round()),
        (0, minutes) => format!("{minutes} min"),
        (hours, minutes) => format!("{hours} h {minutes} min"),
    };
    format!("about {time} at {speed} tokens a second, evaluation and saving not counted")
}

/// `1234567` as `1 234 567`.
fn grouped(number: usize) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(' ');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_double_in_width_and_hold_every_row() {
        let lengths: Vec<usize> = [vec![20; 3], vec![33; 2], vec![64], vec![200]].concat();
        let bars = histogram(&lengths);
        let found: Vec<_> = bars.iter().map(|bar| (bar.from, bar.to, bar.rows)).collect();
        assert_eq!(found, [(17, 32, 3), (33, 64, 3), (65, 128, 0), (129, 256, 1)]);
        assert!(histogram(&[]).is_empty());
    }

    #[test]
    fn time_is_what_a_measured_speed_makes_of_tokens() {
        assert!(time(100, Some(2.0)).starts_with("about 2 s at 50 tokens a second"));
        assert!(time(100, Some(600.0)).starts_with("about 10 min at 0 tokens"));
        assert!(time(36_000_000, Some(7500.0)).starts_with("about 2 h 5 min at 4 800 tokens"));
        assert!(time(100, None).contains("--tokens-per-second"));
        assert_eq!([1.0, 2.5, 0.333].map(counted_epochs), ["1 epoch", "2.5 epochs", "0.33 epochs"]);
    }

    #[test]
    fn quoted_text_cannot_steer_a_terminal() {
        assert_eq!(one_line("a\u{1b}[31m\nb"), "a\\u{1b}[31m\\nb");
    }
}
