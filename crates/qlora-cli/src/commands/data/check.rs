//! `qlora data check`: a report on whole files.

use std::io::Write as _;

use qlora_core::data::check::{CheckOptions, Severity, check};
use qlora_core::files::atomic;

use crate::arguments::{CheckArguments, GlobalOptions};
use crate::failure::Failure;

pub(super) fn run(global: &GlobalOptions, arguments: &CheckArguments) -> Result<(), Failure> {
    let encoder =
        arguments.model.as_deref().map(|model| super::encoder(model, &arguments.encoder)).transpose()?;
    let options = CheckOptions {
        max_length: arguments.max_length,
        rows_per_step: arguments.batch_size,
        epochs: arguments.epochs,
        ..CheckOptions::default()
    };
    let report = check(&arguments.files, &arguments.eval, encoder.as_ref(), &options)?;
    if let Some(path) = &arguments.html {
        atomic::write_bytes(path, report.to_html().as_bytes())?;
    }
    let mut out = std::io::stdout().lock();
    if global.json {
        serde_json::to_writer(&mut out, &report)?;
        writeln!(out)?;
    } else {
        write!(out, "{report}")?;
        if encoder.is_none() {
            writeln!(out, "\ntokens were not looked at: name a model by --model")?;
        }
    }
    let errors: Vec<String> = report
        .findings
        .iter()
        .filter(|finding| finding.severity == Severity::Error)
        .map(|finding| format!("{} {}", finding.rows, finding.summary))
        .collect();
    if errors.is_empty() { Ok(()) } else { Err(Failure::message(errors.join("; "))) }
}
