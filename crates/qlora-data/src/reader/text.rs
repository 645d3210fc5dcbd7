use super::{Content, MAX_ROW_BYTES, RawRow, RawRows, file_error, read_error, without_byte_order_mark};
use crate::{Error, Position, RowProblem};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::VecDeque;
use std::io::{self, BufRead, Read};
use std::path::{Path, PathBuf};

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

/// A file as one row `{"text": ..}`, or as many when it is split: then a piece is in memory at a time.
pub(super) fn open(
    reader: Box<dyn BufRead + Send>,
    path: &Path,
    split: Option<TextSplit>,
    markdown: bool,
) -> Result<RawRows, Error> {
    let reader = without_byte_order_mark(reader, path)?;
    let max_chars = split.map(|split| split.max_chars.max(1));
    Ok(Box::new(Document {
        reader,
        path: path.to_owned(),
        splitter: Splitter::new(max_chars.unwrap_or(usize::MAX), markdown),
        is_split: split.is_some(),
        read: 0,
        parts: 0,
        is_over: false,
    }))
}

/// The pieces of a document that are not blank.
struct Document<R> {
    reader: R,
    path: PathBuf,
    splitter: Splitter,
    is_split: bool,
    /// Bytes so far.
    read: usize,
    /// Rows so far.
    parts: usize,
    is_over: bool,
}

impl<R: BufRead> Document<R> {
    fn next_content(&mut self) -> Result<Option<Content>, Error> {
        loop {
            while let Some(piece) = self.splitter.ready.pop_front() {
                if !piece.trim().is_empty() {
                    return Ok(Some(row(piece)));
                }
            }
            if self.is_over {
                return Ok((self.parts == 0).then_some(Content::Bad(RowProblem::BlankDocument)));
            }
            let line = self.line().map_err(read_error(&self.path))?;
            if line.is_empty() {
                self.is_over = true;
                self.splitter.finish();
                continue;
            }
            match std::str::from_utf8(&line) {
                Ok(text) => self.splitter.push(text),
                Err(error) => {
                    self.is_over = true;
                    self.splitter.ready.clear();
                    let byte = self.read + error.valid_up_to();
                    return Ok(Some(Content::Bad(RowProblem::NotUtf8 { byte })));
                }
            }
            self.read += line.len();
            if self.splitter.held() > MAX_ROW_BYTES {
                return Err(self.too_large());
            }
        }
    }

    /// The next line; a very long one in parts, which end between characters.
    fn line(&mut self) -> io::Result<Vec<u8>> {
        let mut line = Vec::new();
        self.reader.by_ref().take(LINE_BYTES as u64).read_until(b'\n', &mut line)?;
        while line.len() >= LINE_BYTES
            && unfinished(&line)
            && self.reader.by_ref().take(1).read_to_end(&mut line)? > 0
        {}
        Ok(line)
    }

    fn too_large(&self) -> Error {
        let problem = if self.is_split {
            format!("a part is larger than {MAX_ROW_BYTES} bytes; lower `split.max_chars`")
        } else {
            format!(
                "larger than {MAX_ROW_BYTES} bytes, the most of a row; cut it by `split = {{ max_chars = N }}`"
            )
        };
        file_error(&self.path, problem)
    }
}

impl<R: BufRead> Iterator for Document<R> {
    type Item = Result<RawRow, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        let content = match self.next_content().transpose()? {
            Ok(content) => content,
            Err(error) => {
                // Nothing more, and no complaint of a blank document.
                (self.is_over, self.parts) = (true, self.parts + 1);
                self.splitter.ready.clear();
                return Some(Err(error));
            }
        };
        self.parts += 1;
        Some(Ok(RawRow { position: Position::part(self.parts), content }))
    }
}

/// The most bytes of a line that are looked at at a time.
const LINE_BYTES: usize = 1 << 20;

/// Whether the last character lacks bytes.
fn unfinished(bytes: &[u8]) -> bool {
    let end = &bytes[bytes.len().saturating_sub(3)..];
    let end = &end[end.iter().position(|byte| byte & 0xc0 != 0x80).unwrap_or(0)..];
    std::str::from_utf8(end).is_err_and(|error| error.error_len().is_none())
}

fn row(text: String) -> Content {
    let bytes = text.len();
    Content::Value(Value::Object(Map::from_iter([("text".to_owned(), Value::String(text))])), bytes)
}

/// Lines to blocks to pieces.
///
/// A block is a paragraph with the blank lines after it; a heading begins a new one. A block that is too long is taken
/// apart into its lines, and these into pieces. What comes of that is joined greedily.
struct Splitter {
    max_chars: usize,
    markdown: bool,
    /// Lines of the block so far, their characters, and whether it is taken apart already.
    block: String,
    block_chars: usize,
    is_long: bool,
    after_blank: bool,
    /// Whether the last line goes on.
    within_line: bool,
    piece: String,
    piece_chars: usize,
    ready: VecDeque<String>,
}

impl Splitter {
    fn new(max_chars: usize, markdown: bool) -> Self {
        Self {
            max_chars,
            markdown,
            block: String::new(),
            block_chars: 0,
            is_long: false,
            after_blank: false,
            within_line: false,
            piece: String::new(),
            piece_chars: 0,
            ready: VecDeque::new(),
        }
    }

    /// Bytes of text that no piece is ready with.
    fn held(&self) -> usize {
        self.block.len() + self.piece.len()
    }

    /// The next line, or a part of it.
    fn push(&mut self, line: &str) {
        let blank = line.trim().is_empty();
        if !self.within_line {
            let heading = self.markdown && line.starts_with('#');
            if !blank && (self.after_blank || heading) {
                self.end_block();
            }
        }
        self.after_blank = blank && (!self.within_line || self.after_blank);
        self.within_line = !line.ends_with('\n');
        self.block.push_str(line);
        self.block_chars += line.chars().count();
        if self.block_chars > self.max_chars {
            self.is_long = true;
        }
        if self.is_long {
            self.take_apart();
        }
    }

    fn finish(&mut self) {
        self.end_block();
        self.end_piece();
    }

    fn end_block(&mut self) {
        let block = std::mem::take(&mut self.block);
        if !block.is_empty() {
            self.join(&block, self.block_chars);
        }
        (self.block_chars, self.is_long) = (0, false);
    }

    /// Whole lines of the block, and as many characters as fit of longer ones; the rest waits.
    fn take_apart(&mut self) {
        let block = std::mem::take(&mut self.block);
        let mut rest = block.as_str();
        while let Some((part, chars)) = self.part(rest) {
            self.join(part, chars);
            rest = &rest[part.len()..];
        }
        self.block_chars = rest.chars().count();
        self.block = rest.to_owned();
    }

    /// The part that a text begins with: a line, or the most characters of one. `None` when more may belong to it.
    fn part<'a>(&self, text: &'a str) -> Option<(&'a str, usize)> {
        for (count, (at, c)) in text.char_indices().enumerate() {
            if count == self.max_chars {
                return Some((&text[..at], count));
            }
            if c == '\n' {
                return Some((&text[..=at], count + 1));
            }
        }
        None
    }

    fn join(&mut self, text: &str, chars: usize) {
        if self.piece_chars > 0 && self.piece_chars.saturating_add(chars) > self.max_chars {
            self.end_piece();
        }
        self.piece.push_str(text);
        self.piece_chars += chars;
    }

    fn end_piece(&mut self) {
        if !self.piece.is_empty() {
            self.ready.push_back(std::mem::take(&mut self.piece));
        }
        self.piece_chars = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pieces(text: &str, max_chars: usize, markdown: bool, line_bytes: usize) -> Vec<String> {
        let mut splitter = Splitter::new(max_chars, markdown);
        for line in text.split_inclusive('\n') {
            let mut rest = line;
            while !rest.is_empty() {
                let cut =
                    (line_bytes..rest.len()).find(|&at| rest.is_char_boundary(at)).unwrap_or(rest.len());
                splitter.push(&rest[..cut]);
                rest = &rest[cut..];
            }
        }
        splitter.finish();
        splitter.ready.into()
    }

    #[test]
    fn markdown_is_cut_at_headings_and_paragraphs() {
        let text = "# A\n\none\ntwo\n\n## B\nthree\n\nfour\n";
        assert_eq!(pieces(text, 16, true, 99), ["# A\n\none\ntwo\n\n", "## B\nthree\n\n", "four\n"]);
        assert_eq!(pieces(text, 1000, true, 99), [text]);
        // A paragraph that is too long, at line ends; a line that is too long, anywhere.
        assert_eq!(pieces("ab\ncd\n\nefghijk\nl", 4, false, 99), ["ab\n", "cd\n\n", "efgh", "ijk\n", "l"]);
    }

    proptest! {
        #[test]
        fn pieces_are_the_document(text in "[a-z#\n é]{0,200}", max in 1usize..40, markdown: bool) {
            let found = pieces(&text, max, markdown, 1000);
            prop_assert_eq!(found.concat(), text.as_str());
            prop_assert!(found.iter().all(|piece| (1..=max).contains(&piece.chars().count())));
            // How much of a line is seen at a time makes no difference, but for one that begins blank.
            let text = text.replace(' ', "x");
            prop_assert_eq!(pieces(&text, max, markdown, 1000), pieces(&text, max, markdown, 3));
        }

        #[test]
        fn characters_are_not_cut(text in "[a-zé你👩]{1,6}", cut: prop::sample::Index) {
            let cut = cut.index(text.len() + 1);
            prop_assert_eq!(unfinished(&text.as_bytes()[..cut]), !text.is_char_boundary(cut));
        }
    }
}
