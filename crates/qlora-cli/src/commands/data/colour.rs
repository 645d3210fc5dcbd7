//! Tokens on a terminal: coloured by weight, or marked where there are no colours.

use std::fmt::Write as _;
use std::io::IsTerminal as _;

use qlora_core::data::{Piece, visible};

/// Whether stdout takes colours, and nobody asked for none (<https://no-color.org>).
pub(super) fn wanted() -> bool {
    std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// Trained text green, yellow where it weighs other than 1, the rest dim; special tokens underlined.
pub(super) fn coloured(pieces: &[Piece]) -> String {
    let mut text = String::new();
    for Piece { text: piece, weight, special, .. } in pieces {
        let colour = match *weight {
            0.0 => "2",
            1.0 => "32",
            _ => "33",
        };
        let underline = if *special { ";4" } else { "" };
        // A colour ends with its line: pagers forget it there.
        for (i, line) in visible(piece).split('\n').enumerate() {
            if i > 0 {
                text.push('\n');
            }
            if !line.is_empty() {
                let _ = write!(text, "\x1b[{colour}{underline}m{line}\x1b[0m");
            }
        }
    }
    text
}

/// Trained text in `⟦..⟧`, with its weight where that is not 1.
pub(super) fn marked(pieces: &[Piece]) -> String {
    let mut text = String::new();
    for run in pieces.chunk_by(|a, b| a.weight == b.weight) {
        let shown: String = run.iter().map(|piece| visible(&piece.text)).collect();
        let _ = match run[0].weight {
            0.0 => write!(text, "{shown}"),
            1.0 => write!(text, "⟦{shown}⟧"),
            weight => write!(text, "⟦{weight}: {shown}⟧"),
        };
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(text: &str, weight: f32, special: bool) -> Piece {
        Piece { text: text.to_owned(), ids: vec![1], weight, special }
    }

    #[test]
    fn trained_text_is_told_apart() {
        let pieces = [
            piece("a b\n", 0.0, false),
            piece("\u{1b}c", 1.0, false),
            piece("<e>", 1.0, true),
            piece("d", 0.5, false),
        ];
        assert_eq!(marked(&pieces), "a·b⏎\n⟦⟨001B⟩c<e>⟧⟦0.5: d⟧");
        assert_eq!(
            coloured(&pieces),
            "\x1b[2ma·b⏎\x1b[0m\n\x1b[32m⟨001B⟩c\x1b[0m\x1b[32;4m<e>\x1b[0m\x1b[33md\x1b[0m"
        );
    }
}
