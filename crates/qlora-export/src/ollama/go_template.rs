//! A chat format in the template language of Go, as Ollama executes it.

use super::chat_format::{ChatFormat, System, Turn};

/// The value of `TEMPLATE`. All text stands in string literals, so that no white space depends on trimming.
pub(super) fn go_template(format: &ChatFormat) -> String {
    let ChatFormat { system, user, assistant, .. } = format;
    let turn =
        |Turn { before, after }: &Turn| format!("{}{{{{ .Content }}}}{}", literal(before), literal(after));
    let (system_turn, user_turn, prelude) = match system {
        System::Turn(system) => (turn(system), turn(user), ""),
        System::BeforeFirstUser(after) => (
            String::new(),
            format!(
                "{}{{{{ if and $.System (not $said) }}}}{{{{ $said = true }}}}{{{{ $.System }}}}{}{{{{ end }}}}\
                 {{{{ .Content }}}}{}",
                literal(user.before),
                literal(after),
                literal(user.after)
            ),
            "{{- $said := false }}\n",
        ),
    };
    let system_turn = match system_turn.is_empty() {
        true => String::new(),
        false => format!("{{{{- else if eq .Role \"system\" }}}}{system_turn}\n"),
    };
    let (before, after, answer) =
        (literal(assistant.before), literal(assistant.after), literal(assistant.before));
    format!(
        "{prelude}{{{{- range $i, $_ := .Messages }}}}\n\
         {{{{- $last := eq (len (slice $.Messages $i)) 1 }}}}\n\
         {{{{- if eq .Role \"user\" }}}}{user_turn}\n\
         {system_turn}\
         {{{{- else if eq .Role \"assistant\" }}}}{before}{{{{ .Content }}}}{{{{ if not $last }}}}{after}{{{{ end }}}}\n\
         {{{{- end }}}}\n\
         {{{{- if and $last (ne .Role \"assistant\") }}}}{answer}{{{{ end }}}}\n\
         {{{{- end }}}}"
    )
}

/// An action that prints a text: `{{ "<|im_start|>user\n" }}`. Nothing for no text.
fn literal(text: &str) -> String {
    if text.is_empty() {
        return String::new();
    }
    // Backslash, quotation mark and line break are escaped alike in Go; the formats hold nothing else.
    format!("{{{{ {text:?} }}}}")
}
