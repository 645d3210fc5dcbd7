//! A checkpoint of a training run.

use std::path::Path;

use qlora_core::files::atomic::read_json;
use serde_json::{Map, Value};

use super::report::Report;
use super::safetensors;
use crate::failure::Failure;

/// The file that makes a directory a checkpoint.
pub(super) const STATE: &str = "state.json";

pub(super) fn describe(path: &Path) -> Result<Report, Failure> {
    let file: Map<String, Value> = read_json(path.join(STATE))?;
    let mut state = Map::new();
    for (key, value) in file.get("state").and_then(Value::as_object).into_iter().flatten() {
        match value {
            Value::Object(inner) => {
                state.extend(inner.iter().map(|(name, value)| (format!("{key}.{name}"), value.clone())));
            }
            other => {
                state.insert(key.clone(), other.clone());
            }
        }
    }
    let mut report =
        safetensors::with_metadata(&path.join("adapter.safetensors"), "training checkpoint", state)?;
    let optimizer = safetensors::describe(&path.join("optimizer.safetensors"))?;
    report.bytes += optimizer.bytes;
    report.path = path.to_owned();
    Ok(report)
}
