//! JSON that must not fill the memory.

use crate::RowProblem;
use serde_json::Value;

/// The most values of a row. Each takes some 32 bytes, however short it is written: 64 MiB of `0,0,0,..` would be more
/// than a gigabyte.
const MAX_VALUES: usize = 4 << 20;
/// What an entry of an object takes beyond its value, in values.
const ENTRY: usize = 3;

/// The value that a text says.
pub(crate) fn parse(text: &str) -> Result<Value, RowProblem> {
    // A value has at least a byte and a comma.
    if text.len() > 2 * MAX_VALUES && has_too_many_values(text.as_bytes()) {
        return Err(RowProblem::TooManyValues { limit: MAX_VALUES });
    }
    serde_json::from_str(text).map_err(|source| RowProblem::Json { source })
}

fn has_too_many_values(text: &[u8]) -> bool {
    let (mut values, mut in_string, mut escaped) = (0, false, false);
    for &byte in text {
        if in_string {
            (in_string, escaped) = (escaped || byte != b'"', !escaped && byte == b'\\');
            continue;
        }
        match byte {
            b'"' => in_string = true,
            b',' | b'[' | b'{' => values += 1,
            b':' => values += ENTRY,
            _ => {}
        }
        if values > MAX_VALUES {
            return true;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_lists_are_refused_before_they_are_made() {
        let list = |values: usize, one: &str| format!("[{}]", vec![one; values].join(","));
        for (values, one) in
            [(MAX_VALUES + 1, "0"), (MAX_VALUES / 4 + 1, "{\"a\":0}"), (MAX_VALUES + 1, "[]")]
        {
            let problem = parse(&list(values, one)).unwrap_err().to_string();
            assert!(problem.starts_with("more than 4194304 values"), "{problem}");
        }
        // Text is no list, whatever it is of; many values in few bytes are no danger.
        let text = format!("\"{}\"", ",\\\"".repeat(MAX_VALUES + 1));
        assert!(parse(&text).unwrap().is_string());
        assert!(parse(&list(1000, "0")).unwrap().is_array());
    }
}
