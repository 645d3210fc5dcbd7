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

/// The numbers of a text: digits with an optional sign, thousands separators and fraction. A comma separates
/// thousands only before groups of exactly three digits: `1,234` is a number, `3,4` and `12,34` are two. A minus sign
/// right after a digit or letter is an operator.
fn numbers(text: &str) -> impl Iterator<Item = &str> {
    let bytes = text.as_bytes();
    let mut at = 0;
    std::iter::from_fn(move || {
        at += bytes[at..].iter().position(u8::is_ascii_digit)?;
        let mut start = at;
        if start > 0 && bytes[start - 1] == b'-' && (start < 2 || !bytes[start - 2].is_ascii_alphanumeric()) {
            start -= 1;
        }
        at = number_end(bytes, at);
        Some(&text[start..at])
    })
}

/// Where a number ends whose first digit is at `start`.
fn number_end(bytes: &[u8], start: usize) -> usize {
    let digits = |from: usize| bytes[from..].iter().take_while(|byte| byte.is_ascii_digit()).count();
    let mut end = start + digits(start);
    if end - start <= 3 {
        while bytes.get(end) == Some(&b',') && digits(end + 1) == 3 {
            end += 4;
        }
    }
    if bytes.get(end) == Some(&b'.') && digits(end + 1) > 0 {
        end += 1 + digits(end + 1);
    }
    end
}

/// A number as people write it: thousands separators, a currency or percent sign, space around it.
pub(crate) fn parse_number(text: &str) -> Option<f64> {
    let text = text.trim().trim_start_matches(['$', '€', '£']).trim_end_matches(['%', '.', '€']).trim();
    let (sign, digits) = match text.strip_prefix('-') {
        Some(digits) => ("-", digits.trim_start()),
        None => ("", text),
    };
    let whole = digits.find(['.', 'e', 'E']).unwrap_or(digits.len());
    let (whole, rest) = digits.split_at(whole);
    let plain = format!("{sign}{}{rest}", without_separators(whole)?);
    plain.parse().ok().filter(|number: &f64| number.is_finite())
}

/// The digits of a whole number; `None` where a separator stands elsewhere than before groups of three.
fn without_separators(whole: &str) -> Option<String> {
    let groups: Vec<&str> = whole.split([',', '_', ' ']).collect();
    let is_grouped = groups.len() == 1
        || ((1..=3).contains(&groups[0].len()) && groups[1..].iter().all(|group| group.len() == 3));
    is_grouped.then(|| groups.concat())
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
        assert_eq!(parse_number("- $5"), None);
        assert_eq!(parse_number("$ -1 234 567.5"), Some(-1_234_567.5));
        assert_eq!(parse_number("1e3"), Some(1000.0));
        assert_eq!(["3,4", "12,34", "1234,567", "1,2345", ",5", "1.5,000"].map(parse_number), [None; 6]);
    }

    #[test]
    fn a_comma_belongs_to_a_number_only_before_three_digits() {
        let all = |text| numbers(text).collect::<Vec<_>>().join(" ");
        assert_eq!(all("3,4 and 12,34 and 1,2345"), "3 4 12 34 1 2345");
        assert_eq!(all("1,234, 1,234,567.25, -12,345."), "1,234 1,234,567.25 -12,345");
        assert_eq!(all("1234,567 1,234,56 2.5,000 1.2.3"), "1234 567 1,234 56 2.5 000 1.2 3");
        assert_eq!(all("7, 8,é,9"), "7 8 9");
        assert_eq!(Extract::LastNumber.answer("the pair 3,4"), Some("4"));
        assert_eq!(Extract::FirstNumber.answer("1,"), Some("1"));
    }
}
