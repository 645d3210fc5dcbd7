//! Lines of a JSONL file, with their numbers.

use crate::RowProblem;
use serde_json::Value;
use std::io::{self, BufRead};

/// A line that is not blank.
pub(crate) struct Line {
    /// From 1, blank lines counted.
    pub(crate) number: usize,
    bytes: Vec<u8>,
}

impl Line {
    pub(crate) fn parse(&self) -> Result<Value, RowProblem> {
        let text = std::str::from_utf8(&self.bytes)
            .map_err(|error| RowProblem::NotUtf8 { byte: error.valid_up_to() })?;
        serde_json::from_str(text).map_err(|source| RowProblem::Json { source })
    }
}

/// Reads a file piece by piece.
pub(crate) struct Lines<R> {
    reader: R,
    number: usize,
    at_end: bool,
}

impl<R: BufRead> Lines<R> {
    pub(crate) fn new(reader: R) -> Self {
        Self { reader, number: 0, at_end: false }
    }

    /// Whether everything was read.
    pub(crate) fn at_end(&self) -> bool {
        self.at_end
    }

    /// The next lines that are not blank, about `bytes` of them.
    pub(crate) fn read_chunk(&mut self, bytes: usize) -> io::Result<Vec<Line>> {
        const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";
        let mut lines = Vec::new();
        let mut read = 0;
        while read < bytes {
            let mut line = Vec::new();
            let length = self.reader.read_until(b'\n', &mut line)?;
            if length == 0 {
                self.at_end = true;
                break;
            }
            self.number += 1;
            read += length;
            if self.number == 1 && line.starts_with(BYTE_ORDER_MARK) {
                line.drain(..BYTE_ORDER_MARK.len());
            }
            if !line.iter().all(u8::is_ascii_whitespace) {
                lines.push(Line { number: self.number, bytes: line });
            }
        }
        Ok(lines)
    }
}
