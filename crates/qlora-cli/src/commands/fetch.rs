//! `qlora fetch`: a model by name onto this machine.

use std::io::Write as _;

use qlora_core::hub::{ModelPath, ModelStore, Outcome, ProgressBars};
use serde_json::json;

use crate::arguments::{FetchArguments, GlobalOptions};
use crate::failure::Failure;

pub(crate) fn run(global: &GlobalOptions, arguments: &FetchArguments) -> Result<(), Failure> {
    let store = ModelStore::from_env()?;
    let fetched = store.fetch(&arguments.name, &mut ProgressBars::new())?;
    let mut out = std::io::stdout().lock();
    if global.json {
        let attempts: Vec<_> = fetched
            .attempts
            .iter()
            .map(|attempt| match &attempt.outcome {
                Outcome::Skipped(reason) => {
                    json!({"source": attempt.source, "outcome": "skipped", "reason": reason})
                }
                Outcome::Failed(reason) => {
                    json!({"source": attempt.source, "outcome": "failed", "reason": reason})
                }
                _ => json!({"source": attempt.source, "outcome": "done"}),
            })
            .collect();
        let format = match &fetched.path {
            ModelPath::Gguf(_) => "gguf",
            ModelPath::Directory(_) => "safetensors",
        };
        writeln!(out, "{}", json!({"path": fetched.path.path(), "format": format, "attempts": attempts}))?;
    } else {
        writeln!(out, "{}", fetched.path.path().display())?;
    }
    Ok(())
}
