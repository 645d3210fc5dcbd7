//! `qlora data show`: rows as the model will see them.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::Path;

use qlora_core::data::check::{PickedRow, pick};
use qlora_core::data::pieces;
use qlora_core::hub::ProgressBars;
use qlora_core::train::config::RunConfig;
use serde_json::{Value, json};

use super::colour;
use super::sources::{run_config, sources};
use crate::arguments::{GlobalOptions, ShowArguments};
use crate::failure::Failure;

pub(super) fn run(global: &GlobalOptions, arguments: &ShowArguments) -> Result<(), Failure> {
    let config = run_config(&arguments.files, &arguments.rows_as)?;
    let (sources, model, encoder, adapter) = match config {
        None => (
            sources(&arguments.files, &arguments.rows_as)?,
            arguments.model.clone(),
            arguments.encoder.clone(),
            None,
        ),
        Some(RunConfig { data, model, lora, .. }) => {
            let encoder = super::encoder_of_run(&arguments.encoder, &data);
            let adapter = lora.directory().map(Path::to_owned);
            (data.train, arguments.model.clone().or(Some(model.path)), encoder, adapter)
        }
    };
    let Some(model) = model else {
        return Err(Failure::usage("name the model that is to be trained: --model MODEL"));
    };
    let (encoder, _) = super::encoder(&model, &encoder, adapter.as_deref())?;
    let wanted: BTreeSet<usize> = arguments.rows.iter().flat_map(|rows| rows.0.clone()).collect();
    let picked = pick(&sources, &wanted, &encoder, &mut ProgressBars::new())?;
    if picked.is_empty() {
        return Err(Failure::message(format!("{sources} has none of these rows; the first row is 0")));
    }
    let coloured = colour::wanted();
    let mut out = std::io::stdout().lock();
    let mut bad = 0;
    for PickedRow { row, location, sample } in picked {
        let position = location.position;
        let place = json!({
            "row": row, "file": location.path.as_path(), "unit": position.unit, "line": position.number,
        });
        let sample = match sample {
            Ok(sample) => sample,
            Err(problem) if global.json => {
                bad += 1;
                writeln!(out, "{}", with(place, json!({"error": problem.to_string()})))?;
                continue;
            }
            Err(problem) => {
                bad += 1;
                writeln!(out, "row {row} ({location}): {problem}\n")?;
                continue;
            }
        };
        let pieces = pieces(&sample, encoder.tokenizer())?;
        if global.json {
            writeln!(out, "{}", with(place, json!({"tokens": sample.len(), "pieces": pieces})))?;
            continue;
        }
        writeln!(
            out,
            "row {row} ({location}): {} tokens, {} of them trained",
            sample.len(),
            sample.trained_tokens()
        )?;
        let text = if coloured { colour::coloured(&pieces) } else { colour::marked(&pieces) };
        writeln!(out, "{text}\n")?;
    }
    if bad > 0 {
        return Err(Failure::message(format!("{bad} of these rows cannot be used")));
    }
    Ok(())
}

/// An object with further keys.
fn with(mut place: Value, what: Value) -> Value {
    if let (Value::Object(place), Value::Object(what)) = (&mut place, what) {
        place.extend(what);
    }
    place
}
