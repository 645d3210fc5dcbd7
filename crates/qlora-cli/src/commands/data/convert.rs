//! `qlora data convert`: rows of any shape as JSONL of messages.

use std::io::Write as _;

use qlora_core::data::{OnBadRow, convert};
use qlora_core::hub::ProgressBars;
use serde_json::json;

use super::sources::sources;
use crate::arguments::{ConvertArguments, GlobalOptions};
use crate::failure::Failure;

pub(super) fn run(global: &GlobalOptions, arguments: &ConvertArguments) -> Result<(), Failure> {
    let on_bad_row = if arguments.skip_bad_rows { OnBadRow::Skip } else { OnBadRow::Stop };
    let sources = sources(&arguments.sources, &arguments.rows)?;
    let done = convert(sources, &arguments.out, on_bad_row, &mut ProgressBars::new())?;
    let mut out = std::io::stdout().lock();
    if global.json {
        let report = json!({"out": arguments.out, "written": done.written, "skipped": done.skipped, "left_out": done.left_out});
        writeln!(out, "{report}")?;
        return Ok(());
    }
    let skipped = match done.skipped {
        0 => String::new(),
        skipped => format!(", {skipped} that could not be used skipped"),
    };
    writeln!(out, "{}: {} rows{skipped}", arguments.out.display(), done.written)?;
    for (column, rows) in &done.left_out {
        writeln!(out, "the column {column:?} was left out of {rows} rows: it would get another meaning")?;
    }
    Ok(())
}
