use super::{Content, RawRow, RawRows, read_whole};
use crate::{Error, Position, RowProblem};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::io::BufRead;
use std::path::Path;

/// How a document is cut into rows.
///
/// At headings (Markdown) and blank lines, as few pieces as fit; a paragraph that is too long is cut at line
/// ends, then anywhere. The pieces together are the document: nothing is lost or doubled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TextSplit {
    /// The most characters of a piece, at least 1. About four characters are a token.
    pub max_chars: usize,
}

/// A file as one row `{"text": ..}`, or as many when it is split.
pub(super) fn open(
    reader: Box<dyn BufRead + Send>,
    path: &Path,
    split: Option<TextSplit>,
    markdown: bool,
) -> Result<RawRows, Error> {
    let contents = match String::from_utf8(read_whole(reader, path)?) {
        Ok(text) if text.trim().is_empty() => vec![Content::Bad(RowProblem::BlankDocument)],
        Ok(text) => match split {
            None => vec![row(text)],
            Some(split) => pieces(&text, split.max_chars.max(1), markdown)
                .into_iter()
                .filter(|piece| !piece.trim().is_empty())
                .map(|piece| row(piece.to_owned()))
                .collect(),
        },
        Err(error) => {
            vec![Content::Bad(RowProblem::NotUtf8 { byte: error.utf8_error().valid_up_to() })]
        }
    };
    Ok(Box::new(
        contents
            .into_iter()
            .enumerate()
            .map(|(index, content)| Ok(RawRow { position: Position::part(index + 1), content })),
    ))
}

fn row(text: String) -> Content {
    let bytes = text.len();
    Content::Value(Value::Object(Map::from_iter([("text".to_owned(), Value::String(text))])), bytes)
}

/// Greedily joined blocks.
fn pieces(text: &str, max_chars: usize, markdown: bool) -> Vec<&str> {
    let mut pieces = Vec::new();
    let (mut start, mut end, mut chars) = (0, 0, 0);
    for block in blocks(text, markdown).into_iter().flat_map(|block| fitting(block, max_chars)) {
        let count = block.chars().count();
        if chars > 0 && chars + count > max_chars {
            pieces.push(&text[start..end]);
            (start, chars) = (end, 0);
        }
        end += block.len();
        chars += count;
    }
    if start < end {
        pieces.push(&text[start..end]);
    }
    pieces
}

/// Paragraphs with the blank lines after them; a heading begins a new one.
fn blocks(text: &str, markdown: bool) -> Vec<&str> {
    let mut blocks = Vec::new();
    let (mut start, mut at, mut after_blank) = (0, 0, false);
    for line in text.split_inclusive('\n') {
        let blank = line.trim().is_empty();
        let heading = markdown && line.starts_with('#');
        if at > start && !blank && (after_blank || heading) {
            blocks.push(&text[start..at]);
            start = at;
        }
        at += line.len();
        after_blank = blank;
    }
    if start < at {
        blocks.push(&text[start..at]);
    }
    blocks
}

/// The block itself when it fits, else its lines, else pieces of them.
fn fitting(block: &str, max_chars: usize) -> Vec<&str> {
    if block.chars().count() <= max_chars {
        return vec![block];
    }
    let mut parts = Vec::new();
    for mut line in block.split_inclusive('\n') {
        while let Some((cut, _)) = line.char_indices().nth(max_chars) {
            parts.push(&line[..cut]);
            line = &line[cut..];
        }
        if !line.is_empty() {
            parts.push(line);
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn markdown_is_cut_at_headings_and_paragraphs() {
        let text = "# A\n\none\ntwo\n\n## B\nthree\n\nfour\n";
        assert_eq!(pieces(text, 16, true), ["# A\n\none\ntwo\n\n", "## B\nthree\n\n", "four\n"]);
        assert_eq!(pieces(text, 1000, true), [text]);
    }

    proptest! {
        #[test]
        fn pieces_are_the_document(text in "[a-z#\n é]{0,200}", max in 1usize..40, markdown: bool) {
            let pieces = pieces(&text, max, markdown);
            prop_assert_eq!(pieces.concat(), text.as_str());
            prop_assert!(pieces.iter().all(|piece| (1..=max).contains(&piece.chars().count())));
        }
    }
}
