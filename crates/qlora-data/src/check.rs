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

use crate::{Encoder, Error, RowShape};
use collector::Collector;
use std::ops::ControlFlow;
use std::path::PathBuf;

/// What a check supposes.
#[derive(Debug, Clone, PartialEq)]
pub struct CheckOptions {
    /// The shape of all rows; `None` finds it out.
    pub shape: Option<RowShape>,
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
        Self { shape: None, max_length: None, rows_per_step: 8, epochs: 1.0, similarity: 0.8 }
    }
}

/// Checks the rows of some files and, against them, those of held-out files.
///
/// Without an encoder only what needs no tokens is checked. Memory grows by some 450 bytes a row, whatever its
/// length.
///
/// # Errors
/// [`Error::Read`] and [`Error::Empty`]. What is wrong with rows is in the report.
pub fn check(
    train: &[PathBuf],
    eval: &[PathBuf],
    encoder: Option<&Encoder>,
    options: &CheckOptions,
) -> Result<CheckReport, Error> {
    let mut collector = Collector::new(encoder, options, !eval.is_empty());
    for (held_out, files) in [(false, train), (true, eval)] {
        collector.begin_set(held_out);
        for file in files {
            let rows = collector.begin_file(file);
            rows::for_each_chunk(file, |lines| {
                collector.add(lines);
                ControlFlow::Continue(())
            })?;
            if collector.rows() == rows {
                return Err(Error::Empty { path: file.clone() });
            }
        }
    }
    Ok(collector.finish())
}
