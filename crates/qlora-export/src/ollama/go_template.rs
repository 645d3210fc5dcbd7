//! A chat format in the template language of Go, as Ollama executes it.

use super::chat_format::{ChatFormat, System, Turn};

/// The value of `TEMPLATE`. All text stands in string literals, so that no white space depends on trimming.
pub(super) fn go_template(format: &ChatFormat) -> String {
    let ChatFormat { start, no_system, system, user, assistant, answer } = format;
    let mut lines = Vec::new();
    if matches!(system, System::BeforeFirstUser(_)) {
        lines.push("{{- $said := false }}".to_owned());
    }
    if !start.is_empty() {
        lines.push(format!("{{{{- {} }}}}", quoted(start)));
    }
    if !no_system.is_empty() {
        lines.push(format!("{{{{- if not .System }}}}{}{{{{ end }}}}", literal(no_system)));
    }
    lines.push("{{- range $i, $_ := .Messages }}".to_owned());
    lines.push("{{- $last := eq (len (slice $.Messages $i)) 1 }}".to_owned());
    lines.push(format!("{{{{- if eq .Role \"user\" }}}}{}", user_turn(user, system)));
    if let System::Turn(Turn { before, after }) = system {
        let turn = format!("{}{{{{ .Content }}}}{}", literal(before), literal(after));
        lines.push(format!("{{{{- else if eq .Role \"system\" }}}}{turn}"));
    }
    let after = match literal(&assistant.after) {
        none if none.is_empty() => none,
        after => format!("{{{{ if not $last }}}}{after}{{{{ end }}}}"),
    };
    let before = literal(&assistant.before);
    lines.push(format!("{{{{- else if eq .Role \"assistant\" }}}}{before}{{{{ .Content }}}}{after}"));
    lines.push("{{- end }}".to_owned());
    if !answer.is_empty() {
        let answer = literal(answer);
        lines.push(format!("{{{{- if and $last (ne .Role \"assistant\") }}}}{answer}{{{{ end }}}}"));
    }
    lines.push("{{- end }}".to_owned());
    lines.join("\n")
}

/// A question, the first with the system message in front where that has no turn of its own.
fn user_turn(user: &Turn, system: &System) -> String {
    let (before, after) = (literal(&user.before), literal(&user.after));
    let System::BeforeFirstUser(said) = system else {
        return format!("{before}{{{{ .Content }}}}{after}");
    };
    let (said_before, said_after) = (literal(&said.before), literal(&said.after));
    format!(
        "{before}{{{{ if and $.System (not $said) }}}}{{{{ $said = true }}}}{said_before}{{{{ $.System }}}}\
         {said_after}{{{{ end }}}}{{{{ .Content }}}}{after}"
    )
}

/// An action that prints a text: `{{ "<|im_start|>user\n" }}`. Nothing for no text.
fn literal(text: &str) -> String {
    if text.is_empty() { String::new() } else { format!("{{{{ {} }}}}", quoted(text)) }
}

/// A string of Go.
fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            c if c.is_control() => out.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => out.push(c),
        }
    }
    out + "\""
}
