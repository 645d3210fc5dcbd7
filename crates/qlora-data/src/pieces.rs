use crate::Sample;
use qlora_text::{TokenStream, Tokenizer};
use serde::Serialize;

/// Some text of a sample, and how much it counts.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Piece {
    /// The text; that of a row of ids without a tokenizer are the ids.
    pub text: String,
    /// Its tokens: one, or as many as share a character.
    pub ids: Vec<u32>,
    /// The weight of the loss on it.
    pub weight: f32,
    /// Whether it is a special token.
    pub special: bool,
}

/// A sample as the model sees it, token by token. Together the texts are the decoded ids.
///
/// # Errors
/// An id that the tokenizer does not know.
pub fn pieces(sample: &Sample, tokenizer: Option<&Tokenizer>) -> Result<Vec<Piece>, qlora_text::Error> {
    let mut pieces: Vec<Piece> = Vec::new();
    let tokens = sample.ids.iter().copied().zip(sample.weights.iter().copied());
    let Some(tokenizer) = tokenizer else {
        let piece = |(id, weight)| Piece { text: format!("{id} "), ids: vec![id], weight, special: false };
        return Ok(tokens.map(piece).collect());
    };
    let mut stream = TokenStream::new(tokenizer, false);
    let mut ids = Vec::new();
    let mut last_weight = 0.0;
    for (id, weight) in tokens {
        ids.push(id);
        last_weight = weight;
        let text = stream.push(id)?;
        if !text.is_empty() {
            let special = tokenizer.is_special(id);
            pieces.push(Piece { text, ids: std::mem::take(&mut ids), weight, special });
        }
    }
    let text = stream.finish()?;
    if !ids.is_empty() {
        pieces.push(Piece { text, ids, weight: last_weight, special: false });
    }
    Ok(pieces)
}

/// A text in which white space and invisible characters can be seen: `·` for a space, `⏎` before a line end, `⇥` for a
/// tab, and code points for the rest.
#[must_use]
pub fn visible(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            ' ' => shown.push('·'),
            '\n' => shown.push_str("⏎\n"),
            '\t' => shown.push('⇥'),
            '\r' => shown.push('␍'),
            '\u{200d}' | '\u{200c}' => shown.push(c),
            '\u{200b}'..='\u{200f}'
            | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{2069}'
            | '\u{feff}'
            | '\u{a0}' => {
                shown.push_str(&format!("⟨{:04X}⟩", c as u32));
            }
            c if c.is_control() => shown.push_str(&format!("⟨{:04X}⟩", c as u32)),
            c => shown.push(c),
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_seen_is_shown() {
        assert_eq!(visible(" a\tb\r\n\u{1b}[31m\u{feff}é\u{202e}"), "·a⇥b␍⏎\n⟨001B⟩[31m⟨FEFF⟩é⟨202E⟩");
    }

    #[test]
    fn ids_stand_for_themselves_without_a_tokenizer() {
        let found = pieces(&Sample::new(vec![5, 6], vec![0.0, 1.0], 1), None).unwrap();
        assert_eq!(found[1], Piece { text: "6 ".into(), ids: vec![6], weight: 1.0, special: false });
    }
}
