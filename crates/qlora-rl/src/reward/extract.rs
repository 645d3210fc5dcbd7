//! Where in a completion the answer stands.

use serde::{Deserialize, Serialize};

/// Where in a completion the answer stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Extract {
    /// All of it, without space around it.
    #[default]
    Whole,
    /// What the last `<answer>…</answer>` holds.
    Tag,
    /// What the last `\boxed{…}` holds.
    Boxed,
    /// The first number.
    FirstNumber,
    /// The last number.
    LastNumber,
}

impl Extract {
    /// The answer, if there is one.
    #[must_use]
    pub fn answer(self, completion: &str) -> Option<&str> {
        match self {
            Self::Whole => Some(completion.trim()),
            Self::Tag => {
                let start = completion.rfind("<answer>")? + "<answer>".len();
                let length = completion[start..].find("</answer>")?;
                Some(completion[start..start + length].trim())
            }
            Self::Boxed => boxed(completion),
            Self::FirstNumber => numbers(completion).next(),
            Self::LastNumber => numbers(completion).last(),
        }
    }
}

/// What the last `\boxed{…}` holds, braces within it balanced.
fn boxed(text: &str) -> Option<&str> {
    const OPEN: &str = "\\boxed{";
    let start = text.rfind(OPEN)? + OPEN.len();
    let mut depth = 1;
    for (offset, character) in text[start..].char_indices() {
        match character {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return Some(text[start..start + offset].trim());
        }
    }
    None
}

/// The numbers of a text: digits with an optional sign, thousands separators and fraction. A minus sign right after
/// a digit or letter is an operator.
fn numbers(text: &str) -> impl Iterator<Item = &str> {
    let bytes = text.as_bytes();
    let digit = move |i: usize| bytes.get(i).is_some_and(u8::is_ascii_digit);
    let mut at = 0;
    std::iter::from_fn(move || {
        while at < bytes.len() && !digit(at) {
            at += 1;
        }
        if at >= bytes.len() {
            return None;
        }
        let mut start = at;
        if start > 0 && bytes[start - 1] == b'-' && (start < 2 || !bytes[start - 2].is_ascii_alphanumeric()) {
            start -= 1;
        }
        while digit(at) || (at < bytes.len() && matches!(bytes[at], b',' | b'.') && digit(at + 1)) {
            at += 1;
        }
        Some(&text[start..at])
    })
}

/// A number as people write it: thousands separators, a currency or percent sign, space around it.
pub(crate) fn parse_number(text: &str) -> Option<f64> {
    let plain: String = text
        .trim()
        .trim_start_matches(['$', '€', '£'])
        .trim_end_matches(['%', '.', '€'])
        .chars()
        .filter(|c| !matches!(c, ',' | '_' | ' '))
        .collect();
    plain.parse().ok().filter(|number: &f64| number.is_finite())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_found_where_they_stand() {
        let text = "3 apples, then 1,234.5. <answer> -7 </answer> so \\boxed{\\frac{1}{2}} and 5-2";
        assert_eq!(Extract::Tag.answer(text), Some("-7"));
        assert_eq!(Extract::Boxed.answer(text), Some("\\frac{1}{2}"));
        assert_eq!(Extract::FirstNumber.answer(text), Some("3"));
        assert_eq!(Extract::LastNumber.answer(text), Some("2"));
        assert_eq!(Extract::LastNumber.answer("it is -12."), Some("-12"));
        assert_eq!(Extract::FirstNumber.answer("none"), None);
        assert_eq!(Extract::Tag.answer("<answer>open"), None);
        assert_eq!(Extract::Boxed.answer("\\boxed{open"), None);
        assert_eq!(Extract::Whole.answer("  x \n"), Some("x"));
    }

    #[test]
    fn numbers_are_read_as_people_write_them() {
        assert_eq!(parse_number(" $1,234.50 "), Some(1234.5));
        assert_eq!(parse_number("12%"), Some(12.0));
        assert_eq!(parse_number("-3"), Some(-3.0));
        assert_eq!(parse_number("three"), None);
        assert_eq!(parse_number("inf"), None);
    }
}
