//! `qlora export`: a model, with or without an adapter in its weights, in another form.

use std::io::Write as _;

use indicatif::{ProgressBar, ProgressStyle};
use qlora_core::export::{FloatType, PeftAdapter, SafetensorsOptions, export_safetensors};
use serde_json::json;

use crate::arguments::{ComputeKind, ExportArguments, ExportKind, GlobalOptions};
use crate::backend::set_threads;
use crate::failure::Failure;
use crate::model::open_checkpoint;

pub(crate) fn run(global: &GlobalOptions, arguments: &ExportArguments) -> Result<(), Failure> {
    set_threads(global)?;
    match arguments.to {
        ExportKind::Safetensors => safetensors(global, arguments),
    }
}

fn safetensors(global: &GlobalOptions, arguments: &ExportArguments) -> Result<(), Failure> {
    let dtype = match global.dtype.unwrap_or(ComputeKind::Auto) {
        ComputeKind::Auto | ComputeKind::Bf16 => FloatType::Bf16,
        ComputeKind::F16 => FloatType::F16,
        ComputeKind::F32 => FloatType::F32,
    };
    let adapter = arguments.adapter.as_ref().map(PeftAdapter::read).transpose()?;
    let adapter = adapter.map(|adapter| adapter.adapter_set());
    let checkpoint = open_checkpoint(&arguments.model)?;
    let bar = ProgressBar::new(0).with_message(arguments.out.display().to_string());
    if let Ok(style) = ProgressStyle::with_template("writing {msg} {wide_bar} {pos}/{len} tensors") {
        bar.set_style(style);
    }
    let exported = export_safetensors(
        &checkpoint,
        adapter.as_ref(),
        SafetensorsOptions { dtype },
        &arguments.out,
        &mut |done, total| {
            bar.set_length(total as u64);
            bar.set_position(done as u64);
        },
    );
    bar.finish_and_clear();
    let exported = exported?;
    let mut out = std::io::stdout().lock();
    if global.json {
        let report = json!({
            "path": arguments.out,
            "dtype": dtype.torch_name(),
            "tensors": exported.tensors,
            "merged": exported.merged,
            "bytes": exported.bytes,
            "tokenizer": exported.tokenizer,
        });
        writeln!(out, "{report}")?;
        return Ok(());
    }
    let merged = match exported.merged {
        0 => String::new(),
        layers => format!(", the adapter merged into {layers} layers"),
    };
    writeln!(
        out,
        "{}: {} tensors in {}, {:.1} MB{merged}",
        arguments.out.display(),
        exported.tensors,
        dtype.torch_name(),
        exported.bytes as f64 / 1e6
    )?;
    if !exported.tokenizer {
        eprintln!("note: {} has no tokenizer, so none was written", checkpoint.path().display());
    }
    Ok(())
}
