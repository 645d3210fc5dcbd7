use crate::chat_template::{MARK_VARIABLE, render_error};
use crate::generation_blocks::Marks;
use crate::{ChatTemplate, Error, RenderInput, Rendered};
use minijinja::Value;
use minijinja::value::Object;
use serde_json::Map;
use std::fmt;
use std::sync::Arc;

/// A conversation ready to be rendered several times, as far as several of its messages
/// ([`ChatTemplate::prepare`]). Its values are made once.
#[derive(Debug)]
pub struct PreparedConversation<'a> {
    template: &'a ChatTemplate,
    messages: Vec<Value>,
    shared: Arc<Shared>,
    marks: Option<Marks>,
}

/// What all renderings see.
#[derive(Debug)]
struct Shared {
    /// They win over everything.
    variables: Map<String, serde_json::Value>,
    tools: Value,
    documents: Value,
    mark: Value,
    /// Those of the template, which come last.
    template_variables: Arc<Map<String, serde_json::Value>>,
}

/// The variables of one rendering.
struct Context {
    shared: Arc<Shared>,
    messages: Value,
    add_generation_prompt: bool,
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context").finish_non_exhaustive()
    }
}

impl Object for Context {
    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        self.get_value_by_str(key.as_str()?)
    }

    fn get_value_by_str(self: &Arc<Self>, name: &str) -> Option<Value> {
        if name == MARK_VARIABLE && !self.shared.mark.is_undefined() {
            return Some(self.shared.mark.clone());
        }
        if let Some(value) = self.shared.variables.get(name) {
            return Some(Value::from_serialize(value));
        }
        Some(match name {
            "messages" => self.messages.clone(),
            "tools" => self.shared.tools.clone(),
            "documents" => self.shared.documents.clone(),
            "add_generation_prompt" => self.add_generation_prompt.into(),
            other => Value::from_serialize(self.shared.template_variables.get(other)?),
        })
    }
}

impl<'a> PreparedConversation<'a> {
    pub(crate) fn new(template: &'a ChatTemplate, input: &RenderInput<'_>) -> Self {
        let marks =
            template.has_generation_blocks().then(|| Marks::absent_from_all(input, template.variables()));
        let mark = marks.as_ref().map_or(Value::UNDEFINED, |marks| marks.opening().into());
        let shared = Shared {
            variables: input.variables.cloned().unwrap_or_default(),
            tools: Value::from_serialize(input.tools),
            documents: Value::from_serialize(input.documents),
            mark,
            template_variables: Arc::clone(template.variables()),
        };
        Self {
            template,
            messages: input.messages.iter().map(Value::from_serialize).collect(),
            shared: Arc::new(shared),
            marks,
        }
    }

    /// Renders the first `count` messages, as [`ChatTemplate::render`] does.
    ///
    /// # Errors
    /// As [`ChatTemplate::render`].
    ///
    /// # Panics
    /// When there are fewer messages.
    pub fn render(&self, count: usize, add_generation_prompt: bool) -> Result<Rendered, Error> {
        let context = Context {
            shared: Arc::clone(&self.shared),
            messages: Value::from(self.messages[..count].to_vec()),
            add_generation_prompt,
        };
        let template = self.template.jinja(!self.shared.tools.is_none())?;
        let text = template.render(Value::from_object(context)).map_err(render_error)?;
        match &self.marks {
            None => Ok(Rendered { text, generation_spans: Vec::new() }),
            Some(marks) => {
                let (text, generation_spans) = marks.extract(&text).ok_or_else(|| Error::Render {
                    line: 1,
                    reason: "the output of a {% generation %} block is cut or repeated by the template"
                        .to_owned(),
                })?;
                Ok(Rendered { text, generation_spans })
            }
        }
    }
}
