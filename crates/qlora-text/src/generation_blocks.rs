//! `{% generation %}` blocks: `transformers`' own Jinja tag, which marks what the assistant says.
//!
//! minijinja has no custom tags. The source is rewritten so that the body passes through a filter, which
//! puts marks around it; the marks are taken out of the rendered text, and their places are the spans.

use crate::{Message, RenderInput};
use serde_json::{Map, Value};
use std::ops::Range;

/// The filter that the rewritten blocks call.
pub(crate) const FILTER: &str = "generation_span__";

/// Rewrites the tags; says whether there were any. Comments, raw blocks and string literals are left alone.
pub(crate) fn rewrite(source: &str) -> (String, bool) {
    let mut out = String::with_capacity(source.len());
    let mut found = false;
    let mut rest = source;
    while let Some(start) = next_delimiter(rest) {
        out.push_str(&rest[..start]);
        rest = &rest[start..];
        let length = match &rest[..2] {
            "{#" => rest.find("#}").map_or(rest.len(), |end| end + 2),
            "{{" => end_of_tag(rest, "}}"),
            _ => end_of_tag(rest, "%}"),
        };
        let tag = &rest[..length];
        let block = Block::parse(tag);
        match block.as_ref().map(|block| block.word) {
            Some("raw") => {
                let length = length + end_of_raw(&rest[length..]);
                out.push_str(&rest[..length]);
                rest = &rest[length..];
                continue;
            }
            Some("generation") => {
                found = true;
                // `with` keeps what the body sets inside it, as the original tag does.
                let (left, right) = block.map_or(("", ""), |block| (block.left, block.right));
                out.push_str(&format!("{{%{left} with %}}{{% filter {FILTER} {right}%}}"));
            }
            Some("endgeneration") => {
                let (left, right) = block.map_or(("", ""), |block| (block.left, block.right));
                out.push_str(&format!("{{%{left} endfilter %}}{{% endwith {right}%}}"));
            }
            _ => out.push_str(tag),
        }
        rest = &rest[length..];
    }
    out.push_str(rest);
    (out, found)
}

/// A block tag: its white-space control signs and what stands between them.
struct Block<'a> {
    left: &'a str,
    word: &'a str,
    right: &'a str,
}

impl<'a> Block<'a> {
    fn parse(tag: &'a str) -> Option<Self> {
        let inner = tag.strip_prefix("{%")?.strip_suffix("%}")?;
        let left = if inner.starts_with(['-', '+']) { &inner[..1] } else { "" };
        let inner = &inner[left.len()..];
        let right = if inner.ends_with(['-', '+']) { &inner[inner.len() - 1..] } else { "" };
        Some(Self { left, word: inner[..inner.len() - right.len()].trim(), right })
    }
}

fn next_delimiter(text: &str) -> Option<usize> {
    text.as_bytes().windows(2).position(|pair| matches!(pair, b"{%" | b"{{" | b"{#"))
}

/// Length of the tag that opens `text`, or of all of it when the tag never ends.
fn end_of_tag(text: &str, close: &str) -> usize {
    let mut quote = None;
    let mut escaped = false;
    for (i, c) in text.char_indices().skip(2) {
        match quote {
            Some(_) if escaped => escaped = false,
            Some(_) if c == '\\' => escaped = true,
            Some(open) if c == open => quote = None,
            Some(_) => {}
            None if c == '\'' || c == '"' => quote = Some(c),
            None if text[i..].starts_with(close) => return i + close.len(),
            None => {}
        }
    }
    text.len()
}

fn end_of_raw(text: &str) -> usize {
    let mut at = 0;
    while let Some(start) = text[at..].find("{%").map(|i| at + i) {
        let Some(length) = text[start..].find("%}").map(|i| i + 2) else { break };
        if Block::parse(&text[start..start + length]).is_some_and(|block| block.word == "endraw") {
            return start + length;
        }
        at = start + 2;
    }
    text.len()
}

/// Noncharacters: no text should hold them, but some text may.
const FIRST: char = '\u{fdd0}';
const SECOND: char = '\u{fdd1}';

fn has_mark(value: &Value) -> bool {
    match value {
        Value::String(text) => text.contains(FIRST),
        Value::Array(list) => list.iter().any(has_mark),
        Value::Object(map) => map_has_mark(map),
        Value::Null | Value::Bool(_) | Value::Number(_) => false,
    }
}

fn map_has_mark(map: &Map<String, Value>) -> bool {
    map.iter().any(|(key, value)| key.contains(FIRST) || has_mark(value))
}

/// The marks put around a body: text that occurs nowhere in what is rendered.
#[derive(Debug, Clone)]
pub(crate) struct Marks {
    open: String,
    close: String,
}

impl Marks {
    /// Marks that occur nowhere in what a template may write out.
    pub(crate) fn absent_from_all(input: &RenderInput<'_>, variables: &Map<String, Value>) -> Self {
        let lists = [input.tools, input.documents];
        let mut values = lists.into_iter().flatten().flatten();
        let mut maps = input.messages.iter().map(Message::fields).chain(input.variables).chain([variables]);
        if !values.any(has_mark) && !maps.any(map_has_mark) {
            return Self::numbered(0);
        }
        let all =
            serde_json::json!([input.messages, input.tools, input.documents, input.variables, variables]);
        Self::absent_from(&all.to_string())
    }

    /// Marks that do not occur in `haystack`.
    fn absent_from(haystack: &str) -> Self {
        let mut numbers = 0u64..;
        let free = numbers.find(|n| !haystack.contains(&format!("{FIRST}{n}")));
        Self::numbered(free.unwrap_or_default())
    }

    fn numbered(number: u64) -> Self {
        Self { open: format!("{FIRST}{number}{FIRST}"), close: format!("{FIRST}{number}{SECOND}") }
    }

    pub(crate) fn wrap(&self, body: &str) -> String {
        format!("{}{body}{}", self.open, self.close)
    }

    pub(crate) fn from_opening(open: &str) -> Option<Self> {
        let mark = open.strip_suffix(FIRST)?;
        Some(Self { open: open.to_owned(), close: format!("{mark}{SECOND}") })
    }

    pub(crate) fn opening(&self) -> &str {
        &self.open
    }

    /// Takes the marks out. Gives the text and the byte ranges that were marked, in order, without empty
    /// ones; a range inside another counts as part of it. `None` when a template pulled a pair apart.
    pub(crate) fn extract(&self, marked: &str) -> Option<(String, Vec<Range<usize>>)> {
        let mut text = String::with_capacity(marked.len());
        let mut spans = Vec::new();
        let mut depth = 0usize;
        let mut start = 0;
        let mut rest = marked;
        loop {
            let open = rest.find(&self.open);
            let close = rest.find(&self.close);
            match (open, close) {
                (Some(open), Some(close)) if open < close => {
                    text.push_str(&rest[..open]);
                    rest = &rest[open + self.open.len()..];
                    if depth == 0 {
                        start = text.len();
                    }
                    depth += 1;
                }
                (_, Some(close)) => {
                    text.push_str(&rest[..close]);
                    rest = &rest[close + self.close.len()..];
                    depth = depth.checked_sub(1)?;
                    if depth == 0 && start < text.len() {
                        spans.push(start..text.len());
                    }
                }
                (Some(_), None) => return None,
                (None, None) => break,
            }
        }
        text.push_str(rest);
        (depth == 0).then_some((text, spans))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_keep_their_white_space_control() {
        let (out, found) = rewrite("a {%- generation %}b{% endgeneration -%} c");
        assert!(found);
        assert_eq!(out, "a {%- with %}{% filter generation_span__ %}b{% endfilter %}{% endwith -%} c");
    }

    #[test]
    fn other_places_are_left_alone() {
        for source in [
            "{# {% generation %} #}",
            "{% raw %}{% generation %}{%- endraw -%}",
            "{{ '{% generation %}' }}",
            "{% set x = \"\\\"{% generation %}\" %}",
            "{% if generation %}{% endif %}",
            "{% generation",
            "{{ '",
            "{",
            "{%-%}",
        ] {
            assert_eq!(rewrite(source), (source.to_owned(), false), "{source}");
        }
    }

    #[test]
    fn marks_avoid_the_text_and_nest() {
        let marks = Marks::absent_from("x\u{fdd0}0y");
        assert!(!"x\u{fdd0}0y".contains(&marks.open));
        let inner = marks.wrap("b");
        let text = format!("é{}d{}", marks.wrap(&format!("a{inner}c")), marks.wrap(""));
        let text = text + &marks.wrap("e");
        assert_eq!(marks.extract(&text), Some(("éabcde".to_owned(), vec![2..5, 6..7])));
        assert_eq!(marks.extract(&marks.close), None);
        assert_eq!(marks.extract(&marks.open), None);
    }
}
