//! `qlora inspect`: what a file or directory holds, without loading it.

mod adapter;
mod checkpoint;
mod gguf;
mod report;
mod safetensors;

use std::io::Read as _;
use std::path::Path;

use qlora_core::hub::{ModelPath, ModelStore};

use self::report::Report;
use crate::arguments::{GlobalOptions, InspectArguments};
use crate::failure::Failure;

pub(crate) fn run(global: &GlobalOptions, arguments: &InspectArguments) -> Result<(), Failure> {
    let path = Path::new(&arguments.path);
    let report = if path.exists() {
        describe(path)?
    } else {
        describe(ModelStore::from_env()?.resolve(&arguments.path)?.path())?
    };
    let out = std::io::stdout().lock();
    if global.json { report.write_json(out) } else { report.write_text(out, arguments.tensors) }?;
    Ok(())
}

fn describe(path: &Path) -> Result<Report, Failure> {
    if path.is_file() {
        let is_gguf = starts_with(path, b"GGUF")? || path.extension().is_some_and(|e| e == "gguf");
        return if is_gguf { gguf::describe(path) } else { safetensors::describe(path) };
    }
    if path.join(adapter::CONFIG).is_file() {
        return adapter::describe(path);
    }
    if path.join(checkpoint::STATE).is_file() {
        return checkpoint::describe(path);
    }
    match ModelPath::of_existing(path) {
        Ok(ModelPath::Gguf(file)) => gguf::describe(&file),
        _ => safetensors::describe(path),
    }
}

fn starts_with(path: &Path, magic: &[u8; 4]) -> Result<bool, Failure> {
    let mut first = [0_u8; 4];
    let read = std::fs::File::open(path).and_then(|mut file| file.read(&mut first));
    let count = read.map_err(|e| Failure::message(format!("cannot read {}: {e}", path.display())))?;
    Ok(count == first.len() && first == *magic)
}
