use crate::RowProblem;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::fmt;

/// A text made from columns: `"Title: {title}[[\nBody: {body}]]"`.
///
/// `{name}` is the content of a column. A part in `[[..]]` is left out when one of its columns is missing,
/// null or empty; elsewhere that is an error. `{{` and `}}` are braces. Parts don't nest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ColumnTemplate {
    source: String,
    parts: Vec<Part>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Part {
    optional: bool,
    pieces: Vec<Piece>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    Text(String),
    Column(String),
}

/// Why a text is no column template.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the template {template:?}: {problem} at byte {at}")]
pub struct ColumnTemplateError {
    /// The template.
    pub template: String,
    /// What is wrong.
    pub problem: &'static str,
    /// Where, from 0.
    pub at: usize,
}

impl ColumnTemplate {
    /// Reads a template.
    ///
    /// # Errors
    /// When brackets don't match, or a column has no name.
    pub fn parse(source: impl Into<String>) -> Result<Self, ColumnTemplateError> {
        let source = source.into();
        let wrong = |problem, at| Err(ColumnTemplateError { template: source.clone(), problem, at });
        let mut parts = vec![Part { optional: false, pieces: Vec::new() }];
        let mut text = String::new();
        let mut at = 0;
        while let Some(next) = source[at..].chars().next() {
            let rest = &source[at..];
            let inside = parts.last().is_some_and(|part| part.optional);
            let bracket = ["[[", "]]", "{{", "}}"].into_iter().find(|bracket| rest.starts_with(bracket));
            match (bracket, next) {
                (Some(brace @ ("{{" | "}}")), _) => {
                    text.push_str(&brace[1..]);
                    at += 2;
                }
                (Some("[["), _) if inside => return wrong("`[[` within `[[..]]`", at),
                (Some("]]"), _) if !inside => return wrong("`]]` without `[[`", at),
                (Some(_), _) => {
                    finish(&mut parts, &mut text);
                    parts.push(Part { optional: !inside, pieces: Vec::new() });
                    at += 2;
                }
                (None, '{') => {
                    let Some(length) = rest.find('}') else { return wrong("`{` without `}`", at) };
                    let name = &rest[1..length];
                    if name.is_empty() || name.contains('{') {
                        return wrong("expected the name of a column in `{..}`; write `{{` for a brace", at);
                    }
                    finish(&mut parts, &mut text);
                    if let Some(part) = parts.last_mut() {
                        part.pieces.push(Piece::Column(name.to_owned()));
                    }
                    at += length + 1;
                }
                (None, '}') => return wrong("`}` without `{`; write `}}` for a brace", at),
                (None, other) => {
                    text.push(other);
                    at += other.len_utf8();
                }
            }
        }
        if parts.last().is_some_and(|part| part.optional) {
            return wrong("`[[` without `]]`", at);
        }
        finish(&mut parts, &mut text);
        Ok(Self { source, parts })
    }

    /// The names of the columns it uses.
    pub fn columns(&self) -> impl Iterator<Item = &str> {
        self.parts.iter().flat_map(|part| &part.pieces).filter_map(|piece| match piece {
            Piece::Column(name) => Some(name.as_str()),
            Piece::Text(_) => None,
        })
    }

    /// The text for a row.
    ///
    /// # Errors
    /// [`RowProblem::Column`] when a column has no content outside of `[[..]]`.
    pub fn fill(&self, row: &Map<String, Value>) -> Result<String, RowProblem> {
        let mut text = String::new();
        for part in &self.parts {
            let before = text.len();
            for piece in &part.pieces {
                match piece {
                    Piece::Text(piece) => text.push_str(piece),
                    Piece::Column(name) => match (content(row.get(name)), part.optional) {
                        (Some(content), _) => text.push_str(&content),
                        (None, true) => {
                            text.truncate(before);
                            break;
                        }
                        (None, false) => {
                            return Err(RowProblem::Column {
                                column: name.clone(),
                                keys: row.keys().cloned().collect(),
                            });
                        }
                    },
                }
            }
        }
        Ok(text)
    }
}

fn finish(parts: &mut [Part], text: &mut String) {
    if let Some(part) = parts.last_mut()
        && !text.is_empty()
    {
        part.pieces.push(Piece::Text(std::mem::take(text)));
    }
}

/// What a column holds as text; numbers and lists as JSON.
fn content(value: Option<&Value>) -> Option<String> {
    match value? {
        Value::Null => None,
        Value::String(text) if text.is_empty() => None,
        Value::String(text) => Some(text.clone()),
        other => Some(other.to_string()),
    }
}

impl TryFrom<String> for ColumnTemplate {
    type Error = ColumnTemplateError;

    fn try_from(source: String) -> Result<Self, Self::Error> {
        Self::parse(source)
    }
}

impl From<ColumnTemplate> for String {
    fn from(template: ColumnTemplate) -> Self {
        template.source
    }
}

impl fmt::Display for ColumnTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.source)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn optional_parts_go_with_their_columns() {
        let template = ColumnTemplate::parse("Title: {title}[[\nBody: {body}, {n}]] {{x}}").unwrap();
        assert_eq!(template.columns().collect::<Vec<_>>(), ["title", "body", "n"]);
        let fill = |row: Value| template.fill(row.as_object().unwrap());
        assert_eq!(fill(json!({"title": "T", "body": "B", "n": 3})).unwrap(), "Title: T\nBody: B, 3 {x}");
        for row in [
            json!({"title": "T"}),
            json!({"title": "T", "body": "", "n": 1}),
            json!({"title": "T", "body": "B", "n": null}),
        ] {
            assert_eq!(fill(row).unwrap(), "Title: T {x}");
        }
        let error = fill(json!({"body": "B"})).unwrap_err().to_string();
        assert_eq!(error, "the column \"title\" is missing or empty; the row has [\"body\"]");
    }

    #[test]
    fn bad_templates_say_where() {
        for (template, words) in [
            ("[[a", "`[[` without `]]`"),
            ("a]]", "`]]` without `[[` at byte 1"),
            ("[[a[[b]]]]", "`[[` within"),
            ("{a", "`{` without `}` at byte 0"),
            ("é}", "`}` without `{`"),
            ("{}", "the name of a column"),
        ] {
            let error = ColumnTemplate::parse(template).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }
}
