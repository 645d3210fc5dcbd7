use crate::generation_blocks::{self, Marks};
use crate::python_json::Dumps;
use crate::strftime::{strftime, strftime_now};
use crate::{Error, Message, PreparedConversation, python_text};
use minijinja::value::{Kwargs, Rest, ValueKind};
use minijinja::{Environment, ErrorKind, State, Value};
use serde_json::Map;
use std::ops::Range;
use std::sync::Arc;

const DEFAULT: &str = "default";
const TOOL_USE: &str = "tool_use";
/// The variable through which the marks of one rendering reach the filter.
pub(crate) const MARK_VARIABLE: &str = "generation_mark__";

/// A model's chat template: Jinja, rendered as `transformers` renders it.
///
/// `trim_blocks` and `lstrip_blocks` are on, Python's string, dictionary and list methods work, values
/// print as Python prints them (`None`, `True`, `1e-05`), `tojson` is `json.dumps(ensure_ascii=False)`,
/// and `raise_exception`, `strftime_now` (UTC), `break`, `continue` and `{% generation %}` are known.
/// What Jinja2 has and minijinja has not (`%` on strings, a few string methods) is an error, never other text.
#[derive(Debug, Clone)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    source: String,
    generation_blocks: bool,
    has_tool_use: bool,
    variables: Arc<Map<String, serde_json::Value>>,
}

/// What a chat template is rendered with.
#[derive(Debug, Clone, Copy, Default)]
pub struct RenderInput<'a> {
    /// The conversation.
    pub messages: &'a [Message],
    /// Tool definitions (JSON schema), as the variable `tools`.
    pub tools: Option<&'a [serde_json::Value]>,
    /// Documents for retrieval, as the variable `documents`.
    pub documents: Option<&'a [serde_json::Value]>,
    /// Whether the text ends with what precedes the assistant's next turn.
    pub add_generation_prompt: bool,
    /// Further variables (`enable_thinking`, `date_string`, ...); they win over those of the template.
    pub variables: Option<&'a Map<String, serde_json::Value>>,
}

/// The text of a conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rendered {
    /// The text.
    pub text: String,
    /// Byte ranges of the text that came out of `{% generation %}` blocks, in order, none empty.
    pub generation_spans: Vec<Range<usize>>,
}

impl ChatTemplate {
    /// Parses a template.
    ///
    /// # Errors
    /// [`Error::TemplateSyntax`] with the line.
    pub fn new(source: &str) -> Result<Self, Error> {
        let mut environment = environment();
        let generation_blocks = add(&mut environment, DEFAULT, source)?;
        Ok(Self {
            environment,
            source: source.to_owned(),
            generation_blocks,
            has_tool_use: false,
            variables: Arc::default(),
        })
    }

    /// Adds the template that is used when tools are given (`tool_use` of a list of named templates).
    ///
    /// # Errors
    /// [`Error::TemplateSyntax`] with the line.
    pub fn with_tool_use(mut self, source: &str) -> Result<Self, Error> {
        self.generation_blocks &= add(&mut self.environment, TOOL_USE, source)?;
        self.has_tool_use = true;
        Ok(self)
    }

    /// Sets a variable that every rendering sees, such as `bos_token`.
    #[must_use]
    pub fn with_variable(mut self, name: impl Into<String>, value: impl Into<serde_json::Value>) -> Self {
        Arc::make_mut(&mut self.variables).insert(name.into(), value.into());
        self
    }

    /// Makes `strftime_now` tell this time, in seconds since 1970, in place of the present.
    #[must_use]
    pub fn with_time(mut self, unix_seconds: u64) -> Self {
        self.environment.add_function("strftime_now", move |format: &str| {
            strftime(format, unix_seconds)
                .map_err(|reason| minijinja::Error::new(ErrorKind::InvalidOperation, reason))
        });
        self
    }

    /// The template as it was given.
    #[must_use]
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Whether the template says itself, by `{% generation %}` blocks, what the assistant generates.
    #[must_use]
    pub fn has_generation_blocks(&self) -> bool {
        self.generation_blocks
    }

    /// Renders a conversation.
    ///
    /// # Errors
    /// [`Error::Raised`] when the template calls `raise_exception`, [`Error::Render`] when an expression fails.
    pub fn render(&self, input: &RenderInput<'_>) -> Result<Rendered, Error> {
        self.prepare(input).render(input.messages.len(), input.add_generation_prompt)
    }

    /// A conversation to be rendered several times, message by message. What `input` says of the generation prompt
    /// does not count.
    #[must_use]
    pub fn prepare(&self, input: &RenderInput<'_>) -> PreparedConversation<'_> {
        PreparedConversation::new(self, input)
    }

    pub(crate) fn variables(&self) -> &Arc<Map<String, serde_json::Value>> {
        &self.variables
    }

    /// The template for conversations with or without tools.
    pub(crate) fn jinja(&self, with_tools: bool) -> Result<minijinja::Template<'_, '_>, Error> {
        let name = if self.has_tool_use && with_tools { TOOL_USE } else { DEFAULT };
        self.environment.get_template(name).map_err(render_error)
    }
}

fn add(environment: &mut Environment<'static>, name: &'static str, source: &str) -> Result<bool, Error> {
    // Jinja reads every kind of line end as "\n".
    let (rewritten, found) = generation_blocks::rewrite(&source.replace("\r\n", "\n").replace('\r', "\n"));
    environment.add_template_owned(name, rewritten).map_err(|error| Error::TemplateSyntax {
        line: error.line().unwrap_or(1),
        reason: describe(&error),
    })?;
    Ok(found)
}

fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_trim_blocks(true);
    environment.set_lstrip_blocks(true);
    environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.set_formatter(|out, _, value| {
        // An undefined value prints nothing; everything else prints as in Python.
        match value.as_str() {
            Some(text) => out.write_str(text),
            None => out.write_str(&python_text::to_str(value)),
        }
        .map_err(minijinja::Error::from)
    });
    environment.add_function("raise_exception", raise_exception);
    environment.add_function("strftime_now", |format: &str| {
        strftime_now(format).map_err(|reason| minijinja::Error::new(ErrorKind::InvalidOperation, reason))
    });
    environment.add_filter("tojson", to_json_filter);
    environment.add_filter("string", |value: &Value| python_text::to_str(value));
    environment.add_filter("join", join);
    // In Python a string and a dictionary have a length and can be indexed, hence are sequences.
    environment.add_test("sequence", |value: &Value| {
        matches!(value.kind(), ValueKind::Seq | ValueKind::Map | ValueKind::String)
    });
    environment.add_filter(generation_blocks::FILTER, |state: &State<'_, '_>, body: &str| {
        let mark = state.lookup(MARK_VARIABLE);
        match mark.as_ref().and_then(Value::as_str).and_then(Marks::from_opening) {
            Some(marks) => marks.wrap(body),
            None => body.to_owned(),
        }
    });
    environment
}

/// What the template said through `raise_exception`, carried as the source of minijinja's error.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Raised(String);

fn raise_exception(message: &Value) -> Result<Value, minijinja::Error> {
    let message = python_text::to_str(message);
    Err(minijinja::Error::new(ErrorKind::InvalidOperation, message.clone()).with_source(Raised(message)))
}

pub(crate) fn render_error(error: minijinja::Error) -> Error {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&error);
    while let Some(current) = cause {
        if let Some(Raised(message)) = current.downcast_ref() {
            return Error::Raised { message: message.clone() };
        }
        cause = current.source();
    }
    Error::Render { line: error.line().unwrap_or(1), reason: describe(&error) }
}

fn describe(error: &minijinja::Error) -> String {
    match error.detail() {
        Some(detail) => format!("{}: {detail}", error.kind()),
        None => error.kind().to_string(),
    }
}

/// `tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False)`.
fn to_json_filter(value: &Value, arguments: Rest<Value>) -> Result<String, minijinja::Error> {
    let invalid = |reason: String| minijinja::Error::new(ErrorKind::InvalidOperation, reason);
    if value.is_undefined() {
        return Err(invalid("tojson: the value is undefined".to_owned()));
    }
    let mut positional = arguments.0;
    let keywords = match positional.last() {
        Some(last) if last.is_kwargs() => Kwargs::try_from(positional.pop().unwrap_or_default())?,
        _ => Kwargs::from_iter(std::iter::empty::<(&str, Value)>()),
    };
    let argument = |index: usize, name: &str| -> Result<Option<Value>, minijinja::Error> {
        let value = match positional.get(index) {
            Some(value) => Some(value.clone()),
            None => keywords.get::<Option<Value>>(name)?,
        };
        Ok(value.filter(|value| !value.is_none() && !value.is_undefined()))
    };
    let mut dumps = Dumps {
        ensure_ascii: argument(0, "ensure_ascii")?.is_some_and(|v| v.is_true()),
        sort_keys: argument(3, "sort_keys")?.is_some_and(|v| v.is_true()),
        ..Dumps::default()
    };
    if let Some(indent) = argument(1, "indent")? {
        dumps.indent = Some(match (indent.as_str(), indent.as_i64()) {
            (Some(text), _) => text.to_owned(),
            (None, Some(width)) => " ".repeat(width.clamp(0, 64) as usize),
            (None, None) => return Err(invalid(format!("tojson: indent must be a number, not {indent}"))),
        });
    }
    if let Some(separators) = argument(2, "separators")? {
        let pair: Vec<Value> = separators.try_iter()?.collect();
        dumps.separators = match &pair[..] {
            [item, key] => Some((python_text::to_str(item), python_text::to_str(key))),
            _ => return Err(invalid("tojson: separators must be a pair".to_owned())),
        };
    }
    keywords.assert_all_used()?;
    let json = serde_json::to_value(value).map_err(|error| invalid(format!("tojson: {error}")))?;
    Ok(dumps.write(&json))
}

/// `join` with Python's `str` of every element.
fn join(
    value: &Value,
    separator: Option<String>,
    attribute: Option<String>,
) -> Result<String, minijinja::Error> {
    let mut out = String::new();
    for (i, item) in value.try_iter()?.enumerate() {
        if let (Some(separator), true) = (&separator, i > 0) {
            out.push_str(separator);
        }
        let item = match &attribute {
            Some(name) => item.get_attr(name)?,
            None => item,
        };
        out.push_str(&python_text::to_str(&item));
    }
    Ok(out)
}
