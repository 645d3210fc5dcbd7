//! `qlora data show`: rows as the model will see them.

use std::collections::BTreeSet;
use std::io::Write as _;

use qlora_core::data::check::{PickedRow, pick};
use qlora_core::data::pieces;
use serde_json::json;

use super::colour;
use crate::arguments::{GlobalOptions, ShowArguments};
use crate::failure::Failure;

pub(super) fn run(global: &GlobalOptions, arguments: &ShowArguments) -> Result<(), Failure> {
    let encoder = super::encoder(&arguments.model, &arguments.encoder)?;
    let wanted: BTreeSet<usize> = arguments.rows.iter().flat_map(|rows| rows.0.clone()).collect();
    let picked = pick(&arguments.file, &wanted, &encoder, None)?;
    let name = arguments.file.display();
    if picked.is_empty() {
        return Err(Failure::message(format!("{name} has none of these rows; the first row is 0")));
    }
    let coloured = colour::wanted();
    let mut out = std::io::stdout().lock();
    let mut bad = 0;
    for PickedRow { row, line, sample } in picked {
        let sample = match sample {
            Ok(sample) => sample,
            Err(problem) if global.json => {
                bad += 1;
                writeln!(out, "{}", json!({"row": row, "line": line, "error": problem.to_string()}))?;
                continue;
            }
            Err(problem) => {
                bad += 1;
                writeln!(out, "row {row} ({name}, line {line}): {problem}\n")?;
                continue;
            }
        };
        let pieces = pieces(&sample, encoder.tokenizer())?;
        if global.json {
            let tokens = sample.len();
            writeln!(out, "{}", json!({"row": row, "line": line, "tokens": tokens, "pieces": pieces}))?;
            continue;
        }
        writeln!(
            out,
            "row {row} ({name}, line {line}): {} tokens, {} of them trained",
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
