use super::{BYTE_ORDER_MARK, Content, MAX_ROW_BYTES, RawRow, read_error};
use crate::{Error, Position, RowProblem};
use std::io::{self, BufRead};
use std::path::{Path, PathBuf};

/// Lines that are not blank, one JSON object each.
pub(crate) struct Lines<R> {
    reader: R,
    path: PathBuf,
    number: usize,
    failed: bool,
}

impl<R: BufRead> Lines<R> {
    pub(super) fn new(reader: R, path: &Path) -> Self {
        Self { reader, path: path.to_owned(), number: 0, failed: false }
    }

    /// The next line without its end, or `None` at the end of the file. The flag: it was too large.
    fn line(&mut self) -> io::Result<Option<(Vec<u8>, bool)>> {
        let (mut line, mut large, mut any) = (Vec::new(), false, false);
        loop {
            let buffer = self.reader.fill_buf()?;
            if buffer.is_empty() {
                return Ok(any.then_some((line, large)));
            }
            any = true;
            let end = buffer.iter().position(|&byte| byte == b'\n');
            let length = end.map_or(buffer.len(), |at| at + 1);
            if line.len() + length > MAX_ROW_BYTES {
                large = true;
                line = Vec::new();
            }
            if !large {
                line.extend_from_slice(&buffer[..end.unwrap_or(length)]);
            }
            self.reader.consume(length);
            if end.is_some() {
                return Ok(Some((line, large)));
            }
        }
    }
}

impl<R: BufRead> Iterator for Lines<R> {
    type Item = Result<RawRow, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        while !self.failed {
            let (mut bytes, large) = match self.line() {
                Ok(line) => line?,
                Err(source) => {
                    self.failed = true;
                    return Some(Err(read_error(&self.path)(source)));
                }
            };
            self.number += 1;
            if self.number == 1 && bytes.starts_with(BYTE_ORDER_MARK) {
                bytes.drain(..BYTE_ORDER_MARK.len());
            }
            let content = if large {
                Content::Bad(RowProblem::TooLarge { limit: MAX_ROW_BYTES })
            } else if bytes.iter().all(u8::is_ascii_whitespace) {
                continue;
            } else {
                Content::Json(bytes)
            };
            return Some(Ok(RawRow { position: Position::line(self.number), content }));
        }
        None
    }
}
