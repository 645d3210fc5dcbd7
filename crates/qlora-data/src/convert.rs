use crate::responses::ASSISTANT;
use crate::row_reader::ParsedRow;
use crate::{Error, OnBadRow, Record, Records, Row, RowProblem, RowShape, Sources};
use qlora_hub::FetchProgress;
use qlora_text::Message;
use serde::Serialize;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

/// What became of the rows.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
#[non_exhaustive]
pub struct Converted {
    /// Rows written.
    pub written: usize,
    /// Rows that could not be used and were skipped.
    pub skipped: usize,
    /// Columns that were left out, as they would mean something else in the new rows, and of how many rows.
    pub left_out: BTreeMap<String, usize>,
}

/// Keys that have a meaning in some shape. A column of such a name that had none in its row would get one.
const KEYS: [&str; 18] = [
    "messages",
    "tools",
    "chat_template_kwargs",
    "conversations",
    "conversation",
    "system",
    "instruction",
    "input",
    "output",
    "history",
    "prompt",
    "completion",
    "chosen",
    "rejected",
    "text",
    "input_ids",
    "labels",
    "attention_mask",
];

/// Writes rows of any shape as JSONL of `messages`. The file appears whole or not at all.
///
/// Instruction, prompt and completion become a user's and an assistant's message; turns that are only context get the
/// weight 0. Documents stay `text`: no chat template writes a conversation without a user. Preference pairs keep
/// `prompt`, `chosen` and `rejected` as lists of messages, prompts `prompt` and their columns: neither can be said by
/// `messages` alone. Further columns stay beside them, but for those that a shape has a use for.
///
/// # Errors
/// The first row that cannot be used unless such are skipped; rows of token ids; rows that become another shape than
/// the first; a file that can't be read or written.
pub fn convert(
    sources: impl Into<Sources>,
    out: impl AsRef<Path>,
    on_bad_row: OnBadRow,
    progress: &mut dyn FetchProgress,
) -> Result<Converted, Error> {
    let mut records = Records::open(sources, on_bad_row, progress)?;
    let mut conversion = Conversion::default();
    let mut failed = None;
    let result = qlora_files::atomic::write_file(out, |file| {
        while let Some((location, row)) = records.next_row().map_err(|error| stop(&mut failed, error))? {
            let row = match conversion.row(row) {
                Ok(row) => row,
                Err(problem) if on_bad_row == OnBadRow::Skip && is_of_the_row(&problem) => {
                    conversion.done.skipped += 1;
                    continue;
                }
                Err(problem) => return Err(stop(&mut failed, location.error(problem))),
            };
            serde_json::to_writer(&mut *file, &row)?;
            file.write_all(b"\n")?;
            conversion.done.written += 1;
        }
        Ok(())
    });
    match (failed, result) {
        (Some(error), _) => Err(error),
        (None, Err(source)) => Err(Error::Write { source }),
        (None, Ok(())) => {
            conversion.done.skipped += records.skipped();
            Ok(conversion.done)
        }
    }
}

/// Keeps an error that is not one of writing, and ends the writing.
fn stop(failed: &mut Option<Error>, error: Error) -> std::io::Error {
    *failed = Some(error);
    std::io::Error::other("a row can't be converted")
}

/// Whether only this row, and not all rows of its kind, can't be converted.
fn is_of_the_row(problem: &RowProblem) -> bool {
    !matches!(problem, RowProblem::NoText { .. } | RowProblem::OtherConversion { .. })
}

#[derive(Default)]
struct Conversion {
    done: Converted,
    /// What the first row became.
    first: Option<RowShape>,
}

impl Conversion {
    fn row(
        &mut self,
        ParsedRow { record, shape, rest }: ParsedRow,
    ) -> Result<Map<String, Value>, RowProblem> {
        let (mut row, shape) = converted(record, shape)?;
        let first = *self.first.get_or_insert(shape);
        if first != shape {
            return Err(RowProblem::OtherConversion { shape, first });
        }
        for (key, value) in rest {
            if !KEYS.contains(&&*key) {
                row.insert(key, value);
            } else if !value.is_null() {
                *self.done.left_out.entry(key).or_default() += 1;
            }
        }
        Ok(row)
    }
}

/// The row without further columns, and its shape.
fn converted(record: Record, shape: RowShape) -> Result<(Map<String, Value>, RowShape), RowProblem> {
    let (row, shape) = match record {
        Record::Row(Row::Conversation { messages, trained_from, tools, variables }) => {
            let mut row = json!({"messages": weighted(&messages, trained_from)});
            if let Some(tools) = tools {
                row["tools"] = Value::Array(tools);
            }
            if let Some(variables) = variables {
                row["chat_template_kwargs"] = Value::Object(variables);
            }
            (row, RowShape::Messages)
        }
        Record::Row(Row::Text { completion, .. }) if shape == RowShape::Text => {
            (json!({"text": completion}), RowShape::Text)
        }
        Record::Row(Row::Text { prompt, completion }) if !prompt.is_empty() => {
            (json!({"messages": [Message::user(prompt), Message::assistant(completion)]}), RowShape::Messages)
        }
        Record::Row(Row::Text { .. }) => {
            return Err(RowProblem::Field {
                key: "prompt",
                expected: "what the user says",
                found: "an empty text".to_owned(),
            });
        }
        Record::Row(Row::Tokens { .. }) => return Err(RowProblem::NoText { shape: RowShape::Tokens }),
        Record::Preference(pair) => {
            let row = json!({"prompt": pair.prompt, "chosen": pair.chosen, "rejected": pair.rejected});
            (row, RowShape::Preference)
        }
        Record::Prompt(prompt) => {
            let mut row = Map::from_iter([("prompt".to_owned(), json!(prompt.messages))]);
            row.extend(prompt.columns);
            (Value::Object(row), RowShape::Prompt)
        }
    };
    match row {
        Value::Object(row) => Ok((row, shape)),
        _ => Ok((Map::new(), shape)),
    }
}

/// The messages, in which turns of the assistant that are only context say so.
fn weighted(messages: &[Message], trained_from: usize) -> Vec<Value> {
    let mut values: Vec<Value> = messages.iter().map(|message| json!(message)).collect();
    for (message, value) in messages.iter().zip(&mut values).take(trained_from) {
        if message.role() == ASSISTANT {
            value["weight"] = json!(0);
        }
    }
    values
}
