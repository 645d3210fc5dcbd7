use crate::{Error, OnBadRow, Record, Records, Row, RowProblem, RowShape, Sources};
use qlora_hub::FetchProgress;
use qlora_text::Message;
use serde::Serialize;
use serde_json::{Map, Value, json};
use std::io::Write;
use std::path::Path;

/// What became of the rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Converted {
    /// Rows written.
    pub written: usize,
    /// Rows that could not be used and were skipped.
    pub skipped: usize,
}

/// Writes rows of any shape as JSONL of `messages`. The file appears whole or not at all.
///
/// Instruction, prompt and completion become a user's and an assistant's message; a document becomes one of
/// the assistant. Preference pairs keep `prompt`, `chosen` and `rejected` as lists of messages, prompts `prompt` and
/// their columns: neither can be said by `messages` alone.
///
/// # Errors
/// The first row that cannot be used unless such are skipped; rows of token ids; a file that can't be read or
/// written.
pub fn convert(
    sources: impl Into<Sources>,
    out: impl AsRef<Path>,
    on_bad_row: OnBadRow,
    progress: &mut dyn FetchProgress,
) -> Result<Converted, Error> {
    let mut records = Records::open(sources, on_bad_row, progress)?;
    let mut written = 0;
    let mut failed = None;
    let result = qlora_files::atomic::write_file(out, |file| {
        for record in &mut records {
            let row = record.and_then(|(location, record)| {
                as_messages(record).map_err(|problem| Error::Row {
                    path: location.path.to_path_buf(),
                    line: location.position,
                    problem: Box::new(problem),
                })
            });
            match row {
                Ok(row) => {
                    serde_json::to_writer(&mut *file, &row)?;
                    file.write_all(b"\n")?;
                    written += 1;
                }
                Err(error) => {
                    failed = Some(error);
                    return Err(std::io::Error::other("a row can't be converted"));
                }
            }
        }
        Ok(())
    });
    match (failed, result) {
        (Some(error), _) => Err(error),
        (None, Err(source)) => Err(Error::Write { source }),
        (None, Ok(())) => Ok(Converted { written, skipped: records.skipped() }),
    }
}

fn as_messages(record: Record) -> Result<Map<String, Value>, RowProblem> {
    let row = match record {
        Record::Row(Row::Conversation { messages, tools, variables, .. }) => {
            let mut row = json!({"messages": messages});
            if let Some(tools) = tools {
                row["tools"] = Value::Array(tools);
            }
            if let Some(variables) = variables {
                row["chat_template_kwargs"] = Value::Object(variables);
            }
            row
        }
        Record::Row(Row::Text { prompt, completion }) => {
            let user = (!prompt.is_empty()).then(|| Message::user(prompt));
            let messages: Vec<Message> = user.into_iter().chain([Message::assistant(completion)]).collect();
            json!({"messages": messages})
        }
        Record::Row(Row::Tokens { .. }) => return Err(RowProblem::NoText { shape: RowShape::Tokens }),
        Record::Preference(pair) => {
            json!({"prompt": pair.prompt, "chosen": pair.chosen, "rejected": pair.rejected})
        }
        Record::Prompt(prompt) => {
            let mut row = Map::from_iter([("prompt".to_owned(), json!(prompt.messages))]);
            row.extend(prompt.columns);
            Value::Object(row)
        }
    };
    match row {
        Value::Object(row) => Ok(row),
        _ => Ok(Map::new()),
    }
}
