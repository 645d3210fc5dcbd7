//! An adapter directory in PEFT's format.

use std::path::Path;

use qlora_core::files::atomic::read_json;
use serde_json::{Map, Value};

use super::report::Report;
use super::safetensors;
use crate::failure::Failure;

/// The file that makes a directory an adapter.
pub(super) const CONFIG: &str = "adapter_config.json";

pub(super) fn describe(path: &Path) -> Result<Report, Failure> {
    let mut metadata: Map<String, Value> = read_json(path.join(CONFIG))?;
    metadata.retain(|_, value| !value.is_null());
    let mut report =
        safetensors::with_metadata(&path.join("adapter_model.safetensors"), "PEFT adapter", metadata)?;
    report.path = path.to_owned();
    Ok(report)
}
