//! Where the rows are that a command looks at: files, or the configuration of a run.

use std::collections::BTreeMap;
use std::path::Path;

use qlora_core::data::{FileFormat, RowShape, Source, Sources, TextSplit};
use qlora_core::train::config::{ConfigError, RunConfig};
use serde_json::Value;

use crate::arguments::RowArguments;
use crate::failure::Failure;

/// The configuration of a run, when that is what was named.
pub(super) fn run_config(names: &[String], rows: &RowArguments) -> Result<Option<RunConfig>, Failure> {
    let path = match names {
        [path] if path.ends_with(".toml") => Path::new(path),
        _ => return Ok(None),
    };
    if let Some(option) = rows.given() {
        let message = "a configuration says itself how its sources are read; change it there";
        return Err(Failure::usage(format!("{option} beside {}: {message}", path.display())));
    }
    let config = RunConfig::from_file(path, &[] as &[&str]).map_err(|error| match error {
        ConfigError::Unreadable { .. } => Failure::from(error),
        mistakes => Failure::Usage(Box::new(mistakes)),
    })?;
    if config.grpo.is_some() {
        let message = "the prompts of a [grpo] run are not rows to imitate, which is what is looked at";
        return Err(Failure::usage(format!("{}: {message}", path.display())));
    }
    if config.data.augmentation.is_some() {
        eprintln!("augmentation is left out: rows are looked at as they stand");
    }
    Ok(Some(config))
}

/// Files as they were named, read as the options say; a name that tells no format is one of JSONL.
pub(super) fn sources(names: &[String], rows: &RowArguments) -> Result<Sources, Failure> {
    let shape = rows.shape.as_deref().map(shape).transpose()?;
    let column = |column: &String| match column.split_once('=') {
        Some((key, name)) => Ok((key.trim().to_owned(), name.trim().to_owned())),
        None => Err(Failure::usage(format!("--column {column}: expected KEY=COLUMN, as in prompt=question"))),
    };
    let columns = rows.columns.iter().map(column).collect::<Result<BTreeMap<_, _>, _>>()?;
    let source = |name: &String| {
        let path = Path::new(name);
        let jsonl = path.is_file() && FileFormat::of_name(path).is_none();
        let mut source = Source::new(name);
        source.format = jsonl.then_some(FileFormat::Jsonl);
        source.shape = shape;
        source.columns = columns.clone();
        source.split = rows.split.map(|max_chars| TextSplit { max_chars });
        source
    };
    Ok(Sources(names.iter().map(source).collect()))
}

fn shape(name: &str) -> Result<RowShape, Failure> {
    serde_json::from_value(Value::from(name))
        .map_err(|error| Failure::usage(format!("--shape {name}: {error}")))
}
