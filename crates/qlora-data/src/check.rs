//! Whole-set checks: what training would see of some files, and what is wrong with it.

mod collector;
mod content;
mod finding;
mod html;
mod report;
mod rows;
mod signature;
mod similar;

pub use finding::{Finding, FindingKind, Place, Severity};
pub use report::{CheckReport, CutRows, HistogramBar, PackedRows, SetReport, ShownRow};
pub use rows::{PickedRow, pick};

use crate::{Encoder, Error, EvalSplit, RowShape, Sources};
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
    /// Rows of an optimizer step, for the estimate of steps.
    pub rows_per_step: usize,
    /// Times that every row is seen, for the estimate of steps.
    pub epochs: f64,
    /// Rows with at least this share of text in common are near-duplicates.
    pub similarity: f64,
}

impl Default for CheckOptions {
    fn default() -> Self {
        Self { shape: None, split: None, max_length: None, rows_per_step: 8, epochs: 1.0, similarity: 0.8 }
    }
}

/// Checks the rows of sources and, against them, those that are held out.
///
/// Every row is looked at once, as it stands in its file and its columns are mapped: sources are not repeated, and
/// nothing is augmented. Without an encoder only what needs no tokens is checked. Memory grows by some 450 bytes a row,
/// whatever its length.
///
/// # Errors
/// [`Error::Option`], [`Error::Source`], [`Error::Hub`], [`Error::Read`] and [`Error::Empty`]. What is wrong with rows
/// is in the report.
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
            for file in source.files(progress)? {
                let rows = collector.begin_file(&file.path);
                rows::for_each_chunk(&file, source.split, |lines| {
                    collector.add(lines, source, split.map(|split| (split, held_out)));
                    ControlFlow::Continue(())
                })?;
                if collector.rows() == rows && split.is_none() {
                    return Err(Error::Empty { path: file.path });
                }
            }
        }
    }
    Ok(collector.finish())
}
