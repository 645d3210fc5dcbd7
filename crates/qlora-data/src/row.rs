use crate::RowProblem;
use qlora_text::Message;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::fmt;

/// The three shapes a row can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RowShape {
    /// `{"messages": [{"role", "content"}, ..]}`, optionally with `tools` and `chat_template_kwargs`.
    Messages,
    /// `{"prompt", "completion"}`: two strings, or two lists of messages.
    PromptCompletion,
    /// `{"input_ids": [..], "labels": [..]}`; without `labels` every token is trained.
    Tokens,
}

impl fmt::Display for RowShape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Messages => "`messages`",
            Self::PromptCompletion => "`prompt` and `completion`",
            Self::Tokens => "`input_ids`",
        })
    }
}

/// One row, before tokenization.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Row {
    /// A conversation.
    Conversation {
        /// The messages.
        messages: Vec<Message>,
        /// Messages before this index are context: assistant turns among them are not trained.
        trained_from: usize,
        /// Tool definitions, for the chat template.
        tools: Option<Vec<Value>>,
        /// Further variables of the chat template (`chat_template_kwargs`).
        variables: Option<Map<String, Value>>,
    },
    /// Plain text, of which the second part is trained.
    Text {
        /// What is given.
        prompt: String,
        /// What follows.
        completion: String,
    },
    /// Token ids.
    Tokens {
        /// The ids.
        ids: Vec<u32>,
        /// The weight of the loss on predicting each of them.
        weights: Vec<f32>,
    },
}

/// A row with what was found out while reading it.
#[derive(Debug)]
pub(crate) struct ParsedRow {
    pub(crate) row: Row,
    pub(crate) shape: RowShape,
    pub(crate) ignored_keys: Vec<String>,
}

/// The label of a token that is not trained.
const IGNORED_LABEL: i64 = -100;

/// Reads a row of the named shape, or of the shape its keys tell.
pub(crate) fn parse(value: Value, shape: Option<RowShape>) -> Result<ParsedRow, RowProblem> {
    let mut fields = match value {
        Value::Object(fields) => fields,
        other => {
            let hint = match other {
                Value::Array(_) => "write a JSON array as one element per line",
                _ => {
                    "write {\"messages\": [..]}, {\"prompt\": .., \"completion\": ..} or {\"input_ids\": [..]}"
                }
            };
            return Err(RowProblem::NotAnObject { found: kind(&other), hint });
        }
    };
    let shape = match shape {
        Some(shape) => shape,
        None => detect(&fields)?,
    };
    let row = match shape {
        RowShape::Messages => conversation(&mut fields)?,
        RowShape::PromptCompletion => prompt_completion(&mut fields)?,
        RowShape::Tokens => tokens(&mut fields)?,
    };
    Ok(ParsedRow { row, shape, ignored_keys: fields.into_iter().map(|(key, _)| key).collect() })
}

fn detect(fields: &Map<String, Value>) -> Result<RowShape, RowProblem> {
    let candidates = [
        (fields.contains_key("messages"), RowShape::Messages),
        (fields.contains_key("prompt") && fields.contains_key("completion"), RowShape::PromptCompletion),
        (fields.contains_key("input_ids"), RowShape::Tokens),
    ];
    let mut found = candidates.into_iter().filter_map(|(present, shape)| present.then_some(shape));
    match (found.next(), found.next()) {
        (Some(first), Some(second)) => Err(RowProblem::AmbiguousShape { first, second }),
        (Some(shape), None) => Ok(shape),
        (None, _) => Err(RowProblem::UnknownShape { keys: fields.keys().cloned().collect() }),
    }
}

fn conversation(fields: &mut Map<String, Value>) -> Result<Row, RowProblem> {
    let messages = Message::list_from_json(list(fields, "messages", "a list of messages")?)?;
    with_context(fields, messages, 0)
}

fn with_context(
    fields: &mut Map<String, Value>,
    messages: Vec<Message>,
    trained_from: usize,
) -> Result<Row, RowProblem> {
    let tools = match fields.remove("tools") {
        None | Some(Value::Null) => None,
        Some(Value::Array(tools)) => Some(tools),
        Some(other) => return Err(unexpected("tools", "a list of tool definitions", Some(&other))),
    };
    let variables = match fields.remove("chat_template_kwargs") {
        None | Some(Value::Null) => None,
        Some(Value::Object(variables)) => Some(variables),
        Some(other) => return Err(unexpected("chat_template_kwargs", "an object", Some(&other))),
    };
    Ok(Row::Conversation { messages, trained_from, tools, variables })
}

fn prompt_completion(fields: &mut Map<String, Value>) -> Result<Row, RowProblem> {
    let expected = "a string, or a list of messages like the other of the two";
    match (fields.remove("prompt"), fields.remove("completion")) {
        (Some(Value::String(prompt)), Some(Value::String(completion))) => {
            Ok(Row::Text { prompt, completion })
        }
        (Some(Value::Array(prompt)), Some(Value::Array(completion))) => {
            let trained_from = prompt.len();
            let messages = Message::list_from_json(prompt.into_iter().chain(completion).collect())?;
            with_context(fields, messages, trained_from)
        }
        (Some(Value::String(_) | Value::Array(_)), other) => {
            Err(unexpected("completion", expected, other.as_ref()))
        }
        (other, _) => Err(unexpected("prompt", expected, other.as_ref())),
    }
}

fn tokens(fields: &mut Map<String, Value>) -> Result<Row, RowProblem> {
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
    if let Some(mask) = fields.remove("attention_mask")
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
    let weights = match fields.remove("labels") {
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

fn list(
    fields: &mut Map<String, Value>,
    key: &'static str,
    expected: &'static str,
) -> Result<Vec<Value>, RowProblem> {
    match fields.remove(key) {
        Some(Value::Array(values)) if values.is_empty() => {
            Err(RowProblem::Field { key, expected, found: "an empty list".to_owned() })
        }
        Some(Value::Array(values)) => Ok(values),
        other => Err(unexpected(key, expected, other.as_ref())),
    }
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
