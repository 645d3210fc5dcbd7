//! Python's `json.dumps`, for the `tojson` filter.

use crate::python_text::float_repr;
use serde_json::Value;

/// The arguments of `json.dumps` that templates use.
#[derive(Debug, Default)]
pub(crate) struct Dumps {
    pub(crate) ensure_ascii: bool,
    /// The text of one level of indentation; `None` writes everything on one line.
    pub(crate) indent: Option<String>,
    /// Item separator and key separator.
    pub(crate) separators: Option<(String, String)>,
    pub(crate) sort_keys: bool,
}

impl Dumps {
    pub(crate) fn write(&self, value: &Value) -> String {
        let mut out = String::new();
        self.value(value, 0, &mut out);
        out
    }

    fn value(&self, value: &Value, depth: usize, out: &mut String) {
        match value {
            Value::Null => out.push_str("null"),
            Value::Bool(b) => out.push_str(if *b { "true" } else { "false" }),
            Value::Number(n) => match n.as_f64() {
                Some(x) if n.is_f64() => out.push_str(&float_repr(x)),
                _ => out.push_str(&n.to_string()),
            },
            Value::String(s) => self.string(s, out),
            Value::Array(items) => {
                self.container('[', ']', items, depth, out, |item, out| self.value(item, depth + 1, out));
            }
            Value::Object(fields) => {
                let mut entries: Vec<_> = fields.iter().collect();
                if self.sort_keys {
                    entries.sort_by_key(|(key, _)| *key);
                }
                let colon = self.separators.as_ref().map_or(": ", |(_, colon)| colon);
                self.container('{', '}', &entries, depth, out, |(key, value), out| {
                    self.string(key, out);
                    out.push_str(colon);
                    self.value(value, depth + 1, out);
                });
            }
        }
    }

    fn container<T>(
        &self,
        open: char,
        close: char,
        items: &[T],
        depth: usize,
        out: &mut String,
        item: impl Fn(&T, &mut String),
    ) {
        // Python's default item separator loses its space when the items stand on their own lines.
        let default = if self.indent.is_some() { "," } else { ", " };
        let comma = self.separators.as_ref().map_or(default, |(comma, _)| comma);
        out.push(open);
        for (i, x) in items.iter().enumerate() {
            if i > 0 {
                out.push_str(comma);
            }
            self.line(depth + 1, out);
            item(x, out);
        }
        if !items.is_empty() {
            self.line(depth, out);
        }
        out.push(close);
    }

    fn line(&self, depth: usize, out: &mut String) {
        if let Some(indent) = &self.indent {
            out.push('\n');
            out.extend(std::iter::repeat_n(indent.as_str(), depth));
        }
    }

    fn string(&self, s: &str, out: &mut String) {
        out.push('"');
        for c in s.chars() {
            match c {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                '\u{8}' => out.push_str("\\b"),
                '\u{c}' => out.push_str("\\f"),
                c if (c as u32) < 0x20 || (self.ensure_ascii && !(' '..='~').contains(&c)) => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        out.push_str(&format!("\\u{unit:04x}"));
                    }
                }
                c => out.push(c),
            }
        }
        out.push('"');
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn matches_json_dumps() {
        let value = json!({"b": [1, 2.5, 1e-7], "a": {"é🦀\u{7f}": "\"\\\n\u{1}"}, "c": [], "d": {}});
        assert_eq!(
            Dumps::default().write(&value),
            "{\"b\": [1, 2.5, 1e-07], \"a\": {\"é🦀\u{7f}\": \"\\\"\\\\\\n\\u0001\"}, \"c\": [], \"d\": {}}"
        );
        let sorted =
            Dumps { indent: Some("  ".into()), sort_keys: true, ensure_ascii: true, separators: None };
        assert_eq!(
            sorted.write(&value),
            "{\n  \"a\": {\n    \"\\u00e9\\ud83e\\udd80\\u007f\": \"\\\"\\\\\\n\\u0001\"\n  },\n  \"b\": [\n    1,\n    2.5,\
             \n    1e-07\n  ],\n  \"c\": [],\n  \"d\": {}\n}"
        );
        let tight = Dumps { separators: Some((",".into(), ":".into())), ..Dumps::default() };
        assert_eq!(tight.write(&json!({"a": [1, 2], "b": null})), "{\"a\":[1,2],\"b\":null}");
    }
}
