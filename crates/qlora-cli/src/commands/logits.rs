//! `qlora logits`: the logits of given token ids, for comparison with other programs.

use std::io::{self, Write};
use std::path::Path;

use qlora_core::files::atomic::read_json;
use qlora_core::files::safetensors::{Dtype, TensorSpec, write_safetensors_with};
use qlora_core::kernels::KernelBackend;
use qlora_core::models::{Decoder, DecoderConfig, Pass, TokenBatch};
use serde::Deserialize;
use serde_json::json;

use crate::arguments::{GlobalOptions, LogitsArguments};
use crate::backend::{OnBackend, on_backend};
use crate::failure::Failure;
use crate::model::{LoadedModel, load_model};

/// Tokens whose logits are in memory at a time.
const CHUNK: usize = 128;

/// The input file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Input {
    input_ids: Vec<Vec<u32>>,
}

struct Logits<'a> {
    global: &'a GlobalOptions,
    arguments: &'a LogitsArguments,
    rows: Vec<Vec<u32>>,
}

pub(crate) fn run(global: &GlobalOptions, arguments: &LogitsArguments) -> Result<(), Failure> {
    let input: Input = read_json(&arguments.ids)?;
    let refuse = |problem: String| Failure::message(format!("{}: {problem}", arguments.ids.display()));
    let Some(first) = input.input_ids.first() else {
        return Err(refuse("`input_ids` has no rows; give at least one".to_owned()));
    };
    if let Some(row) = input.input_ids.iter().position(|row| row.is_empty() || row.len() != first.len()) {
        let found = input.input_ids[row].len();
        return Err(refuse(format!(
            "row {row} of `input_ids` has {found} ids, row 0 has {}; rows must be of one length and not empty: \
             put rows of another length into another file",
            first.len()
        )));
    }
    on_backend(global, Logits { global, arguments, rows: input.input_ids })
}

impl OnBackend for Logits<'_> {
    fn run<B: KernelBackend>(self, device: &B::Device) -> Result<(), Failure> {
        let Self { global, arguments, rows } = self;
        arguments.model.at_most_one_adapter()?;
        let LoadedModel { decoder, .. } = load_model::<B>(global, &arguments.model, None, device)?;
        check_ids(&arguments.ids, &rows, decoder.config())?;
        let shape = vec![rows.len(), rows[0].len(), decoder.config().vocab_size];
        let spec = TensorSpec::new("logits", Dtype::F32, shape.clone());
        write_safetensors_with(&arguments.out, &[spec], &[], |_, file| {
            rows.iter().try_for_each(|row| write_row(&decoder, row, file))
        })?;
        let mut out = io::stdout().lock();
        if global.json {
            writeln!(out, "{}", json!({"path": arguments.out, "shape": shape}))?;
        } else {
            writeln!(out, "{}: logits {shape:?}", arguments.out.display())?;
        }
        Ok(())
    }
}

fn check_ids(path: &Path, rows: &[Vec<u32>], config: &DecoderConfig) -> Result<(), Failure> {
    for (number, row) in rows.iter().enumerate() {
        if let Some(position) = row.iter().position(|id| *id as usize >= config.vocab_size) {
            return Err(Failure::message(format!(
                "{}: id {} at position {position} of row {number} is outside of the model's vocabulary of {}; \
                 was the file made for another model?",
                path.display(),
                row[position],
                config.vocab_size
            )));
        }
        if row.len() > config.context_length() {
            return Err(Failure::message(format!(
                "{}: row {number} has {} ids, the model's context is {}; shorten it",
                path.display(),
                row.len(),
                config.context_length()
            )));
        }
    }
    Ok(())
}

fn write_row<B: KernelBackend>(decoder: &Decoder<B>, row: &[u32], file: &mut dyn Write) -> io::Result<()> {
    let hidden = decoder.hidden_states(TokenBatch { ids: row, lengths: &[row.len()] }, Pass::default());
    for start in (0..row.len()).step_by(CHUNK) {
        let count = CHUNK.min(row.len() - start);
        let logits = decoder.logits(hidden.clone().narrow(0, start, count)).into_data();
        let bytes: Vec<u8> = logits.iter::<f32>().flat_map(f32::to_le_bytes).collect();
        file.write_all(&bytes)?;
    }
    Ok(())
}
