//! What an export reports.

use std::io::Write as _;
use std::path::Path;

use indicatif::{ProgressBar, ProgressStyle};
use qlora_core::export::{ExportSource, ExportedCheckpoint, ExportedGguf, GgufType};
use serde_json::{Map, Value, json};

use crate::arguments::GlobalOptions;
use crate::failure::Failure;

/// Lines for people, keys for machines.
#[derive(Debug)]
pub(super) struct Outcome {
    lines: Vec<String>,
    values: Map<String, Value>,
}

impl Outcome {
    pub(super) fn new(path: &Path, what: impl std::fmt::Display) -> Self {
        let values = Map::from_iter([("path".to_owned(), json!(path))]);
        Self { lines: vec![format!("{}: {what}", path.display())], values }
    }

    pub(super) fn checkpoint(
        path: &Path,
        source: ExportSource<'_>,
        exported: ExportedCheckpoint,
        kind: &str,
    ) -> Self {
        let ExportedCheckpoint { tensors, merged, files, bytes, tokenizer } = exported;
        let in_files = if files > 1 { format!(" in {files} files") } else { String::new() };
        let size = bytes as f64 / 1e6;
        let what = format!("{tensors} tensors in {kind}, {size:.1} MB{in_files}{}", merged_into(merged));
        let mut outcome = Self::new(path, what);
        outcome.value("files", files);
        outcome.common(source, tensors, merged, bytes, tokenizer);
        outcome
    }

    pub(super) fn gguf(
        path: &Path,
        source: ExportSource<'_>,
        exported: ExportedGguf,
        kind: GgufType,
    ) -> Self {
        let ExportedGguf { tensors, merged, bytes, tokenizer } = exported;
        let size = bytes as f64 / 1e6;
        let mut outcome =
            Self::new(path, format!("{kind}, {tensors} tensors, {size:.1} MB{}", merged_into(merged)));
        outcome.value("type", kind.name());
        outcome.common(source, tensors, merged, bytes, tokenizer);
        outcome
    }

    fn common(
        &mut self,
        source: ExportSource<'_>,
        tensors: usize,
        merged: usize,
        bytes: u64,
        tokenizer: bool,
    ) {
        self.value("tensors", tensors);
        self.value("merged", merged);
        self.value("bytes", bytes);
        self.value("tokenizer", tokenizer);
        if !tokenizer {
            let path = source.checkpoint().path().display();
            self.line(format!("note: {path} has no tokenizer, so none was written"));
        }
    }

    /// A line for people.
    pub(super) fn line(&mut self, line: impl Into<String>) {
        self.lines.push(line.into());
    }

    /// A key for machines.
    pub(super) fn value(&mut self, key: &str, value: impl Into<Value>) {
        self.values.insert(key.to_owned(), value.into());
    }

    pub(super) fn print(self, global: &GlobalOptions) -> Result<(), Failure> {
        let mut out = std::io::stdout().lock();
        if global.json {
            writeln!(out, "{}", Value::from(self.values))?;
        } else {
            self.lines.iter().try_for_each(|line| writeln!(out, "{line}"))?;
        }
        Ok(())
    }
}

fn merged_into(layers: usize) -> String {
    match layers {
        0 => String::new(),
        layers => format!(", the adapter merged into {layers} layers"),
    }
}

/// Shows a bar on stderr while tensors are written.
pub(super) fn with_bar<T>(path: &Path, write: impl FnOnce(&mut dyn FnMut(usize, usize)) -> T) -> T {
    let bar = ProgressBar::new(0).with_message(path.display().to_string());
    if let Ok(style) = ProgressStyle::with_template("writing {msg} {wide_bar} {pos}/{len} tensors") {
        bar.set_style(style);
    }
    let written = write(&mut |done, total| {
        bar.set_length(total as u64);
        bar.set_position(done as u64);
    });
    bar.finish_and_clear();
    written
}
