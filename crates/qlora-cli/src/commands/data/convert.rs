//! `qlora data convert`: rows of any shape as JSONL of messages.

use std::io::Write as _;

use qlora_core::data::{OnBadRow, RowShape, Source, Sources, convert};
use qlora_core::hub::ProgressBars;
use serde_json::{Value, json};

use crate::arguments::{ConvertArguments, GlobalOptions};
use crate::failure::Failure;

pub(super) fn run(global: &GlobalOptions, arguments: &ConvertArguments) -> Result<(), Failure> {
    let shape = arguments.shape.as_deref().map(shape).transpose()?;
    let columns = arguments.columns.iter().map(|column| match column.split_once('=') {
        Some((key, name)) => Ok((key.trim().to_owned(), name.trim().to_owned())),
        None => Err(usage(format!("--column {column}: expected KEY=COLUMN, as in prompt=question"))),
    });
    let columns = columns.collect::<Result<std::collections::BTreeMap<_, _>, _>>()?;
    let sources = arguments.sources.iter().map(|path| {
        let mut source = Source::new(path);
        source.shape = shape;
        source.columns = columns.clone();
        source
    });
    let on_bad_row = if arguments.skip_bad_rows { OnBadRow::Skip } else { OnBadRow::Stop };
    let sources = Sources(sources.collect());
    let done = convert(sources, &arguments.out, on_bad_row, &mut ProgressBars::new())?;
    let mut out = std::io::stdout().lock();
    if global.json {
        writeln!(out, "{}", json!({"out": arguments.out, "written": done.written, "skipped": done.skipped}))?;
    } else {
        let skipped = match done.skipped {
            0 => String::new(),
            skipped => format!(", {skipped} that could not be used skipped"),
        };
        writeln!(out, "{}: {} rows{skipped}", arguments.out.display(), done.written)?;
    }
    Ok(())
}

fn shape(name: &str) -> Result<RowShape, Failure> {
    serde_json::from_value(Value::from(name)).map_err(|error| usage(format!("--shape {name}: {error}")))
}

fn usage(message: String) -> Failure {
    Failure::Usage(message.into())
}
