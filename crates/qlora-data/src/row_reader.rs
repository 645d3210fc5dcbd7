//! JSON objects as rows of a shape.

use crate::reader::RawRow;
use crate::turns::{self, with_system};
use crate::{Preference, Prompt, Record, Row, RowProblem, RowShape, Source, bounded_json};
use qlora_text::Message;
use serde_json::{Map, Value};

/// A row with what was found out while reading it.
#[derive(Debug)]
pub(crate) struct ParsedRow {
    pub(crate) record: Record,
    pub(crate) shape: RowShape,
    /// The columns that the shape has no use for.
    pub(crate) rest: Fields,
}

/// A row of something to imitate.
pub(crate) struct SupervisedRow {
    pub(crate) row: Row,
    pub(crate) shape: RowShape,
    pub(crate) ignored_keys: Vec<String>,
}

/// Reads a row of a source for supervised fine-tuning; rows of other purposes are refused. The shape is that of the
/// source, else the one that is given, else what the keys tell.
pub(crate) fn supervised(
    fields: Fields,
    source: &Source,
    shape: Option<RowShape>,
) -> Result<SupervisedRow, RowProblem> {
    let fields = map_columns(fields, source)?;
    let ParsedRow { record, shape, rest } = parse(fields, source.shape.or(shape))?;
    let ignored_keys = rest.into_iter().map(|(key, _)| key).collect();
    match record {
        Record::Row(row) => Ok(SupervisedRow { row, shape, ignored_keys }),
        Record::Preference(_) | Record::Prompt(_) => Err(RowProblem::NotSupervised { shape }),
    }
}

pub(crate) type Fields = Map<String, Value>;

/// The label of a token that is not trained.
const IGNORED_LABEL: i64 = -100;

/// The fields of a row as it stands in its file.
pub(crate) fn fields_of(raw: RawRow) -> Result<Fields, RowProblem> {
    fields(raw.parse()?)
}

/// The fields of a row.
pub(crate) fn fields(value: Value) -> Result<Fields, RowProblem> {
    match value {
        Value::Object(fields) => Ok(fields),
        other => {
            let hint = match other {
                Value::Array(_) => "write a JSON array as one element per line",
                _ => {
                    "write {\"messages\": [..]}, {\"prompt\": .., \"completion\": ..} or {\"input_ids\": [..]}"
                }
            };
            Err(RowProblem::NotAnObject { found: kind(&other), hint })
        }
    }
}

/// Renames columns and fills templates, as the source says.
pub(crate) fn map_columns(mut fields: Fields, source: &Source) -> Result<Fields, RowProblem> {
    if source.columns.is_empty() && source.template.is_empty() {
        return Ok(fields);
    }
    let mut made = Vec::new();
    for (key, template) in &source.template {
        made.push((key.clone(), Value::String(template.fill(&fields)?)));
    }
    let mut used: Vec<&str> = source.template.values().flat_map(|template| template.columns()).collect();
    for (key, column) in &source.columns {
        let value = fields.get(column).cloned().ok_or_else(|| RowProblem::Column {
            column: column.clone(),
            keys: fields.keys().cloned().collect(),
        })?;
        made.push((key.clone(), value));
        used.push(column);
    }
    fields.retain(|key, _| !used.contains(&key.as_str()));
    fields.extend(made);
    Ok(fields)
}

/// Reads a row of the named shape, or of the shape its keys tell.
pub(crate) fn parse(mut fields: Fields, shape: Option<RowShape>) -> Result<ParsedRow, RowProblem> {
    let shape = match shape {
        Some(shape) => shape,
        None => RowShape::detect(&fields)?,
    };
    let record = match shape {
        RowShape::Messages => Record::Row(conversation(&mut fields)?),
        RowShape::Sharegpt => Record::Row(sharegpt(&mut fields)?),
        RowShape::Alpaca => Record::Row(alpaca(&mut fields)?),
        RowShape::PromptCompletion => Record::Row(prompt_completion(&mut fields)?),
        RowShape::Preference => Record::Preference(preference(&mut fields)?),
        RowShape::Prompt => {
            let messages = side(&mut fields, "prompt", "user")?.unwrap_or_default();
            if messages.is_empty() {
                return Err(unexpected("prompt", "a string or a list of messages", None));
            }
            Record::Prompt(Prompt { messages, columns: std::mem::take(&mut fields) })
        }
        RowShape::Text => {
            let completion =
                text(&mut fields, "text", "a text")?.ok_or_else(|| unexpected("text", "a text", None))?;
            Record::Row(Row::Text { prompt: String::new(), completion })
        }
        RowShape::Tokens => Record::Row(tokens(&mut fields)?),
    };
    Ok(ParsedRow { record, shape, rest: fields })
}

fn conversation(fields: &mut Fields) -> Result<Row, RowProblem> {
    let messages = turns::messages(list(fields, "messages", "a list of messages")?)?;
    with_context(fields, messages, 0)
}

fn sharegpt(fields: &mut Fields) -> Result<Row, RowProblem> {
    let key = if fields.contains_key("conversations") { "conversations" } else { "conversation" };
    let turns = list(fields, key, "a list of turns {\"from\", \"value\"}")?;
    let system = text(fields, "system", "a text")?;
    let messages = with_system(system, turns::messages(turns)?);
    with_context(fields, messages, 0)
}

fn alpaca(fields: &mut Fields) -> Result<Row, RowProblem> {
    let needed = |fields: &mut Fields, key| {
        text(fields, key, "a text")?.ok_or_else(|| unexpected(key, "a text", None))
    };
    let mut instruction = needed(fields, "instruction")?;
    let output = needed(fields, "output")?;
    if let Some(input) = text(fields, "input", "a text")?.filter(|input| !input.is_empty()) {
        instruction.push_str("\n\n");
        instruction.push_str(&input);
    }
    let mut messages = Vec::new();
    let expected = "a list of pairs [question, answer]";
    match fields.shift_remove("history").map(from_text).transpose()? {
        None | Some(Value::Null) => {}
        Some(Value::Array(pairs)) => {
            for pair in pairs {
                match pair.as_array().map(Vec::as_slice) {
                    Some([Value::String(question), Value::String(answer)]) => {
                        messages.extend([Message::user(question), Message::assistant(answer)]);
                    }
                    _ => return Err(unexpected("history", expected, Some(&pair))),
                }
            }
        }
        Some(other) => return Err(unexpected("history", expected, Some(&other))),
    }
    messages.extend([Message::user(instruction), Message::assistant(output)]);
    let messages = with_system(text(fields, "system", "a text")?, messages);
    with_context(fields, messages, 0)
}

fn with_context(fields: &mut Fields, messages: Vec<Message>, trained_from: usize) -> Result<Row, RowProblem> {
    let tools = match fields.shift_remove("tools").map(from_text).transpose()? {
        None | Some(Value::Null) => None,
        Some(Value::String(text)) if text.trim().is_empty() => None,
        Some(Value::Array(tools)) if tools.is_empty() => None,
        Some(Value::Array(tools)) => Some(tools),
        Some(other) => return Err(unexpected("tools", "a list of tool definitions", Some(&other))),
    };
    let variables = match fields.shift_remove("chat_template_kwargs") {
        None | Some(Value::Null) => None,
        Some(Value::Object(variables)) => Some(variables),
        Some(other) => return Err(unexpected("chat_template_kwargs", "an object", Some(&other))),
    };
    Ok(Row::Conversation { messages, trained_from, tools, variables })
}

fn prompt_completion(fields: &mut Fields) -> Result<Row, RowProblem> {
    let expected = "a string, or a list of messages like the other of the two";
    match (taken(fields, "prompt")?, taken(fields, "completion")?) {
        (Some(Value::String(prompt)), Some(Value::String(completion))) => {
            Ok(Row::Text { prompt, completion })
        }
        (Some(Value::Array(prompt)), Some(Value::Array(completion))) => {
            let trained_from = prompt.len();
            let messages = turns::messages(prompt.into_iter().chain(completion).collect())?;
            with_context(fields, messages, trained_from)
        }
        (Some(Value::String(_) | Value::Array(_)), other) => {
            Err(unexpected("completion", expected, other.as_ref()))
        }
        (other, _) => Err(unexpected("prompt", expected, other.as_ref())),
    }
}

fn preference(fields: &mut Fields) -> Result<Preference, RowProblem> {
    let prompt = side(fields, "prompt", "user")?;
    let expected = "a string or a list of messages";
    let mut chosen =
        side(fields, "chosen", "assistant")?.ok_or_else(|| unexpected("chosen", expected, None))?;
    let mut rejected =
        side(fields, "rejected", "assistant")?.ok_or_else(|| unexpected("rejected", expected, None))?;
    // Both may hold the whole conversation: what they share, up to an answer, is the prompt.
    let shared = chosen.iter().zip(&rejected).take_while(|(a, b)| a == b).count();
    let prompt = match prompt {
        Some(prompt) if chosen.starts_with(&prompt) && rejected.starts_with(&prompt) => {
            chosen.drain(..prompt.len());
            rejected.drain(..prompt.len());
            prompt
        }
        Some(prompt) => prompt,
        None => {
            rejected.drain(..shared);
            chosen.drain(..shared).collect()
        }
    };
    if chosen == rejected {
        return Err(RowProblem::SamePreference);
    }
    for (key, answer) in [("chosen", &chosen), ("rejected", &rejected)] {
        if answer.is_empty() {
            return Err(RowProblem::Field {
                key,
                expected: "an answer beyond the prompt",
                found: "the prompt alone".to_owned(),
            });
        }
    }
    Ok(Preference { prompt, chosen, rejected })
}

/// A list of messages, or a text as one message.
fn side(fields: &mut Fields, key: &'static str, role: &str) -> Result<Option<Vec<Message>>, RowProblem> {
    match taken(fields, key)? {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(vec![Message::new(role, text)])),
        Some(Value::Array(turns)) => Ok(Some(turns::messages(turns)?)),
        Some(other) => Err(unexpected(key, "a string or a list of messages", Some(&other))),
    }
}

fn text(
    fields: &mut Fields,
    key: &'static str,
    expected: &'static str,
) -> Result<Option<String>, RowProblem> {
    match fields.shift_remove(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(other) => Err(unexpected(key, expected, Some(&other))),
    }
}

fn tokens(fields: &mut Fields) -> Result<Row, RowProblem> {
    let values = list(fields, "input_ids", "a list of token ids")?;
    let ids: Vec<u32> = values
        .iter()
        .map(|value| value.as_u64().and_then(|id| u32::try_from(id).ok()))
        .collect::<Option<_>>()
        .ok_or_else(|| {
            let wrong = values.iter().find(|v| v.as_u64().is_none_or(|id| u32::try_from(id).is_err()));
            unexpected("input_ids", "token ids: integers from 0", wrong)
        })?;
    // Padding has no meaning here; a mask that hides tokens would be silently lost.
    if let Some(mask) = fields.shift_remove("attention_mask").map(from_text).transpose()?
        && mask
            .as_array()
            .is_none_or(|mask| mask.len() != ids.len() || mask.iter().any(|v| v.as_u64() != Some(1)))
    {
        return Err(RowProblem::Field {
            key: "attention_mask",
            expected: "a 1 for every id (rows are not padded)",
            found: "something else".to_owned(),
        });
    }
    let weights = match fields.shift_remove("labels").map(from_text).transpose()? {
        None | Some(Value::Null) => vec![1.0; ids.len()],
        Some(Value::Array(labels)) if labels.len() == ids.len() => labels
            .iter()
            .zip(&ids)
            .enumerate()
            .map(|(position, (label, &id))| match label.as_i64() {
                Some(IGNORED_LABEL) => Ok(0.0),
                Some(label) if label == i64::from(id) => Ok(1.0),
                Some(label) => Err(RowProblem::Label { position, label, id }),
                None => Err(unexpected("labels", "integers", Some(label))),
            })
            .collect::<Result<_, _>>()?,
        Some(Value::Array(labels)) => {
            return Err(RowProblem::Field {
                key: "labels",
                expected: "as many labels as `input_ids`",
                found: format!("{} for {} ids", labels.len(), ids.len()),
            });
        }
        Some(other) => return Err(unexpected("labels", "a list of labels", Some(&other))),
    };
    Ok(Row::Tokens { ids, weights })
}

fn list(fields: &mut Fields, key: &'static str, expected: &'static str) -> Result<Vec<Value>, RowProblem> {
    match fields.shift_remove(key).map(from_text).transpose()? {
        Some(Value::Array(values)) if values.is_empty() => {
            Err(RowProblem::Field { key, expected, found: "an empty list".to_owned() })
        }
        Some(Value::Array(values)) => Ok(values),
        other => Err(unexpected(key, expected, other.as_ref())),
    }
}

/// A list that stands as text, which is how tables hold lists.
fn from_text(value: Value) -> Result<Value, RowProblem> {
    match &value {
        Value::String(text) if text.trim_start().starts_with('[') => match bounded_json::parse(text) {
            Err(problem @ RowProblem::TooManyValues { .. }) => Err(problem),
            parsed => Ok(parsed.unwrap_or(value)),
        },
        _ => Ok(value),
    }
}

/// [`from_text`] where a text may also be meant: only lists of objects are taken for what they say.
fn taken(fields: &mut Fields, key: &str) -> Result<Option<Value>, RowProblem> {
    let Some(value) = fields.shift_remove(key) else { return Ok(None) };
    Ok(Some(match from_text(value.clone())? {
        Value::Array(turns) if turns.first().is_some_and(is_turn) => Value::Array(turns),
        _ => value,
    }))
}

fn is_turn(value: &Value) -> bool {
    value.as_object().is_some_and(|turn| turn.contains_key("role") || turn.contains_key("from"))
}

fn unexpected(key: &'static str, expected: &'static str, found: Option<&Value>) -> RowProblem {
    let found = match found {
        None => "nothing".to_owned(),
        Some(number @ Value::Number(_)) => number.to_string(),
        Some(other) => kind(other).to_owned(),
    };
    RowProblem::Field { key, expected, found }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a truth value",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}
