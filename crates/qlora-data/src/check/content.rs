//! What can be said of a row from its text alone.

use super::FindingKind;
use crate::Row;
use crate::responses::ASSISTANT;
use qlora_text::Message;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// Something about a row, with the words that say where in it.
pub(super) type Note = (FindingKind, String);

/// The texts of a row, as they stand in the file.
fn texts(row: &Row) -> Vec<(String, &str)> {
    match row {
        Row::Conversation { messages, .. } => messages
            .iter()
            .enumerate()
            .filter_map(|(i, message)| Some((format!("message {i}"), message.text()?)))
            .collect(),
        Row::Text { prompt, completion } => {
            vec![("prompt".to_owned(), prompt), ("completion".to_owned(), completion)]
        }
        Row::Tokens { .. } => Vec::new(),
    }
}

/// A text that is equal exactly when two rows say the same; `None` for rows of token ids.
pub(super) fn whole(row: &Row) -> Option<String> {
    match row {
        Row::Conversation { messages, tools, .. } => {
            let mut text = spoken(messages);
            if let Some(tools) = tools {
                let _ = write!(text, "{}", Value::from(tools.clone()));
            }
            Some(text)
        }
        Row::Text { prompt, completion } => Some(format!("{prompt}\u{1f}{completion}")),
        Row::Tokens { .. } => None,
    }
}

/// What precedes the last answer; `None` where nothing does.
pub(super) fn prompt(row: &Row) -> Option<String> {
    let prompt = match row {
        Row::Conversation { messages, .. } => {
            let last = messages.iter().rposition(|message| message.role() == ASSISTANT)?;
            spoken(&messages[..last])
        }
        Row::Text { prompt, .. } => prompt.clone(),
        Row::Tokens { .. } => return None,
    };
    (!prompt.trim().is_empty()).then_some(prompt)
}

fn spoken(messages: &[Message]) -> String {
    let mut text = String::new();
    for message in messages {
        let _ = match (message.text(), message.get("tool_calls")) {
            (Some(content), None) => writeln!(text, "{}\u{1f}{content}", message.role()),
            _ => writeln!(text, "{}", serde_json::json!(message)),
        };
    }
    text
}

/// Roles, empty turns and odd characters.
pub(super) fn notes(row: &Row) -> Vec<Note> {
    let mut notes = Vec::new();
    if let Row::Conversation { messages, .. } = row {
        notes.extend(role_order(messages).map(|what| (FindingKind::RoleOrder, what)));
        let empty = messages.iter().position(|message| {
            message.text().is_some_and(|text| text.trim().is_empty()) && message.get("tool_calls").is_none()
        });
        if let Some(i) = empty {
            notes
                .push((FindingKind::EmptyTurn, format!("message {i} ({}) says nothing", messages[i].role())));
        }
    }
    let texts = texts(row);
    if let Some((place, odd)) = texts.iter().find_map(|(place, text)| Some((place, odd_characters(text)?))) {
        notes.push((FindingKind::OddCharacters, format!("{place}: {odd}")));
    }
    notes
}

/// Texts at whose edges the rendered conversation lost white space.
pub(super) fn trimmed(row: &Row, rendered: &str) -> Option<Note> {
    let Row::Conversation { messages, .. } = row else { return None };
    let lost = |message: &Message| {
        message.text().is_some_and(|text| {
            let kept = text.trim();
            kept.len() != text.len()
                && !kept.is_empty()
                && !rendered.contains(text)
                && rendered.contains(kept)
        })
    };
    let i = messages.iter().position(lost)?;
    let what =
        format!("message {i} ({}): the chat template cuts white space at its edges", messages[i].role());
    Some((FindingKind::WhitespaceLost, what))
}

/// The first thing about the order of roles that templates and models do not expect.
fn role_order(messages: &[Message]) -> Option<String> {
    let mut before = "";
    for (i, message) in messages.iter().enumerate() {
        let role = message.role();
        let wrong = match (before, role) {
            (_, "system" | "developer") if i > 0 => "a system message after the first message",
            ("user", "user") => "two messages of the user in a row",
            (ASSISTANT, ASSISTANT) => "two messages of the assistant in a row",
            ("" | "system" | "developer", ASSISTANT) => "the assistant speaks before the user",
            ("" | "system" | "developer" | "user", "tool" | "ipython" | "function") => {
                "a tool's answer that no call precedes"
            }
            (_, "system" | "developer" | "user" | ASSISTANT | "tool" | "ipython" | "function") => {
                before = role;
                continue;
            }
            _ => return Some(format!("message {i}: the role {role:?}, which chat templates do not know")),
        };
        return Some(format!("message {i}: {wrong}"));
    }
    (before == "user" && messages.len() > 1)
        .then(|| format!("message {}: the last question has no answer", messages.len() - 1))
}

/// The kinds of characters in a text that are seldom meant, and how often each occurs.
fn odd_characters(text: &str) -> Option<String> {
    // Almost all text is printable ASCII with line ends.
    if text.bytes().all(|byte| matches!(byte, b' '..=b'~' | b'\n' | b'\t')) {
        return None;
    }
    let mut kinds: BTreeMap<&str, (usize, char)> = BTreeMap::new();
    let mut before = ' ';
    for c in text.chars() {
        let kind = match c {
            '\u{fffd}' => Some("replacement characters (the file was decoded wrongly)"),
            '\r' => Some("carriage returns"),
            '\n' | '\t' => None,
            '\0'..='\u{1f}' | '\u{7f}'..='\u{9f}' => match before {
                'Ã' | 'Â' | 'â' if c >= '\u{80}' => Some("letters of UTF-8 read as Latin-1"),
                _ => Some("control characters"),
            },
            '€' if before == 'â' => Some("letters of UTF-8 read as Latin-1"),
            '\u{a0}'..='\u{bf}' if before == 'Ã' => Some("letters of UTF-8 read as Latin-1"),
            '\u{200b}' | '\u{2060}' | '\u{feff}' => Some("invisible characters"),
            '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => Some("characters that turn the direction"),
            '\u{2028}' | '\u{2029}' => Some("Unicode line separators"),
            '\u{e000}'..='\u{f8ff}' => Some("characters of private use"),
            _ => None,
        };
        if let Some(kind) = kind {
            kinds.entry(kind).or_insert((0, c)).0 += 1;
        }
        before = c;
    }
    let words: Vec<String> = kinds
        .into_iter()
        .map(|(kind, (count, first))| format!("{count} {kind} (U+{:04X})", first as u32))
        .collect();
    (!words.is_empty()).then(|| words.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_of_roles() {
        let order = |roles: &str| {
            let role = |c| match c {
                's' => "system",
                'u' => "user",
                'a' => "assistant",
                't' => "tool",
                _ => "human",
            };
            role_order(&roles.chars().map(|c| Message::new(role(c), "x")).collect::<Vec<_>>())
        };
        for fine in ["ua", "sua", "uaua", "uatta", "uata", "u"] {
            assert_eq!(order(fine), None, "{fine}");
        }
        for (roles, words) in [
            ("au", "message 0: the assistant speaks before the user"),
            ("sa", "message 1: the assistant speaks before the user"),
            ("uua", "message 1: two messages of the user in a row"),
            ("uaa", "message 2: two messages of the assistant in a row"),
            ("uasua", "message 2: a system message after the first message"),
            ("ut", "message 1: a tool's answer that no call precedes"),
            ("uau", "message 2: the last question has no answer"),
            ("ha", "message 0: the role \"human\""),
        ] {
            assert!(
                order(roles).is_some_and(|found| found.starts_with(words)),
                "{roles}: {:?}",
                order(roles)
            );
        }
    }

    #[test]
    fn characters_that_are_seldom_meant() {
        for fine in ["plain\n\ttext", "naïve Ångström 你好 👩‍👩‍👧", "Ã la carte", "50 €", "नमस्ते\u{200d}"]
        {
            assert_eq!(odd_characters(fine), None, "{fine:?}");
        }
        for (text, words) in [
            ("a\u{fffd}\u{fffd}", "2 replacement characters"),
            ("line\r\nline", "1 carriage returns (U+000D)"),
            ("cafÃ©", "UTF-8 read as Latin-1"),
            ("itâ€™s", "UTF-8 read as Latin-1"),
            ("\u{feff}x\u{200b}", "2 invisible characters (U+FEFF)"),
            ("\0", "1 control characters (U+0000)"),
            ("\u{202e}x", "turn the direction"),
        ] {
            let found = odd_characters(text).unwrap();
            assert!(found.contains(words), "{text:?}: {found}");
        }
    }
}
