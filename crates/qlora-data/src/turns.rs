//! Lists of turns, in the dialects in use, as messages.

use crate::{RowProblem, bounded_json};
use qlora_text::Message;
use serde_json::{Map, Value, json};

/// Speakers and the roles they have.
const SPEAKERS: [(&str, &str); 17] = [
    ("system", "system"),
    ("developer", "developer"),
    ("human", "user"),
    ("user", "user"),
    ("input", "user"),
    ("gpt", "assistant"),
    ("assistant", "assistant"),
    ("chatgpt", "assistant"),
    ("model", "assistant"),
    ("bot", "assistant"),
    ("bing", "assistant"),
    ("bard", "assistant"),
    ("output", "assistant"),
    ("tool", "tool"),
    ("function", "tool"),
    ("function_response", "tool"),
    ("observation", "tool"),
];
/// A speaker that calls a function: `value` is the call.
const CALL: &str = "function_call";

/// The turns `{"role", "content"}` as they are, and those `{"from", "value"}` translated.
pub(crate) fn messages(turns: Vec<Value>) -> Result<Vec<Message>, RowProblem> {
    turns.into_iter().enumerate().map(|(index, turn)| message(index, turn)).collect()
}

fn message(index: usize, turn: Value) -> Result<Message, RowProblem> {
    let mut fields = match turn {
        Value::Object(fields) if !fields.contains_key("role") && fields.contains_key("from") => fields,
        other => return Ok(Message::from_json(index, other)?),
    };
    let speaker = match fields.shift_remove("from") {
        Some(Value::String(speaker)) => speaker,
        other => return Err(turn_problem(index, format!("`from` must be a string, not {}", shown(other)))),
    };
    let value = match fields.shift_remove("value") {
        Some(value) => value,
        None => return Err(turn_problem(index, "has `from` and no `value`".to_owned())),
    };
    let mut translated = Map::new();
    let name = speaker.trim().to_ascii_lowercase();
    if name == CALL {
        translated.insert("role".into(), "assistant".into());
        translated.insert("content".into(), "".into());
        translated.insert("tool_calls".into(), Value::Array(calls(index, &value)?));
    } else {
        let role = SPEAKERS.iter().find(|(speaker, _)| *speaker == name).ok_or_else(|| {
            let known: Vec<&str> = SPEAKERS.iter().map(|(name, _)| *name).chain([CALL]).collect();
            turn_problem(index, format!("the speaker {speaker:?} is unknown; known are {}", known.join(", ")))
        })?;
        translated.insert("role".into(), role.1.into());
        translated.insert("content".into(), value);
    }
    translated.extend(fields);
    Ok(Message::from_json(index, Value::Object(translated))?)
}

/// One call or a list of them, as JSON or as the text of it.
fn calls(index: usize, value: &Value) -> Result<Vec<Value>, RowProblem> {
    let parsed = match value {
        Value::String(text) => bounded_json::parse(text)
            .map_err(|problem| turn_problem(index, format!("the function call is {problem}")))?,
        other => other.clone(),
    };
    let calls = match parsed {
        Value::Array(calls) => calls,
        one => vec![one],
    };
    calls
        .into_iter()
        .map(|call| match call {
            Value::Object(call) if call.get("name").is_some_and(Value::is_string) => {
                Ok(json!({"type": "function", "function": call}))
            }
            other => Err(turn_problem(
                index,
                format!("expected a function call {{\"name\", \"arguments\"}}, found {other}"),
            )),
        })
        .collect()
}

fn shown(value: Option<Value>) -> String {
    value.map_or("nothing".to_owned(), |value| value.to_string())
}

fn turn_problem(index: usize, problem: String) -> RowProblem {
    RowProblem::Turn { index, problem }
}

/// A conversation with a system message in front, unless the text is blank or there is one.
pub(crate) fn with_system(system: Option<String>, messages: Vec<Message>) -> Vec<Message> {
    match system {
        Some(system)
            if !system.trim().is_empty()
                && messages.first().is_none_or(|message| message.role() != "system") =>
        {
            std::iter::once(Message::system(system)).chain(messages).collect()
        }
        _ => messages,
    }
}
