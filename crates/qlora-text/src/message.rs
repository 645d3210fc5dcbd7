use crate::Error;
use serde::{Serialize, Serializer};
use serde_json::{Map, Value};

/// One turn of a conversation: a JSON object with a string under `role`.
///
/// Every other key (`content`, `tool_calls`, `reasoning_content`, `name`, ...) is kept in its order and
/// reaches the chat template as it is.
#[derive(Debug, Clone, PartialEq)]
pub struct Message {
    fields: Map<String, Value>,
}

impl Message {
    /// A message of plain text.
    #[must_use]
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        let mut fields = Map::new();
        fields.insert("role".into(), Value::String(role.into()));
        fields.insert("content".into(), Value::String(content.into()));
        Self { fields }
    }

    /// A message of the role `system`.
    #[must_use]
    pub fn system(content: impl Into<String>) -> Self {
        Self::new("system", content)
    }

    /// A message of the role `user`.
    #[must_use]
    pub fn user(content: impl Into<String>) -> Self {
        Self::new("user", content)
    }

    /// A message of the role `assistant`.
    #[must_use]
    pub fn assistant(content: impl Into<String>) -> Self {
        Self::new("assistant", content)
    }

    /// A message from parsed JSON; `index` is its position, for the error.
    ///
    /// # Errors
    /// [`Error::Message`] when the value is no object or `role` is no string.
    pub fn from_json(index: usize, value: Value) -> Result<Self, Error> {
        let found = match value {
            Value::Object(fields) => match fields.get("role") {
                Some(Value::String(_)) => return Ok(Self { fields }),
                Some(other) => format!("`role` must be a string, not {other}"),
                None => "has no `role`".to_owned(),
            },
            other => format!("must be an object with `role` and `content`, not {other}"),
        };
        Err(Error::Message { index, reason: found })
    }

    /// The messages of a JSON list.
    ///
    /// # Errors
    /// [`Error::Message`] for the first element that is no message.
    pub fn list_from_json(values: Vec<Value>) -> Result<Vec<Self>, Error> {
        values.into_iter().enumerate().map(|(index, value)| Self::from_json(index, value)).collect()
    }

    /// `system`, `user`, `assistant`, `tool`, or whatever the row said.
    #[must_use]
    pub fn role(&self) -> &str {
        self.fields.get("role").and_then(Value::as_str).unwrap_or_default()
    }

    /// The content when it is a plain string (it may also be a list of parts, or absent).
    #[must_use]
    pub fn text(&self) -> Option<&str> {
        self.get("content").and_then(Value::as_str)
    }

    pub(crate) fn fields(&self) -> &Map<String, Value> {
        &self.fields
    }

    /// The value under a key.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.fields.get(key)
    }
}

impl Serialize for Message {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.fields.serialize(serializer)
    }
}
