//! Whole-set checks: what training would see of some files, and what is wrong with it.

mod collector;
mod content;
mod finding;
mod html;
mod report;
mod rows;
mod run_plan;
mod signature;
mod similar;

pub use finding::{Finding, FindingKind, Place, Severity};
pub use report::{CheckReport, CutRows, HistogramBar, PackedRows, SetReport, ShownRow};
pub use rows::{PickedRow, pick};
pub use run_plan::{PlannedBatch, PlannedLength, RunEstimate, RunPlan};

use crate::{Encoder, Error, EvalSplit, Mixing, OnBadRow, OnLong, RowShape, Sources};
use collector::Collector;
use qlora_hub::FetchProgress;
use std::ops::ControlFlow;

/// What a check supposes.
#[derive(Debug, Clone, PartialEq)]
pub struct CheckOptions {
    /// The shape of all rows of sources that name none; `None` finds it out.
    pub shape: Option<RowShape>,
    /// Which rows to train on are held out instead; not beside held-out sources.
    pub split: Option<EvalSplit>,
    /// The most tokens of a row that training would take.
    pub max_length: Option<usize>,
    /// What training would do with longer rows: they are errors when it would stop.
    pub on_long: OnLong,
    /// What training would do with rows that can't be used: they are errors when it would stop.
    pub on_bad_row: OnBadRow,
    /// How sources with weights would be mixed, for the estimate of a run.
    pub mixing: Mixing,
    /// What a run would be, for the estimate of its steps, tokens and time.
    pub run: RunPlan,
    /// Rows with at least this share of text in common are near-duplicates.
    pub similarity: f64,
}

impl Default for CheckOptions {
    fn default() -> Self {
        Self {
            shape: None,
            split: None,
            max_length: None,
            on_long: OnLong::default(),
            on_bad_row: OnBadRow::default(),
            mixing: Mixing::default(),
            run: RunPlan::default(),
            similarity: 0.8,
        }
    }
}

impl CheckOptions {
    /// The tokens of a sample that training would take; `None` when it would leave it out. A row that it would stop at
    /// counts as one that is cut.
    fn taken(&self, tokens: usize) -> Option<usize> {
        let limit = self.max_length.unwrap_or(usize::MAX);
        (tokens <= limit || self.on_long != OnLong::Skip).then_some(tokens.min(limit))
    }

    /// Whether training would stop at a row with this finding, or learn something wrong from it.
    fn severity(&self, kind: FindingKind) -> Severity {
        let cut_stops = match self.on_long {
            OnLong::Error => true,
            // Nothing is left to learn then, which makes it a bad row.
            OnLong::Truncate => self.on_bad_row == OnBadRow::Stop,
            OnLong::Skip => false,
        };
        let is_passed_over = match kind {
            FindingKind::TooLong => self.on_long != OnLong::Error,
            FindingKind::CutUntrained => !cut_stops,
            FindingKind::OverBudget => false,
            _ => self.on_bad_row == OnBadRow::Skip,
        };
        match kind.severity() {
            Severity::Error if is_passed_over => Severity::Warning,
            severity => severity,
        }
    }
}

/// Checks the rows of sources and, against them, those that are held out.
///
/// Every row is looked at once, as it stands in its file and its columns are mapped: nothing is augmented, and sources are
/// repeated in the estimate of a run only. Without an encoder only what needs no tokens is checked. Memory grows by some 450 bytes a row,
/// whatever its length.
///
/// # Errors
/// [`Error::Option`], [`Error::Source`], [`Error::Hub`], [`Error::Read`], [`Error::Empty`] and [`Error::OneSidedSplit`].
/// What is wrong with rows is in the report.
pub fn check(
    train: &Sources,
    eval: Option<&Sources>,
    encoder: Option<&Encoder>,
    options: &CheckOptions,
    progress: &mut dyn FetchProgress,
) -> Result<CheckReport, Error> {
    options.split.as_ref().map(EvalSplit::check).transpose()?;
    let split = options.split.as_ref().filter(|_| eval.is_none());
    let mut collector = Collector::new(encoder, options, eval.is_some() || split.is_some());
    // The rows of a split are read twice: held-out rows are compared with all that is trained on.
    let sets = [(false, Some(train)), (true, eval.or(split.map(|_| train)))];
    for (held_out, sources) in sets {
        let Some(sources) = sources else { continue };
        sources.check()?;
        collector.begin_set(held_out);
        for source in &sources.0 {
            collector.begin_source();
            for file in source.files(progress)? {
                let rows = collector.begin_file(&file.path);
                rows::for_each_chunk(&file, source.split, |lines| {
                    collector.add(lines, source, split.map(|split| (split, held_out)));
                    ControlFlow::Continue(())
                })?;
                collector.end_file();
                if collector.rows() == rows && split.is_none() {
                    return Err(Error::Empty { path: file.path });
                }
            }
        }
    }
    let report = collector.finish(train);
    if let Some(split) = split {
        split.check_sides(report.train.rows, report.eval.as_ref().map_or(0, |eval| eval.rows))?;
    }
    Ok(report)
}
