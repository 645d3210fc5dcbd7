//! What was found, for people and for programs.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::PathBuf;

use serde::Serialize;
use serde_json::{Map, Value};

/// The longest value that is printed in full.
const MAX_SHOWN: usize = 72;

/// What a file or directory holds.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) path: PathBuf,
    pub(crate) kind: &'static str,
    /// Bytes of the files with tensors.
    pub(crate) bytes: u64,
    /// Elements of all tensors.
    elements: u64,
    /// Metadata, in the order of the file.
    pub(crate) metadata: Map<String, Value>,
    pub(crate) tensors: Vec<TensorRow>,
}

/// One tensor.
#[derive(Debug, Serialize)]
pub(crate) struct TensorRow {
    pub(crate) name: String,
    pub(crate) shape: Vec<usize>,
    #[serde(rename = "type")]
    pub(crate) element_type: String,
    pub(crate) bytes: u64,
}

impl Report {
    pub(crate) fn new(
        path: impl Into<PathBuf>,
        kind: &'static str,
        bytes: u64,
        metadata: Map<String, Value>,
        tensors: Vec<TensorRow>,
    ) -> Self {
        let elements = tensors.iter().map(|t| t.shape.iter().product::<usize>() as u64).sum();
        Self { path: path.into(), kind, bytes, elements, metadata, tensors }
    }

    pub(crate) fn write_json(&self, mut out: impl Write) -> io::Result<()> {
        serde_json::to_writer(&mut out, self)?;
        writeln!(out)
    }

    pub(crate) fn write_text(&self, mut out: impl Write, each_tensor: bool) -> io::Result<()> {
        writeln!(out, "{}", self.path.display())?;
        writeln!(
            out,
            "{}: {} tensors, {} elements, {}",
            self.kind,
            self.tensors.len(),
            grouped(self.elements),
            megabytes(self.bytes)
        )?;
        if !self.metadata.is_empty() {
            writeln!(out, "\nmetadata")?;
            let width = self.metadata.keys().map(String::len).max().unwrap_or(0);
            for (key, value) in &self.metadata {
                writeln!(out, "  {key:width$}  {}", shown(value))?;
            }
        }
        let mut types: BTreeMap<&str, (usize, u64)> = BTreeMap::new();
        for tensor in &self.tensors {
            let (count, bytes) = types.entry(&tensor.element_type).or_default();
            *count += 1;
            *bytes += tensor.bytes;
        }
        if !types.is_empty() {
            writeln!(out, "\ntypes")?;
            for (name, (count, bytes)) in types {
                writeln!(out, "  {name:6} {count:5} tensors  {:>12}", megabytes(bytes))?;
            }
        }
        if each_tensor {
            writeln!(out, "\ntensors")?;
            let width = self.tensors.iter().map(|t| t.name.len()).max().unwrap_or(0);
            for tensor in &self.tensors {
                writeln!(out, "  {:width$}  {:6} {:?}", tensor.name, tensor.element_type, tensor.shape)?;
            }
        }
        Ok(())
    }
}

/// One line, cut when long: a chat template is thousands of characters.
fn shown(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(MAX_SHOWN) {
        None => text,
        Some((end, _)) => format!("{}... ({} characters)", &text[..end], text.chars().count()),
    }
}

/// `134515008` as `134 515 008`.
fn grouped(number: u64) -> String {
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

fn megabytes(bytes: u64) -> String {
    format!("{:.1} MB", bytes as f64 / 1e6)
}

#[cfg(test)]
mod tests {
    use super::{Value, grouped, shown};

    #[test]
    fn numbers_are_grouped_by_three() {
        for (number, text) in [(0, "0"), (999, "999"), (1000, "1 000"), (134_515_008, "134 515 008")] {
            assert_eq!(grouped(number), text);
        }
    }

    #[test]
    fn a_long_value_is_cut_between_characters() {
        let text = shown(&Value::String("é".repeat(100)));
        assert!(text.ends_with("... (102 characters)") && text.chars().filter(|c| *c == 'é').count() == 71);
    }
}
