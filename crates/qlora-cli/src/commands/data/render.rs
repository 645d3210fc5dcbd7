//! `qlora data render`: conversations through a chat template.

use std::io::Write as _;
use std::path::Path;

use qlora_core::text::{ChatTemplate, Error as TextError, Message, NamedTemplate, RenderInput};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::arguments::RenderArguments;
use crate::failure::Failure;

/// An element of the file.
#[derive(Deserialize)]
struct Conversation {
    messages: Vec<Value>,
    #[serde(default)]
    tools: Option<Vec<Value>>,
    #[serde(default)]
    add_generation_prompt: bool,
    #[serde(default)]
    variables: Option<Map<String, Value>>,
}

pub(super) fn run(arguments: &RenderArguments) -> Result<(), Failure> {
    let template = match NamedTemplate::find(&arguments.template) {
        Some(named) => ChatTemplate::new(named.source)?,
        None => {
            let path = Path::new(&arguments.template);
            let source = read(path)?;
            ChatTemplate::new(&source)
                .map_err(|error| Failure::message(format!("{}: {error}", path.display())))?
        }
    };
    let path = &arguments.messages;
    let conversations: Vec<Conversation> = serde_json::from_str(&read(path)?).map_err(|error| {
        Failure::message(format!(
            "{}: expected a JSON list of {{\"messages\": [..], \"tools\", \"add_generation_prompt\", \"variables\"}}: \
             {error}",
            path.display()
        ))
    })?;
    let rendered: Vec<Value> = conversations
        .into_iter()
        .map(|conversation| {
            render(&template, conversation).unwrap_or_else(|error| match error {
                TextError::Raised { message } => json!({"error": message}),
                error => json!({"error": error.to_string()}),
            })
        })
        .collect();
    let mut out = std::io::stdout().lock();
    serde_json::to_writer(&mut out, &rendered)?;
    writeln!(out)?;
    Ok(())
}

fn read(path: &Path) -> Result<String, Failure> {
    std::fs::read_to_string(path)
        .map_err(|error| Failure::message(format!("cannot read {}: {error}", path.display())))
}

fn render(template: &ChatTemplate, conversation: Conversation) -> Result<Value, TextError> {
    let messages = Message::list_from_json(conversation.messages)?;
    let rendered = template.render(&RenderInput {
        messages: &messages,
        tools: conversation.tools.as_deref(),
        add_generation_prompt: conversation.add_generation_prompt,
        variables: conversation.variables.as_ref(),
        ..RenderInput::default()
    })?;
    // Bytes to characters, in one pass: spans are in order.
    let mut spans = Vec::with_capacity(rendered.generation_spans.len());
    let (mut byte, mut characters) = (0, 0);
    let mut character_at = |end: usize| {
        characters += rendered.text[byte..end].chars().count();
        byte = end;
        characters
    };
    for span in &rendered.generation_spans {
        spans.push([character_at(span.start), character_at(span.end)]);
    }
    Ok(json!({"text": rendered.text, "assistant_spans": spans}))
}
